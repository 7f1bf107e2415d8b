"""The `evaluate` stage: the best weights, the test split once, maps and tables on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from infnet_jax import tasks
from infnet_jax.clinic.imaging import pictures
from infnet_jax.data import batches as data
from infnet_jax.evaluation import metrics, networks
from infnet_jax.evaluation.thresholds import Unseen, cross_validated
from infnet_jax.files import write_csv
from infnet_jax.runs.workdir import write_json
from infnet_jax.tasks import multi, normalise, segment

CASES = ("best", "median", "worst")


def evaluate(
    config: ConfigDict,
    *,
    workdir: Path,
    test: data.Source,
    train: data.Source,
    statistics: tuple[float, float],
    unseen: Unseen | None = None,
    thresholds: Mapping[str, float] | None = None,
    alone: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """Evaluates the last network that a workdir trained (`segment` or `multi`) on a test split.

    Its weights are those of `networks.load_evaluated`; the maps of an ensemble are averaged. Writes
    `evaluation.json`, `evaluation.csv` (a row a slice), `predictions/[<class>/]<id>.png` (8-bit
    probabilities at the slice's own size), `masks/<id>.png` (labels, with a palette) and, for the
    figures, `evaluate/<class>.npz`.

    Args:
      test: examples with masks; for `multi` with a `prior` too.
      train: examples whose masks make the floor.
      unseen: training slices by networks of other folds, for the cross-validated Dice.
      thresholds: of the masks, as `networks.mark` takes them; None: `evaluate.threshold`.
      alone: class -> threshold at which its map is cut by itself, and Dice, of
        `thresholds.choose_alone`.

    Returns:
      What `evaluation.json` holds: `weights`, `thresholds`, and in `classes` for `infection` (or
      `lung`), or for `ggo` and `consolidation`, the `toolbox` and `empty_aware` summaries of the
      probabilities, both of the `masks`, and the `floors`, and with `alone` both of the map `cut`,
      its `threshold` and its `cross_validated` Dice at the network's size; with `unseen` also
      `cross_validated`, a class's Dice of the masks, empty-aware.
    """
    part, ensemble = networks.load_evaluated(config, workdir)
    run = networks.make_sweep(tasks.last_trained(config), config, statistics)
    maps = [run(weights, test) for weights in ensemble]
    maps = [np.mean(views, axis=0) for views in zip(*maps, strict=True)]
    cases, fitted_cases = list(data.examples(test)), list(data.examples(train))
    maps = [networks.full_size(m, c["mask"].shape[:2]) for m, c in zip(maps, cases, strict=True)]
    channels = networks.classes(config)
    thresholds = thresholds or dict.fromkeys(channels, config.evaluate.threshold)
    masks = [networks.mark(m, thresholds) for m in maps]
    result: dict[str, Any] = {"weights": part, "thresholds": dict(thresholds), "classes": {}}
    rows = [{"id": case["id"]} for case in cases]
    for label, (name, channel) in enumerate(channels.items(), start=1):
        probs = [m if channel is None else m[..., channel] for m in maps]
        found = [mask == label for mask in masks]
        truths, fitted = ([_marked(c, channel) for c in some] for some in (cases, fitted_cases))
        of_probs = _records(config, probs, truths)
        of_masks = _records(config, [f.astype(np.float32) for f in found], truths)
        result["classes"][name] = {
            **_readings(of_probs),
            "masks": _readings(of_masks),
            "floors": metrics.floors(fitted, truths),
        }
        if alone:
            at, unseen_dice = alone[name]
            cut = [(p >= np.float32(at)).astype(np.float32) for p in probs]
            result["classes"][name]["cut"] = {
                "threshold": at,
                "cross_validated": unseen_dice,
                **_readings(_records(config, cut, truths)),
            }
        dice = [metrics.threshold_scores(r, "none", "empty_aware")["dice"] for r in of_masks]
        for row, record, of_mask in zip(rows, of_probs, of_masks, strict=True):
            row |= metrics.slice_scores(name, record, of_mask)
        if jax.process_index() == 0:
            _write_maps(workdir / "predictions" / ("" if channel is None else name), cases, probs)
            kept = workdir / "evaluate" / f"{name}.npz"
            _keep_cases(kept, cases, truths, found, probs, dice)
    if unseen:
        result["cross_validated"] = cross_validated(unseen, thresholds)
    if jax.process_index() == 0:
        _write_masks(workdir / "masks", cases, masks)
        write_csv(workdir / "evaluation.csv", rows)
        write_json(workdir / "evaluation.json", result)
    return result


def losses(
    config: ConfigDict, *, workdir: Path, test: data.Source, statistics: tuple[float, float]
) -> dict[str, list[float]]:
    """Losses on each slice of a test split, at the network's own size; of an ensemble the mean.

    Args:
      test: as `evaluate` takes it.

    Returns:
      One value a slice for each definition. `segment`: `total` (eq. 5, boundary-weighted), its
      parts `coarse`, `s32`, `s16`, `s8` (eq. 4 of each map; a U-Net has `region` alone) and `edge`.
      `multi`: `total`, and `entropy` and `dice` where they are its parts, of the network before a
      prior is averaged with it. Both: `distance`, the mean of |logit - truth| over pixels and
      maps, which is what one evaluator of the paper's authors calls the loss.
    """
    stage = tasks.last_trained(config)
    section, norm = config[stage], tasks.make_norm(config, statistics)
    _, ensemble = networks.load_evaluated(config, workdir)
    with_prior = stage == "multi" and tasks.prior_use(config) == "input"
    net = tasks.make_multi_net(config) if stage == "multi" else tasks.make_net(config)
    # The rows of a table must share their definition, whatever each was trained with.
    head = {"head": section.loss.head} if stage == "multi" else {}
    objective = (multi if stage == "multi" else segment).make_loss(**head)

    def measure(variables: dict, batch: Mapping) -> dict[str, jax.Array]:
        image = batch["image"].astype(jnp.float32) / 255.0
        if stage == "multi":
            x, mask = multi.network_input(image, batch.get("prior"), norm), batch["mask"]
            maps, truth = ["logits"], jax.nn.one_hot(mask[..., 0], multi.CLASSES)
        else:
            x, mask = normalise.network_input(image, norm), (batch["mask"] > 0).astype(jnp.float32)
            maps, truth = segment.MAPS, mask
        outputs = net.apply(variables, x, train=False)
        maps = [name for name in maps if name in outputs] or ["logits"]  # a U-Net has the one
        total, parts = objective(outputs, mask)
        distance = jnp.stack([jnp.abs(outputs[name] - truth).mean() for name in maps]).mean()
        return {"total": total, **parts, "distance": distance}

    step, found = jax.jit(measure), {}
    fields = ("image", "mask", "prior") if with_prior else ("image", "mask")
    for batch in data.eval_batches(test, None, batch_size=1, size=section.size, fields=fields):
        each = [step(weights, {field: batch[field] for field in fields}) for weights in ensemble]
        for name in each[0]:
            found.setdefault(name, []).append(float(np.mean([one[name] for one in each])))
    return found


def _records(
    config: ConfigDict, probs: Sequence[np.ndarray], truths: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    return [
        metrics.toolbox(p, t, threshold=config.evaluate.threshold)
        for p, t in zip(probs, truths, strict=True)
    ]


def _readings(records: Sequence[dict]) -> dict[str, Any]:
    return {reading: metrics.summarise(records, reading) for reading in ("toolbox", "empty_aware")}


def _marked(case: Mapping[str, Any], channel: int | None) -> np.ndarray:
    """True mask of one class, or of any lesion."""
    mask = case["mask"][..., 0]
    return mask > 0 if channel is None else mask == channel


def _write_maps(folder: Path, cases: Sequence[Mapping], maps: Sequence[np.ndarray]) -> None:
    """Writes maps as 8-bit pictures, as the toolbox reads them."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    for case, prob in zip(cases, maps, strict=True):
        path = folder / f"{case['id'].replace('/', '_')}.png"
        cv2.imwrite(str(path), np.round(prob * 255).astype(np.uint8))


def _write_masks(folder: Path, cases: Sequence[Mapping], masks: Sequence[np.ndarray]) -> None:
    """Writes masks as pictures whose pixels are the labels, coloured by a palette."""
    folder.mkdir(parents=True, exist_ok=True)
    for case, mask in zip(cases, masks, strict=True):
        path = folder / f"{case['id'].replace('/', '_')}.png"
        path.write_bytes(pictures.encode_mask(mask))


def _keep_cases(
    path: Path,
    cases: Sequence[Mapping],
    truths: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    maps: Sequence[np.ndarray],
    dice: Sequence[float],
) -> None:
    """Keeps the slices with the best, median and worst Dice for the figures."""
    order = [i for i in np.argsort(dice) if not np.isnan(dice[i])]
    chosen = [order[-1], order[len(order) // 2], order[0]] if order else [0, 0, 0]
    kept = {}
    for title, i in zip(CASES, chosen, strict=True):
        kept[f"{title}_image"] = cases[i]["image"][..., 0]
        kept[f"{title}_truth"], kept[f"{title}_found"] = truths[i], found[i]
        kept[f"{title}_prob"] = maps[i]
        kept[f"{title}_dice"] = np.float32(dice[i])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **kept)

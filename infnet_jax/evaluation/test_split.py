"""Scores the final networks on the test split: once, maps and tables on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from infnet_jax.clinic.imaging import pictures
from infnet_jax.data.sources import Source, examples
from infnet_jax.evaluation import metrics, thresholds as cuts
from infnet_jax.evaluation.predictor import Predictor, full_size, mark
from infnet_jax.files import whole, write_csv, write_npz
from infnet_jax.plan import Plan
from infnet_jax.runs.workdir import write_json

CASES = ("best", "median", "worst")


def evaluate(
    plan: Plan,
    predictor: Predictor,
    *,
    part: str,
    test: Source,
    train: Source,
    out_of_fold: cuts.OutOfFold | None = None,
) -> dict[str, Any]:
    """Evaluates the final networks of a run on a test split.

    Writes `evaluation.json`, `evaluation.csv` (a row a slice), `predictions/[<class>/]<id>.png`
    (8-bit probabilities at the slice's own size), `masks/<id>.png` (labels, with a palette) and,
    for the figures, `evaluate/<class>.npz`; with `evaluate.choose_threshold` `thresholds.json`.

    Args:
      plan: of the run.
      predictor: of its final networks; part: which weights they have, for the report.
      test: examples with masks, and priors if the networks are fed one.
      train: examples whose masks make the floors (`metrics.floors`).
      out_of_fold: training slices, for thresholds and the cross-validated Dice.

    Returns:
      What `evaluation.json` holds: `weights`, `thresholds`; in `classes` for each class the
      `toolbox` and `empty_aware` summaries of the maps, both of the `masks`, the `floors` and, of
      several classes with chosen thresholds, both of the map `cut` by itself, with its `threshold`
      and `cross_validated` Dice; and, with `out_of_fold`, `cross_validated` of the masks.
    """
    chosen, alone = dict.fromkeys(predictor.classes, plan.evaluate.threshold), {}
    if plan.evaluate.choose_threshold and out_of_fold:
        chosen = cuts.choose(out_of_fold)
        write_json(plan.workdir / "thresholds.json", chosen)
        alone = cuts.choose_alone(out_of_fold) if len(chosen) > 1 else {}
    cases, fitted = list(examples(test)), list(examples(train))
    pairs = zip(predictor.maps(test), cases, strict=True)
    maps = [full_size(probs, case["mask"].shape[:2]) for probs, case in pairs]
    masks = [mark(probs, chosen) for probs in maps]
    result: dict[str, Any] = {"weights": part, "thresholds": chosen, "classes": {}}
    rows: list[dict[str, Any]] = [{"id": case["id"]} for case in cases]
    several = len(chosen) > 1
    for label, name in enumerate(chosen, start=1):
        truths, known = ([_true(c, label, several) for c in some] for some in (cases, fitted))
        slices = _Class(
            name if several else "",
            probs=[each[..., label - 1 - len(chosen)] for each in maps],
            found=[mask == label for mask in masks],
            truths=truths,
        )
        scores, dice = _score(slices, plan.evaluate.threshold, alone.get(name), rows, name)
        result["classes"][name] = scores | {"floors": metrics.floors(known, truths)}
        if jax.process_index() == 0:
            _write_maps(plan.workdir / "predictions" / slices.folder, cases, slices.probs)
            _keep_cases(plan.workdir / "evaluate" / f"{name}.npz", cases, slices, dice)
    if out_of_fold:
        result["cross_validated"] = cuts.cross_validated(out_of_fold, chosen)
    if jax.process_index() == 0:
        _write_masks(plan.workdir / "masks", cases, masks)
        write_csv(plan.workdir / "evaluation.csv", rows)
        write_json(plan.workdir / "evaluation.json", result)
    return result


class _Class(NamedTuple):
    """The test slices of one class, at their own size.

    `folder` below `predictions`; `probs` float32, `found` and `truths` bool, [H, W] each.
    """

    folder: str
    probs: list[np.ndarray]
    found: list[np.ndarray]
    truths: list[np.ndarray]


def _score(
    slices: _Class,
    threshold: float,
    alone: tuple[float, float] | None,
    rows: list[dict[str, Any]],
    name: str,
) -> tuple[dict[str, Any], list[float]]:
    """Summaries of maps, masks and the map cut `alone`; and the masks' Dice, also into `rows`."""

    def measure(maps: list[np.ndarray]) -> list[dict[str, Any]]:
        return [
            metrics.toolbox(each, truth, threshold=threshold)
            for each, truth in zip(maps, slices.truths, strict=True)
        ]

    of_maps = measure(slices.probs)
    of_masks = measure([found.astype(np.float32) for found in slices.found])
    scores = _readings(of_maps) | {"masks": _readings(of_masks)}
    if alone:
        cut = measure([(p >= np.float32(alone[0])).astype(np.float32) for p in slices.probs])
        scores["cut"] = {"threshold": alone[0], "cross_validated": alone[1], **_readings(cut)}
    dice = [metrics.threshold_scores(r, "none", "empty_aware")["dice"] for r in of_masks]
    for row, of_map, of_mask in zip(rows, of_maps, of_masks, strict=True):
        row |= metrics.slice_scores(name, of_map, of_mask)
    return scores, dice


def _readings(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {reading: metrics.summarise(records, reading) for reading in metrics.READINGS}


def _true(case: Mapping[str, Any], label: int, several: bool) -> np.ndarray:
    """True mask [H, W] of one of several classes, or of any lesion."""
    mask = case["mask"][..., 0]
    return mask == label if several else mask > 0


def _write_maps(folder: Path, cases: Sequence[Mapping], maps: Sequence[np.ndarray]) -> None:
    """Writes maps as 8-bit pictures, as the toolbox reads them.

    Raises:
      OSError: a picture could not be written.
    """
    for case, prob in zip(cases, maps, strict=True):
        grey = np.round(prob * 255).astype(np.uint8)
        _write_picture(folder, case, cv2.imencode(".png", grey)[1].tobytes())


def _write_masks(folder: Path, cases: Sequence[Mapping], masks: Sequence[np.ndarray]) -> None:
    """Writes masks as pictures whose pixels are the labels, coloured by a palette."""
    for case, mask in zip(cases, masks, strict=True):
        _write_picture(folder, case, pictures.encode_mask(mask))


def _write_picture(folder: Path, case: Mapping[str, Any], data: bytes) -> None:
    with whole(folder / f"{case['id'].replace('/', '_')}.png") as fresh:
        fresh.write_bytes(data)


def _keep_cases(
    path: Path, cases: Sequence[Mapping], slices: _Class, dice: Sequence[float]
) -> None:
    """Keeps the slices with the best, median and worst Dice for the figures."""
    order = [i for i in np.argsort(dice) if not np.isnan(dice[i])]
    chosen = [order[-1], order[len(order) // 2], order[0]] if order else [0, 0, 0]
    kept: dict[str, Any] = {}
    for title, i in zip(CASES, chosen, strict=True):
        kept[f"{title}_image"] = cases[i]["image"][..., 0]
        kept[f"{title}_truth"], kept[f"{title}_found"] = slices.truths[i], slices.found[i]
        kept[f"{title}_prob"] = slices.probs[i]
        kept[f"{title}_dice"] = np.float32(dice[i])
    write_npz(path, kept)

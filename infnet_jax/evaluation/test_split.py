"""Scores the final networks on the test split: once, maps and tables on disk."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from infnet_jax.clinic.imaging import pictures
from infnet_jax.data import Source
from infnet_jax.data.sources import examples
from infnet_jax.evaluation import figures, metrics, out_of_fold as folds
from infnet_jax.evaluation.predictor import Predictor, full_size, mark
from infnet_jax.files import whole, write_csv, write_npz
from infnet_jax.plan import Plan
from infnet_jax.runs import write_json

CASES = ("best", "median", "worst")
FIELDS = ("image", "truth", "found", "prob")  # kept of each, for the figures


def evaluate(
    plan: Plan,
    predictor: Predictor,
    *,
    part: str,
    test: Source,
    train: Source,
    out_of_fold: folds.OutOfFold | None = None,
) -> dict[str, Any]:
    """Evaluates the final networks of a run, whose weights the report calls `part`.

    Masks of `train` make the `metrics.floors`; `out_of_fold` is for thresholds and the
    cross-validated Dice. Writes `evaluation.json`, `evaluation.csv` (a row a slice),
    `predictions/[<class>/]<id>.png` (8-bit probabilities), `masks/<id>.png` (with a palette) and,
    for the figures, `evaluate/<class>.npz`; with `evaluate.choose_threshold` `thresholds.json`.

    Returns what `evaluation.json` holds: `weights`, `thresholds`; in `classes` for each class the
    `toolbox` and `empty_aware` summaries of the maps, both of the `masks`, the `floors` and, of
    several classes with chosen thresholds, both of the map `cut` by itself, with its `threshold`
    and `cross_validated` Dice; and, with `out_of_fold`, `cross_validated` of the masks.
    """
    chosen, alone = dict.fromkeys(predictor.classes, plan.evaluate.threshold), {}
    if plan.evaluate.choose_threshold and out_of_fold:
        chosen = folds.choose(out_of_fold)
        write_json(plan.workdir / "thresholds.json", chosen)
        alone = folds.choose_alone(out_of_fold) if len(chosen) > 1 else {}
    cases, fitted = list(examples(test)), list(examples(train))
    pairs = zip(predictor.maps(test), cases, strict=True)
    maps = [full_size(probs, case["mask"].shape[:2]) for probs, case in pairs]
    masks = [mark(probs, chosen) for probs in maps]
    result: dict[str, Any] = {"weights": part, "thresholds": chosen, "classes": {}}
    rows: list[dict[str, Any]] = [{"id": case["id"]} for case in cases]
    count = len(chosen)
    for label, name in enumerate(chosen, start=1):
        truths = [folds.true(case["mask"][..., 0], label, count) for case in cases]
        known = [folds.true(case["mask"][..., 0], label, count) for case in fitted]
        probs = [each[..., label - 1 - count] for each in maps]
        slices = _Class(name, probs, [mask == label for mask in masks], truths)
        scores = _score(slices, plan.evaluate.threshold, alone.get(name), rows)
        result["classes"][name] = scores | {"floors": metrics.floors(known, truths)}
        if jax.process_index() == 0:
            # Maps are kept in 8 bits, as the published toolbox reads them.
            greys = (np.round(prob * 255).astype(np.uint8) for prob in probs)
            encoded = (cv2.imencode(".png", grey)[1].tobytes() for grey in greys)
            folder = plan.workdir / "predictions" / (name if count > 1 else "")
            _write_pictures(folder, cases, encoded)
            _keep_cases(plan.workdir, cases, slices, [row[f"dice_{name}"] for row in rows])
    if out_of_fold:
        result["cross_validated"] = folds.cross_validated(out_of_fold, chosen)
    if jax.process_index() == 0:
        encoded = (pictures.encode_mask(mask, chosen) for mask in masks)
        _write_pictures(plan.workdir / "masks", cases, encoded)
        write_csv(plan.workdir / "evaluation.csv", rows)
        write_json(plan.workdir / "evaluation.json", result)
    return result


class _Class(NamedTuple):
    """The test slices of one class, [H, W] at their own size: `probs` float32, the others bool."""

    name: str
    probs: list[np.ndarray]
    found: list[np.ndarray]
    truths: list[np.ndarray]


def _score(
    slices: _Class, threshold: float, alone: tuple[float, float] | None, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Summaries of maps, masks and the map cut `alone`; adds columns of the class to `rows`."""

    def measure(maps: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        pairs = zip(maps, slices.truths, strict=True)
        return [metrics.toolbox(m.astype(np.float32), truth, threshold) for m, truth in pairs]

    of_maps, of_masks = measure(slices.probs), measure(slices.found)
    for row, of_map, of_mask in zip(rows, of_maps, of_masks, strict=True):
        row |= metrics.slice_scores(slices.name, of_map, of_mask)
    scores = metrics.readings(of_maps) | {"masks": metrics.readings(of_masks)}
    if alone:
        cut = measure([probs >= np.float32(alone[0]) for probs in slices.probs])
        scores["cut"] = {"threshold": alone[0], "cross_validated": alone[1]}
        scores["cut"] |= metrics.readings(cut)
    return scores


def _write_pictures(folder: Path, cases: Sequence[Mapping], data: Iterable[bytes]) -> None:
    """Writes the picture of each slice under its id."""
    for case, picture in zip(cases, data, strict=True):
        with whole(folder / f"{case['id'].replace('/', '_')}.png") as fresh:
            fresh.write_bytes(picture)


def _keep_cases(
    workdir: Path, cases: Sequence[Mapping], slices: _Class, dice: Sequence[float]
) -> None:
    """Keeps the slices with the best, median and worst Dice for the figures."""
    order = [i for i in np.argsort(dice) if not np.isnan(dice[i])] or [0]
    kept: dict[str, np.ndarray] = {}
    for title, i in zip(CASES, (order[-1], order[len(order) // 2], order[0]), strict=True):
        arrays = (cases[i]["image"][..., 0], slices.truths[i], slices.found[i], slices.probs[i])
        kept |= {f"{title}_{field}": array for field, array in zip(FIELDS, arrays, strict=True)}
        kept[f"{title}_dice"] = np.asarray(dice[i], np.float32)
    write_npz(workdir / "evaluate" / f"{slices.name}.npz", kept)


def result_table(result: Mapping[str, Any]) -> str:
    """`evaluation.json` in Markdown: of each class maps and masks in both readings, and floors."""
    threshold = next(iter(result["classes"].values()))["toolbox"]["threshold"]
    titles = [t for score in metrics.TABLE for t in (score.mean, score.fixed.format(threshold))]
    rows = []
    for name, found in result["classes"].items():
        of = "" if len(result["classes"]) == 1 else f"{name}, "
        answers = [(f"{of}model", found, "minmax"), (f"{of}masks", found["masks"], "none")]
        if cut := found.get("cut"):
            answers.append((f"{of}map cut at {cut['threshold']:g}", cut, "none"))
        for label, both, at in answers:
            rows.append(_row(f"{label}, toolbox reading", both["toolbox"], at))
            rows.append(_row(f"{label}, empty-aware reading", both["empty_aware"], "none"))
        for floor, both in found["floors"].items():
            rows.append(_row(f"{of}floor: {floor.replace('_', ' ')}", both["toolbox"], "minmax"))
    return figures.markdown_table(["", *filter(None, titles)], rows)


def _row(label: str, summary: Mapping[str, Any], at: str) -> list[Any]:
    """One line of the test table; `at` says which map the scores at a threshold are of."""
    row: list[Any] = [label]
    for score in metrics.TABLE:
        if score.mean:
            row.append((summary["mean"] if score.of == "threshold" else summary)[score.key])
        if score.fixed:
            row.append(summary[at][score.key])
    return row


def draw(workdir: Path, name: str, summaries: Mapping[str, Any]) -> list[figures.Picture]:
    """Draws best, median and worst slice of a class, and its ROC, from what `evaluate` wrote."""
    with np.load(workdir / "evaluate" / f"{name}.npz") as z:
        cases: list[Any] = [
            (f"{t}, Dice {float(z[f'{t}_dice']):.2f}", *(z[f"{t}_{field}"] for field in FIELDS))
            for t in CASES
        ]
    folder, pooled = workdir / "figures", summaries["toolbox"]
    fpr, tpr = (np.asarray(rates) for rates in pooled["roc"])
    overlay = figures.overlays(cases, folder / f"test_{name}.png")
    roc = figures.roc(fpr, tpr, pooled["roc_auc"], folder / f"roc_{name}.png")
    drawn = f"highest, median and lowest Dice of {name}; true and predicted masks as contours."
    pixels = f"{name.capitalize()}: all test pixels pooled, raw probabilities."
    return [(overlay, f"Test slices with the {drawn}"), (roc, pixels)]


def what_is_evaluated(plan: Plan) -> list[str]:
    """Whose weights are evaluated: the notes on the final networks."""
    final, held_out = plan.final, plan.final.section.get("validation", 0)
    if not final.averages and not held_out:
        return ["No slice was held out: the last averaged weights are evaluated."]
    if not final.averages:
        groups = f"{held_out} training slices (whole groups)"
        return [f"{groups} were held out to choose the checkpoint."]
    how = "folds of the training slices but" if final.folds else "training slices by a seed of"
    count = len(final.networks)
    notes = [f"The mean of {count} networks is evaluated, each trained on all {how} its own."]
    if final.folds and any(stage.runs == "pseudo_labels" for stage in plan.stages):
        notes.append(
            "They share a start that a teacher of all training slices taught, through its maps of "
            "other slices: figures of unseen training slices may be a little too high. The test "
            "split is untouched by this."
        )
    return notes

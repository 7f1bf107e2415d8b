"""`infnet-jax severity-study`: predicted severity against true severity, per slice and patient.

It fills what the paper leaves empty (section V.D). Truth are expert masks; where there is none, a
clinical table (iCTCF) can be what scores are held against.
"""

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax import (
    agreement,
    clinical,
    find_lungs,
    imaging,
    score_files,
    scoring,
    severity,
    study_page,
    truth,
)
from infnet_jax.inference import Segmenter
from infnet_jax.scan_files import drop_detached, marked

SCORES = ("share", "ct_ss", "grade")
TRUE_LUNGS = "true"

Row = dict[str, Any]


def run(
    sources: Sequence[Path], *, out: Path, checkpoint: Path | None = None,
    masks: Path | None = None, lung_way: str = find_lungs.MORPHOLOGY, split: str = "test",
    tta: bool | None = None, table: Path | None = None,
) -> int:
    """Scores what is predicted and what is true, and writes how they agree.

    Writes into `out`: `scores.csv` (a row a slice and a row a patient), `agreement.csv`,
    `summary.md`, and `bland_altman_<source>.png`; with a clinical table `clinical.csv` too.

    Args:
      sources: see `truth.read`.
      checkpoint: workdir whose network predicts; or
      masks: folder of predicted masks by the slices' names, such as `predict` writes.
      lung_way: lungs under the predicted masks: `true`, or as in `find_lungs.choose`.
      split: of prepared datasets.
      tta: average over eight views; None as the run did.
      table: iCTCF's Patients.xlsx.

    Returns:
      0.

    Raises:
      ValueError, FileNotFoundError: a source, mask or table that cannot be used, or no slice with
        anything to compare.
    """
    if (checkpoint is None) == (masks is None):
        raise ValueError("give either --checkpoint or --masks")
    known = clinical.read(table) if table is not None else None
    finder, lung_name = (None, "true masks") if lung_way == TRUE_LUNGS else (
        find_lungs.choose(lung_way))
    segmenter = None if checkpoint is None else Segmenter(checkpoint, tta=tta)
    model = {"masks": str(masks)} if segmenter is None else segmenter.identity
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    left_out: list[str] = []
    for name, source in _names(sources).items():
        slices = truth.read(source, split)
        pairs = _given(slices, masks) if segmenter is None else _predicted(slices, segmenter)
        rows += score(name, pairs, finder, left_out)
    tables = [{"dataset": dataset, "level": level} | compare(group)
              for (dataset, level), group in _groups(rows)]
    if not tables and known is None:
        raise ValueError("no slice has a true mask and a true lung, and there is no --clinical; "
                         + "; ".join(left_out[:2]))
    joined = None
    if known is not None:
        patients = {f"{r['dataset']}/{r['unit']}": clinical.Scores(
            r["predicted_share"], r["predicted_grade"], r["predicted_ct_ss"])
            for r in rows if r["level"] == "patient" and r["predicted_share"] is not None}
        joined = clinical.join(known, patients)
        _write_csv(out / "clinical.csv", [
            {"patient": n, "morbidity": word, "class": c, **s._asdict()}
            for n, word, c, s in zip(*joined[:4], strict=True)])
    _write_csv(out / "scores.csv", rows)
    _write_csv(out / "agreement.csv", tables)
    drawn = [(name, study_page.draw(out, name, levels)) for name, levels in _by_dataset(rows)]
    page = study_page.write(
        out, model=model | {"lungs of predicted masks": lung_name}, tables=tables, joined=joined,
        figures=drawn, left_out=left_out)
    print(page.read_text(), end="")
    return 0


def score(
    dataset: str, pairs: Iterable[tuple[truth.Slice, np.ndarray]],
    finder: find_lungs.Finder | None, left_out: list[str],
) -> list[Row]:
    """Scores slices, and patients by their pooled counts.

    Args:
      pairs: slices with their predicted mask, bool [H, W].
      finder: of the lungs under predicted masks; None takes the true ones.
      left_out: gets a line for each side of a slice that cannot be scored. A patient's other
        slices still count.

    Returns:
      Rows with `dataset`, `level` (slice, patient), `unit`, `name`, `slices`, and share, ct_ss and
      grade, each `true_` and `predicted_`, None where not known. Patient rows come last, and only
      if some patient has several slices, or there is no truth.
    """
    rows: list[Row] = []
    pooled: dict[str, dict[str, severity.Tally]] = {}
    counts: dict[str, int] = {}
    for one, mask in pairs:
        found = {}
        try:
            if one.mask is not None and one.lung is not None:
                found["true"] = _tally(one, one.mask, one.lung, one.regions)
        except ValueError as error:
            left_out.append(f"{dataset}, truth: {error}")
        try:
            lung = one.lung if finder is None else finder(_scan(one))[0]
            if lung is None:
                raise ValueError(f"{one.name}: no true lung")
            kept = mask[None].astype(np.uint8)
            drop_detached(kept, lung[None] > 0)
            found["predicted"] = _tally(one, kept[0] > 0, lung)
        except ValueError as error:
            left_out.append(f"{dataset}, predicted: {error}")
        counts[one.unit] = counts.get(one.unit, 0) + 1
        sums = pooled.setdefault(one.unit, {})
        for side, tally in found.items():
            # Both sides of a patient are to be of the same slices, where truth is known at all.
            key = side if "true" in found else "alone"
            sums[key] = sums[key] + tally if key in sums else tally
        rows.append(_row(dataset, "slice", one.unit, one.name, 1, found))
    truthless = not any("true" in sums for sums in pooled.values())
    if truthless or any(n > 1 for n in counts.values()):
        for unit, sums in pooled.items():
            sides = sums if "true" in sums or not sums else {"predicted": sums["alone"]}
            rows.append(_row(dataset, "patient", unit, unit, counts[unit], sides))
    return rows


def compare(rows: Sequence[Row]) -> Row:
    """How predicted scores meet true ones.

    Args:
      rows: of one dataset and level, with both sides known.

    Returns:
      `n`; for share (in percent) and ct_ss mean true and predicted, `_mae`, `_bias`, `_low`,
      `_high` and `_spearman`; and `grade_kappa`, `grade_accuracy`, `grade_majority`.
    """
    found: Row = {"n": len(rows)}
    for key, factor in (("share", 100), ("ct_ss", 1)):
        t, p = (factor * np.array([r[f"{side}_{key}"] for r in rows], float)
                for side in ("true", "predicted"))
        limits = agreement.limits(t, p)
        found |= {
            f"{key}_true": float(t.mean()), f"{key}_predicted": float(p.mean()),
            f"{key}_mae": agreement.mean_absolute_error(t, p), f"{key}_bias": limits.bias,
            f"{key}_low": limits.low, f"{key}_high": limits.high,
            f"{key}_spearman": agreement.spearman(t, p),
        }  # fmt: skip
    grades = agreement.classes(*([r[f"{side}_grade"] for r in rows]
                                 for side in ("true", "predicted")))
    return found | {"grade_kappa": grades.kappa, "grade_accuracy": grades.accuracy,
                    "grade_majority": grades.majority}


def _predicted(
    slices: Iterable[truth.Slice], segmenter: Segmenter
) -> Iterator[tuple[truth.Slice, np.ndarray]]:
    ahead, behind = itertools.tee(slices)
    for one, found in zip(behind, segmenter(s.image for s in ahead), strict=True):
        yield one, marked(found, segmenter.threshold) > 0


def _given(
    slices: Iterable[truth.Slice], folder: Path
) -> Iterator[tuple[truth.Slice, np.ndarray]]:
    masks = imaging.by_name(folder)
    for one in slices:
        path = imaging.partner(one.name, masks, "masks", alone=False).files[0]
        labels = imaging.read_labels(path, _scan(one))
        yield one, score_files.infection(labels, path.name)[0][0] > 0


def _scan(one: truth.Slice) -> imaging.Scan:
    cube = (1, *one.image.shape)
    grid = imaging.Grid(cube, cube, (0, 1, 2), (False, False, False))
    return imaging.Scan(one.name, "picture", one.image[None], False, False, None, grid, None)


def _tally(
    one: truth.Slice, mask: np.ndarray, lung: np.ndarray, regions: np.ndarray | None = None
) -> severity.Tally:
    return scoring.assess(
        _scan(one), mask[None], lung[None], regions=None if regions is None else regions[None],
        classes=("infection",),
    ).tally


def _row(
    dataset: str, level: str, unit: str, name: str, n: int, found: Mapping[str, severity.Tally]
) -> Row:
    row: Row = {"dataset": dataset, "level": level, "unit": unit, "name": name, "slices": n}
    for side in ("true", "predicted"):
        graded = severity.grade(found[side]) if side in found else None
        values = (None,) * 3 if graded is None else (
            graded.infected_share, graded.ct_ss, graded.grade)
        row |= {f"{side}_{key}": v for key, v in zip(SCORES, values, strict=True)}
    return row


def _both(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if r["true_share"] is not None and r["predicted_share"] is not None]


def _groups(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, str], list[Row]]]:
    """Rows with both sides, by dataset and level."""
    keys = dict.fromkeys((r["dataset"], r["level"]) for r in rows)
    for key in keys:
        group = _both(r for r in rows if (r["dataset"], r["level"]) == key)
        if group:
            yield key, group


def _by_dataset(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, list[Row]]]]:
    for dataset, levels in itertools.groupby(_groups(rows), lambda item: item[0][0]):
        yield dataset, {key[1]: group for key, group in levels}


def _names(sources: Sequence[Path]) -> dict[str, Path]:
    """`phantom_default` for a prepared dataset, else the folder's name."""
    found: dict[str, Path] = {}
    for path in sources:
        whole = path.resolve()
        if (whole / "dataset_info.json").is_file():
            name = "_".join(whole.parts[-3:-1])
        else:
            name = whole.name
        found[name if name not in found else f"{name}_{len(found) + 1}"] = path
    return found


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)

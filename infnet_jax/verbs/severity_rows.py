"""Rows of severity scores, true and predicted, and how the two sides agree."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from infnet_jax.clinic import case as scoring, imaging, severity
from infnet_jax.evaluation import statistics
from infnet_jax.verbs import find_lungs, truth
from infnet_jax.verbs.predict import drop_detached

SCORES = ("share", "ct_ss", "grade")

Row = dict[str, Any]


def score(
    dataset: str,
    pairs: Iterable[tuple[truth.Slice, np.ndarray]],
    finder: find_lungs.Finder | None,
    left_out: list[str],
) -> list[Row]:
    """Scores slices, and patients by their pooled counts.

    Args:
      pairs: slices with their predicted mask, bool [H, W].
      finder: of the lungs under predicted masks; None takes the true ones.
      left_out: gets a line for each side of a slice that cannot be scored. A patient's other
        slices still count.

    Returns:
      Rows with `dataset`, `level` (slice, patient), `unit`, `name`, `slices`; share, ct_ss and
      grade, each `true_` and `predicted_`; and `truth.EXPERT_SCORES`, of slices only; None where
      not known. Patient rows come last, and only if some patient has several slices, or there is
      no truth.
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
            scan = imaging.scan_of_picture(one.name, one.image)
            lung = one.lung if finder is None else finder(scan)[0]
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
        rows.append(_row(dataset, "slice", one.unit, one.name, 1, found) | one.experts)
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
        t, p = (
            factor * np.array([r[f"{side}_{key}"] for r in rows], float)
            for side in ("true", "predicted")
        )
        limits = statistics.limits(t, p)
        found |= {
            f"{key}_true": float(t.mean()),
            f"{key}_predicted": float(p.mean()),
            f"{key}_mae": statistics.mean_absolute_error(t, p),
            f"{key}_bias": limits.bias,
            f"{key}_low": limits.low,
            f"{key}_high": limits.high,
            f"{key}_spearman": statistics.spearman(t, p),
        }
    grades = statistics.classes(
        *([r[f"{side}_grade"] for r in rows] for side in ("true", "predicted"))
    )
    return found | {
        "grade_kappa": grades.kappa,
        "grade_accuracy": grades.accuracy,
        "grade_majority": grades.majority,
    }


def experts(rows: Iterable[Row]) -> list[Row]:
    """How the predicted share ranks beside the scores that experts gave.

    Returns:
      Of each dataset and score with such slices: `dataset`, `score`, `n`, `mean_score`,
      `mean_share` (percent) and `spearman` of the two.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        for name in truth.EXPERT_SCORES:
            if row[name] is not None and row["predicted_share"] is not None:
                pairs = found.setdefault((row["dataset"], name), [])
                pairs.append((row[name], 100 * row["predicted_share"]))
    tables = []
    for (dataset, name), pairs in found.items():
        scores, shares = np.array(pairs, float).T
        tables.append(
            {
                "dataset": dataset,
                "score": name,
                "n": len(pairs),
                "mean_score": scores.mean(),
                "mean_share": shares.mean(),
                "spearman": statistics.spearman(scores, shares),
            }
        )
    return tables


def _tally(
    one: truth.Slice, mask: np.ndarray, lung: np.ndarray, regions: np.ndarray | None = None
) -> severity.Tally:
    return scoring.assess(
        imaging.scan_of_picture(one.name, one.image),
        mask[None],
        lung[None],
        regions=None if regions is None else regions[None],
        classes=("infection",),
    ).tally


def _row(
    dataset: str, level: str, unit: str, name: str, n: int, found: Mapping[str, severity.Tally]
) -> Row:
    row: Row = {"dataset": dataset, "level": level, "unit": unit, "name": name, "slices": n}
    for side in ("true", "predicted"):
        graded = severity.grade(found[side]) if side in found else None
        values = (
            (None,) * 3 if graded is None else (graded.infected_share, graded.ct_ss, graded.grade)
        )
        row |= {f"{side}_{key}": v for key, v in zip(SCORES, values, strict=True)}
    return row | dict.fromkeys(truth.EXPERT_SCORES)


def _both(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if r["true_share"] is not None and r["predicted_share"] is not None]


def groups(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, str], list[Row]]]:
    """Rows with both sides, by dataset and level."""
    keys = dict.fromkeys((r["dataset"], r["level"]) for r in rows)
    for key in keys:
        group = _both(r for r in rows if (r["dataset"], r["level"]) == key)
        if group:
            yield key, group


def by_dataset(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, list[Row]]]]:
    """The same groups, as a dict of levels for each dataset."""
    for dataset, levels in itertools.groupby(groups(rows), lambda item: item[0][0]):
        yield dataset, {key[1]: group for key, group in levels}

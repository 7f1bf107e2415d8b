"""Segmentation scores of one slice and of a set of slices, in numpy.

The formulas are those of the toolbox with which Inf-Net's tables were made, in two readings:

* `toolbox`: a slice without a true positive scores 0 in Dice, IoU, sensitivity, specificity and
  precision alike: one without lesion is a failure whatever was predicted. Only this reading
  compares with published tables.
* `empty_aware`: the plain ratios. Truth and prediction both empty: Dice, IoU and precision are
  undefined (mostly on raw probabilities: min-max normalisation takes the maximum of every map that
  is not constant to 1). Truth alone empty: Dice, IoU and precision 0, sensitivity undefined.
  Prediction alone empty: Dice, IoU, precision and sensitivity 0. No background pixel in the truth:
  specificity undefined. Undefined values are NaN; means leave them out and count them.

A new score is a value in `scores` (of counts) or in `toolbox` (of a map) and a row in `TABLE`, from
which the tables of a run and of the `evaluate` verb are made; in a study, one in `SLICE_SCORES`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from infnet_jax.dice import defined_mean, dice_of_counts
from infnet_jax.evaluation import soft_metrics
from infnet_jax.evaluation.soft_metrics import resize_map
from infnet_jax.evaluation.statistics import bootstrap_interval, roc_from_histograms

READINGS = ("toolbox", "empty_aware")
LEVELS = 256  # thresholds 1 - i / 255, falling from 1 to 0; the last one marks every pixel
SLACK = 1e-12
SINGLE_SLACK = 4e-7  # float32 maps, stretched, miss a threshold they equal by far more than 1e-12
FLOOR_SHARE, FLOOR_SIZE = 0.2, 352

Record = Mapping[str, Any]  # of a slice, see `toolbox`


class Score(NamedTuple):
    """A score and its titles; a table without a title for it leaves it out."""

    key: str  # in `scores`, in the record of `toolbox`, or in what `summarise` returns
    of: str  # what it is a number of: a slice at one `threshold`, a `map`, or all `pixels` pooled
    title: str  # in the table of the `evaluate` verb
    mean: str = ""  # in the table of a run: the mean over slices (and over the 256 thresholds)
    fixed: str = ""  # in the table of a run: at the fixed threshold, whose number is put in


TABLE = (
    Score("dice", "threshold", "Dice", "Dice (mean over 256 thresholds)", "Dice at {:.3g}"),
    Score("iou", "threshold", "IoU", fixed="IoU at {:.3g}"),
    Score("sensitivity", "threshold", "Sens", "Sen"),
    Score("specificity", "threshold", "Spec", "Spe"),
    Score("precision", "threshold", "Prec"),
    Score("s_measure", "map", "S", "S"),
    Score("e_measure", "threshold", "E", "E"),
    Score("weighted_f", "map", "weighted F", "wF"),
    Score("mae", "map", "MAE", "MAE"),
    Score("roc_auc", "pixels", "ROC-AUC", "ROC-AUC"),
)
SCORES = tuple(score.key for score in TABLE if score.of == "threshold")
MAP_SCORES = tuple(score.key for score in TABLE if score.of == "map")
SLICE_SCORES = {  # kind -> column of evaluation.csv, with the class put in; title in a study
    "mean": ("dice_{}_mean", "Dice, mean of 256"),
    "stretched": ("dice_{}_toolbox", "Dice, stretched"),
    "raw": ("dice_{}", "Dice, raw"),
}


def scores(
    tp: ArrayLike, fp: ArrayLike, positives: int, pixels: int, reading: str = "toolbox"
) -> dict[str, np.ndarray]:
    """`SCORES` of one slice, each float64 shaped like `tp`; ValueError for an unknown reading.

    True and false positives, `tp` and `fp`, have any one shape; `positives` are the lesion pixels
    of the truth. The E-measure has no empty case: it is the same in both readings.
    """
    if reading not in READINGS:
        raise ValueError(f"reading {reading!r} is unknown: choose one of {', '.join(READINGS)}")
    tp, fp = np.asarray(tp, np.float64), np.asarray(fp, np.float64)
    fn, tn = positives - tp, pixels - positives - fp
    with np.errstate(invalid="ignore", divide="ignore"):
        out = {
            "dice": dice_of_counts(tp, 2 * tp + fp + fn),
            "iou": tp / (tp + fp + fn),
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            # Nothing predicted where there is a lesion is a miss (0), not an undefined precision.
            "precision": np.where((tp + fp == 0) & (fn > 0), 0.0, tp / (tp + fp)),
        }
    if reading == "toolbox":
        out = {name: np.where(tp == 0, 0.0, value) for name, value in out.items()}
    return out | {"e_measure": soft_metrics.e_measure_of_counts(tp, fp, fn, tn)}


def toolbox(prob_map: np.ndarray, truth: np.ndarray, threshold: float = 0.5) -> dict[str, Any]:
    """Measures one slice: probabilities [h, w] in [0, 1], real, against a lesion mask [H, W], bool.

    The map is resized bilinearly to the truth's size; `threshold`, in [0, 1], is the fixed one.
    Wrong shapes, a truth that is not bool, values outside [0, 1] or not finite: ValueError.

    Returns the slice's record: `positives` and `pixels` of the truth; `tp` and `fp`, int [256], of
    the min-max normalised map at 256 thresholds; `curves`, their scores [256] in the toolbox
    reading; (tp, fp) pairs `adaptive` (threshold min(1, 2 mean), normalised map), `minmax` and
    `none` (fixed threshold, normalised map and raw probabilities); `blank`, whether the map is all
    zero; `MAP_SCORES` of the normalised map; `histograms` of the raw probability of lesion and of
    other pixels in steps of 1/255, for the pooled ROC; the `threshold`.
    """
    prob_map, truth = np.asarray(prob_map), np.asarray(truth)
    slack = SINGLE_SLACK if prob_map.dtype in (np.float16, np.float32) else SLACK
    raw = prob_map.astype(np.float64)
    if raw.ndim != 2 or truth.ndim != 2 or not raw.size or not truth.size:
        raise ValueError(f"map {raw.shape} and truth {truth.shape} must be [h, w], not empty")
    if truth.dtype != bool:
        raise ValueError(f"truth has dtype {truth.dtype}: give a bool mask")
    if not (np.isfinite(raw).all() and raw.min() >= -1e-6 and raw.max() <= 1 + 1e-6):
        raise ValueError(f"map spans {raw.min()}..{raw.max()}: give probabilities in [0, 1]")
    raw = np.clip(resize_map(raw, truth.shape), 0.0, 1.0)
    values = soft_metrics.minmax(raw)
    # Number of the first threshold that marks the pixel; cumulative counts do the rest.
    first = np.ceil(255 * (1 - values - slack)).clip(0, LEVELS - 1).astype(np.int64)
    tp, fp = (np.cumsum(part) for part in _histograms(first, truth))
    positives, pixels = int(truth.sum()), truth.size
    return {
        "positives": positives,
        "pixels": pixels,
        "tp": tp,
        "fp": fp,
        "curves": scores(tp, fp, positives, pixels),
        "adaptive": _count(values >= min(1.0, 2 * values.mean()) - slack, truth),
        "minmax": _count(values >= threshold - slack, truth),
        "none": _count(raw >= threshold - slack, truth),
        "blank": not values.any(),
        "s_measure": soft_metrics.s_measure(values, truth),
        "weighted_f": soft_metrics.weighted_f(values, truth),
        "mae": float(np.abs(values - truth).mean()),
        "histograms": _histograms(np.rint(raw * 255).astype(np.int64), truth),
        "threshold": threshold,
    }


def _count(marked: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    return int((marked & truth).sum()), int((marked & ~truth).sum())


def _histograms(index: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.bincount(index[part], minlength=LEVELS) for part in (truth, ~truth))


def threshold_scores(
    record: Record, normalise: str = "minmax", reading: str = "toolbox"
) -> dict[str, float]:
    """Scores of one record at its fixed threshold, after min-max (`minmax`) or raw (`none`).

    `adaptive`: at the adaptive threshold, which is 0 for an all-zero map and so marks all of it;
    the empty-aware reading takes that as nothing predicted. An unknown name is a ValueError.
    """
    if normalise not in ("minmax", "none", "adaptive"):
        raise ValueError(f"normalise {normalise!r} is unknown: choose minmax, none or adaptive")
    blank = normalise == "adaptive" and reading == "empty_aware" and record["blank"]
    tp, fp = (0, 0) if blank else record[normalise]
    found = scores(tp, fp, record["positives"], record["pixels"], reading)
    return {name: float(value) for name, value in found.items()}


def slice_scores(label: str, probs: Record, masks: Record) -> dict[str, float]:
    """`SLICE_SCORES` of one slice and class, from the records of its probabilities and its mask."""
    values = {
        "raw": threshold_scores(masks, "none", "empty_aware")["dice"],
        "stretched": threshold_scores(probs)["dice"],
        "mean": float(probs["curves"]["dice"].mean()),
    }
    return {SLICE_SCORES[kind][0].format(label): value for kind, value in values.items()}


def summarise(records: Sequence[Record], reading: str = "toolbox") -> dict[str, Any]:
    """Averages records over slices first, then takes mean and maximum over the 256 thresholds.

    Returns `images`, `empty_truths`, `reading`, `threshold`; `mean`, `max`, `adaptive`, `minmax`
    and `none`, each a dict of `SCORES`; `undefined`, for each of the last three how many slices
    each score left out, and for `curves` the most at any threshold; `MAP_SCORES` (`weighted_f` of
    an empty truth is 0 in the toolbox reading); `curves` of `SCORES` (lists of 256); `roc` (fpr,
    tpr lists) and `roc_auc` of all pixels pooled, on raw probabilities. NaN where no slice defines
    the value. No records, mixed thresholds and an unknown reading are a ValueError.
    """
    if not records:
        raise ValueError("no slices to summarise: give at least one record")
    if len({record["threshold"] for record in records}) > 1:
        raise ValueError("records were measured at different thresholds: use one")
    each = [scores(r["tp"], r["fp"], r["positives"], r["pixels"], reading) for r in records]
    stacks = {name: np.stack([one[name] for one in each]) for name in SCORES}
    curves = {name: defined_mean(stack) for name, stack in stacks.items()}
    out: dict[str, Any] = {
        "reading": reading,
        "images": len(records),
        "empty_truths": sum(record["positives"] == 0 for record in records),
        "threshold": records[0]["threshold"],
        "undefined": {"curves": {k: int(np.isnan(s).sum(0).max()) for k, s in stacks.items()}},
        "mean": {name: float(defined_mean(curve)) for name, curve in curves.items()},
        "max": {name: float(np.fmax.reduce(curve)) for name, curve in curves.items()},
    }
    for kind in ("adaptive", "minmax", "none"):
        fixed = [threshold_scores(record, kind, reading) for record in records]
        stacks = {name: np.array([one[name] for one in fixed]) for name in SCORES}
        out[kind] = {name: float(defined_mean(stack)) for name, stack in stacks.items()}
        out["undefined"][kind] = {name: int(np.isnan(s).sum()) for name, s in stacks.items()}
    for name in MAP_SCORES:
        values = np.array([record[name] for record in records])
        out[name] = float(defined_mean(np.nan_to_num(values) if reading == "toolbox" else values))
    positive, negative = (sum(record["histograms"][k] for record in records) for k in (0, 1))
    fpr, tpr, out["roc_auc"] = roc_from_histograms(positive, negative)
    out["roc"] = (fpr.tolist(), tpr.tolist())
    out["curves"] = {name: curve.tolist() for name, curve in curves.items()}
    return out


def readings(records: Sequence[Record]) -> dict[str, Any]:
    """`summarise` in each reading, by its name."""
    return {reading: summarise(records, reading) for reading in READINGS}


def both_readings(records: Sequence[Record]) -> dict[str, Any]:
    """`readings`, and `interval`: bootstrap intervals of the toolbox Dice over slices.

    `mean` is of its mean over 256 thresholds, `minmax` of the stretched map at the fixed one.
    """
    dice = {
        "mean": [float(record["curves"]["dice"].mean()) for record in records],
        "minmax": [threshold_scores(record, "minmax")["dice"] for record in records],
    }
    intervals = {name: bootstrap_interval(values) for name, values in dice.items()}
    return readings(records) | {"interval": intervals}


def floors(
    train_masks: Sequence[np.ndarray], test_truths: Sequence[np.ndarray]
) -> dict[str, dict[str, Any]]:
    """`label` and `both_readings` of two predictions without image: what any network has to beat.

    They are `all_positive` and `mean_training_mask`, which marks a pixel where the mean of the
    masks, at one size, is at least `FLOOR_SHARE`. Training masks and test truths are bool [H, W] of
    any sizes, at least one each.
    """
    if not len(train_masks) or not len(test_truths):
        raise ValueError("floors need at least one training mask and one test truth")
    size = (FLOOR_SIZE, FLOOR_SIZE)
    share = np.mean([resize_map(mask.astype(np.float64), size) for mask in train_masks], 0)
    marks: dict[str, list[np.ndarray]] = {
        "all_positive": [np.ones(truth.shape) for truth in test_truths],
        "mean_training_mask": [resize_map(share, t.shape) >= FLOOR_SHARE for t in test_truths],
    }
    scored = {name: both_readings([*map(toolbox, m, test_truths)]) for name, m in marks.items()}
    return {name: {"label": name, **found} for name, found in scored.items()}

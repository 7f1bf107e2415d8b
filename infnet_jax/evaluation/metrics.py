"""Segmentation metrics of one slice and of a set of slices, in numpy and scipy.

The formulas are those of the evaluation toolbox with which Inf-Net's tables were made. Two readings
of its gaps are offered everywhere, and every summary says which one it is:

* ``toolbox``: a slice without a true positive scores 0 in Dice, IoU, sensitivity, specificity and
  precision alike, so a slice without lesion counts as a failure whatever was predicted. Only this
  reading compares with published tables.
* ``empty_aware``: the plain ratios. Truth and prediction both empty: Dice, IoU and precision are
  undefined. Truth empty and prediction not: Dice, IoU and precision 0, sensitivity undefined. Truth
  not empty and nothing predicted: Dice, IoU, precision and sensitivity 0. No background pixel in
  the truth: specificity undefined. Undefined values are NaN; means leave them out and count them.

Min-max normalisation stretches every map that is not constant to a maximum of 1: after it no such
prediction is ever empty. "Both empty" is therefore mostly seen on raw probabilities.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from infnet_jax.evaluation import soft_metrics
from infnet_jax.evaluation.soft_metrics import resize_map

READINGS = ("toolbox", "empty_aware")
LEVELS = 256
THRESHOLDS = 1.0 - np.arange(LEVELS) / 255.0
"""The 256 thresholds, falling from 1 to 0; the last one marks every pixel."""
SLACK = 1e-12
SINGLE_SLACK = 4e-7
"""Slack of float32 maps: stretched, they miss a threshold they equal by far more than 1e-12."""
RATIOS = ("dice", "iou", "sensitivity", "specificity", "precision")
SCORES = (*RATIOS, "e_measure")


def scores(tp, fp, positives: int, pixels: int, reading: str = "toolbox") -> dict[str, np.ndarray]:
    """Turn pixel counts of one slice into scores.

    Args:
      tp: true positives, any shape (a scalar or one per threshold).
      fp: false positives, likewise.
      positives: lesion pixels of the truth.
      pixels: all pixels of the slice.
      reading: ``toolbox`` or ``empty_aware`` (see the module text).

    Returns:
      Dice, IoU, sensitivity, specificity, precision and E-measure (key ``e_measure``), each float64
      shaped like ``tp``. The E-measure has no empty case and is the same in both readings.

    Raises:
      ValueError: an unknown reading.
    """
    if reading not in READINGS:
        raise ValueError(f"reading {reading!r} is unknown: choose one of {', '.join(READINGS)}")
    tp, fp = np.asarray(tp, np.float64), np.asarray(fp, np.float64)
    fn, tn = positives - tp, pixels - positives - fp
    with np.errstate(invalid="ignore", divide="ignore"):
        out = {
            "dice": 2 * tp / (2 * tp + fp + fn),
            "iou": tp / (tp + fp + fn),
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            # Nothing predicted where there is a lesion is a miss (0), not an undefined precision.
            "precision": np.where((tp + fp == 0) & (fn > 0), 0.0, tp / (tp + fp)),
        }
    if reading == "toolbox":
        out = {name: np.where(tp == 0, 0.0, value) for name, value in out.items()}
    out["e_measure"] = soft_metrics.e_measure_of_counts(tp, fp, fn, tn)
    return out


def _count(marked: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    return int((marked & truth).sum()), int((marked & ~truth).sum())


def _histograms(index: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.bincount(index[part], minlength=LEVELS) for part in (truth, ~truth))


def toolbox(prob_map: np.ndarray, truth: np.ndarray, threshold: float = 0.5) -> dict:
    """Measure one slice.

    Args:
      prob_map: probabilities [h, w] in [0, 1], real; resized bilinearly to the truth's size.
      truth: lesion mask [H, W], bool.
      threshold: the fixed threshold, in [0, 1], of the ``minmax`` and ``none`` counts.

    Returns:
      The record of the slice: ``positives`` and ``pixels`` of the truth; ``tp`` and ``fp``, int
      [256], of the min-max normalised map at ``THRESHOLDS``; ``curves``, their scores [256] in the
      toolbox reading; (tp, fp) pairs ``adaptive`` (threshold min(1, 2 mean), normalised map),
      ``minmax`` and ``none`` (fixed threshold, normalised map and raw probabilities); ``blank``,
      whether the map is all zero; ``s_measure``, ``weighted_f`` and ``mae`` of the normalised map;
      ``histograms`` of the raw probability of lesion and of other pixels in steps of 1/255, for the
      pooled ROC; the ``threshold``.

    Raises:
      ValueError: wrong shapes, a truth that is not bool, values outside [0, 1] or not finite.
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


def threshold_scores(
    record: dict, normalise: str = "minmax", reading: str = "toolbox"
) -> dict[str, float]:
    """Scores of one record at its fixed threshold, after min-max (``minmax``) or raw (``none``).

    ``normalise='adaptive'`` gives those at the adaptive threshold, which is 0 for an all-zero map
    and so marks every pixel of it; the empty-aware reading takes such a map as nothing predicted.

    Raises:
      ValueError: an unknown ``normalise`` or reading.
    """
    if normalise not in ("minmax", "none", "adaptive"):
        raise ValueError(f"normalise {normalise!r} is unknown: choose minmax, none or adaptive")
    blank = normalise == "adaptive" and reading == "empty_aware" and record["blank"]
    tp, fp = (0, 0) if blank else record[normalise]
    found = scores(tp, fp, record["positives"], record["pixels"], reading)
    return {name: float(value) for name, value in found.items()}


def defined_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where nothing is defined."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(0) / defined.sum(0)


def summarise(records: Sequence[dict], reading: str = "toolbox") -> dict:
    """Average records over slices first, then take mean and maximum over the 256 thresholds.

    Args:
      records: what ``toolbox`` returned, one per slice.
      reading: ``toolbox`` or ``empty_aware`` (see the module text).

    Returns:
      ``images``, ``empty_truths``, ``reading``, ``threshold``; ``mean``, ``max``, ``adaptive``,
      ``minmax`` and ``none``, each a dict of the six scores; ``undefined``, for each of the last
      three how many slices each score left out, and for ``curves`` the most at any threshold;
      ``s_measure``, ``weighted_f`` (an empty truth scores 0 in the toolbox reading), ``mae``;
      ``curves`` of the six scores (lists of 256); ``roc`` (fpr, tpr lists) and ``roc_auc`` of all
      pixels pooled, on raw probabilities. NaN where no slice defines the value.

    Raises:
      ValueError: no records, mixed thresholds, or an unknown reading.
    """
    if not records:
        raise ValueError("no slices to summarise: give at least one record")
    if len({record["threshold"] for record in records}) > 1:
        raise ValueError("records were measured at different thresholds: use one")
    out: dict = {
        "reading": reading,
        "images": len(records),
        "empty_truths": sum(record["positives"] == 0 for record in records),
        "threshold": records[0]["threshold"],
        "undefined": {},
    }
    each = [scores(r["tp"], r["fp"], r["positives"], r["pixels"], reading) for r in records]
    stacks = {name: np.stack([one[name] for one in each]) for name in SCORES}
    curves = {name: defined_mean(stack) for name, stack in stacks.items()}
    out["undefined"]["curves"] = {
        name: int(np.isnan(stack).sum(0).max()) for name, stack in stacks.items()
    }
    out["mean"] = {name: float(defined_mean(curve)) for name, curve in curves.items()}
    out["max"] = {name: float(np.fmax.reduce(curve)) for name, curve in curves.items()}
    for kind in ("adaptive", "minmax", "none"):
        each = [threshold_scores(record, kind, reading) for record in records]
        stacks = {name: np.array([one[name] for one in each]) for name in SCORES}
        out[kind] = {name: float(defined_mean(stack)) for name, stack in stacks.items()}
        out["undefined"][kind] = {name: int(np.isnan(s).sum()) for name, s in stacks.items()}
    for name in ("s_measure", "weighted_f", "mae"):
        values = np.array([record[name] for record in records])
        out[name] = float(defined_mean(np.nan_to_num(values) if reading == "toolbox" else values))
    positive, negative = (sum(record["histograms"][k] for record in records) for k in (0, 1))
    fpr, tpr, out["roc_auc"] = roc_from_histograms(positive, negative)
    out["roc"] = (fpr.tolist(), tpr.tolist())
    out["curves"] = {name: curve.tolist() for name, curve in curves.items()}
    return out


def roc_from_histograms(
    positive: np.ndarray, negative: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """ROC curve and area from score histograms [n], bins in rising order of the score.

    Returns false and true positive rates [n + 1], from (0, 0) to (1, 1), and the area: exact when
    all scores of a bin are equal, NaN when a class is missing.
    """
    rates = []
    for histogram in (negative, positive):
        falling = np.concatenate([[0.0], np.cumsum(np.asarray(histogram, np.float64)[::-1])])
        rates.append(falling / falling[-1] if falling[-1] > 0 else np.full_like(falling, np.nan))
    return rates[0], rates[1], float(np.trapezoid(rates[1], rates[0]))


def roc_auc(values: np.ndarray, truth: np.ndarray) -> float:
    """Exact ROC-AUC of pooled pixels (ties count half); NaN when a class is missing."""
    ranks, truth = stats.rankdata(np.ravel(values)), np.ravel(truth).astype(bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return float("nan")
    above = ranks[truth].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-slice values; NaN values are left out.

    The same seed gives the same interval; (NaN, NaN) when no value is defined.
    """
    defined = np.asarray(values, np.float64)
    defined = defined[~np.isnan(defined)]
    if not defined.size:
        return float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(0, defined.size, (draws, defined.size))
    low, high = np.quantile(defined[picks].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def both_readings(records: Sequence[dict]) -> dict:
    """`summarise` in each reading, by its name, and `interval`: of the toolbox Dice over slices.

    The intervals (`bootstrap_interval`) are of the mean over 256 thresholds, `mean`, and of the
    stretched map at the fixed threshold, `minmax`.
    """
    found: dict = {reading: summarise(records, reading) for reading in READINGS}
    dice = {
        "mean": [float(record["curves"]["dice"].mean()) for record in records],
        "minmax": [threshold_scores(record, "minmax")["dice"] for record in records],
    }
    return found | {"interval": {name: bootstrap_interval(v) for name, v in dice.items()}}


def floors(
    train_masks: Sequence[np.ndarray],
    test_truths: Sequence[np.ndarray],
    threshold: float = 0.2,
    size: int = 352,
) -> dict[str, dict]:
    """Evaluate two predictions that look at no image: what any network has to beat.

    Args:
      train_masks: bool masks [H, W] of any sizes.
      test_truths: bool masks [H, W] of any sizes.
      threshold: the mean training mask marks a pixel where at least this share of masks does.
      size: side in pixels at which the training masks are averaged; the mean is then resized to
        each truth, and cut at ``threshold`` there.

    Returns:
      Summaries (like ``evaluate_maps``) of ``all_positive`` and ``mean_training_mask``.
    """
    if not len(train_masks) or not len(test_truths):
        raise ValueError("floors need at least one training mask and one test truth")
    share = np.mean([resize_map(mask.astype(np.float64), (size, size)) for mask in train_masks], 0)
    fixed = {
        "all_positive": lambda shape: np.ones(shape),
        "mean_training_mask": lambda shape: resize_map(share, shape) >= threshold,
    }
    return {
        name: {"label": name, **both_readings([toolbox(mask(t.shape), t) for t in test_truths])}
        for name, mask in fixed.items()
    }

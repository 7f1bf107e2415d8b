"""Intervals, paired tests, ROC curves and agreement of scores; pure numpy and scipy.

Scores of several seeds on the same slices are arrays [seeds, slices, classes], NaN where undefined.
Of true and predicted scores, NaN (leave out before, and count, what is not known), unequal lengths
and no pairs are a ValueError.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from infnet_jax.dice import defined_mean

Values = Sequence[float] | np.ndarray
DRAWS, LEVEL = 2000, 0.95  # of a bootstrap and its interval


def mean(values: np.ndarray) -> float:
    """Mean of what is defined over seeds and slices, then over classes; NaN if a class has none."""
    seeds, slices, _ = values.shape
    return float(_means(values, np.ones((1, seeds)), np.ones((1, slices)))[0])


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of `mean`: seeds, if several, and slices are drawn independently."""
    rng, (seeds, slices, _) = np.random.default_rng(0), values.shape
    weights = [rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) for n in (seeds, slices)]
    return _percentiles(_means(values, *weights))


def bootstrap_interval(values: Values) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of the defined per-slice values [slices]."""
    defined = np.asarray(values, np.float64)
    defined = defined[~np.isnan(defined)]
    if not defined.size:
        return np.nan, np.nan
    picks = np.random.default_rng(0).integers(0, defined.size, (DRAWS, defined.size))
    return _percentiles(defined[picks].mean(1))


def per_slice(values: np.ndarray) -> np.ndarray:
    """Mean over seeds and classes of each slice: [seeds, slices, classes] -> [slices]."""
    return defined_mean(values, axis=(0, 2))


def wilcoxon(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Two-sided p of the paired signed-rank test over slices, [slices] each; 1 if no pair differs.

    A slice is one pair, its seeds averaged: a pair for each seed would pretend to more patients
    than there are. Pairs with an undefined value are left out; NaN where none is left.
    """
    difference = ours - theirs
    difference = difference[~np.isnan(difference)]
    if not difference.size:
        return float("nan")
    return float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of tests; NaN stays and does not count.

    The k-th smallest of m becomes max over the j <= k of min(1, (m - j + 1) p_j).
    """
    p = np.asarray(p_values, float)
    order = [i for i in np.argsort(p) if not np.isnan(p[i])]
    out, highest = np.full(len(p), np.nan), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[i]))
        out[i] = highest
    return out.tolist()


def _percentiles(means: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrapped means [draws]; NaN where none is defined."""
    means = means[~np.isnan(means)]
    if not means.size:
        return float("nan"), float("nan")
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _means(values: np.ndarray, of_seeds: np.ndarray, of_slices: np.ndarray) -> np.ndarray:
    """`mean` under each row of weights, [draws, seeds] and [draws, slices] -> [draws]."""
    defined = ~np.isnan(values)

    def weigh(cells: np.ndarray) -> np.ndarray:
        per_draw = np.tensordot(of_seeds, cells.astype(float), axes=1)
        return (per_draw * of_slices[..., None]).sum(1)

    total, count = weigh(np.where(defined, values, 0.0)), weigh(defined)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total / count).mean(-1)


class Roc(NamedTuple):
    """Operating points, from the strictest threshold to the loosest: float64 [n + 1] each."""

    threshold: np.ndarray  # a score at or above it means yes; the first is infinite (never)
    sensitivity: np.ndarray  # 0..1
    specificity: np.ndarray  # 0..1
    auc: float  # area under the curve, 0..1, ties counted half


def roc_from_histograms(
    positive: np.ndarray, negative: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """False and true positive rates [n + 1], from 0 to 1, and the area under the ROC curve.

    From score histograms [n], bins in rising order: exact when all scores of a bin are equal. NaN
    when a class is missing.
    """
    rates = []
    for histogram in (negative, positive):
        falling = np.concatenate([[0.0], np.cumsum(np.asarray(histogram, np.float64)[::-1])])
        rates.append(falling / falling[-1] if falling[-1] > 0 else np.full_like(falling, np.nan))
    return rates[0], rates[1], float(np.trapezoid(rates[1], rates[0]))


def roc(shares: Values, infected: Sequence[bool]) -> Roc:
    """The ROC of the infected share [N] of each patient's lung, 0..1, against `infected` [N].

    Lengths that differ, a NaN and patients of one kind only are a ValueError.
    """
    x, y = np.asarray(shares, float), np.asarray(infected, bool)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"{x.shape} shares for {y.shape} patients: give one share each")
    if np.isnan(x).any():
        raise ValueError(f"patient {int(np.flatnonzero(np.isnan(x))[0])} has no share (NaN)")
    if y.all() or not y.any():
        raise ValueError(f"all {y.size} patients are alike: a ROC needs infected and healthy ones")
    levels, level = np.unique(x, return_inverse=True)
    histograms = (np.bincount(level[of], minlength=levels.size) for of in (y, ~y))
    false_alarm, sensitivity, auc = roc_from_histograms(*histograms)
    return Roc(np.r_[np.inf, levels[::-1]], sensitivity, 1 - false_alarm, auc)


def sensitivity_at(curve: Roc, specificity: float) -> tuple[float, float, float]:
    """Sensitivity, specificity and threshold of the most sensitive point at or above a specificity.

    0, 1 and infinity where only calling nobody infected is as specific.
    """
    i = int(np.flatnonzero(curve.specificity >= specificity)[-1])
    return float(curve.sensitivity[i]), float(curve.specificity[i]), float(curve.threshold[i])


class Limits(NamedTuple):
    """Bland and Altman's limits of agreement, in the unit of the scores."""

    bias: float  # the mean of predicted - true
    low: float  # 1.96 standard deviations (n - 1) of the differences below it; NaN for one pair
    high: float  # as far above it


class Classes(NamedTuple):
    """Agreement of classes, all 0..1 but kappa."""

    accuracy: float
    majority: float  # the accuracy of always answering the most frequent true class
    macro_f1: float  # the mean F1 over the classes that are true or predicted at least once
    kappa: float  # quadratically weighted (Cohen 1968), -1..1; NaN where both are one same class


def mean_absolute_error(true: Values, predicted: Values) -> float:
    """Mean |predicted - true|."""
    t, p = _pair(true, predicted)
    return float(np.abs(p - t).mean())


def limits(true: Values, predicted: Values) -> Limits:
    """Limits of agreement (Bland and Altman 1986)."""
    t, p = _pair(true, predicted)
    bias = (p - t).mean()
    spread = 1.96 * (p - t).std(ddof=1) if t.size > 1 else np.nan
    return Limits(float(bias), float(bias - spread), float(bias + spread))


def spearman(true: Values, predicted: Values) -> float:
    """Rank correlation, -1..1, ties at their mean rank; NaN where a side is constant."""
    a, b = (stats.rankdata(v) - (len(v) + 1) / 2 for v in _pair(true, predicted))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else float("nan")


def classes(true: Sequence[int], predicted: Sequence[int]) -> Classes:
    """Agreement of ordered classes; ValueError if one is not a whole number from 0."""
    t, p = _pair(true, predicted)
    if (t % 1).any() or (p % 1).any() or min(t.min(), p.min()) < 0:
        raise ValueError("classes are whole numbers from 0")
    n = int(max(t.max(), p.max())) + 1
    table = np.zeros((n, n))  # rows: true
    np.add.at(table, (t.astype(int), p.astype(int)), 1)
    rows, columns, hits = table.sum(1), table.sum(0), np.diag(table)
    seen = rows + columns > 0
    f1 = 2 * hits[seen] / (rows + columns)[seen]
    weight = (np.arange(n)[:, None] - np.arange(n)) ** 2
    chance = (weight * np.outer(rows, columns)).sum() / t.size
    kappa = 1 - (weight * table).sum() / chance if chance else np.nan
    accuracy, majority = hits.sum() / t.size, rows.max() / t.size
    return Classes(float(accuracy), float(majority), float(f1.mean()), float(kappa))


def _pair(true: Values, predicted: Values) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as arrays, checked."""
    t, p = np.asarray(true, float), np.asarray(predicted, float)
    if t.ndim != 1 or t.shape != p.shape or not t.size:
        raise ValueError(f"{t.shape} true and {p.shape} predicted values: give pairs")
    if np.isnan(t).any() or np.isnan(p).any():
        raise ValueError(f"pair {int(np.flatnonzero(np.isnan(t) | np.isnan(p))[0])} holds a NaN")
    return t, p

"""Comparisons of results on the same slices: intervals over seeds and slices, paired tests.

Results are arrays [seeds, slices, classes] of one score; NaN where a score is undefined.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def mean(values: np.ndarray) -> float:
    """Mean over seeds and slices of each class, then over classes; undefined values left out.

    Args:
      values: [seeds, slices, classes].

    Returns:
      NaN where a class has no defined value.
    """
    seeds, slices, _ = values.shape
    return float(_means(values, np.ones((1, seeds)), np.ones((1, slices)))[0])


def interval(
    values: np.ndarray, seed: int = 0, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of `mean`: seeds and slices are drawn again, independently.

    With one seed it is the interval over slices alone. The same `seed` gives the same interval.

    Args:
      values: [seeds, slices, classes].
    """
    rng, (seeds, slices, _) = np.random.default_rng(seed), values.shape
    weights = [rng.multinomial(n, np.full(n, 1 / n), size=draws) for n in (seeds, slices)]
    means = _means(values, *weights)
    means = means[~np.isnan(means)]
    if not means.size:
        return float("nan"), float("nan")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _means(values: np.ndarray, of_seeds: np.ndarray, of_slices: np.ndarray) -> np.ndarray:
    """`mean` under each row of weights, [draws, seeds] and [draws, slices] -> [draws]."""
    defined = ~np.isnan(values)

    def weigh(cells: np.ndarray) -> np.ndarray:
        per_slice = np.tensordot(of_seeds, cells.astype(float), axes=1)
        return (per_slice * of_slices[..., None]).sum(1)

    total, count = weigh(np.where(defined, values, 0.0)), weigh(defined)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total / count).mean(-1)


def per_slice(values: np.ndarray) -> np.ndarray:
    """Mean over seeds and classes of each slice, [slices]; NaN where nothing is defined."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum((0, 2)) / defined.sum((0, 2))


def wilcoxon(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Two-sided p of the paired signed-rank test over slices.

    A slice is one pair, its seeds averaged: seeds see the same slices, so counting each
    seed as a pair of its own would pretend to more patients than there are.

    Args:
      ours, theirs: [slices] each; pairs with an undefined value are left out.

    Returns:
      1 where no pair differs, NaN where there is no pair.
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

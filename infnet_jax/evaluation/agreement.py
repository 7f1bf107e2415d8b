"""How well predicted scores meet true ones: errors, ranks, grades. Pure numpy, in the score's unit.

A pair with a NaN on either side is an error: what is not known has to be left out, and counted,
by whoever asks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Values = Sequence[float] | np.ndarray


class Limits(NamedTuple):
    """Bland and Altman's limits of agreement, in the unit of the scores.

    Attributes:
      bias: mean of predicted - true.
      low, high: bias -+ 1.96 standard deviations (n - 1) of the differences; NaN for one pair.
    """

    bias: float
    low: float
    high: float


class Classes(NamedTuple):
    """Agreement of classes.

    Attributes:
      accuracy: 0..1.
      majority: accuracy of always answering the most frequent true class, 0..1.
      macro_f1: mean F1 over the classes that are true or predicted at least once, 0..1.
      kappa: quadratically weighted (Cohen 1968), -1..1; NaN where both sides are one same class.
    """

    accuracy: float
    majority: float
    macro_f1: float
    kappa: float


def mean_absolute_error(true: Values, predicted: Values) -> float:
    """Mean |predicted - true|. Errors as in `limits`."""
    t, p = _pair(true, predicted)
    return float(np.abs(p - t).mean())


def limits(true: Values, predicted: Values) -> Limits:
    """Limits of agreement (Bland and Altman 1986).

    Raises:
      ValueError: lengths that differ, no pairs, or a NaN.
    """
    t, p = _pair(true, predicted)
    bias, n = (p - t).mean(), t.size
    spread = 1.96 * (p - t).std(ddof=1) if n > 1 else np.nan
    return Limits(float(bias), float(bias - spread), float(bias + spread))


def spearman(true: Values, predicted: Values) -> float:
    """Rank correlation, -1..1, ties at their mean rank; NaN where a side is constant.

    Errors as in `limits`.
    """
    ranks = []
    for values in _pair(true, predicted):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        rank = (np.cumsum(count) - (count - 1) / 2)[place]
        ranks.append(rank - rank.mean())
    a, b = ranks
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else float("nan")


def classes(true: Sequence[int], predicted: Sequence[int]) -> Classes:
    """Agreement of ordered classes 0, 1, 2, ...; the distance of two is squared for kappa.

    Raises:
      ValueError: lengths that differ, no pairs, or something that is no class.
    """
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
    return Classes(
        float(hits.sum() / t.size), float(rows.max() / t.size), float(f1.mean()), float(kappa)
    )


def _pair(true: Values, predicted: Values) -> tuple[np.ndarray, np.ndarray]:
    t, p = np.asarray(true, float), np.asarray(predicted, float)
    if t.ndim != 1 or t.shape != p.shape or not t.size:
        raise ValueError(f"{t.shape} true and {p.shape} predicted values: give pairs")
    if np.isnan(t).any() or np.isnan(p).any():
        raise ValueError(f"pair {int(np.flatnonzero(np.isnan(t) | np.isnan(p))[0])} holds a NaN")
    return t, p

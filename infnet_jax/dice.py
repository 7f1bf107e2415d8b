"""Dice, the paper's eq. 6: one definition for training, evaluation and severity."""

import numpy as np
from numpy.typing import ArrayLike


def dice_of_counts(both: ArrayLike, total: ArrayLike, empty: float = float("nan")) -> np.ndarray:
    """2 both / total: float64, shaped like the counts of pixels.

    Args:
      both: pixels marked in both masks; total: of the one mask plus of the other, the same shape.
      empty: the value where both masks are empty (total 0). NaN leaves such a pair out of
        `defined_mean` (the empty-aware reading), 0 counts it as a failure (the toolbox reading),
        1 as agreement.
    """
    both, total = np.asarray(both, np.float64), np.asarray(total, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, 2 * both / total, empty)


def dice(
    marked: np.ndarray, truth: np.ndarray, empty: float = float("nan"), axis: tuple | None = None
) -> np.ndarray:
    """Dice of bool masks of equal shapes (else ValueError): float64, a value for each pair.

    `axis` are the axes of one mask, None for all; `empty` is as in `dice_of_counts`.
    """
    if marked.shape != truth.shape:
        raise ValueError(f"masks have shapes {marked.shape} and {truth.shape}; give equal ones")
    total = marked.sum(axis) + truth.sum(axis)
    return dice_of_counts((marked & truth).sum(axis), total, empty)


def defined_mean(values: ArrayLike, axis: int | tuple[int, ...] = 0) -> np.ndarray:
    """Mean over axes without NaN; NaN where nothing is defined."""
    values = np.asarray(values, np.float64)
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(axis) / defined.sum(axis)

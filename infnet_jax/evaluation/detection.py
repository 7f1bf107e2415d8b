"""Infected or not, per patient: a threshold on the infected share, and its ROC."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass
class Roc:
    """Operating points, from the strictest threshold to the loosest.

    Attributes:
      threshold: float64 [n + 1]; a share at or above it is called infected. The first is
        infinite (nobody).
      sensitivity, specificity: float64 [n + 1], 0..1.
      auc: area under the curve, 0..1, ties counted half.
    """

    threshold: np.ndarray
    sensitivity: np.ndarray
    specificity: np.ndarray
    auc: float


def roc(shares: Sequence[float], infected: Sequence[bool]) -> Roc:
    """The ROC of the infected share.

    Args:
      shares: float [N], infected share of each patient's lung, 0..1.
      infected: bool [N], whether the patient is.

    Raises:
      ValueError: lengths that differ, a NaN, or patients of one kind only.
    """
    x, y = np.asarray(shares, float), np.asarray(infected, bool)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"{x.shape} shares for {y.shape} patients: give one share each")
    if np.isnan(x).any():
        raise ValueError(f"patient {int(np.flatnonzero(np.isnan(x))[0])} has no share (NaN)")
    if y.all() or not y.any():
        raise ValueError(f"all {y.size} patients are alike: a ROC needs infected and healthy ones")
    levels = np.unique(x)[::-1]
    called = x[None, :] >= levels[:, None]
    sensitivity = np.r_[0.0, (called & y).sum(1) / y.sum()]
    false_alarm = np.r_[0.0, (called & ~y).sum(1) / (~y).sum()]
    auc = float(np.trapezoid(sensitivity, false_alarm))
    return Roc(np.r_[np.inf, levels], sensitivity, 1 - false_alarm, auc)


def sensitivity_at(curve: Roc, specificity: float) -> tuple[float, float, float]:
    """The greatest sensitivity of an operating point whose specificity is at least this, 0..1.

    Returns:
      Its sensitivity, specificity and threshold; 0, 1 and infinity where only calling nobody
      infected is as specific.
    """
    best = int(np.flatnonzero(curve.specificity >= specificity)[-1])
    return (
        float(curve.sensitivity[best]),
        float(curve.specificity[best]),
        float(curve.threshold[best]),
    )


def choose_threshold(shares: Sequence[float], infected: Sequence[bool]) -> float:
    """The share from which a patient is called infected, chosen on training patients.

    It is the threshold of the greatest sensitivity + specificity (Youden), moved halfway to the
    next lower share seen; of equally good ones, the most specific. Errors as in `roc`.
    """
    curve = roc(shares, infected)
    best = int(np.argmax(curve.sensitivity + curve.specificity))
    if best == 0:
        return float("inf")
    lower = curve.threshold[best + 1] if best + 1 < curve.threshold.size else 0.0
    return float((curve.threshold[best] + lower) / 2)


def detect(shares: Sequence[float], threshold: float) -> np.ndarray:
    """Bool [N]: called infected, the share being at or above the threshold; NaN is not."""
    return np.asarray(shares, float) >= threshold

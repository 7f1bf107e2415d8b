"""From stored numbers to Hounsfield units: one way for all formats, which says what it did."""

import numpy as np

LOWEST = -1024  # of a CT by convention: air and what lies outside the field of view
# Stored numbers minus HU of scans that have lost their rescale intercept.
OFFSETS = (0, -1024, -1000, -32768)
_TISSUE = (-200, 300)


def to_hu(array: np.ndarray) -> tuple[np.ndarray, bool, list[str]]:
    """Finds out whether numbers are Hounsfield units, or were before they lost their offset.

    Padding (numbers below -1024, as outside the field of view) becomes -1024 first.

    Args:
      array: of any shape and real dtype, finite.

    Returns:
      The values, of the same shape (the array itself where nothing changed), whether they are HU,
      and a line for each thing that was done. Values that are not HU are as given.
    """
    some = array.ravel(order="K")[:: max(array.size // 500_000, 1)].astype(np.float32)
    fitting = [offset for offset in OFFSETS if _fits(some + offset)]
    if not fitting:
        return array, False, []
    offset = 0 if 0 in fitting else min(fitting, key=lambda offset: abs(_air(some + offset) + 1000))
    notes = []
    if offset:
        notes.append(f"numbers are HU + {-offset} (no rescale intercept?); taken so")
        array = array.astype(np.int32 if array.dtype.kind in "iu" else np.float32) + offset
    if (low := array.min()) < LOWEST:
        if low < -4096:  # -2000, -2048 and -3024 are what scanners write
            notes.append(f"numbers below {LOWEST} (down to {low:g}) are taken as air")
        array = np.maximum(array, array.dtype.type(LOWEST))
    return array, True, notes


def _air(values: np.ndarray) -> float:
    """The commonest number of air, in steps of 8; padding, the one lowest number, is left out."""
    inside = values[(values > max(values.min(), LOWEST)) & (values < -900)]
    if not inside.size:
        return float(values.min())
    counts, edges = np.histogram(inside, np.arange(-1100, -892, 8))
    return float(edges[counts.argmax()] + 4)


def _fits(values: np.ndarray) -> bool:
    """Whether numbers, float32 [n], lie as those of a chest CT in HU do.

    Air or lung and soft tissue are there, and air has its peak near -1000 where there is air at
    all: numbers that are shifted by a constant have it elsewhere.
    """
    values = np.maximum(values, LOWEST)
    if values.max() > 32767 or values.max() - values.min() < 500:
        return False

    def share(span: tuple[int, int]) -> float:
        return float(((values >= span[0]) & (values < span[1])).mean())

    if share((LOWEST, -400)) < 0.01 or share(_TISSUE) < 0.01:
        return False
    # Soft tissue is the brightest thing that is common; beyond 300 HU there is bone and metal.
    return share((300, 40_000)) < 0.5 * share(_TISSUE) + 0.02

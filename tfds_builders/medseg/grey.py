"""Hounsfield units, or numbers that are grey levels already, as 8-bit lung-window pictures."""

import numpy as np

LOW, HIGH = -1250.0, 250.0  # Hounsfield units: level -500, width 1500
KINDS = {"hu": (LOW, HIGH), "grey": (0.0, 255.0), "share": (0.0, 1.0)}


def kind_of(stack: np.ndarray, name: object) -> str:
    """Tells what the numbers of [Z, H, W] are: `hu`, `grey` (0..255), or `share` (0..1).

    Args:
      stack: numbers; NaN is passed over.
      name: what messages call the file.

    Raises:
      ValueError: none of them (Hounsfield units reach below -200: there is air in a chest).
    """
    low, high = float(np.fmin.reduce(stack, axis=None)), float(np.fmax.reduce(stack, axis=None))
    if low < -200:
        return "hu"
    if low >= 0 and 1 < high <= 255:
        return "grey"
    if low >= 0 and 0 < high <= 1:
        return "share"
    raise ValueError(f"{name}: values {low:g} to {high:g} are neither Hounsfield units nor grey")


def to_grey(picture: np.ndarray, kind: str) -> np.ndarray:
    """Maps [H, W] numbers to uint8: the kind's range to 0..255, beyond it clipped, NaN to 0."""
    low, high = KINDS[kind]
    level = np.clip((picture.astype(np.float32) - low) / (high - low), 0, 1) * 255
    return np.nan_to_num(level).round().astype(np.uint8)

"""One scan in memory: values on a canonical grid, and the way back to the grid of its file."""

import dataclasses
from typing import Any, NamedTuple

import cv2
import numpy as np

LEVEL, WIDTH = -600, 1500  # lung window in HU, the one that networks and pages see
# A chest CT in a lung window is bright or dark, with sharp borders between: over 1,905 slices
# the measures of `_looks_like_ct` are at least 0.63 and 0.76; a soft film has 0.47 in the second.
TWO_TONED, SHARP = 0.5, 0.6


class Grid(NamedTuple):
    """How a file's array becomes canonical [D, H, W]: axes reordered and flipped, never resampled.

    Canonical slices run from the feet up, rows from the front to the back, columns from the
    patient's right to the left (radiological display).
    """

    shape: tuple[int, ...]  # of the file's array
    cube: tuple[int, int, int]  # the same with three axes
    order: tuple[int, int, int]  # the file's axes that become slices, rows, columns
    flips: tuple[bool, bool, bool]  # of the canonical axes

    def canonical(self, array: np.ndarray) -> np.ndarray:
        """A view [D, H, W] of an array on the file's grid.

        Raises:
          ValueError: it is not on that grid.
        """
        if array.shape != self.shape:
            raise ValueError(f"array of shape {array.shape} on a grid of {self.shape}")
        return self._flip(array.reshape(self.cube).transpose(self.order))

    def source(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `canonical`: [D, H, W] back on the file's grid."""
        back = np.argsort(self.order)
        return self._flip(array).transpose(back).reshape(self.shape)

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


@dataclasses.dataclass
class Scan:
    """A scan as read.

    Attributes:
      name: unique short name, for output files; never from a header.
      kind: `picture`, `nifti` or `dicom`.
      values: [D, H, W] canonical, HU where `is_hu`, else grey levels.
      is_hu: whether the values are Hounsfield units.
      oriented: whether the file says how the patient lies; pictures do not.
      spacing: (slice, row, column) in mm, or None.
      grid: the way back to the file's array.
      origin: what writing masks needs (NIfTI geometry, DICOM headers).
      warnings: one line each, about what had to be assumed.
    """

    name: str
    kind: str
    values: np.ndarray
    is_hu: bool
    oriented: bool
    spacing: tuple[float, float, float] | None
    grid: Grid
    origin: Any
    warnings: list[str] = dataclasses.field(default_factory=list)
    window: tuple[float, float] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Fixes the window: -1350..150 HU, all of 8 bits, or the range that the values use."""
        if self.is_hu:
            self.window = (LEVEL - WIDTH / 2, LEVEL + WIDTH / 2)
        elif self.values.dtype == np.uint8:
            self.window = (0.0, 255.0)
        else:
            low, high = np.percentile(self.values[:, ::4, ::4], (0.05, 99.95))
            if low == high:
                low, high = self.values.min(), self.values.max()
            self.window = (float(min(low, 0)), float(high))  # such pictures start at black

    def picture(self, index: int) -> np.ndarray:
        """Slice `index` in the window, uint8 [H, W]."""
        low, high = self.window
        share = (self.values[index].astype(np.float32) - low) / (high - low)
        return np.round(np.clip(share, 0, 1) * 255).astype(np.uint8)

    def pictures(self) -> np.ndarray:
        """All slices in the window, uint8 [D, H, W]."""
        out = np.empty(self.values.shape, np.uint8)
        for i in range(len(out)):  # one slice at a time: floats of a whole volume are large
            out[i] = self.picture(i)
        return out


def finish(
    name: str,
    kind: str,
    array: np.ndarray,
    grid: Grid,
    *,
    spacing: tuple | None,
    oriented: bool,
    origin: Any,
    warnings: list[str],
    file: str,
    may_be_hu: bool = True,
) -> Scan:
    """Checks an array on its file's grid and makes the scan of it.

    Raises:
      ValueError: NaN, a constant image, or something that is no chest CT; names the file.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{file}: holds NaN or infinite values; a CT has a number everywhere")
    if array.size == 0 or array.min() == array.max():
        raise ValueError(f"{file}: empty or of one grey level only; not a CT")
    hu = may_be_hu and looks_like_hu(array)
    notes = list(warnings)
    if may_be_hu and not hu:
        notes.append(
            f"{name}: values {array.min():g} to {array.max():g} cannot be HU; "
            "taken as a picture in a lung window"
        )
    scan = Scan(name, kind, grid.canonical(array), hu, oriented, spacing, grid, origin, notes)
    if not hu and not any(_looks_like_ct(scan.picture(i)) for i in _some(len(scan.values))):
        raise ValueError(f"{file}: does not look like a chest CT slice (an X-ray? a photo?)")
    return scan


def looks_like_hu(array: np.ndarray) -> bool:
    """Whether values may be HU: some lung or air, some soft tissue, nothing impossible."""
    some = array.ravel(order="K")[:: max(array.size // 500_000, 1)]
    air, tissue = (some < -400).mean(), (some > -200).mean()
    return bool(air > 0.01 and tissue > 0.01 and some.min() >= -8192 and some.max() <= 32767)


def plain_values(array: np.ndarray) -> np.ndarray:
    """The same values in the smallest of uint8, int16 and float32 that holds them."""
    if array.dtype.kind in "iub" or (
        np.isfinite(array).all() and np.array_equal(array, np.round(array))
    ):
        low, high = array.min(initial=0), array.max(initial=0)
        if array.dtype == np.uint8 or array.dtype == bool:
            return array.astype(np.uint8, copy=False)
        if low >= -32768 and high <= 32767:
            return array.astype(np.int16, copy=False)
    return array.astype(np.float32, copy=False)


def _some(n: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, n - 1, 7)})


def _looks_like_ct(picture: np.ndarray) -> bool:
    """Whether dark (air, lung) and bright (soft tissue) explain most, and borders are sharp."""
    small = cv2.resize(picture, (128, 128), interpolation=cv2.INTER_AREA)
    threshold, mask = cv2.threshold(small, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    values = small.astype(np.float32)
    dark, bright = values[small <= threshold], values[small > threshold]
    if not dark.size or not bright.size:
        return False
    within = (dark.var() * dark.size + bright.var() * bright.size) / small.size
    rim = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > mask
    near = np.ones((5, 5), np.uint8)
    jump = np.median((cv2.dilate(values, near) - cv2.erode(values, near))[rim])
    step = bright.mean() - dark.mean()
    return bool(1 - within / values.var() >= TWO_TONED and jump >= SHARP * step)

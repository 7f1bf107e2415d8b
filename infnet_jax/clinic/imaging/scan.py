"""One scan in memory: values on a canonical grid, and the way back to the grid of its file."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import nibabel as nib
import numpy as np

from infnet_jax.clinic.imaging import hounsfield

LEVEL, WIDTH = -600, 1500  # lung window in HU, the one that networks and pages see
# A chest CT in a lung window is bright or dark, with sharp borders between: over 1,905 slices
# the measures of `_looks_like_ct` are at least 0.63 and 0.76; a soft film has 0.47 in the second.
TWO_TONED, SHARP = 0.5, 0.6
_AXES = ("S", "P", "L")  # canonical: slices to the head, rows to the back, columns to the left


class Grid(NamedTuple):
    """How a file's array becomes canonical [D, H, W]: axes reordered and flipped, never resampled.

    Canonical slices run from the feet up, rows from the front to the back, columns from the
    patient's right to the left (radiological display).
    """

    shape: tuple[int, ...]  # of the file's array, of two axes or more
    order: tuple[int, ...]  # the file's axes that become slices, rows, columns; a third if missing
    flips: tuple[bool, ...]  # of the canonical axes

    @classmethod
    def plain(cls, shape: tuple[int, ...]) -> "Grid":
        """The grid of an array [H, W] or [D, H, W] that is canonical already."""
        return cls(shape, (0, 1, 2) if len(shape) == 3 else (2, 0, 1), (False, False, False))

    @classmethod
    def of(cls, affine: np.ndarray, shape: tuple[int, ...]) -> "Grid":
        """The grid of an array [x, y, z] with a RAS affine; oblique axes go to the nearest one."""
        found = nib.orientations.io_orientation(affine)
        if np.isnan(found).any():  # an affine without volume says nothing
            return cls(shape, (2, 1, 0), (False, False, False))
        steps = nib.orientations.ornt_transform(found, nib.orientations.axcodes2ornt(_AXES))
        order = tuple(int(i) for i in np.argsort(steps[:, 0]))
        return cls(shape, order, tuple(bool(steps[i, 1] < 0) for i in order))

    def canonical(self, array: np.ndarray) -> np.ndarray:
        """A view [D, H, W] of an array on the file's grid, of the same dtype."""
        return self._flip(array.reshape((*self.shape, 1, 1)[:3]).transpose(self.order))

    def source(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `canonical`: [D, H, W] back on the file's grid."""
        return self._flip(array).transpose(np.argsort(self.order)).reshape(self.shape)

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


@dataclasses.dataclass
class Scan:
    """A scan as read; `values` are uint8, int16 or float32 [D, H, W], canonical."""

    name: str  # unique and short, for output files; never from a header
    kind: str  # of its file, a key of `imaging.FORMATS`
    values: np.ndarray  # Hounsfield units where `is_hu`, else grey levels
    is_hu: bool
    oriented: bool  # whether the file says how the patient lies; pictures do not
    spacing: tuple[float, float, float] | None  # slice, row, column in mm
    grid: Grid  # the way back to the file's array
    origin: Any  # what writers of masks need beside it: a NIfTI header, DICOM headers, or None
    warnings: list[str] = dataclasses.field(default_factory=list)  # what had to be assumed
    affine: np.ndarray | None = None  # float [4, 4], indices of the file's array to RAS in mm
    window: tuple[float, float] = dataclasses.field(init=False)  # shown black and white
    _pictures: np.ndarray | None = dataclasses.field(init=False, default=None, repr=False)

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
        """All slices in the window, uint8 [D, H, W]; computed once, so do not write to them."""
        if self._pictures is None:
            self._pictures = np.empty(self.values.shape, np.uint8)
            for i in range(len(self.values)):  # floats of a whole volume would be large
                self._pictures[i] = self.picture(i)
        return self._pictures


class MaskInfo(NamedTuple):
    """What a mask file may say beside its labels."""

    classes: dict[str, str]  # code and name of labels 1, 2, ..., in their order
    keep_identifiers: bool  # lets names, ids and dates pass from the scan's headers
    version: str  # of this software, or ""


class NoMask(Exception):
    """A format cannot hold this mask; those that can are written all the same."""


def finish(
    name: str,
    kind: str,
    array: np.ndarray,
    file: str,
    *,
    affine: np.ndarray | None = None,
    oriented: bool = False,
    origin: Any = None,
    inverted: bool = False,
    warnings: Sequence[str] = (),
) -> Scan:
    """Checks an array on its file's grid and makes the scan of it; `file` is for messages.

    The array is [x, y, z] with an affine; without, a picture [H, W]. `inverted` numbers show air
    white; they are turned where they are not HU.

    Raises:
      ValueError: NaN, a constant image, or something that is no chest CT; names the file.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{file}: holds NaN or infinite values; a CT has a number everywhere")
    if array.size == 0 or array.min() == array.max():
        raise ValueError(f"{file}: empty or of one grey level only; not a CT")
    notes = list(warnings)
    grid, spacing, hu = Grid.plain(array.shape), None, False
    if affine is not None or array.dtype != np.uint8:
        values, hu, done = hounsfield.to_hu(array)
        notes += [f"{name}: {line}" for line in done]
        array = plain_values(values)
    if affine is not None:
        grid, spacing = Grid.of(affine, array.shape), spacing_of(affine)
        if not hu:
            span = f"values {array.min():g} to {array.max():g}"
            notes.append(f"{name}: {span} cannot be HU; taken as a picture in a lung window")
    if not hu and array.dtype == np.int16 and array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)  # 8 bits in a wider type are 8 bits
    if inverted and not hu:
        top = 255 if array.dtype == np.uint8 else int(array.max())
        array = (top - array.astype(np.float32)).astype(array.dtype)
        notes.append(f"{name}: black and white are exchanged (white is zero); turned")
    values = grid.canonical(array)
    scan = Scan(name, kind, values, hu, oriented, spacing, grid, origin, notes, affine)
    some = sorted({int(i) for i in np.linspace(0, len(values) - 1, 7)})
    if not hu and not any(_looks_like_ct(scan.picture(i)) for i in some):
        raise ValueError(f"{file}: does not look like a chest CT slice (an X-ray? a photo?)")
    return scan


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Canonical (slice, row, column) spacing in mm of a RAS affine, float [4, 4]."""
    zooms, order = nib.affines.voxel_sizes(affine), Grid.of(affine, ()).order
    slices, rows, columns = (float(zooms[i]) for i in order)
    apart = abs(float(np.linalg.det(affine[:3, :3]))) / (rows * columns)
    if abs(apart - slices) > 1e-4 * slices:  # sheared, as of a tilted gantry
        slices = apart  # from plane to plane, so that the product is the volume of a voxel
    return slices, rows, columns


def one_line(error: Exception) -> str:
    """The message of an error of another library, short and without line breaks."""
    return " ".join(str(error).split())[:120]


def plain_values(array: np.ndarray) -> np.ndarray:
    """The same values, any shape, in the smallest of uint8, int16 and float32 that holds them."""
    if array.dtype in (np.uint8, bool):
        return array.astype(np.uint8, copy=False)
    if array.dtype == np.int16:
        return array
    whole = array.dtype.kind in "iu" or (
        np.isfinite(array).all() and np.array_equal(array, np.round(array))
    )
    fits = whole and array.min(initial=0) >= -32768 and array.max(initial=0) <= 32767
    return array.astype(np.int16 if fits else np.float32, copy=False)


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
    jumps = cv2.morphologyEx(values, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8))[rim]
    sharp = np.median(jumps) >= SHARP * (bright.mean() - dark.mean())
    return bool(1 - within / values.var() >= TWO_TONED and sharp)

"""Where a file's voxels lie: what its header leaves in doubt, and label maps brought to their scan.

An affine is float [4, 4], from the indices of the file's array [x, y, z] to RAS in millimetres.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from infnet_jax.clinic.imaging.scan import Grid, Scan, spacing_of

SHARE, LEAST = 0.1, 0.05  # two grids are one if corners lie a tenth of a voxel apart, or .05 mm
EDGES = 0.05, 50.0  # mm, between which edges of a CT voxel lie
SLABS = 3.0  # a slice whose voxels or sides are so unlike was cut across the planes of the scan


class Labels(NamedTuple):
    """A label map as its file holds it.

    Attributes:
      array: uint8, [x, y, z] with an affine; without, [D, H, W] in radiological display.
      affine: None for pictures.
      coded: whether the header says how the patient lies.
      spacing: canonical, mm; None if not known.
      notes: what is in doubt, a line each.
    """

    array: np.ndarray
    affine: np.ndarray | None = None
    coded: bool = False
    spacing: tuple[float, float, float] | None = None
    notes: tuple[str, ...] = ()

    def canonical(self) -> np.ndarray:
        """The map by its own header, uint8 [D, H, W]."""
        if self.affine is None:
            return Grid.plain(self.array.shape).canonical(self.array)
        return Grid.of(self.affine, self.array.shape).canonical(self.array)


class Pose(NamedTuple):
    """What can be believed of an affine; `spacing` is None where voxel sizes are not known."""

    affine: np.ndarray
    coded: bool
    spacing: tuple[float, float, float] | None
    notes: tuple[str, ...]


def believed(
    affine: np.ndarray, shape: Sequence[int], file: str, *, coded: bool = True, sized: bool = True
) -> Pose:
    """What can be believed of an affine of an array of this shape.

    Args:
      coded: whether the header says that the affine tells how the patient lies.
      sized: whether the header gives the size of voxels.

    Raises:
      ValueError: no orientation at all, or an array that was saved as [slice, row, column] without
        its geometry.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        reason = "the header's affine gives no orientation (NaN, or an axis without length)"
        raise ValueError(f"{file}: {reason}; save it with the geometry of its scan")
    notes, spacing = [], spacing_of(affine)
    lost = np.array_equal(np.abs(affine[:3, :3]), np.eye(3)) and not affine[:3, 3].any()
    depth, height, width = Grid.of(affine, tuple(shape)).canonical(np.empty(shape, bool)).shape
    if (lost or not coded) and height != width and depth in (height, width):
        raise ValueError(
            f"{file}: {depth} slices of {height} x {width} by a header without geometry; was it "
            "saved as [slice, row, column]? Save it with the affine of its scan"
        )
    if not coded:
        notes.append(
            "the header gives no orientation; taken as stored to the left, the back and the head"
        )
    if lost:
        notes.append(
            "the affine is the identity, as of files saved without their geometry: sides may be "
            "exchanged, millimetres are not known"
        )
    elif not sized:
        notes.append("the header gives no size of voxels; millimetres are not known")
    elif not EDGES[0] <= min(spacing) <= max(spacing) <= EDGES[1]:
        edges = " x ".join(f"{edge:.3g}" for edge in spacing)
        notes.append(f"voxels of {edges} mm cannot be of a CT; millimetres are not known")
    elif max(spacing[1:]) > SLABS * min(spacing[1:]):
        notes.append(f"axial slices have voxels of {spacing[1]:.3g} x {spacing[2]:.3g} mm")
    known = sized and not lost and EDGES[0] <= min(spacing) <= max(spacing) <= EDGES[1]
    return Pose(affine, coded, spacing if known else None, tuple(notes))


def whole(array: np.ndarray, file: str) -> np.ndarray:
    """Numbers that are labels, as uint8; a thousandth beside a whole number is rounding.

    In 16 bits 65535 is what 255 is in 8.

    Raises:
      ValueError: other numbers, or not from 0 to 255; names the file.
    """
    if array.max() == 65535 and np.isin(array, (0, 65535)).all():
        return np.where(array > 0, 255, 0).astype(np.uint8)
    near = np.round(array)
    if not (np.abs(array - near) < 1e-3).all() or near.min() < 0 or near.max() > 255:
        raise ValueError(f"{file}: not a label map (whole numbers from 0 to 255 expected)")
    return near.astype(np.uint8)


def shown(labels: Labels, name: str) -> Scan:
    """A scan on the grid of a label map that shows where the map is not 0."""
    grid, affine = Grid.plain(labels.array.shape), labels.affine
    if affine is not None:
        grid = Grid.of(affine, labels.array.shape)
    values = np.where(labels.canonical() > 0, 90, 0).astype(np.uint8)
    notes = ["no image given, the mask itself is shown", *labels.notes]
    notes = [f"{name}: {note}" for note in notes]
    coded, spacing = labels.coded, labels.spacing
    return Scan(name, "labels", values, False, coded, spacing, grid, None, notes, affine)


def same_grid(
    affine: np.ndarray, shape: Sequence[int], other: np.ndarray, other_shape: Sequence[int]
) -> bool:
    """Whether two arrays have the same voxels in the same order, by a share of a voxel."""
    if tuple(shape) != tuple(other_shape):
        return False
    edge = float(min(np.linalg.norm(other[:3, :3], axis=0)))
    return apart(affine, other, shape) <= max(SHARE * edge, LEAST)


def apart(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """How far the corners of an array lie from each other by two affines, mm, at the most."""
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], (1,), indexing="ij"), -1)
    way = corners.reshape(-1, 4) @ (affine - other).T
    return float(np.linalg.norm(way[:, :3], axis=1).max())


def onto(
    labels: Labels, scan: Scan, file: str, *, resample: bool = False
) -> tuple[np.ndarray, list[str]]:
    """A label map on the canonical grid of its scan, uint8 [D, H, W], and what was done for it.

    Axes that are only in another order or direction are turned. A map without orientation lies as
    the file of its scan does. A map of another grid is refused, or resampled by the nearest voxel.

    Raises:
      ValueError: on another grid; names the file and what differs.
    """
    array, affine = labels.array, labels.affine
    if affine is not None and scan.affine is not None:
        array, shape = _three(array), (*scan.grid.shape, 1, 1)[:3]
        if scan.oriented and labels.coded:
            turned = _turned(array, affine, scan.affine, shape)
            if turned is not None:
                return scan.grid.canonical(turned), []
            if resample:
                return _resampled(array, affine, scan, shape, file)
            raise ValueError(f"{file}: {_difference(array, affine, scan, shape)}")
        as_file = scan.kind != "dicom" or not labels.coded
        if as_file and array.shape == shape:
            whose = "its scan" if labels.coded else "it"
            note = f"{whose} has no orientation; the map is taken to lie as the file of its scan"
            return scan.grid.canonical(array), [note]
    array = labels.canonical()
    if array.shape != scan.values.shape:
        shapes = f"shape {array.shape} (slices, rows, columns), its scan {scan.values.shape}"
        raise ValueError(f"{file}: {shapes}")
    return array, []


def _three(array: np.ndarray) -> np.ndarray:
    return array.reshape((*array.shape, 1, 1)[:3])


def _turned(
    array: np.ndarray, affine: np.ndarray, onto: np.ndarray, shape: Sequence[int]
) -> np.ndarray | None:
    """The array in the order of the grid of another affine; None if that takes more than a turn."""
    steps = np.round((np.linalg.inv(onto) @ affine)[:3, :3])
    if not all((np.abs(steps).sum(axis) == 1).all() for axis in (0, 1)):
        return None
    order = np.abs(steps).argmax(1)
    back = np.zeros((4, 4))  # from indices of the turned array to those of the array
    back[3, 3] = 1
    for i, axis in enumerate(order):
        back[axis, i] = steps[i, axis]
        back[axis, 3] = array.shape[axis] - 1 if steps[i, axis] < 0 else 0
    flips = tuple(slice(None, None, int(steps[i, axis])) for i, axis in enumerate(order))
    turned = array.transpose(order)[flips]
    return turned if same_grid(affine @ back, turned.shape, onto, shape) else None


def _difference(array: np.ndarray, affine: np.ndarray, scan: Scan, shape: Sequence[int]) -> str:
    """Why a map is refused, and what would help."""
    assert scan.affine is not None
    if array.shape != tuple(shape):
        what = f"shape {array.shape} (x, y, z), its scan {tuple(shape)}"
    elif np.array_equal(np.abs(affine[:3, :3]), np.eye(3)) and not affine[:3, 3].any():
        return "its affine is the identity, its scan's is not; save it with the affine of its scan"
    else:
        most = apart(affine, scan.affine, shape)
        what = f"has another affine than its scan (up to {most:.3g} mm apart)"
    return f"{what}; resample it first, or let --resample do it"


def _resampled(
    array: np.ndarray, affine: np.ndarray, scan: Scan, shape: Sequence[int], file: str
) -> tuple[np.ndarray, list[str]]:
    """The nearest label of each voxel of the scan; 0 outside of the map."""
    assert scan.affine is not None
    way = np.linalg.inv(affine) @ scan.affine
    matrix, offset = way[:3, :3], way[:3, 3]
    found = ndimage.affine_transform(
        np.ascontiguousarray(array),
        matrix,
        offset,
        output_shape=tuple(shape),
        order=0,
        mode="grid-constant",
    )
    before, after = (
        np.count_nonzero(a) * abs(np.linalg.det(m[:3, :3])) / 1000
        for a, m in ((array, affine), (found, scan.affine))
    )
    if before and not after:
        raise ValueError(f"{file}: nothing that it marks lies inside its scan")
    note = f"resampled to the grid of its scan; {before:.4g} ml marked before, {after:.4g} ml after"
    return scan.grid.canonical(found), [note]

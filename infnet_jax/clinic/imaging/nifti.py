"""NIfTI volumes in and masks out, on the same grid with the same affine."""

from pathlib import Path

import nibabel as nib
import numpy as np

from infnet_jax.clinic.imaging import scan as scan_lib

SUFFIXES = (".nii", ".nii.gz")
_AXES = ("S", "P", "L")  # canonical: slices to the head, rows to the back, columns to the left


def read(path: Path, name: str) -> scan_lib.Scan:
    """Reads a volume (or one slice) of HU or grey levels.

    Raises:
      ValueError: unreadable or truncated, more than three axes, NaN, constant; names the file.
    """
    image = _open(path)
    try:
        array = _values(image)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: damaged or truncated NIfTI ({_line(error)})") from None
    cube = cube_of(array.shape, str(path))
    return scan_lib.finish(
        name,
        "nifti",
        array,
        grid_of(image.affine, array.shape, cube),
        spacing=spacing_of(image.affine),
        oriented=True,
        origin=image.header,
        warnings=[],
        file=str(path),
    )


def _values(image: nib.spatialimages.SpatialImage) -> np.ndarray:
    """What the file holds, by its slope and intercept, in the smallest fitting type.

    Nibabel scales to eight bytes a voxel, so a volume goes by slices along its last axis.
    """
    stored, slope, inter = image.dataobj.get_unscaled(), image.dataobj.slope, image.dataobj.inter
    if (slope, inter) == (1, 0):
        return scan_lib.plain_values(stored)
    parts = [
        scan_lib.plain_values(stored[..., i] * np.float64(slope) + np.float64(inter))
        for i in range(stored.shape[-1])
    ]
    kind = np.result_type(*{part.dtype for part in parts})
    out = np.empty(stored.shape, kind, order="F")
    for i, part in enumerate(parts):
        out[..., i] = part
    return out


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 on the canonical grid [D, H, W], and the affine; errors as in `read`."""
    image = _open(path)
    try:
        array = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: damaged or truncated NIfTI ({_line(error)})") from None
    cube = cube_of(array.shape, str(path))
    if not np.array_equal(array, np.round(array)) or array.min() < 0 or array.max() > 255:
        raise ValueError(f"{path}: not a label map (whole numbers from 0 to 255 expected)")
    return grid_of(image.affine, array.shape, cube).canonical(array).astype(np.uint8), image.affine


def image_of(
    array: np.ndarray, affine: np.ndarray, like: nib.Nifti1Header | None
) -> nib.Nifti1Image:
    """A NIfTI image of an array on its file's grid, with the affine (and its codes) of the source.

    Only geometry is taken from the source's header: its free texts may name a patient.
    """
    image = nib.Nifti1Image(array, affine)
    if like is not None and isinstance(like, nib.Nifti1Header):
        qform, code_q = like.get_qform(coded=True)
        sform, code_s = like.get_sform(coded=True)
        image.header.set_xyzt_units(*like.get_xyzt_units())
        if code_q:
            image.set_qform(qform, int(code_q))
        if code_s:
            image.set_sform(sform, int(code_s))
        elif code_q:
            image.header["sform_code"] = 0
        image.update_header()
    return image


def cube_of(shape: tuple[int, ...], file: str) -> tuple[int, int, int]:
    """The shape with three axes; refuses a fourth one that is more than a formality."""
    long = tuple(shape) + (1,) * (3 - len(shape))
    if len(shape) < 2 or any(n != 1 for n in long[3:]):
        raise ValueError(f"{file}: shape {tuple(shape)}; one volume (3 axes) expected, no series")
    return long[:3]


def grid_of(
    affine: np.ndarray, shape: tuple[int, ...], cube: tuple[int, int, int]
) -> scan_lib.Grid:
    """The grid of an array [x, y, z] with a RAS affine; oblique axes go to the nearest one."""
    found = nib.orientations.io_orientation(affine)
    wanted = nib.orientations.axcodes2ornt(_AXES)
    if np.isnan(found).any():  # an affine without volume says nothing
        return scan_lib.Grid(shape, cube, (2, 1, 0), (False, False, False))
    steps = nib.orientations.ornt_transform(found, wanted)
    order = tuple(int(i) for i in np.argsort(steps[:, 0]))
    return scan_lib.Grid(shape, cube, order, tuple(bool(steps[i, 1] < 0) for i in order))


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Canonical (slice, row, column) spacing in mm."""
    zooms, found = nib.affines.voxel_sizes(affine), nib.orientations.io_orientation(affine)
    if np.isnan(found).any():
        return tuple(float(z) for z in zooms[::-1])
    order = np.argsort(
        nib.orientations.ornt_transform(found, nib.orientations.axcodes2ornt(_AXES))[:, 0]
    )
    return tuple(float(zooms[i]) for i in order)


def _open(path: Path) -> nib.spatialimages.SpatialImage:
    try:
        return nib.load(path)
    except (nib.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise ValueError(f"{path}: no readable NIfTI ({_line(error)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]

"""NIfTI volumes in and masks out, on the same grid with the same affine."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from infnet_jax.clinic.imaging import classes
from infnet_jax.clinic.imaging.scan import Grid, MaskInfo, Scan, finish, one_line, plain_values

SUFFIXES = (".nii", ".nii.gz")


def read(files: Sequence[Path], name: str) -> Scan:
    """Reads a volume (or one slice) of HU or grey levels from the one file.

    Raises:
      ValueError: unreadable or truncated, more than three axes, NaN, constant; names the file.
    """
    image, array = _load(files[0], _values)
    file, header = str(files[0]), image.header
    return finish(name, "nifti", array, file, affine=image.affine, oriented=True, origin=header)


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 [D, H, W] on the canonical grid, and the affine; errors as in `read`."""
    image, array = _load(path, lambda image: np.asanyarray(image.dataobj))
    if not np.array_equal(array, np.round(array)) or array.min() < 0 or array.max() > 255:
        raise ValueError(f"{path}: not a label map (whole numbers from 0 to 255 expected)")
    labels = Grid.of(image.affine, array.shape).canonical(array)
    return labels.astype(np.uint8), image.affine


def write_mask(path: Path, scan: Scan, array: np.ndarray, info: MaskInfo) -> None:
    """Writes a mask, uint8 on the grid of the scan's file, compressed, with the scan's affine.

    Only geometry is taken from the scan's header: its free texts may name a patient. The
    description says what the labels are.
    """
    image, like = nib.Nifti1Image(array, scan.affine), scan.origin
    if isinstance(like, nib.Nifti1Header):
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
    image.header["descrip"] = classes.of_header(info.classes)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _load(path: Path, values: Callable[[Any], np.ndarray]) -> tuple[Any, np.ndarray]:
    """An image of nibabel and its array, which has up to three axes that are longer than 1."""
    try:
        image = nib.load(path)
    except (nib.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise ValueError(f"{path}: no readable NIfTI ({one_line(error)})") from None
    try:
        array = values(image)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: damaged or truncated NIfTI ({one_line(error)})") from None
    if array.ndim < 2 or any(n != 1 for n in array.shape[3:]):
        raise ValueError(f"{path}: shape {array.shape}; one volume (3 axes) expected, no series")
    return image, array


def _values(image: Any) -> np.ndarray:
    """What the file holds, by its slope and intercept, in the smallest fitting type.

    Nibabel scales to eight bytes a voxel, so a volume goes by slices along its last axis.
    """
    stored, slope, inter = image.dataobj.get_unscaled(), image.dataobj.slope, image.dataobj.inter
    if (slope, inter) == (1, 0):
        return plain_values(stored)
    slices = (stored[..., i] * np.float64(slope) for i in range(stored.shape[-1]))
    return np.stack([plain_values(one + np.float64(inter)).T for one in slices]).T

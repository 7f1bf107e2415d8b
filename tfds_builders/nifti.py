"""NIfTI volumes from bytes: bounded, checked, and turned upright by their own header."""

import dataclasses
import gzip
import io
import math

import nibabel as nib
import numpy as np
from nibabel import orientations

MAX_BYTES = 2**30  # of one unpacked volume; 630 x 630 x 450 voxels of 4 bytes are 0.7e9
UPRIGHT = ("L", "P", "S")  # axes towards the patient's left, back and head


@dataclasses.dataclass(frozen=True)
class Volume:
    """A volume as stored.

    Attributes:
      array: [X, Y, Z] stored numbers; value = slope * number + inter.
      affine: float64 [4, 4], voxel to RAS millimetres.
      coded: whether the header says what the affine means (a qform or sform code above 0).
    """

    array: np.ndarray
    slope: float
    inter: float
    affine: np.ndarray
    coded: bool


def load(data: bytes, name: object) -> Volume:
    """Reads .nii or .nii.gz bytes (told by content).

    Raises:
      ValueError: damaged, not three-dimensional, larger than MAX_BYTES, or an affine that gives
        no orientation; the message starts with the name.
    """
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(MAX_BYTES + 1)
        image = nib.Nifti1Image.from_stream(io.BytesIO(data))
        header, proxy = image.header, image.dataobj
        voxels = math.prod(map(int, header.get_data_shape()))
        size = voxels * header.get_data_dtype().itemsize
        if max(size, len(data)) > MAX_BYTES:
            raise ValueError(f"unpacks to more than {MAX_BYTES} bytes")
        array = np.asarray(proxy.get_unscaled())
    except Exception as error:  # damaged headers make nibabel raise nearly anything
        reason = " ".join(str(error).split())  # some of nibabel's span lines
        raise ValueError(f"{name}: not a readable NIfTI ({reason}); copy it again") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or not array.size or array.dtype.kind not in "iuf":
        raise ValueError(
            f"{name}: expected numbers in three dimensions, got {array.dtype} {array.shape}"
        )
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(f"{name}: the header's affine gives no orientation")
    coded = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
    return Volume(array, float(proxy.slope), float(proxy.inter), affine, coded)


def slices(volume: Volume, like: Volume | None = None) -> np.ndarray:
    """Returns [Z, H, W] stored numbers, foot to head, each slice upright in radiological display.

    Upright means: front of the body on top, the patient's right at image left. A header without
    orientation codes is taken as stored towards left, back and head.

    Args:
      volume: the volume.
      like: take the orientation of this volume's header instead.
    """
    source = volume if like is None else like
    array = volume.array
    if source.coded:
        now = orientations.io_orientation(source.affine)
        turn = orientations.ornt_transform(now, orientations.axcodes2ornt(UPRIGHT))
        array = orientations.apply_orientation(array, turn)
    return np.transpose(array, (2, 1, 0))


def values(volume: Volume, like: Volume | None = None) -> np.ndarray:
    """As `slices`, but the values that the stored numbers stand for (float32 where scaled)."""
    stored = slices(volume, like)
    if (volume.slope, volume.inter) == (1, 0):
        return stored
    return stored * np.float32(volume.slope) + np.float32(volume.inter)

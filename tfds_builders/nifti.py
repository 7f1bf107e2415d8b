"""NIfTI volumes from bytes: bounded, checked, and turned upright by their own header."""

import dataclasses
import gzip
import io
import logging
import math
from typing import BinaryIO, NamedTuple

import nibabel as nib
import numpy as np
from nibabel import orientations

MAX_BYTES = 2**30  # of one unpacked volume; 630 x 630 x 450 voxels of 4 bytes are 0.7e9
MAX_HEADER = 2**26  # bytes before the voxels, extensions included
UPRIGHT = ("L", "P", "S")  # axes towards the patient's left, back and head
_CHUNK = 2**20
# What nibabel mends it says on stderr, without the file's name; `Stored.raw` shows it.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)


class Stored(NamedTuple):
    """A file as it is.

    Attributes:
      image: nibabel's, for header and affine; array: the stored numbers, read-only, any shape.
      slope, inter: value = slope * number + inter.
      raw: the header before nibabel mends it, fields by their names in the standard.
      extra: bytes behind the last voxel.
    """

    image: nib.Nifti1Image
    array: np.ndarray
    slope: float
    inter: float
    raw: nib.Nifti1Header
    extra: int


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


def decode(file: BinaryIO, name: object, limit: int | None = None) -> Stored:
    """Reads NIfTI-1 or -2, packed or not (told by content), to its end and so to its checksum.

    The header is read first: nothing larger than `limit` bytes (None: MAX_BYTES) is ever unpacked.

    Raises:
      ValueError: damaged, truncated, or too large; the message starts with the name.
    """
    limit = MAX_BYTES if limit is None else limit
    try:
        if _packed(file):
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _decode(unpacked, limit)
        return _decode(file, limit)
    except Exception as error:  # damaged headers make nibabel raise nearly anything
        reason = " ".join(str(error).split())  # some of nibabel's span lines
        raise ValueError(f"{name}: not a readable NIfTI ({reason}); copy it again") from error


def _packed(file: BinaryIO) -> bool:
    start = file.read(2)
    file.seek(0)
    return start == b"\x1f\x8b"


def _decode(file: BinaryIO | gzip.GzipFile, limit: int) -> Stored:
    start = file.read(540)  # the header of NIfTI-2; that of NIfTI-1 is shorter
    if len(start) < 348:
        raise ValueError(f"{len(start)} bytes hold no header (truncated?)")
    second = nib.Nifti2Header.may_contain_header(start)
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    header = kind.header_class
    raw = header(start[: header.sizeof_hdr], check=False)
    offset, shape = float(raw["vox_offset"]), [int(n) for n in raw["dim"][1 : raw["dim"][0] + 1]]
    if not 1 <= int(raw["dim"][0]) <= 7 or min(shape) < 1:
        raise ValueError(f"its header says axes of {shape} voxels")
    if not 0 <= offset <= MAX_HEADER:
        raise ValueError(f"its header says that voxels begin at byte {offset:g}")
    size = math.prod(shape) * raw.get_data_dtype().itemsize
    if size > limit:
        raise ValueError(f"unpacks to {size} bytes, more than {limit} bytes")
    wanted = int(offset) + size
    file.seek(0)
    data = file.read(wanted)
    extra = 0
    while rest := file.read(_CHUNK):  # the checksum comes last
        extra += len(rest)
        if size + extra > limit:
            raise ValueError(f"unpacks to more than {limit} bytes")
    image = kind.from_stream(io.BytesIO(data))
    proxy = image.dataobj
    if len(data) < proxy.offset + size:
        raise ValueError(f"truncated: {len(data)} of {proxy.offset + size} bytes are there")
    array = np.ndarray(proxy.shape, proxy.dtype, data, proxy.offset, order="F")
    return Stored(image, array, float(proxy.slope), float(proxy.inter), raw, extra)


def load(data: bytes, name: object) -> Volume:
    """Reads .nii or .nii.gz bytes (told by content).

    Raises:
      ValueError: damaged, not three-dimensional, larger than MAX_BYTES, or an affine that gives
        no orientation; the message starts with the name.
    """
    stored = decode(io.BytesIO(data), name)
    array, header = stored.array, stored.image.header
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or not array.size or array.dtype.kind not in "iuf":
        raise ValueError(
            f"{name}: expected numbers in three dimensions, got {array.dtype} {array.shape}"
        )
    affine = np.asarray(stored.image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(f"{name}: the header's affine gives no orientation")
    coded = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
    return Volume(array, stored.slope, stored.inter, affine, coded)


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

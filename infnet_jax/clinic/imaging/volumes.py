"""NRRD, MHA and MHD volumes in, through SimpleITK; their masks are written as NIfTI."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax.clinic.imaging import grids
from infnet_jax.clinic.imaging.scan import Scan, finish, one_line, plain_values

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
MAX_BYTES = 2**31  # of one unpacked volume: 1,024 slices of 512 x 512 voxels of 8 bytes
_HEADER = 2**16  # bytes in which a header says where its voxels are
# A space of the patient in NRRD, a direction of the axes in MHA: what says how the patient lies.
_POSE = re.compile(
    r"^space: *(\w+-\w+-superior|[LR][AP]S)\b|^(TransformMatrix|Rotation|Orientation) *=",
    re.M | re.I,
)
_RAS = np.diag([-1.0, -1.0, 1.0])  # SimpleITK's axes run to the left, the back and the head


def read(paths: Sequence[Path], name: str) -> Scan:
    """Reads a volume of HU or grey levels from the one file.

    Raises:
      ValueError: unreadable, truncated, too large, several values a voxel, not three axes, NaN,
        constant, or a header that gives no orientation; names the file.
      ImportError: SimpleITK is not installed.
    """
    array, pose = _load(paths[0])
    how: dict[str, Any] = {"affine": pose.affine, "oriented": pose.coded}
    scan = finish(name, "volume", plain_values(array), str(paths[0]), **how)
    scan.spacing = pose.spacing
    scan.warnings += [f"{name}: {note}" for note in pose.notes]
    return scan


def read_labels(path: Path) -> grids.Labels:
    """Labels, uint8 on the file's grid; errors as in `read`."""
    array, pose = _load(path)
    return grids.Labels(grids.whole(array, str(path)), *pose)


def _load(path: Path) -> tuple[np.ndarray, grids.Pose]:
    """Numbers [x, y, z] and where they lie."""
    try:
        import SimpleITK as sitk
    except ImportError:
        message = "NRRD, MHA and MHD need another package: pip install 'infnet-jax[formats]'"
        raise ImportError(message) from None
    coded = _check_voxels(path)
    try:
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        size, n_values = reader.GetSize(), reader.GetNumberOfComponents()
        n_bytes = float(np.prod([float(n) for n in size])) * n_values * 8
        if n_bytes > 4 * MAX_BYTES:
            raise ValueError(f"{n_bytes / 8:g} voxels are too many")
        if n_values != 1 or any(n != 1 for n in size[3:]) or len(size) < 2:
            raise ValueError(f"{n_values} values a voxel, axes {size}; one volume expected")
        image = reader.Execute()
        array = sitk.GetArrayFromImage(image).T
    except Exception as error:  # of a file that is damaged SimpleITK says nearly anything
        found = re.sub(r"\S*(/|0x)\S*:?", "", str(error).split("ERROR: ")[-1])
        reason = one_line(ValueError(found)) or "damaged"
        raise ValueError(f"{path}: not a readable volume ({reason}); copy it again") from None
    array = array.reshape((*array.shape, 1, 1)[:3]) if array.ndim < 3 else array
    array = array.reshape(array.shape[:3])
    n = min(3, image.GetDimension())
    turn = np.eye(3)
    turn[:n, :n] = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:n, :n]
    edges, origin = np.ones(3), np.zeros(3)
    edges[:n], origin[:n] = image.GetSpacing()[:n], image.GetOrigin()[:n]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = _RAS @ turn @ np.diag(edges), _RAS @ origin
    return array, grids.believed(affine, array.shape, str(path), coded=coded)


def _check_voxels(path: Path) -> bool:
    """Refuses voxels outside of the header's folder, and packed ones of a wrong checksum.

    The reader itself goes on where its decoder has failed. Returns whether the header says how the
    patient lies.
    """
    with path.open("rb") as file:
        start = file.read(_HEADER)
    text = start.decode("latin-1")
    coded = bool(_POSE.search(text))
    named = re.search(r"^(?:ElementDataFile\s*=|data ?file:)[ \t]*(.+?)\s*?\n", text, re.M | re.I)
    if named and re.search(r"^[/\\]|^\w:|\.\.[/\\]", named[1]):
        raise ValueError(f"{path}: names voxels outside of its folder ({named[1][:60]})")
    packed = re.search(r"^(encoding: *(gzip|gz)|CompressedData *= *True)\s*?\n", text, re.M | re.I)
    where, offset = path, 0
    if named is None:  # of NRRD an empty line ends the header
        end = re.search(r"\r?\n\r?\n", text)
        offset = end.end() if end else 0
    elif named[1].upper() == "LOCAL":
        offset = named.end()
    else:
        where = path.parent / named[1]
    if packed is None or not where.is_file():
        return coded
    decoder, size = zlib.decompressobj(47), 0  # 47: by gzip or zlib, told by content
    try:
        with where.open("rb") as file:
            file.seek(offset)
            while not decoder.eof and (chunk := file.read(2**16)):
                while chunk and not decoder.eof and size <= MAX_BYTES:
                    size += len(decoder.decompress(chunk, 2**22))
                    chunk = decoder.unconsumed_tail
    except zlib.error as error:
        raise ValueError(f"{path}: damaged voxels ({one_line(error)}); copy it again") from None
    if size > MAX_BYTES or not decoder.eof:
        reason = f"unpacks to more than {MAX_BYTES} bytes" if size > MAX_BYTES else "truncated"
        raise ValueError(f"{path}: damaged voxels ({reason}); copy it again")
    return coded

"""NIfTI volumes in and masks out, on the same grid with the same affine."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from infnet_jax.clinic.imaging import classes, grids
from infnet_jax.clinic.imaging.scan import MaskInfo, Scan, finish, plain_values
from tfds_builders import nifti as files

SUFFIXES = (".nii", ".nii.gz")
MAX_BYTES = 2**31  # of one unpacked volume: 1,024 slices of 512 x 512 voxels of 8 bytes
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # of the units in xyzt_units that are none


def read(paths: Sequence[Path], name: str) -> Scan:
    """Reads a volume (or one slice) of HU or grey levels from the one file.

    Raises:
      ValueError: unreadable, truncated or of a wrong checksum, too large, colours, more than three
        axes, NaN, constant, or a header that gives no orientation; names the file.
    """
    stored, file = _load(paths[0]), str(paths[0])
    pose, array = _pose(stored, file), _values(stored)
    how: dict[str, Any] = {"affine": pose.affine, "oriented": pose.coded}
    scan = finish(name, "nifti", array, file, **how, origin=stored.image.header)
    scan.spacing = pose.spacing
    scan.warnings += [f"{name}: {note}" for note in pose.notes]
    return scan


def read_labels(path: Path) -> grids.Labels:
    """Labels, uint8 on the file's grid; errors as in `read`."""
    stored = _load(path)
    array = _values(stored)
    pose = _pose(stored, str(path))
    return grids.Labels(grids.whole(array, str(path)), *pose)


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
        else:
            image.header["sform_code"] = 0
        if not code_q and not code_s:  # as little as the scan's own header says
            image = nib.Nifti1Image(array, None, image.header)
            image.header.set_zooms(like.get_zooms()[: array.ndim])
        image.update_header()
    image.header["descrip"] = classes.of_header(info.classes)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _load(path: Path) -> files.Stored:
    """A file with up to three axes that are longer than 1, of real numbers."""
    with path.open("rb") as file:
        stored = files.decode(file, path, MAX_BYTES)
    shape, dtype = stored.array.shape, stored.array.dtype
    if dtype.kind not in "iuf":
        kind = "colours" if dtype.names else f"numbers of type {dtype}"
        raise ValueError(f"{path}: holds {kind}; one grey value a voxel expected")
    if len(shape) < 2 or any(n != 1 for n in shape[3:]):
        raise ValueError(f"{path}: shape {shape}; one volume (3 axes) expected, no series")
    if float(stored.raw["vox_offset"]) < int(stored.raw["sizeof_hdr"]):
        where = f"byte {float(stored.raw['vox_offset']):g}, inside the header"
        raise ValueError(f"{path}: its header says that voxels begin at {where}; convert it again")
    if stored.extra >= dtype.itemsize * shape[0] * shape[1]:
        more = f"{stored.extra} bytes more than the {shape} voxels of its header"
        raise ValueError(f"{path}: holds {more}; is the header damaged? Copy it again")
    slope, inter = (float(stored.raw[field]) for field in ("scl_slope", "scl_inter"))
    if np.isinf(slope) or (slope and np.isfinite(slope) and not np.isfinite(inter)):
        raise ValueError(f"{path}: scaled by {slope:g} and {inter:g}; finite numbers expected")
    return stored


def _pose(stored: files.Stored, file: str) -> grids.Pose:
    """Where the voxels lie, with notes on what the header leaves in doubt.

    The sform counts, then the qform. Without either the array is taken as stored towards left,
    back and head, as by the builders of datasets.
    """
    raw, shape = stored.raw, (*stored.array.shape, 1, 1)[:3]
    edges = np.array(raw["pixdim"][1:4], float)
    sized = bool(np.isfinite(edges[: min(3, stored.array.ndim)]).all() and edges.all())
    edges = np.where(np.isfinite(edges) & (edges != 0), np.abs(edges), 1.0)
    header = stored.image.header  # codes that do not exist are 0 there
    form, other = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    affine, notes = np.array(stored.image.affine, float), []
    if not form and not other:
        affine = np.diag([-edges[0], -edges[1], edges[2], 1.0])
    elif form:
        if other and not grids.same_grid(header.get_qform(), shape, affine, shape):
            notes.append("the header's qform and sform differ; the sform counts")
        elif sized and not np.allclose(nib.affines.voxel_sizes(affine), edges, rtol=5e-3):
            notes.append("the header's pixdim and sform differ in voxel sizes; the sform counts")
    factor = _MILLIMETRES.get(int(raw["xyzt_units"]) & 7, 1.0)
    in_mm = np.diag([factor] * 3 + [1.0]) @ affine
    pose = grids.believed(in_mm, shape, file, coded=form or other, sized=form or sized)
    if factor != 1 and pose.spacing is None:  # the unit is what is wrong
        pose = grids.believed(affine, shape, file, coded=form or other, sized=form or sized)
        notes.append("its unit cannot be that of its voxel sizes; taken as millimetres")
    return pose._replace(affine=affine, notes=(*pose.notes, *notes))


def _values(stored: files.Stored) -> np.ndarray:
    """What the file holds, by its slope and intercept, in the smallest fitting type.

    Eight bytes a voxel are much, so a scaled volume goes by slices along its last axis.
    """
    array, slope, inter = stored.array, stored.slope, stored.inter
    if (slope, inter) == (1, 0):
        return plain_values(array)
    slices = (array[..., i] * np.float64(slope) for i in range(array.shape[-1]))
    return np.stack([plain_values(one + np.float64(inter)).T for one in slices]).T

"""The kinds of files that scans come in: how each is read, and how its masks are."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infnet_jax.clinic.imaging import (
    dicom,
    dicom_seg,
    grids,
    nifti,
    pictures,
    series,
    stacks,
    volumes,
)
from infnet_jax.clinic.imaging.scan import MaskInfo, Scan


class Format(NamedTuple):
    """A kind of scan: how its files are read, and how masks of it are read and written."""

    suffixes: tuple[str, ...]  # of its files, in lower case
    # From the file and the name of a scan; of DICOM from its slices, its name and its place.
    read: Callable[..., Scan]
    read_labels: Callable[[Path], grids.Labels] | None  # of one file
    # By suffix: writes a mask on the grid of the scan's file to a path; `NoMask` if it cannot.
    writers: Mapping[str, Callable[[Path, Scan, np.ndarray, MaskInfo], None]]


_OF_SERIES = {".nii.gz": nifti.write_mask, ".dcm": dicom_seg.write_mask}
FORMATS = {
    "picture": Format(
        pictures.SUFFIXES, pictures.read, pictures.read_labels, {".png": pictures.write_mask}
    ),
    "stack": Format(stacks.SUFFIXES, stacks.read, stacks.read_labels, {".tif": stacks.write_mask}),
    "volume": Format(
        volumes.SUFFIXES, volumes.read, volumes.read_labels, {".nii.gz": nifti.write_mask}
    ),
    "nifti": Format(nifti.SUFFIXES, nifti.read, nifti.read_labels, {".nii.gz": nifti.write_mask}),
    "dicom": Format(series.SUFFIXES, dicom.read, None, _OF_SERIES),
}


def kind_of(path: Path) -> str | None:
    """The key of `FORMATS` of a file, by its name or DICOM's mark; None if it is of no format."""
    for kind, form in FORMATS.items():
        if path.name.lower().endswith(form.suffixes):
            return kind
    return "dicom" if series.has_mark(path) else None

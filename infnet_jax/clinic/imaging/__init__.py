"""Pictures and volumes in, masks out, on the same grid. Knows nothing of networks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infnet_jax.clinic.imaging import dicom, grids, wall
from infnet_jax.clinic.imaging.formats import FORMATS, kind_of
from infnet_jax.clinic.imaging.scan import Grid, MaskInfo, NoMask, Scan
from infnet_jax.clinic.imaging.sources import Source, by_name, find, partner
from infnet_jax.files import whole

__all__ = ["Grid", "Scan", "Source", "by_name", "find", "partner", "read", "read_labels"]
__all__ += ["scan_of_labels", "scan_of_picture", "write_mask"]
NAMES = {"infection": "Infection", "ggo": "Ground-glass opacity", "consolidation": "Consolidation"}


def read(source: Source, *, not_hu: bool = True) -> Scan:
    """Reads a source.

    `not_hu` takes a volume of other numbers than HU as a picture in a lung window, with a warning;
    without it only one of 8 bits.

    Raises:
      ValueError: it cannot be read or is no chest CT; names file and cause, whatever library
        failed. With INFNET_DEBUG in the environment the library's own error is chained to it.
    """
    what = str(source.files[0].parent if len(source.files) > 1 else source.files[0])
    passed = "; ".join(source.beside if source.slices else ())
    with wall.named(what, f" (passed over: {passed})" if passed else ""):
        if source.kind != "dicom":
            scan = FORMATS[source.kind].read(source.files, source.name)
        elif source.slices:
            scan = dicom.read(source.slices, source.name, what)
            scan.warnings += source.beside
        else:
            raise ValueError(source.beside[0])
        if not (not_hu or scan.is_hu or scan.affine is None or scan.values.dtype == np.uint8):
            span = f"values {scan.values.min():g} to {scan.values.max():g} are not HU"
            raise ValueError(f"{what}: {span}; --not-hu takes them as pictures in a lung window")
        return scan


def scan_of_picture(name: str, picture: np.ndarray) -> Scan:
    """A slice in memory, uint8 [H, W] in the lung window, as a scan of its own."""
    grid = Grid.plain((1, *picture.shape))
    return Scan(name, "picture", picture[None], False, False, None, grid, None)


def scan_of_labels(path: Path, name: str) -> Scan:
    """A scan that shows where a label map is not 0, for masks whose scan is not at hand."""
    return grids.shown(_labels(path), name)


def read_labels(path: Path, scan: Scan | None = None, *, resample: bool = False) -> np.ndarray:
    """A mask or label map (a picture or volume), uint8 [D, H, W], on the grid of its scan.

    What was done to bring it there is a line of the scan's `warnings`. `resample` takes a map on
    another grid too, by its nearest voxels.

    Raises:
      ValueError: unreadable, or on another grid than the scan.
    """
    labels = _labels(path)
    if scan is None:
        return labels.canonical()
    array, notes = grids.onto(labels, scan, str(path), resample=resample)
    scan.warnings += [f"{scan.name}: {path.name}: {note}" for note in notes]
    return array


def write_mask(
    scan: Scan,
    mask: np.ndarray,
    folder: Path,
    *,
    classes: Sequence[str] = ("ggo", "consolidation"),
    keep_identifiers: bool = False,
    version: str = "",
) -> tuple[list[Path], list[str]]:
    """Writes a mask in the form of its scan: palette PNG, NIfTI, or NIfTI and DICOM-SEG.

    Args:
      scan: where it belongs; the files bear its name.
      mask: integer [D, H, W], canonical; folder: for the files.
      classes: what labels 1, 2, ... are, by the keys of `NAMES`.
      keep_identifiers, version: see `MaskInfo`.

    Returns:
      The files written, each whole, and warnings (why there is no SEG).
    """
    array = np.ascontiguousarray(scan.grid.source(np.asarray(mask, np.uint8)))
    info = MaskInfo({code: NAMES[code] for code in classes}, keep_identifiers, version)
    written, notes = [], []
    for suffix, write in FORMATS[scan.kind].writers.items():
        path = folder / f"{scan.name}{suffix}"
        try:
            with whole(path) as fresh:
                write(fresh, scan, array, info)
            written.append(path)
        except NoMask as reason:
            notes.append(f"{scan.name}: {reason}")
    return written, notes


def _labels(path: Path) -> grids.Labels:
    read = FORMATS[kind_of(path) or "dicom"].read_labels
    if read is None:
        raise ValueError(f"{path}: no readable mask picture or volume")
    with wall.named(str(path)):
        return read(path)

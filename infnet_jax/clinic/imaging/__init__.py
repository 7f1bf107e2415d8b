"""Pictures and volumes in, masks out, on the same grid. Knows nothing of networks."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infnet_jax.clinic.imaging import dicom, nifti, pictures
from infnet_jax.clinic.imaging.scan import Grid, MaskInfo, NoMask, Scan, spacing_of
from infnet_jax.files import whole

NAMES = {"infection": "Infection", "ggo": "Ground-glass opacity", "consolidation": "Consolidation"}


class Format(NamedTuple):
    """A kind of scan: how its files are read, and how masks of it are read and written."""

    suffixes: tuple[str, ...]  # of its files, in lower case
    read: Callable[[Sequence[Path], str], Scan]  # from the files and the name of a scan
    # From a file to a label map, uint8 [D, H, W] canonical, and its affine or None.
    read_labels: Callable[[Path], tuple[np.ndarray, np.ndarray | None]] | None
    # By suffix: writes a mask on the grid of the scan's file to a path; `NoMask` if it cannot.
    writers: Mapping[str, Callable[[Path, Scan, np.ndarray, MaskInfo], None]]


_OF_SERIES = {".nii.gz": nifti.write_mask, ".dcm": dicom.write_mask}
FORMATS = {
    "picture": Format(
        pictures.SUFFIXES, pictures.read, pictures.read_labels, {".png": pictures.write_mask}
    ),
    "nifti": Format(nifti.SUFFIXES, nifti.read, nifti.read_labels, {".nii.gz": nifti.write_mask}),
    "dicom": Format(dicom.SUFFIXES, dicom.read, None, _OF_SERIES),
}
Found = tuple[Path, str, tuple[Path, ...]]  # where a scan lies, its kind, its files


class Source(NamedTuple):
    """One scan to be read: a picture, a volume, or the files of a DICOM series."""

    name: str  # unique among the sources found together; names the output files
    kind: str  # a key of `FORMATS`
    files: tuple[Path, ...]  # one file, or all of a series


def find(paths: Iterable[Path]) -> list[Source]:
    """Finds the scans in these files and folders, in order, without reading them.

    A folder gives one source for each picture and volume in it, and one for the DICOM files of
    each of its folders; a zip is one series. Files of other kinds in a folder are passed over.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: a file is of no known kind, or there is nothing to read at all.
    """
    found: list[Found] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        if path.is_dir():
            inside = _in_folder(path)
            if not inside:
                raise ValueError(f"{path}: no picture, NIfTI or DICOM file in it")
            found += inside
        elif (kind := _kind(path)) is not None:
            found.append((path, kind, (path,)))
        else:
            raise ValueError(f"{path}: not a picture, NIfTI, DICOM or zip file")
    if not found:
        raise ValueError("no input given")
    return _named(found)


def read(source: Source) -> Scan:
    """Reads a source; errors of its kind name the file (see `pictures`, `nifti`, `dicom`)."""
    return FORMATS[source.kind].read(source.files, source.name)


def by_name(path: Path) -> dict[str, Source]:
    """The sources of a file or folder by name, without nnU-Net's channel suffix."""
    return {_plain(source.name): source for source in find([path])}


def partner(name: str, found: dict[str, Source], what: str, *, alone: bool) -> Source:
    """The one of the sources found, by name, that belongs to the scan called `name`.

    `what` is the option that gave them, for messages. Where there is one scan `alone`, a single
    file need not bear its name.

    Raises:
      ValueError: there is none.
    """
    if alone and len(found) == 1:
        return next(iter(found.values()))
    if _plain(name) not in found:
        raise ValueError(f"{name}: no file of that name under --{what}")
    return found[_plain(name)]


def scan_of_picture(name: str, picture: np.ndarray) -> Scan:
    """A slice in memory, uint8 [H, W] in the lung window, as a scan of its own."""
    grid = Grid.plain((1, *picture.shape))
    return Scan(name, "picture", picture[None], False, False, None, grid, None)


def scan_of_labels(path: Path, name: str) -> Scan:
    """A scan that shows where a label map is not 0, for masks whose scan is not at hand."""
    labels, affine = _labels(path)
    shown, grid = np.where(labels > 0, 90, 0).astype(np.uint8), Grid.plain(labels.shape)
    spacing = None if affine is None else spacing_of(affine)
    notes = [f"{name}: no image given, the mask itself is shown"]
    return Scan(name, "labels", shown, False, affine is not None, spacing, grid, None, notes)


def read_labels(path: Path, scan: Scan | None = None) -> np.ndarray:
    """A mask or label map (a picture or NIfTI), uint8 [D, H, W], on the grid of its scan.

    Raises:
      ValueError: unreadable, or on another grid than the scan.
    """
    labels, affine = _labels(path)
    if scan is None:
        return labels
    if affine is not None and scan.affine is not None and scan.oriented:
        if not np.allclose(affine, scan.affine, atol=0.01):
            raise ValueError(f"{path}: has another affine than its scan; resample it first")
    if labels.shape != scan.values.shape:
        shapes = f"shape {labels.shape} (slices, rows, columns), its scan {scan.values.shape}"
        raise ValueError(f"{path}: {shapes}")
    return labels


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


def _labels(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """A label map, uint8 [D, H, W] canonical, and its affine [4, 4], None for a picture."""
    read = FORMATS[_kind(path) or "dicom"].read_labels
    if read is None:
        raise ValueError(f"{path}: no readable mask picture or NIfTI")
    return read(path)


def _plain(name: str) -> str:
    return name.removesuffix("_0000")


def _kind(path: Path) -> str | None:
    """The key of `FORMATS` of a file, by its name or DICOM's mark; None if it is of no format."""
    for kind, form in FORMATS.items():
        if path.name.lower().endswith(form.suffixes):
            return kind
    return "dicom" if dicom.has_mark(path) else None


def _in_folder(folder: Path) -> list[Found]:
    found: list[Found] = []
    series: dict[Path, list[Path]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        kind = None if hidden or path.name == "DICOMDIR" else _kind(path)
        if kind == "dicom" and path.suffix.lower() != ".zip":
            series.setdefault(path.parent, []).append(path)
        elif kind is not None:
            found.append((path, kind, (path,)))
    return [*found, *((place, "dicom", tuple(files)) for place, files in series.items())]


def _named(found: Sequence[Found]) -> list[Source]:
    """Names by file or folder; parents are put in front where two would be alike."""
    for depth in range(1, 10):
        names = [_short(path, depth) for path, _, _ in found]
        if len(set(names)) == len(names):
            break
    seen: Counter[str] = Counter()
    sources = []
    for name, (_, kind, files) in zip(names, found, strict=True):
        seen[name] += 1
        sources.append(Source(name if seen[name] == 1 else f"{name}_{seen[name]}", kind, files))
    return sources


def _short(path: Path, depth: int) -> str:
    *parts, last = path.absolute().parts[-depth:]
    for suffix in (s for form in FORMATS.values() for s in form.suffixes):
        if last.lower().endswith(suffix):
            last = last[: -len(suffix)]
            break
    return "_".join(p.replace(" ", "_").strip("/\\") or "root" for p in (*parts, last)) or "scan"

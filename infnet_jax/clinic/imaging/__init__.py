"""Pictures and volumes in, masks out, on the same grid. Knows nothing of networks."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infnet_jax.clinic.imaging import dicom, dicom_seg, nifti, pictures
from infnet_jax.clinic.imaging.scan import Grid, MaskInfo, NoMask, Scan, spacing_of
from infnet_jax.files import whole

NAMES = {"infection": "Infection", "ggo": "Ground-glass opacity", "consolidation": "Consolidation"}


class Format(NamedTuple):
    """A kind of scan: how its files are read, and how masks of it are read and written.

    Attributes:
      suffixes: of its files, in lower case.
      read: from the files and the name of a scan to the scan.
      read_labels: from a file to a label map, uint8 [D, H, W] canonical, and its affine or None;
        None where such files hold no label maps.
      writers: by suffix, what writes a mask to a path, from the scan, the mask on the grid of the
        scan's file, and what the file may say beside it. Raises `NoMask` if the format cannot.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Sequence[Path], str], Scan]
    read_labels: Callable[[Path], tuple[np.ndarray, np.ndarray | None]] | None
    writers: Mapping[str, Callable[[Path, Scan, np.ndarray, MaskInfo], None]]


_OF_SERIES = {".nii.gz": nifti.write_mask, ".dcm": dicom_seg.write_mask}
FORMATS = {
    "picture": Format(
        pictures.SUFFIXES, pictures.read, pictures.read_labels, {".png": pictures.write_mask}
    ),
    "nifti": Format(nifti.SUFFIXES, nifti.read, nifti.read_labels, {".nii.gz": nifti.write_mask}),
    "dicom": Format(dicom.SUFFIXES, dicom.read, None, _OF_SERIES),
}
Found = tuple[Path, str, tuple[Path, ...]]  # where a scan lies, its kind, its files


@dataclasses.dataclass(frozen=True)
class Source:
    """One scan to be read: a picture, a volume, or the files of a DICOM series.

    Attributes:
      name: unique among the sources found together; names the output files.
      kind: a key of `FORMATS`.
      files: one file, or all of a series.
    """

    name: str
    kind: str
    files: tuple[Path, ...]


def find(paths: Iterable[Path]) -> list[Source]:
    """Finds the scans in these files and folders, in order, without reading them.

    A folder gives one source for each picture and volume in it, and one for the DICOM files of
    each of its folders; a zip is one series. Files of other kinds in a folder are passed over.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: a file is of no known kind, or there is nothing to read at all.
    """
    found: list[Found] = []
    for path in map(Path, paths):
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
    """The source that belongs to the scan called `name`.

    Args:
      name: of the scan.
      found: by name.
      what: the option that gave them, for the message.
      alone: whether there is one scan only; then a single file need not bear its name.

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
    values = picture[None]
    return Scan(name, "picture", values, False, False, None, Grid.plain(values.shape), None)


def scan_of_labels(path: Path, name: str) -> Scan:
    """A scan that shows where a label map is not 0, for masks whose scan is not at hand."""
    labels, affine = _labels(path)
    shown, grid = np.where(labels > 0, 90, 0).astype(np.uint8), Grid.plain(labels.shape)
    spacing = None if affine is None else spacing_of(affine)
    notes = [f"{name}: no image given, the mask itself is shown"]
    return Scan(name, "labels", shown, False, affine is not None, spacing, grid, None, notes)


def read_labels(path: Path, scan: Scan | None = None) -> np.ndarray:
    """A mask or label map as uint8 [D, H, W] on the canonical grid.

    Args:
      path: a picture (palette indices count) or NIfTI.
      scan: the scan it belongs to; its grid must be the mask's.

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
        raise ValueError(
            f"{path}: shape {labels.shape} (slices, rows, columns), its scan {scan.values.shape}"
        )
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
      mask: integer [D, H, W], canonical.
      folder: for the files.
      classes: what labels 1, 2, ... are, by the keys of `NAMES`.
      keep_identifiers: lets names, ids and dates pass from the scan's headers.
      version: of this software, for the SEG.

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
        except NoMask as reason:
            notes.append(f"{scan.name}: {reason}")
        else:
            written.append(path)
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

"""Pictures and volumes in, masks out, on the same grid. Knows nothing of networks."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infnet_jax.clinic.imaging import dicom, grids, series
from infnet_jax.clinic.imaging.formats import FORMATS
from infnet_jax.clinic.imaging.scan import Grid, MaskInfo, NoMask, Scan
from infnet_jax.files import whole

NAMES = {"infection": "Infection", "ggo": "Ground-glass opacity", "consolidation": "Consolidation"}


class Found(NamedTuple):
    """A scan before it has a name: where it lies, and what `Source` says."""

    place: Path
    kind: str
    files: tuple[Path, ...]
    slices: tuple[series.Slice, ...] = ()
    about: str = ""
    beside: tuple[str, ...] = ()


class Source(NamedTuple):
    """One scan to be read: a picture, a volume, or the files of a DICOM series."""

    name: str  # unique among the sources found together; names the output files
    kind: str  # a key of `FORMATS`
    files: tuple[Path, ...]  # one file, or all of a folder's DICOM files
    slices: tuple[series.Slice, ...] = ()  # of a DICOM series
    about: str = ""  # number and description of a series, for lists
    beside: tuple[str, ...] = ()  # what was passed over in its folder, a line each


def find(paths: Iterable[Path], *, number: str = "") -> list[Source]:
    """Finds the scans in these files and folders, in order; of DICOM the headers are read.

    A folder gives one source for each picture and volume in it, and one for each CT series among
    the DICOM files of each of its folders; so does a zip, and so do DICOM files given by name.
    Files of other kinds in a folder are passed over.

    Args:
      number: takes the series of this SeriesNumber only; "" takes all.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: a file is of no known kind, there is nothing to read at all, or no series of
        that number.
      ImportError: pydicom is not installed.
    """
    found: list[Found] = []
    single: dict[Path, list[Path]] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        kind = None if path.is_dir() else _kind(path)
        if path.is_dir():
            inside = _in_folder(path)
            if not inside:
                raise ValueError(f"{path}: no picture, NIfTI or DICOM file in it")
            found += inside
        elif kind == "dicom" and path.suffix.lower() != ".zip":
            single.setdefault(path.parent, []).append(path)
        elif kind == "dicom":
            found += _series(path, [path])
        elif kind is not None:
            found.append(Found(path, kind, (path,)))
        else:
            raise ValueError(f"{path}: not a picture, NIfTI, DICOM or zip file")
    for folder, files in single.items():
        found += _series(files[0] if len(files) == 1 else folder, files)
    if number:
        known = sorted({one.about.partition(" ")[0] for one in found if one.kind == "dicom"})
        found = [one for one in found if one.about.partition(" ")[0] == number]
        if not found:
            raise ValueError(f"no series of number {number}; there are: {', '.join(known)}")
    if not found:
        raise ValueError("no input given")
    return _named(found)


def read(source: Source, *, not_hu: bool = True) -> Scan:
    """Reads a source.

    `not_hu` takes a volume of other numbers than HU as a picture in a lung window, with a warning;
    without it only one of 8 bits.

    Raises:
      ValueError: it cannot be read or is no chest CT; names file and cause, whatever library
        failed. With INFNET_DEBUG in the environment the library's own error is chained to it.
    """
    what = str(source.files[0].parent if len(source.files) > 1 else source.files[0])
    try:
        if source.kind == "dicom":
            if not source.slices:
                raise ValueError(source.beside[0])
            scan = dicom.read(source.slices, source.name, what)
            scan.warnings += source.beside
        else:
            scan = FORMATS[source.kind].read(source.files, source.name)
        if not (not_hu or scan.is_hu or scan.affine is None or scan.values.dtype == np.uint8):
            span = f"values {scan.values.min():g} to {scan.values.max():g} are not HU"
            raise ValueError(f"{what}: {span}; --not-hu takes them as pictures in a lung window")
        return scan
    except ImportError:
        raise
    except Exception as error:  # of any library: no scan may stop the others
        text = " ".join(str(error).split()) or type(error).__name__
        text = text if isinstance(error, ValueError) and what in text else f"{what}: {text}"
        passed = "; ".join(source.beside if source.slices else ())
        beside = f" (passed over: {passed})" if passed else ""
        cause = error if os.environ.get("INFNET_DEBUG") else None
        raise ValueError(text + beside) from cause


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
    read = FORMATS[_kind(path) or "dicom"].read_labels
    if read is None:
        raise ValueError(f"{path}: no readable mask picture or volume")
    return read(path)


def _plain(name: str) -> str:
    return name.removesuffix("_0000")


def _kind(path: Path) -> str | None:
    """The key of `FORMATS` of a file, by its name or DICOM's mark; None if it is of no format."""
    for kind, form in FORMATS.items():
        if path.name.lower().endswith(form.suffixes):
            return kind
    return "dicom" if series.has_mark(path) else None


def _in_folder(folder: Path) -> list[Found]:
    found: list[Found] = []
    dicoms: dict[Path, list[Path]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        kind = None if hidden or path.name.upper() == "DICOMDIR" else _kind(path)
        if kind == "dicom" and path.suffix.lower() == ".zip":
            found += _series(path, [path])
        elif kind == "dicom":
            dicoms.setdefault(path.parent, []).append(path)
        elif kind is not None:
            found.append(Found(path, kind, (path,)))
    return [*found, *(one for place, files in dicoms.items() for one in _series(place, files))]


def _series(place: Path, files: Sequence[Path]) -> list[Found]:
    """One for each CT series of these DICOM files; of several each bears its number."""
    try:
        groups, passed = series.group(files)
    except ValueError as error:  # said when it is read, so that other scans go on
        return [Found(place, "dicom", tuple(files), beside=(str(error),))]
    several, stem = len(groups) > 1, place if place.is_dir() else place.with_suffix("")
    return [
        Found(
            stem.with_name(f"{stem.name}_series{one.number or i}") if several else place,
            "dicom",
            tuple(files),
            one.slices,
            f"{one.number or '-'} {one.description}".strip(),
            tuple(passed),
        )
        for i, one in enumerate(groups, 1)
    ]


def _named(found: Sequence[Found]) -> list[Source]:
    """Names by file or folder; parents are put in front where two would be alike."""
    for depth in range(1, 10):
        names = [_short(one.place, depth) for one in found]
        if len(set(names)) == len(names):
            break
    seen: Counter[str] = Counter()
    sources = []
    for name, one in zip(names, found, strict=True):
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}_{seen[name]}"
        sources.append(Source(unique, *one[1:]))
    return sources


def _short(path: Path, depth: int) -> str:
    *parts, last = path.absolute().parts[-depth:]
    for suffix in (s for form in FORMATS.values() for s in form.suffixes):
        if last.lower().endswith(suffix):
            last = last[: -len(suffix)]
            break
    return "_".join(p.replace(" ", "_").strip("/\\") or "root" for p in (*parts, last)) or "scan"

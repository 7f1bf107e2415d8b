"""Which scans lie in files and folders, and what to call each."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from infnet_jax.clinic.imaging import series
from infnet_jax.clinic.imaging.formats import FORMATS, kind_of


class Source(NamedTuple):
    """One scan to be read: a picture, a volume, or the files of a DICOM series."""

    name: str  # unique among the sources found together; names the output files
    kind: str  # a key of `FORMATS`
    files: tuple[Path, ...]  # one file, or all of a series
    slices: tuple[series.Slice, ...] = ()  # of a DICOM series
    about: str = ""  # number and description of a series, for lists
    beside: tuple[str, ...] = ()  # what was passed over in its folder, a line each


Found = tuple[Path, Source]  # where a scan lies, and the source, whose name is still to be given


def find(
    paths: Iterable[Path], *, number: str = "", skip: Callable[[Path], bool] | None = None
) -> list[Source]:
    """Finds the scans in these files and folders, in order; of DICOM the headers are read.

    A folder gives one source for each picture and volume in it, and one for each CT series among
    the DICOM files of each of its folders; so does a zip, and so do DICOM files given by name.
    Files of other kinds in a folder are passed over.

    Args:
      number: takes the series of this SeriesNumber only; "" takes all.
      skip: whether a file is to be left out, asked of one file of each source.

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
        kind = None if path.is_dir() else kind_of(path)
        if path.is_dir():
            inside = _in_folder(path)
            if not inside:
                raise ValueError(f"{path}: no picture, NIfTI, DICOM, NRRD, MHA or TIFF file in it")
            found += inside
        elif kind == "dicom" and path.suffix.lower() != ".zip":
            single.setdefault(path.parent, []).append(path)
        elif kind == "dicom":
            found += _series(path, [path])
        elif kind is not None:
            found.append((path, Source("", kind, (path,))))
        else:
            raise ValueError(f"{path}: not a picture, NIfTI, DICOM, NRRD, MHA, TIFF or zip file")
    for folder, files in single.items():
        found += _series(files[0] if len(files) == 1 else folder, files)
    if skip is not None:  # before names are given: what is left out must not change them
        found = [(place, one) for place, one in found if not skip(one.files[0])]
    if number:
        known = sorted({one.about.partition(" ")[0] for _, one in found if one.kind == "dicom"})
        found = [(place, one) for place, one in found if one.about.partition(" ")[0] == number]
        if not found:
            raise ValueError(
                f"no series of number {number}; there are: {', '.join(known) or 'none'}"
            )
    if not found:
        raise ValueError("no input given")
    return _named(found)


def by_name(path: Path, **how: Any) -> dict[str, Source]:
    """The sources of a file or folder by name, without nnU-Net's channel suffix; `how` to find."""
    return {_plain(source.name): source for source in find([path], **how)}


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


def _plain(name: str) -> str:
    return name.removesuffix("_0000")


def _in_folder(folder: Path) -> list[Found]:
    found: list[Found] = []
    dicoms: dict[Path, list[Path]] = {}
    others: list[Path] = []
    # Links to what is not there are said too: left out, a series would only be shorter.
    for path in sorted(p for p in folder.rglob("*") if p.is_file() or not p.exists()):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        kind = None if hidden or path.name.upper() == "DICOMDIR" else kind_of(path)
        gone = not hidden and not path.exists()
        if kind == "dicom" and path.suffix.lower() == ".zip":
            found += _series(path, [path])
        elif gone and kind == "dicom" and path.suffix.lower() not in series.SUFFIXES:
            others.append(path)
        elif kind == "dicom":
            dicoms.setdefault(path.parent, []).append(path)
        elif kind is not None:
            found.append((path, Source("", kind, (path,))))
        elif not hidden and not gone and not series.has_start(path):
            others.append(path)
    for path in others:  # slices of which nothing has arrived are named like the others
        files = dicoms.get(path.parent, [])
        if files and path.suffix == files[0].suffix:
            files.append(path)
    return [*found, *(one for place, files in dicoms.items() for one in _series(place, files))]


def _series(place: Path, files: Sequence[Path]) -> list[Found]:
    """One for each CT series of these DICOM files; of several each bears its number."""
    try:
        groups, passed = series.group(files)
    except ValueError as error:  # said when it is read, so that other scans go on
        return [(place, Source("", "dicom", tuple(files), beside=(str(error),)))]
    several, stem = len(groups) > 1, place if place.is_dir() else place.with_suffix("")
    found = []
    for i, one in enumerate(groups, 1):
        where = stem.with_name(f"{stem.name}_series{one.number or i}") if several else place
        own = tuple(dict.fromkeys(piece.file for piece in one.slices))
        about = f"{one.number or '-'} {one.description}".strip()
        found.append((where, Source("", "dicom", own, one.slices, about, tuple(passed))))
    return found


def _named(found: Sequence[Found]) -> list[Source]:
    """Names by file or folder, unique; where two would be alike, parents or the suffix are added.

    Parents count up to the folder that holds all inputs: nothing above it may reach a file name.
    """
    places = [place.absolute() for place, _ in found]
    common = Path(os.path.commonpath([place.parent for place in places]))
    names: list[str] = []
    for depth in range(1, 10):
        names = [_short(place.relative_to(common), depth) for place in places]
        if len(set(names)) == len(names):
            break
    twins = Counter(names)
    names = [
        f"{name}_{place.suffix[1:]}" if twins[name] > 1 and place.suffix else name
        for name, place in zip(names, places, strict=True)
    ]
    sources, taken = [], set(names)
    seen: set[str] = set()
    for name, (_, one) in zip(names, found, strict=True):
        number, unique = 1, name
        while unique in seen or (number > 1 and unique in taken):
            number += 1
            unique = f"{name}_{number}"
        seen.add(unique)
        sources.append(one._replace(name=unique))
    return sources


def _short(place: Path, depth: int) -> str:
    """The last parts of a path as one word, without its suffix, blanks and control characters."""
    *parts, last = place.parts[-depth:]
    for suffix in (s for form in FORMATS.values() for s in form.suffixes):
        if last.lower().endswith(suffix):
            last = last[: -len(suffix)]
            break
    shown = ("".join(c if c.isprintable() and c != " " else "_" for c in p) for p in (*parts, last))
    return "_".join(shown) or "scan"

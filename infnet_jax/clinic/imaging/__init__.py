"""Pictures and volumes in, masks out, on the same grid. Knows nothing of networks."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from infnet_jax.clinic.imaging import dicom, dicom_seg, nifti, pictures
from infnet_jax.clinic.imaging.scan import LEVEL, WIDTH, Grid, Scan

__all__ = [
    "LEVEL",
    "WIDTH",
    "Grid",
    "Scan",
    "Source",
    "by_name",
    "find",
    "partner",
    "read",
    "read_labels",
    "scan_of_labels",
    "scan_of_picture",
    "write_mask",
]

NAMES = {"infection": "Infection", "ggo": "Ground-glass opacity", "consolidation": "Consolidation"}


@dataclasses.dataclass(frozen=True)
class Source:
    """One scan to be read: a picture, a volume, or the files of a DICOM series.

    Attributes:
      name: unique among the sources found together; names the output files.
      kind: `picture`, `nifti` or `dicom`.
      files: one file, or all of a series.
    """

    name: str
    kind: str
    files: tuple[Path, ...]


def find(paths: Iterable[Path]) -> list[Source]:
    """The scans in these files and folders, in order, without reading them.

    A folder gives one source for each picture and volume in it, and one for the DICOM files of
    each of its folders; a zip is one series. Files of other kinds in a folder are passed over.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: a file is of no known kind, or there is nothing to read at all.
    """
    found: list[tuple[Path, str, tuple[Path, ...]]] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = _in_folder(path)
            if not inside:
                raise ValueError(f"{path}: no picture, NIfTI or DICOM file in it")
            found += inside
        elif not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        else:
            kind = _kind(path)
            if kind is None:
                raise ValueError(f"{path}: not a picture, NIfTI, DICOM or zip file")
            found.append((path, kind, (path,)))
    if not found:
        raise ValueError("no input given")
    return _named(found)


def read(source: Source) -> Scan:
    """Reads a source; errors of its kind name the file (see `pictures`, `nifti`, `dicom`)."""
    if source.kind == "dicom":
        return dicom.read(list(source.files), source.name)
    reader = {"picture": pictures.read, "nifti": nifti.read}[source.kind]
    return reader(source.files[0], source.name)


def by_name(path: Path) -> dict[str, Source]:
    """The sources of a file or folder by name, without nnU-Net's channel suffix."""
    return {_plain(source.name): source for source in find([path])}


def partner(name: str, found: dict[str, Source], what: str, *, alone: bool) -> Source:
    """The source that belongs to the scan called `name`.

    Args:
      found: by name; what: the option that gave them, for the message.
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
    cube = (1, *picture.shape)
    grid = Grid(cube, cube, (0, 1, 2), (False, False, False))
    return Scan(name, "picture", picture[None], False, False, None, grid, None)


def scan_of_labels(path: Path, name: str) -> Scan:
    """A scan that shows where a label map is not 0, for masks whose scan is not at hand."""
    if _kind(path) == "nifti":
        labels, affine = nifti.read_labels(path)
        cube = tuple(labels.shape)
        spacing, oriented = nifti.spacing_of(affine), True
    else:
        labels = pictures.read_labels(path)[None]
        cube, spacing, oriented = tuple(labels.shape), None, False
    grid = Grid(cube, cube, (0, 1, 2), (False, False, False))
    shown = np.where(labels > 0, 90, 0).astype(np.uint8)
    return Scan(
        name,
        "labels",
        shown,
        False,
        oriented,
        spacing,
        grid,
        None,
        [f"{name}: no image given, the mask itself is shown"],
    )


def read_labels(path: Path, scan: Scan | None = None) -> np.ndarray:
    """A mask or label map as uint8 [D, H, W] on the canonical grid.

    Args:
      path: a picture (palette indices count) or NIfTI.
      scan: the scan it belongs to; its grid must be the mask's.

    Raises:
      ValueError: unreadable, or on another grid than the scan.
    """
    if _kind(path) == "nifti":
        labels, affine = nifti.read_labels(path)
        theirs = _affine(scan)
        far = theirs is not None and not np.allclose(affine, theirs, atol=0.01)
        if far and scan.origin is not None and scan.oriented:
            raise ValueError(f"{path}: has another affine than its scan; resample it first")
    else:
        labels = pictures.read_labels(path)[None]
    if scan is not None and labels.shape != scan.values.shape:
        raise ValueError(
            f"{path}: shape {labels.shape} (slices, rows, columns), its scan {scan.values.shape}"
        )
    return labels


def write_mask(
    scan: Scan,
    mask: np.ndarray,
    folder: Path,
    *,
    suffix: str = "",
    classes: Sequence[str] = ("ggo", "consolidation"),
    keep_identifiers: bool = False,
    version: str = "",
) -> tuple[list[Path], list[str]]:
    """Writes a mask in the form of its scan: palette PNG, NIfTI, or NIfTI and DICOM-SEG.

    Args:
      scan: where it belongs.
      mask: uint8 [D, H, W], canonical.
      folder: must exist.
      suffix: added to the scan's name.
      classes: what labels 1, 2, ... are, by the keys of `NAMES`.
      keep_identifiers: lets names, ids and dates pass from the scan's headers.
      version: of this software, for the SEG.

    Returns:
      The files written, each whole, and warnings (why there is no SEG).
    """
    array, stem = scan.grid.source(np.asarray(mask, np.uint8)), folder / f"{scan.name}{suffix}"
    if scan.kind == "picture":
        data = pictures.encode_mask(array)
        return [_whole(Path(f"{stem}.png"), lambda p: p.write_bytes(data))], []
    like = scan.origin if scan.kind == "nifti" else None
    image = nifti.image_of(np.ascontiguousarray(array), _affine(scan), like)
    written = [_whole(Path(f"{stem}.nii.gz"), image.to_filename)]
    if scan.kind == "nifti":
        return written, []
    if not scan.origin["positions"]:
        return written, [f"{scan.name}: no DICOM-SEG, since the series has no positions"]
    series = np.ascontiguousarray(array.transpose(2, 1, 0))
    try:
        seg = _whole(
            Path(f"{stem}.dcm"),
            lambda p: dicom_seg.write(
                p,
                series,
                scan.origin["headers"],
                {c: NAMES[c] for c in classes},
                keep_identifiers=keep_identifiers,
                version=version,
            ),
        )
    except (ImportError, ValueError, AttributeError, TypeError) as error:
        return written, [f"{scan.name}: no DICOM-SEG ({' '.join(str(error).split())[:160]})"]
    return [*written, seg], []


def _whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Writes by way of a temporary file, so that the final name never holds half of it."""
    fresh = path.with_name(f".part-{path.name}")
    try:
        write(fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _plain(name: str) -> str:
    return name.removesuffix("_0000")


def _affine(scan: Scan | None) -> np.ndarray | None:
    if scan is None or scan.origin is None:
        return None
    if scan.kind == "dicom":
        return scan.origin["affine"]
    return scan.origin.get_best_affine()


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    if name.endswith(nifti.SUFFIXES):
        return "nifti"
    if name.endswith(pictures.SUFFIXES):
        return "picture"
    return "dicom" if name.endswith(".zip") or dicom.is_dicom(path) else None


def _in_folder(folder: Path) -> list[tuple[Path, str, tuple[Path, ...]]]:
    found, series = [], {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        kind = _kind(path) if path.name != "DICOMDIR" else None
        if kind == "dicom" and path.suffix.lower() != ".zip":
            series.setdefault(path.parent, []).append(path)
        elif kind is not None:
            found.append((path, kind, (path,)))
    return found + [(place, "dicom", tuple(files)) for place, files in series.items()]


def _named(found: list[tuple[Path, str, tuple[Path, ...]]]) -> list[Source]:
    """Names by file or folder; parents are put in front where two would be alike."""
    depth = 1
    while True:
        names = [_short(path, depth) for path, _, _ in found]
        if len(set(names)) == len(names) or depth > 8:
            break
        depth += 1
    seen: dict[str, int] = {}
    sources = []
    for name, (_, kind, files) in zip(names, found, strict=True):
        seen[name] = seen.get(name, 0) + 1
        sources.append(Source(name if seen[name] == 1 else f"{name}_{seen[name]}", kind, files))
    return sources


def _short(path: Path, depth: int) -> str:
    parts = list(path.absolute().parts[-depth:])
    for suffix in (*nifti.SUFFIXES[::-1], *pictures.SUFFIXES, ".dcm", ".dicom", ".zip"):
        if parts[-1].lower().endswith(suffix):
            parts[-1] = parts[-1][: -len(suffix)]
            break
    return "_".join(p.replace(" ", "_").strip("/\\") or "root" for p in parts) or "scan"

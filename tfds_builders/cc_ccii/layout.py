"""Where CC-CCII's slices lie: archives or folders, their members, and the tables beside them."""

import contextlib
import dataclasses
import hashlib
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tfds_builders import archives, tables
from tfds_builders.report import Report

LABELS = ("Normal", "CP", "NCP")
SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_SLICE = 16 << 20  # bytes of one file, declared or real; a 512 x 512 slice has less than 1 MiB
_LABEL_OF = {label.lower(): label for label in LABELS} | {"covid19": "NCP"}


class Slice(NamedTuple):
    """A picture that was listed but not read; `stamp` differs when its content does."""

    source: str
    member: str
    label: str
    patient: str
    scan: str
    name: str
    stamp: int

    @property
    def id(self) -> str:
        """Label, patient, scan and slice, as the published lists write them, without a suffix."""
        return f"{self.label}/{self.patient}/{self.scan}/{self.name}"


def sources(root: Path) -> list[Path]:
    """Finds archives (`COVID19-1.zip`, `NCP-1.zip`, `CP-2.zip`, `Normal-3.zip`) and label folders.

    Both may lie in `root` or one folder below. Sorted by label, then number, then path.

    Raises:
      FileNotFoundError: there is none; the message states what was expected.
    """
    found = []
    for path in sorted([*root.iterdir(), *root.glob("*/*")]):
        stem = re.fullmatch(r"(covid19|ncp|cp|normal)(?:-(\d+))?", path.stem.lower())
        if stem and (path.is_dir() and not stem[2] or path.suffix.lower() == ".zip"):
            label = LABELS.index(_LABEL_OF[stem[1]])
            found.append((label, int(stem[2] or 0), path.relative_to(root).as_posix()))
    if not found:
        raise FileNotFoundError(
            f"{root}: no slices of CC-CCII; expected archives such as COVID19-1.zip, CP-1.zip and "
            "Normal-1.zip, or the folders NCP/, CP/ and Normal/ that they unpack to"
        )
    return [root / name for _, _, name in sorted(found)]


def listing(root: Path, report: Report) -> list[Slice]:
    """Lists all slices without reading one: a few seconds per 100,000, about 400 bytes for each.

    Broken archives and members that are refused or out of place go to `report.skip`, and so does
    the second file of a slice, in whichever archive it comes.

    Raises:
      FileNotFoundError: as `sources`.
    """
    found: list[Slice] = []
    first: dict[str, str] = {}
    for source in sources(root):
        name = source.relative_to(root).as_posix()
        for member, stamp, reason in _members(source):
            file = f"{name}/{member}" if member else name
            try:
                if reason:
                    raise ValueError(reason)
                item = parse(name, member, stamp)
                if item.id in first:
                    raise ValueError(f"the slice came before, as {first[item.id]}")
            except ValueError as error:
                report.skip(file, str(error))
                continue
            first[item.id] = file
            found.append(item)
    return found


def parse(source: str, member: str, stamp: int) -> Slice:
    """Splits `[...]/[label]/patient/scan/slice.png`; the label may be the archive's alone.

    Raises:
      ValueError: fewer folders than that, or no name of a picture.
    """
    path = PurePosixPath(member.replace("\\", "/"))
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"not a slice; expected a name that ends in {', '.join(SUFFIXES)}")
    if len(path.parts) < 3:
        raise ValueError("out of place; expected label/patient/scan/slice")
    *_, patient, scan, name = path.parts
    label = _LABEL_OF.get(path.parts[-4].lower()) if len(path.parts) > 3 else None
    if label is None:
        label = _LABEL_OF[re.split(r"-\d", PurePosixPath(source).stem)[0].lower()]
    # Interned: the same few thousand words come back a hundred thousand times.
    words = (sys.intern(word) for word in (patient, scan, PurePosixPath(name).stem))
    return Slice(source, member, label, *words, stamp)


def _members(source: Path) -> Iterator[tuple[str, int, str]]:
    """Yields (member, stamp, why it is refused or '') in natural order; '' for the whole source."""
    if source.is_dir():
        names = [p for p in source.rglob("*") if p.is_file() and not _is_junk(p.name)]
        for path in sorted(names, key=lambda p: natural(p.relative_to(source).as_posix())):
            status = path.stat()
            size = status.st_size
            reason = f"holds {size} bytes; at most {MAX_SLICE} pass" if size > MAX_SLICE else ""
            yield path.relative_to(source).as_posix(), status.st_mtime_ns ^ size, reason
        return
    try:
        with zipfile.ZipFile(source) as archive:
            infos = archive.infolist()
    except Exception as error:  # a damaged directory makes zipfile raise whatever it hits first
        yield "", 0, f"not a whole zip ({error}); download it again"
        return
    for info in sorted(infos, key=lambda info: natural(info.filename)):
        if not info.is_dir() and not _is_junk(info.filename):
            yield info.filename, info.CRC, _refusal(info)


@contextlib.contextmanager
def opened(source: Path) -> Iterator[Callable[[str, str], bytes]]:
    """Opens one source; gives a function of (member, what messages call it) to its bytes.

    The function raises ValueError for a member that is damaged or larger than `MAX_SLICE`.
    """
    if source.is_dir():
        yield lambda member, file: (source / member).read_bytes()
        return
    with zipfile.ZipFile(source) as archive:
        # Where a name comes twice, the first counts, here as in `listing`.
        infos = {info.filename: info for info in reversed(archive.infolist())}

        def read(member: str, file: str) -> bytes:
            try:
                return archives.read_member(archive, infos[member], file, limit=MAX_SLICE)
            except ValueError:
                raise
            except Exception as error:  # a damaged header makes zipfile raise what it hits first
                raise ValueError(f"{file}: damaged in its archive ({error})") from error

        yield read


def _refusal(info: zipfile.ZipInfo) -> str:
    if archives.leaves(info.filename):
        return "the path leaves the archive; refused"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python's readers of the other methods unpack without a bound.
        return f"compression method {info.compress_type} is neither stored nor deflated; refused"
    return ""  # sizes are `archives.read_member`'s, which does not believe what is declared


def _is_junk(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1].startswith(".") or parts[-1].lower() == "thumbs.db"


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key that puts `9.png` before `10.png`; different names have different keys."""
    parts = re.split(r"([0-9]+)", name)
    return (*((i % 2, int(p) if i % 2 else p) for i, p in enumerate(parts)), (0, name))


@dataclasses.dataclass(frozen=True)
class Tables:
    """What the tables beside the archives say; empty where a table is missing.

    Attributes:
      metadata: (patient, scan) to the row of `metadata.csv`.
      slices: (patient, scan) to the number of slices that `unzip_filenames.csv` lists.
      lesions: ids of slices in `lesions_slices.csv`; None without that file.
    """

    metadata: dict[tuple[str, str], dict[str, str]]
    slices: dict[tuple[str, str], int]
    lesions: frozenset[str] | None

    def fingerprint(self) -> str:
        """Text that differs when a table does."""
        content = (sorted(self.metadata.items()), sorted(self.lesions or ()), self.lesions is None)
        return hashlib.sha256(repr(content).encode()).hexdigest()


def read_tables(root: Path, report: Report) -> Tables:
    """Reads the three tables from `root` or one folder below; a missing one becomes a note.

    Raises:
      ValueError: a table is there but is none, or lacks a column; the message names it.
    """
    metadata, slices, lesions = {}, {}, None
    if path := _table(root, "metadata.csv", report):
        rows = tables.read(path)
        tables.require(path, rows, "patient_id", "scan_id")
        metadata = {(r["patient_id"], r["scan_id"]): r for r in reversed(rows)}
    if path := _table(root, "unzip_filenames.csv", report):
        rows = tables.read(path)
        tables.require(path, rows, "patient_id", "scan_id", "n_slice")
        slices = {
            (r["patient_id"], r["scan_id"]): int(n)
            for r in rows
            if (n := tables.number(r["n_slice"])) == n
        }
    if path := _table(root, "lesions_slices.csv", report):
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()[1:]
        lesions = frozenset(
            str(PurePosixPath(line.strip()).with_suffix("")) for line in lines if line.strip(" ,/")
        )
    return Tables(metadata, slices, lesions)


def _table(root: Path, name: str, report: Report) -> Path | None:
    for path in (root / name, *sorted(root.glob(f"*/{name}"))):
        if path.is_file():
            return path
    report.note(f"no {name}: what it says is unknown for every slice")
    return None

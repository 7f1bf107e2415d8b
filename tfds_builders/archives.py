"""Files below a folder and inside the zips there, read one at a time and never unpacked to disk."""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

MAX_MEMBER = 2**28  # bytes of one unpacked file; declared or real, whichever shows first
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


@dataclasses.dataclass(frozen=True)
class Member:
    """One file: its name from the root (posix; `a.zip/b/c.jpg` for a member), and how to read it.

    `read()` returns the bytes and raises ValueError, naming the file, when it is damaged,
    encrypted, or larger than allowed. `path` is None for a member of a zip.
    """

    name: str
    read: Callable[[], bytes]
    path: Path | None = None


def walk(root: Path, *, limit: int = MAX_MEMBER) -> Iterator[Member | ValueError]:
    """Yields every file below root, those inside zips too, in the order of their names.

    Hidden files and folders, and macOS's `__MACOSX`, are passed over. What cannot be listed (a
    broken zip, a member whose path leaves its archive) is yielded as a ValueError in place of a
    Member, so that the caller may skip it and go on. Zips inside zips are not entered.
    """
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not _hidden(name))
        for name in sorted(name for name in files if not _hidden(name)):
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if path.suffix.lower() == ".zip":
                yield from zip_members(path, relative, limit=limit)
            else:
                yield Member(
                    relative, lambda path=path, name=relative: _file(path, name, limit), path
                )


def zip_members(path: Path, name: str, *, limit: int = MAX_MEMBER) -> Iterator[Member | ValueError]:
    """Yields the files of one zip as `walk` does; `name` is what messages call the zip.

    The zip stays open while its members are listed; reading one later opens it again.
    """
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGE as error:
        yield ValueError(f"{name}: not a whole zip ({error}); download it again")
        return
    with archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if info.is_dir() or any(_hidden(part) for part in info.filename.split("/")[-1:]):
                continue
            if info.filename.startswith("__MACOSX/"):
                continue
            inside = f"{name}/{info.filename}"
            if leaves(info.filename):
                yield ValueError(f"{inside}: the path leaves the archive; refused")
            else:
                yield Member(
                    inside,
                    lambda info=info, inside=inside: _read(archive, path, info, inside, limit),
                )


def read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, *, limit: int = MAX_MEMBER
) -> bytes:
    """Reads one member of an open zip.

    Raises:
      ValueError: damaged, encrypted, or larger than `limit` bytes, whatever size it declares.
    """
    if info.file_size > limit:
        raise ValueError(f"{name}: declares {info.file_size} bytes; at most {limit} pass")
    try:
        with archive.open(info) as file:
            data = file.read(limit + 1)  # the declared size may lie
    except _DAMAGE as error:
        raise ValueError(f"{name}: damaged in its archive ({error}); download it again") from error
    if len(data) > limit:
        raise ValueError(f"{name}: holds more than the {limit} bytes that may pass")
    return data


def _read(
    archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo, name: str, limit: int
) -> bytes:
    if archive.fp is not None:  # still open
        return read_member(archive, info, name, limit=limit)
    with zipfile.ZipFile(path) as again:
        return read_member(again, info, name, limit=limit)


def leaves(member: str) -> bool:
    """Tells whether a member's path would land outside the folder that it is unpacked to."""
    path = PurePosixPath(member.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or (len(member) > 1 and member[1] == ":")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _file(path: Path, name: str, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror})") from error
    if len(data) > limit:
        raise ValueError(f"{name}: holds more than the {limit} bytes that may pass")
    return data

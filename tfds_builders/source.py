"""Whether a prepared dataset was built from the files that now lie in its source folder."""

import hashlib
import json
from pathlib import Path

from tfds_builders.base import MANIFEST

CHECKED = "checked.json"  # beside the records: size and time of each source file found unchanged
DEPTH = 3  # folders below the source folder in which the files of the manifest may lie
NAMED = 3  # files that a message names


def differences(prepared: Path, manual_dir: Path) -> list[str]:
    """Compares the manifest of a prepared dataset with its source folder.

    Files are compared by size and time with those that were found unchanged before, else by their
    sha256. Members of archives are not looked into.

    Returns:
      A line for each file that is changed, gone or new; none where all is as it was, or where the
      dataset has no manifest.
    """
    manifest = prepared / MANIFEST
    if not manifest.is_file():
        return []
    lines = manifest.read_text(encoding="utf-8").splitlines()
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    root = _root(manual_dir, wanted)
    if root is None:
        archives = (".zip", ".tar", ".gz", ".tgz")
        packed = any(path.suffix.lower() in archives for path in manual_dir.rglob("*"))
        return [] if packed else [f"none of its {len(wanted)} files is there"]
    return _changed(prepared, root, wanted) + _new(prepared, root, wanted)


def _changed(prepared: Path, root: Path, wanted: dict[str, str]) -> list[str]:
    """The files of the manifest that are gone or have other bytes."""
    store = prepared / CHECKED
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    lines, found = [], {}
    for name, digest in wanted.items():
        path = root / name
        if not path.is_file():
            if (root / name).parent.is_dir():  # else a member of an archive
                lines.append(f"{name} is gone")
            continue
        state = [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        if known.get(name) != state and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            lines.append(f"{name} is another")
        else:
            found[name] = state
    if found != known and not lines:
        try:
            store.write_text(json.dumps(found), encoding="utf-8")
        except OSError:  # prepared data may be read-only: the next check takes longer
            pass
    return lines


def _new(prepared: Path, root: Path, wanted: dict[str, str]) -> list[str]:
    """Files beside those of the manifest, of their kinds, that were not there, or not readable."""
    report = prepared / "report.json"
    skipped = json.loads(report.read_text(encoding="utf-8"))["skipped"] if report.exists() else {}
    kinds: dict[Path, set[str]] = {}
    for name in wanted:
        path = root / name
        if path.is_file():
            kinds.setdefault(path.parent, set()).add(path.suffix.lower())
    lines = []
    for folder, suffixes in kinds.items():
        for path in sorted(folder.iterdir()):
            name = path.relative_to(root).as_posix()
            known = name in wanted or any(path.name in said for said in skipped)
            if not known and path.is_file() and path.suffix.lower() in suffixes:
                if not path.name.startswith("."):
                    lines.append(f"{name} is new")
    return lines


def _root(manual_dir: Path, wanted: dict[str, str]) -> Path | None:
    """The folder that the manifest's names start from: the one with most of a few of them."""
    some = list(wanted)[:: max(len(wanted) // 8, 1)]
    folders, level = [manual_dir], [manual_dir]
    for _ in range(DEPTH):
        level = [p for folder in level for p in sorted(folder.iterdir()) if p.is_dir()]
        folders += level
    counts = [sum((folder / name).is_file() for name in some) for folder in folders]
    best = max(range(len(folders)), key=lambda i: (counts[i], -i))
    return folders[best] if counts[best] else None

"""Files that are written whole or not at all."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it takes the name of `path` when all went well.

    Missing folders are made. A failure leaves an earlier `path` as it was and no second file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.tmp")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text."""
    with whole(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays, compressed."""
    with whole(path) as fresh, fresh.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a row a mapping, columns in order of first appearance; no rows make an empty file.

    A missing value or None is an empty cell.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with whole(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        if columns:
            writer.writeheader()
        writer.writerows(rows)


def read_npz(folder: Path, pattern: str) -> dict[str, np.ndarray]:
    """The arrays of all files of a folder whose names match, by name; none where there are none."""
    arrays: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob(pattern)):
        with np.load(path) as z:
            arrays |= z
    return arrays

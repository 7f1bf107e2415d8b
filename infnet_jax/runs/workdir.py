"""A run's folder: whose it is, and files that are written whole or not at all."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from infnet_jax import files


def claim(workdir: Path, config: ConfigDict) -> None:
    """Writes the resolved config to `config.json`, or refuses the folder of another config.

    Raises:
      ValueError: the folder belongs to another config; names the first keys that differ.
    """
    path, mine = workdir / "config.json", json.loads(config.to_json())
    if path.exists():
        theirs = json.loads(path.read_text())
        if theirs != mine:
            a, b = (dict(_leaves(tree)) for tree in (theirs, mine))
            keys = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
            shown = ", ".join(f"{k} = {a.get(k)} (now {b.get(k)})" for k in keys[:3])
            raise ValueError(
                f"workdir {workdir} belongs to another config: {shown}"
                f"{' and more' if len(keys) > 3 else ''}; use another --workdir"
            )
    write_json(path, mine)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file; the first process only."""
    if not jax.process_index():
        files.write_json(path, value)


def write_text(path: Path, text: str) -> None:
    """Writes text; the first process only."""
    if not jax.process_index():
        files.write_text(path, text)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays, compressed; the first process only."""
    if not jax.process_index():
        files.write_npz(path, arrays)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a nested dict."""
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else key)

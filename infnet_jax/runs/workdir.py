"""A run's folder: whose it is, and files that its first process writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from infnet_jax import files


def claim(workdir: Path, config: ConfigDict) -> None:
    """Writes the resolved config to `config.json`, or refuses the folder of another config.

    Raises:
      ValueError: the folder belongs to another config; names the first keys that differ.
    """
    path, mine = workdir / "config.json", json.loads(config.to_json())
    theirs = json.loads(path.read_text()) if path.exists() else mine
    if theirs != mine:
        a, b = (flatten_dict(tree, sep=".") for tree in (theirs, mine))
        keys = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
        shown = ", ".join(f"{k} = {a.get(k)} (now {b.get(k)})" for k in keys[:3])
        hint = f"{' and more' if len(keys) > 3 else ''}; use another --workdir"
        raise ValueError(f"workdir {workdir} belongs to another config: {shown}{hint}")
    write_json(path, mine)


def read_config(workdir: Path) -> ConfigDict:
    """The resolved config of a run; a FileNotFoundError where one of its files is missing."""
    return ConfigDict(_read(workdir, "config.json"))


def read_statistics(workdir: Path) -> tuple[float, float]:
    """Mean and standard deviation of a run's training pixels, in 0..1; raises as `read_config`."""
    found = _read(workdir, "statistics.json")
    return found["mean"], found["sd"]


def _read(workdir: Path, wanted: str) -> dict[str, Any]:
    """One of the JSON files of a run that is complete."""
    for name in ("config.json", "statistics.json"):
        if not (workdir / name).is_file():
            hint = f"({name} is missing); give the --workdir of python main.py"
            raise FileNotFoundError(f"{workdir}: no trained run there {hint}")
    return json.loads((workdir / wanted).read_text())


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

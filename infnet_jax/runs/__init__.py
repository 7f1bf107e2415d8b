"""A run's folder: whose it is, and files that its first process alone writes."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from ml_collections import ConfigDict

from infnet_jax import files

P = ParamSpec("P")


def _on_the_first_process(write: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(write)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        import jax  # here, so that the verbs which run no model start without it

        if jax.process_index() == 0:
            write(*args, **kwargs)

    return wrapped


write_json = _on_the_first_process(files.write_json)
write_text = _on_the_first_process(files.write_text)
write_npz = _on_the_first_process(files.write_npz)


def claim(workdir: Path, config: ConfigDict) -> None:
    """Writes `config.json`; a ValueError, naming keys that differ, if it is of another config."""
    from flax.traverse_util import flatten_dict

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

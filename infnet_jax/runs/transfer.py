"""Weights out of a checkpoint, and from one network into another by name and shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from infnet_jax.runs.manifest import damage, read_manifest

Tree = Any


class Transfer(NamedTuple):
    """What a transfer did; names are paths such as ``params/trunk/conv1/kernel``."""

    loaded: list[str]  # taken from the source
    fresh: list[str]  # of the target, kept as initialised (mismatched ones included)
    mismatched: list[str]  # "name: target [3, 3], source [1, 3]": chosen, but of another shape
    unused: list[str]  # of the source, not taken


def transfer(
    target: Tree,
    source: Tree,
    *,
    mode: str = "all_but_last",
    is_output_layer: Callable[[str], bool] = lambda name: False,
    encoder: str = "trunk",
) -> tuple[Tree, Transfer]:
    """Fills ``target`` from the leaves of ``source`` that have the same name and shape.

    Args:
      target: nested dicts of arrays, such as {"params": ..., "batch_stats": ...}; not changed.
      source: nested dicts of arrays.
      mode: ``all_but_last``: every leaf except those of output layers; ``matching``: every leaf;
        ``encoder``: the leaves below a module called ``encoder``.
      is_output_layer: tells from a leaf's name whether it belongs to an output layer; only asked in
        mode ``all_but_last``.
      encoder: the name of the encoder's module.

    Returns:
      (tree, report): a new tree with ``target``'s structure; loaded leaves are numpy arrays of the
      target's dtype.

    Raises:
      ValueError: the mode is unknown, or nothing could be loaded.
    """
    chosen = {
        "all_but_last": lambda name: not is_output_layer(name),
        "matching": lambda name: True,
        "encoder": lambda name: encoder in name.split("/")[:-1],
    }.get(mode)
    if chosen is None:
        raise ValueError(f"transfer mode {mode!r} must be all_but_last, matching or encoder")
    wanted, given = _flatten(target), _flatten(source)
    out, report = dict(wanted), Transfer([], [], [], [])
    for name, leaf in wanted.items():
        here = list(np.shape(leaf))
        there = list(np.shape(given[name])) if name in given and chosen(name) else None
        if there == here:
            out[name] = np.asarray(given[name]).astype(leaf.dtype)
            report.loaded.append(name)
            continue
        report.fresh.append(name)
        if there is not None:
            report.mismatched.append(f"{name}: target {here}, source {there}")
    report.unused.extend(name for name in given if name not in set(report.loaded))
    if not report.loaded:
        hint = f"; shapes differ at {report.mismatched[0]}" if report.mismatched else ""
        raise ValueError(f"transfer ({mode}) found no leaf to load{hint}")
    return _rebuild(target, out), report


def load_parameters(path: str | Path, part: str = "best") -> Tree:
    """Reads a stored tree as nested dicts (and lists) of numpy arrays; no target, no devices.

    Args:
      path: the folder that was given to ``Checkpoints``.
      part: ``best`` by metric or ``latest``.

    Returns:
      The whole tree as it was saved, with fields of dataclasses and named tuples as keys.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: ``part`` is unknown, or the checkpoint is damaged.
    """
    if part not in ("best", "latest"):
        raise ValueError(f"checkpoint part {part!r} must be best or latest")
    path = Path(path).absolute()
    folders = [p for p in path.glob("*") if p.name.isdigit() and p.is_dir()]
    manifests = {folder: read_manifest(folder) for folder in folders}
    if part == "best":
        manifests = {f: m for f, m in manifests.items() if m["score"] is not None}
    if not manifests:
        kind = "checkpoint with a metric" if part == "best" else "checkpoint"
        raise FileNotFoundError(f"{path}: no {kind}")
    by_score = part == "best"
    folder = max(manifests, key=lambda f: (by_score and manifests[f]["score"], int(f.name)))
    try:
        reader = ocp.PyTreeCheckpointHandler()
        stored = reader.metadata(folder / "state").tree
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        args = ocp.args.PyTreeRestore(restore_args=numpy)
        tree = reader.restore(folder / "state", args=args)
    except MemoryError:
        raise
    except Exception as error:  # the reader raises many types on damaged files
        raise ValueError(f"{folder}: unreadable: {str(error)[:120]!r}") from error
    if trouble := damage(tree, manifests[folder]):
        raise ValueError(f"{folder}: {trouble}")
    return tree


def _flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= _flatten(value, f"{prefix}{key}/") if nested else {f"{prefix}{key}": value}
    return flat


def _rebuild(tree: Tree, flat: Mapping[str, Any], prefix: str = "") -> Tree:
    return {
        key: _rebuild(value, flat, f"{prefix}{key}/")
        if isinstance(value, Mapping)
        else flat[f"{prefix}{key}"]
        for key, value in tree.items()
    }

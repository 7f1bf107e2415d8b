"""Weights from one network into another, by name and shape."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

Tree = Any


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Leaves by their path, such as `net/params/trunk/conv1/kernel`.

    Fields of dataclasses and named tuples, keys and positions look alike, so a tree has the same
    names when it is read back as plain dicts and lists.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


class Transfer(NamedTuple):
    """What a transfer did; names are paths such as `params/trunk/conv1/kernel`."""

    loaded: list[str]  # taken from the source
    fresh: list[str]  # of the target, kept as initialised (mismatched ones included)
    mismatched: list[str]  # "name: target [3, 3], source [1, 3]": chosen, but of another shape
    unused: list[str]  # of the source, not taken


def transfer(
    target: Tree, source: Tree, *, mode: str, is_output_layer: Callable[[str], bool]
) -> tuple[Tree, Transfer]:
    """Fills `target` from the leaves of `source` that have the same name and shape.

    Both are nested dicts of arrays, such as {"params": ..., "batch_stats": ...}. The result is a
    new tree with `target`'s structure, in which loaded leaves are numpy arrays of `target`'s dtype.

    Args:
      mode: `all_but_last`: every leaf whose name is not one of `is_output_layer`; `matching`: every
        leaf; `encoder`: the leaves below a module called `trunk`.

    Raises:
      ValueError: the mode is unknown, or nothing could be loaded.
    """
    chosen = {
        "all_but_last": lambda name: not is_output_layer(name),
        "matching": lambda name: True,
        "encoder": lambda name: "trunk" in name.split("/")[:-1],
    }.get(mode)
    if chosen is None:
        raise ValueError(f"transfer mode {mode!r} must be all_but_last, matching or encoder")
    given, out, report = named_leaves(source), named_leaves(target), Transfer([], [], [], [])
    for name, leaf in out.items():
        here = list(np.shape(leaf))
        there = list(np.shape(given[name])) if name in given and chosen(name) else None
        if there == here:
            out[name] = np.asarray(given[name]).astype(leaf.dtype)
        elif there is not None:
            report.mismatched.append(f"{name}: target {here}, source {there}")
        (report.loaded if there == here else report.fresh).append(name)
    report.unused.extend(name for name in given if name not in set(report.loaded))
    if not report.loaded:
        hint = f"; shapes differ at {report.mismatched[0]}" if report.mismatched else ""
        raise ValueError(f"transfer ({mode}) found no leaf to load{hint}")
    return jax.tree.unflatten(jax.tree.structure(target), out.values()), report

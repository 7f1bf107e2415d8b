"""The manifest of a checkpoint: what each leaf was when it was saved, so damage shows when read.

It holds the dtype, shape and sha256 of the bytes of each leaf, and is sealed by a sha256 itself.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

Tree = Any
Manifest = Mapping[str, Any]


class Damaged(ValueError):
    """A checkpoint's files are not what was saved; the message names them."""


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Leaves by their path, such as `net/params/trunk/conv1/kernel`.

    Fields of dataclasses and named tuples, keys and positions look alike, so a tree has the same
    names when it is read back as plain dicts and lists.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def make_manifest(
    state: Tree, *, step: int, metric: float | None, score: float | None
) -> dict[str, Any]:
    """Describes `state` after `step` updates; `score` is its `metric` such that higher is better.

    Its arrays must be replicated, or addressable here. Only process 0, which writes, lists them.
    """
    leaves = {}
    if jax.process_index() == 0:
        for name, leaf in named_leaves(state).items():
            leaves[name] = [str(leaf.dtype), list(leaf.shape), _sha256(leaf)]
    content = {"step": int(step), "metric": metric, "score": score, "leaves": leaves}
    return content | {"sha256": _seal(content)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest in the folder of one checkpoint and checks it against its own seal.

    Raises:
      FileNotFoundError: there is none.
      Damaged: it is not what was written.
    """
    path = folder / "manifest" / "metadata"
    try:
        manifest = json.loads(path.read_text())
        content = {key: value for key, value in manifest.items() if key != "sha256"}
        whole = manifest["sha256"] == _seal(content)
    except (ValueError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise Damaged(f"{path}: damaged")
    return manifest


def check_matches(target: Tree, manifest: Manifest, folder: Path) -> None:
    """Refuses to read a checkpoint into a tree of other leaves, dtypes or shapes.

    Raises:
      ValueError: names the first leaf that differs and how.
    """
    stored, wanted = manifest["leaves"], named_leaves(target)
    for name in sorted(wanted.keys() | stored.keys()):
        if name not in stored:
            raise ValueError(f"{folder}: has no leaf {name}, which the model needs")
        if name not in wanted:
            raise ValueError(f"{folder}: holds a leaf {name}, which the model does not have")
        have, want = stored[name][:2], [str(wanted[name].dtype), list(wanted[name].shape)]
        if have != want:
            raise ValueError(
                f"{folder}: leaf {name} is stored as {have[0]} {have[1]}, "
                f"the model needs {want[0]} {want[1]}"
            )


def damage(state: Tree, manifest: Manifest) -> str:
    """Names the first leaf whose bytes differ from those that were saved; empty if none does."""
    leaves = named_leaves(state)
    for name, (dtype, shape, digest) in manifest["leaves"].items():
        leaf = leaves.get(name)
        if leaf is None:
            return f"leaf {name} is missing"
        if [str(leaf.dtype), list(leaf.shape)] != [dtype, shape] or _sha256(leaf) != digest:
            return f"leaf {name} differs from what was saved (sha256)"
    return ""


def _sha256(leaf: Any) -> str:
    """Of the bytes of an array; a replicated one of several processes has them all here."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:
            raise ValueError("a checkpoint of several processes must hold replicated arrays")
        leaf = leaf.addressable_data(0)
    flat = np.ascontiguousarray(np.asarray(leaf)).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data).hexdigest()


def _seal(content: Mapping[str, Any]) -> str:
    """Of a manifest without its seal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

"""Checkpoints that are whole or unused, and weights from one network into another.

Orbax writes and deletes, but would load a flipped byte, or cast a wrong dtype, silently. So each
checkpoint carries a manifest: dtype, shape and sha256 of each leaf, sealed by a sha256 itself.
"""

import contextlib
import hashlib
import json
import logging
import math
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

Tree = Any
logger = logging.getLogger(__name__)


class Damaged(ValueError):
    """A checkpoint's files are not what was saved; the message names them."""


class Checkpoints:
    """The checkpoints of one stage: the newest two, and the best by metric.

    Offer the state after *every* step, so that a notice of preemption between two intervals still
    saves; `preempted` tells that there was one. Leave the context, or `close`, to end a last save.
    """

    def __init__(self, directory: str | Path, *, save_every: int, best_mode: str | None = "max"):
        """Opens or creates the folder and removes what killed saves left in it.

        A regular save falls on each multiple of `save_every`. `best_mode`, `max` or `min`, tells
        which metric is better; None keeps no best checkpoint. Another value is a ValueError.
        """
        signs = {"max": 1, "min": -1, None: 0}
        if best_mode not in signs or save_every < 1:
            given = f"best_mode {best_mode!r}, save_every {save_every}"
            raise ValueError(f"{given}: wanted max, min or None, and a number of at least 1")
        self.directory, self.preempted = Path(directory).absolute(), False
        self._save_every, self._sign = save_every, signs[best_mode]
        self._closing = contextlib.ExitStack()
        self._scores: dict[int, float] = {}  # by step; higher is better
        keep = managers.AnyPreservationPolicy([managers.LatestN(2), _KeepBest(self._scores)])
        rules = ocp.CheckpointManagerOptions(preservation_policy=keep, cleanup_tmp_directories=True)
        names = ("state", "manifest")
        self._manager = ocp.CheckpointManager(self.directory, item_names=names, options=rules)
        for step in self._manager.all_steps():
            with contextlib.suppress(OSError, Damaged):  # `restore` will find and report it
                score = _read_manifest(self.directory / str(step))["score"]
                self._scores |= {} if score is None else {step: score}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def handle_sigterm(self) -> None:
        """Lets SIGTERM set `preempted`, so that the next offer saves and the loop can leave."""
        # Several processes must agree on the step: there `offer` asks JAX's own notice instead.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            earlier = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "preempted", True))
            self._closing.callback(signal.signal, signal.SIGTERM, earlier)

    def offer(
        self, step: int, state: Tree, metric: float | None = None, force: bool = False
    ) -> bool:
        """Saves `state` if it is due, and returns whether; the files are written in the background.

        Due are: a multiple of `save_every`, a metric better than all before (NaN is the worst),
        preemption (which waits until the files are whole), and `force`. A stored step is not
        written again. `state` has had `step` updates, and may be donated as soon as this returns.
        An earlier save that failed, as on a full disk, raises its error here.
        """
        if jax.process_count() > 1:
            self.preempted |= bool(self._manager.reached_preemption(step))
        metric, score = None if metric is None else float(metric), None
        if metric is not None and self._sign:
            score = -math.inf if math.isnan(metric) else self._sign * metric
        improved = score is not None and score > max(self._scores.values(), default=-math.inf)
        regular = step > 0 and step % self._save_every == 0
        due = force or self.preempted or improved or regular
        saved = due and step not in self._manager.all_steps()
        if saved:
            self._scores |= {} if score is None else {step: score}
            # Only the first process, which writes, lists the leaves.
            leaves = _named_leaves(state) if jax.process_index() == 0 else {}
            described = {name: _describe(leaf) for name, leaf in leaves.items()}
            content = {"step": int(step), "metric": metric, "score": score, "leaves": described}
            manifest = content | {"sha256": _seal(content)}
            parts = {"state": ocp.args.StandardSave(state), "manifest": ocp.args.JsonSave(manifest)}
            self._manager.save(step, args=ocp.args.Composite(**parts), force=True)
        if self.preempted:
            self.wait()  # the machine may be gone soon
        return saved

    def restore(self, target: Tree) -> tuple[Tree, int] | None:
        """Reads the newest whole checkpoint as (state, step); None where there is none.

        A damaged one is reported, moved aside (`damaged-<step>`), and the one before it used. The
        state has the structure and shardings of `target`, a tree of arrays or of
        `jax.ShapeDtypeStruct`; other leaves, dtypes or shapes than are stored are a ValueError.
        """
        self.wait()
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        while steps := self._manager.all_steps():
            state, trouble, folder = None, "", self.directory / str(max(steps))
            try:
                state = self._read(folder, target)
            except (OSError, Damaged) as error:
                trouble = str(error)
            # Damage in one process is damage in all, so that they go on together.
            if not multihost_utils.process_allgather(np.asarray(bool(trouble))).any():
                return state, max(steps)
            self._set_aside(folder, trouble or f"{folder}: damaged as read by another process")
        return None

    def wait(self) -> None:
        """Returns once the save under way is whole on disk; raises if it failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and gives SIGTERM back to its earlier handler."""
        self._manager.close()
        self._closing.close()

    def _read(self, folder: Path, target: Tree) -> Tree:
        manifest, step = _read_manifest(folder), int(folder.name)
        _check_matches(target, manifest, folder)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return _verified(lambda: self._manager.restore(step, args=args)["state"], manifest, folder)

    def _set_aside(self, folder: Path, trouble: str) -> None:
        """Renames a damaged checkpoint, on the first process, and forgets it on all."""
        aside = folder.with_name(f"damaged-{folder.name}")
        logger.warning("%s; moved to %s, trying an earlier one", trouble, aside.name)
        if jax.process_index() == 0:
            while aside.exists():
                aside = aside.with_name(f"{aside.name}-again")
            folder.rename(aside)
        multihost_utils.sync_global_devices(f"set aside {folder.name}")
        self._scores.pop(int(folder.name), None)
        self._manager.reload()


class _KeepBest(managers.PreservationPolicy):
    """Keeps the highest score, of equal ones the newest.

    Orbax's own BestN reads an unprotected file; these scores come from the sealed manifests.
    """

    def __init__(self, scores: dict[int, float]):
        self._scores = scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        scored = [info.step for info in checkpoints if info.step in self._scores]
        best = max(scored, key=lambda step: (self._scores[step], step), default=None)
        return [info.step == best for info in checkpoints]


def load_parameters(path: str | Path, part: str = "best") -> Tree:
    """Reads a stored tree as nested dicts (and lists) of numpy arrays; no target, no devices.

    `path` was given to `Checkpoints`; `part` is `best` by metric, of equal ones the newest, or
    `latest`. Fields of dataclasses and named tuples become keys. FileNotFoundError: no such
    checkpoint; ValueError: another part, or damage.
    """
    if part not in ("best", "latest"):
        raise ValueError(f"checkpoint part {part!r} must be best or latest")
    path, best = Path(path).absolute(), part == "best"
    known = {p: _read_manifest(p) for p in path.glob("*") if p.name.isdigit() and p.is_dir()}
    ranks = {p: (m["score"] if best else 0, int(p.name)) for p, m in known.items()}
    folder = max((p for p in ranks if ranks[p][0] is not None), key=ranks.__getitem__, default=None)
    if folder is None:
        raise FileNotFoundError(f"{path}: no checkpoint{' with a metric' if best else ''}")

    def read() -> Tree:
        reader, place = ocp.PyTreeCheckpointHandler(), folder / "state"
        plain = ocp.RestoreArgs(restore_type=np.ndarray)
        args = jax.tree.map(lambda _: plain, reader.metadata(place).tree)
        return reader.restore(place, args=ocp.args.PyTreeRestore(restore_args=args))

    return _verified(read, known[folder], folder)


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

    Both are nested dicts of arrays; in the new tree loaded leaves are numpy, of `target`'s dtype.
    `mode` `all_but_last` takes what is no `is_output_layer`, `matching` every leaf, `encoder` those
    below a module called `trunk`; another is a ValueError, as is a transfer of nothing.
    """
    chosen = {
        "all_but_last": lambda name: not is_output_layer(name),
        "matching": lambda name: True,
        "encoder": lambda name: "trunk" in name.split("/")[:-1],
    }.get(mode)
    if chosen is None:
        raise ValueError(f"transfer mode {mode!r} must be all_but_last, matching or encoder")
    given, out, report = _named_leaves(source), _named_leaves(target), Transfer([], [], [], [])
    for name, leaf in out.items():
        here = list(np.shape(leaf))
        there = list(np.shape(given[name])) if name in given and chosen(name) else None
        if there == here:
            out[name] = np.asarray(given[name]).astype(leaf.dtype)
        elif there is not None:
            report.mismatched.append(f"{name}: target {here}, source {there}")
        (report.loaded if there == here else report.fresh).append(name)
    report.unused.extend(name for name in given if name not in report.loaded)
    if not report.loaded:
        hint = f"; shapes differ at {report.mismatched[0]}" if report.mismatched else ""
        raise ValueError(f"transfer ({mode}) found no leaf to load{hint}")
    return jax.tree.unflatten(jax.tree.structure(target), out.values()), report


def _named_leaves(tree: Tree) -> dict[str, Any]:
    """Leaves by path, `net/params/trunk/conv1/kernel`; fields, keys and positions look alike."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _verified(read: Callable[[], Tree], manifest: Mapping[str, Any], folder: Path) -> Tree:
    """What `read` returns, if it is what was saved; else raises `Damaged`."""
    try:
        tree = read()
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # the machine's trouble, not the files'
    except Exception as error:  # the reader raises many types on damaged files
        raise Damaged(f"{folder}: unreadable: {str(error)[:120]!r}") from error
    leaves = _named_leaves(tree)
    for name, saved in manifest["leaves"].items():
        if name not in leaves or _describe(leaves[name]) != saved:
            raise Damaged(f"{folder}: leaf {name} differs from what was saved (sha256)")
    return tree


def _check_matches(target: Tree, manifest: Mapping[str, Any], folder: Path) -> None:
    """Refuses to read a checkpoint into a tree of other leaves, dtypes or shapes."""
    stored, wanted = manifest["leaves"], _named_leaves(target)
    for name in sorted(wanted.keys() | stored.keys()):
        if name not in stored:
            raise ValueError(f"{folder}: has no leaf {name}, which the model needs")
        if name not in wanted:
            raise ValueError(f"{folder}: holds a leaf {name}, which the model does not have")
        have, leaf = "{} {}".format(*stored[name]), wanted[name]
        if have != (want := f"{leaf.dtype} {list(leaf.shape)}"):
            raise ValueError(f"{folder}: leaf {name} is stored as {have}, the model needs {want}")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of one checkpoint; raises `Damaged` if its own seal is broken."""
    path = folder / "manifest" / "metadata"
    with contextlib.suppress(ValueError, KeyError, AttributeError, TypeError):
        manifest = json.loads(path.read_text())
        if manifest.pop("sha256") == _seal(manifest):
            return manifest
    raise Damaged(f"{path}: damaged")


def _describe(leaf: Any) -> list[Any]:
    """[dtype, shape, sha256 of the bytes]; all bytes of a replicated array are in each process."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:
            raise ValueError("a checkpoint of several processes must hold replicated arrays")
        leaf = leaf.addressable_data(0)
    digest = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
    return [str(leaf.dtype), list(leaf.shape), digest]


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

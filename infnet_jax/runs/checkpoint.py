"""Checkpoints that are whole or unused: saved in the background, verified when read.

Orbax writes and deletes; this file adds what it leaves out. One flipped byte in the array data
would load silently as other weights, and a dtype mismatch would be cast silently. So each
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
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from infnet_jax.runs.transfer import named_leaves

Tree = Any
logger = logging.getLogger(__name__)


class Damaged(ValueError):
    """A checkpoint's files are not what was saved; the message names them."""


class Checkpoints:
    """The checkpoints of one stage: the newest two, and the best by metric.

    Offer the state after *every* step, so that a notice of preemption between two intervals still
    saves. Use it as a context manager, or call `close`: both wait for the save under way.

    Attributes:
      preempted: whether the machine has asked the process to end.
    """

    def __init__(self, directory: str | Path, *, save_every: int, best_mode: str | None = "max"):
        """Opens or creates the folder and removes what killed saves left in it.

        Every `save_every` steps there is a regular save. `best_mode`, `max` or `min`, tells which
        metric is better; None keeps no best checkpoint. Another value is a ValueError.
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
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep, cleanup_tmp_directories=True
        )
        names = ("state", "manifest")
        self._manager = ocp.CheckpointManager(self.directory, item_names=names, options=options)
        for step in self._manager.all_steps():
            try:
                score = _read_manifest(self.directory / str(step))["score"]
            except (OSError, Damaged):
                continue  # `restore` will find and report it
            if score is not None:
                self._scores[step] = score

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def handle_sigterm(self) -> None:
        """Lets SIGTERM set `preempted`, so that the next offer saves and the loop can leave."""

        def on_sigterm(*_: object) -> None:
            self.preempted = True

        # Several processes must agree on the step: there `offer` asks JAX's own notice instead.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            earlier = signal.signal(signal.SIGTERM, on_sigterm)
            self._closing.callback(signal.signal, signal.SIGTERM, earlier)

    def offer(
        self, step: int, state: Tree, metric: float | None = None, force: bool = False
    ) -> bool:
        """Saves `state` if it is due, and returns whether; the files are written in the background.

        Due are: a multiple of `save_every`, a metric better than all before, preemption (which
        waits until the files are whole), and `force`. A stored step is not written again.

        Args:
          step: the number of updates `state` has had.
          state: a tree of arrays; it may be donated as soon as this returns.
          metric: the validation metric of this state, where there is one; NaN is the worst.
          force: save in any case, as after the last step.

        Raises:
          Exception: an earlier background save failed (as with a full disk).
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
            if score is not None:
                self._scores[step] = score
            manifest = _manifest(state, step, metric, score)
            parts = {"state": ocp.args.StandardSave(state), "manifest": ocp.args.JsonSave(manifest)}
            self._manager.save(step, args=ocp.args.Composite(**parts), force=True)
        if self.preempted:
            self.wait()  # the machine may be gone soon
        return saved

    def restore(self, target: Tree) -> tuple[Tree, int] | None:
        """Reads the newest whole checkpoint into the structure and shardings of `target`.

        A damaged one is reported, moved aside (`damaged-<step>`), and the one before it used.
        The target is a tree of arrays, or of `jax.ShapeDtypeStruct` with shardings.

        Returns:
          (state, step), or None where no whole checkpoint exists.

        Raises:
          ValueError: the stored tree has other leaves, dtypes or shapes than `target`.
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
        manifest = _read_manifest(folder)
        _check_matches(target, manifest, folder)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        step = int(folder.name)
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

    Orbax's own BestN reads the metric from an unprotected file of its own, where one flipped byte
    stops the manager from opening or evicts the best; these scores come from the sealed manifests.
    """

    def __init__(self, scores: dict[int, float]):
        self._scores = scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        scored = [info.step for info in checkpoints if info.step in self._scores]
        best = max(scored, key=lambda step: (self._scores[step], step), default=None)
        return [info.step == best for info in checkpoints]


def load_parameters(path: str | Path, part: str = "best") -> Tree:
    """Reads a stored tree as nested dicts (and lists) of numpy arrays; no target, no devices.

    Fields of dataclasses and named tuples become keys.

    Args:
      path: the folder that was given to `Checkpoints`.
      part: `best` by metric, of equal ones the newest, or `latest`.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: `part` is unknown, or the checkpoint is damaged.
    """
    if part not in ("best", "latest"):
        raise ValueError(f"checkpoint part {part!r} must be best or latest")
    path, best = Path(path).absolute(), part == "best"
    known = {p: _read_manifest(p) for p in path.glob("*") if p.name.isdigit() and p.is_dir()}
    ranks = {p: (m["score"] if best else 0, int(p.name)) for p, m in known.items()}
    ranks = {p: rank for p, rank in ranks.items() if rank[0] is not None}
    if not ranks:
        raise FileNotFoundError(f"{path}: no checkpoint{' with a metric' if best else ''}")
    folder = max(ranks, key=lambda p: ranks[p])

    def read() -> Tree:
        reader = ocp.PyTreeCheckpointHandler()
        stored = reader.metadata(folder / "state").tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        return reader.restore(folder / "state", args=ocp.args.PyTreeRestore(restore_args=plain))

    return _verified(read, known[folder], folder)


def _verified(read: Callable[[], Tree], manifest: Mapping[str, Any], folder: Path) -> Tree:
    """What `read` returns, if it is what was saved; else raises `Damaged`."""
    try:
        tree = read()
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # the machine's trouble, not the files'
    except Exception as error:  # the reader raises many types on damaged files
        raise Damaged(f"{folder}: unreadable: {str(error)[:120]!r}") from error
    leaves = named_leaves(tree)
    for name, saved in manifest["leaves"].items():
        if name not in leaves or _describe(leaves[name]) != saved:
            raise Damaged(f"{folder}: leaf {name} differs from what was saved (sha256)")
    return tree


def _check_matches(target: Tree, manifest: Mapping[str, Any], folder: Path) -> None:
    """Refuses to read a checkpoint into a tree of other leaves, dtypes or shapes."""
    stored, wanted = manifest["leaves"], named_leaves(target)
    for name in sorted(wanted.keys() | stored.keys()):
        if name not in stored:
            raise ValueError(f"{folder}: has no leaf {name}, which the model needs")
        if name not in wanted:
            raise ValueError(f"{folder}: holds a leaf {name}, which the model does not have")
        have, leaf = "{} {}".format(*stored[name]), wanted[name]
        if have != (want := f"{leaf.dtype} {list(leaf.shape)}"):
            raise ValueError(f"{folder}: leaf {name} is stored as {have}, the model needs {want}")


def _manifest(state: Tree, step: int, metric: float | None, score: float | None) -> dict[str, Any]:
    """Describes `state`; only the first process, which writes, lists its leaves."""
    leaves = named_leaves(state) if jax.process_index() == 0 else {}
    described = {name: _describe(leaf) for name, leaf in leaves.items()}
    content = {"step": int(step), "metric": metric, "score": score, "leaves": described}
    return content | {"sha256": _seal(content)}


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of one checkpoint; raises `Damaged` if its own seal is broken."""
    path = folder / "manifest" / "metadata"
    try:
        manifest = json.loads(path.read_text())
        if manifest.pop("sha256") == _seal(manifest):
            return manifest
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise Damaged(f"{path}: damaged")


def _describe(leaf: Any) -> list[Any]:
    """[dtype, shape, sha256 of the bytes]; all bytes of a replicated array are in each process."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:
            raise ValueError("a checkpoint of several processes must hold replicated arrays")
        leaf = leaf.addressable_data(0)
    flat = np.ascontiguousarray(np.asarray(leaf)).reshape(-1)
    digest = hashlib.sha256(flat.view(np.uint8).data).hexdigest()
    return [str(leaf.dtype), list(leaf.shape), digest]


def _seal(content: Mapping[str, Any]) -> str:
    """Of a manifest without its seal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

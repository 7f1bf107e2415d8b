"""Checkpoints that are whole or unused: saved in the background, verified when read.

Orbax writes and deletes; this file adds what it leaves out. One flipped byte in the array data
would load silently as other weights, and a dtype mismatch would be cast silently, so each
checkpoint carries a manifest, see `runs.manifest`.
"""

import logging
import math
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from infnet_jax.runs import manifest as manifests
from infnet_jax.runs.manifest import Damaged, Manifest

Tree = Any
logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage: the newest two, and the best by metric.

    Offer the state after *every* step, so that a notice of preemption between two intervals still
    saves. Use it as a context manager, or call `close`: both wait for the save under way.

    Attributes:
      preempted: whether the machine has asked the process to end.
    """

    def __init__(self, directory: str | Path, *, save_every: int, best_mode: str | None = "max"):
        """Opens or creates the folder and removes what killed saves left in it.

        Args:
          directory: where the checkpoints go, one folder per step.
          save_every: steps between regular saves.
          best_mode: `max` or `min`: which metric is better; None keeps no best checkpoint.

        Raises:
          ValueError: an argument is out of range.
        """
        if best_mode not in ("max", "min", None) or save_every < 1:
            raise ValueError(
                f"best_mode {best_mode!r}, save_every {save_every}: best_mode must be max, min or "
                "None, save_every at least 1"
            )
        self.directory, self.preempted = Path(directory).absolute(), False
        self._save_every, self._best_mode = save_every, best_mode
        self._previous_handler: Any = None
        self._scores: dict[int, float] = {}  # by step; higher is better
        policies = [ocp.checkpoint_managers.LatestN(2), _KeepBest(self._scores)]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        names = ("state", "manifest")
        self._manager = ocp.CheckpointManager(self.directory, item_names=names, options=options)
        for step in self._manager.all_steps():
            try:
                score = manifests.read_manifest(self.directory / str(step))["score"]
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
        # Several processes must agree on the step: there `offer` asks JAX's own notice instead.
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def offer(
        self, step: int, state: Tree, metric: float | None = None, force: bool = False
    ) -> bool:
        """Saves `state` if it is due; returns at once while the files are written.

        Due are: a multiple of `save_every`, a metric better than all before, preemption (which
        waits until the files are whole), and `force`. A step that is already stored is not
        written again.

        Args:
          step: the number of updates `state` has had.
          state: a tree of arrays; it may be donated as soon as this returns.
          metric: the validation metric of this state, where there is one; NaN is the worst.
          force: save in any case, as after the last step.

        Returns:
          Whether this call saved.

        Raises:
          Exception: an earlier background save failed (as with a full disk).
        """
        if jax.process_count() > 1:
            self.preempted |= bool(self._manager.reached_preemption(step))
        metric = None if metric is None else float(metric)
        score = None if metric is None or not self._best_mode else self._to_score(metric)
        improved = score is not None and score > max(self._scores.values(), default=-math.inf)
        regular = step > 0 and step % self._save_every == 0
        due = force or self.preempted or improved or regular
        saved = due and step not in self._manager.all_steps()
        if saved:
            state = jax.tree.map(_as_array, state)
            if score is not None:
                self._scores[step] = score
            manifest = manifests.make_manifest(state, step=step, metric=metric, score=score)
            items = {"state": ocp.args.StandardSave(state)}
            items["manifest"] = ocp.args.JsonSave(manifest)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
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
        target = jax.tree.map(lambda x: ocp.utils.to_shape_dtype_struct(_as_array(x)), target)
        while steps := self._manager.all_steps():
            state, trouble, folder = None, "", self.directory / str(max(steps))
            try:
                state = self._read(folder, target)
            except (OSError, Damaged) as error:
                trouble = str(error)
            if not _anywhere(bool(trouble)):
                return state, max(steps)
            self._set_aside(folder, trouble or f"{folder}: damaged as read by another process")
        return None

    def wait(self) -> None:
        """Returns once the save under way is whole on disk; raises if it failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and gives SIGTERM back to its earlier handler."""
        self._manager.close()
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None

    def _on_sigterm(self, *_: object) -> None:
        self.preempted = True

    def _to_score(self, metric: float) -> float:
        sign = 1 if self._best_mode == "max" else -1
        return -math.inf if math.isnan(metric) else sign * metric

    def _read(self, folder: Path, target: Tree) -> Tree:
        manifest = manifests.read_manifest(folder)
        manifests.check_matches(target, manifest, folder)
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
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {folder.name}")
        self._scores.pop(int(folder.name), None)
        self._manager.reload()


def load_parameters(path: str | Path, part: str = "best") -> Tree:
    """Reads a stored tree as nested dicts (and lists) of numpy arrays; no target, no devices.

    Args:
      path: the folder that was given to `Checkpoints`.
      part: `best` by metric, of equal ones the newest, or `latest`.

    Returns:
      The whole tree as it was saved, with fields of dataclasses and named tuples as keys.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: `part` is unknown, or the checkpoint is damaged.
    """
    if part not in ("best", "latest"):
        raise ValueError(f"checkpoint part {part!r} must be best or latest")
    path, best = Path(path).absolute(), part == "best"
    folders = [p for p in path.glob("*") if p.name.isdigit() and p.is_dir()]
    known = {folder: manifests.read_manifest(folder) for folder in folders}
    ranks = {f: (m["score"] if best else 0, int(f.name)) for f, m in known.items()}
    ranks = {f: rank for f, rank in ranks.items() if rank[0] is not None}
    if not ranks:
        raise FileNotFoundError(f"{path}: no checkpoint{' with a metric' if best else ''}")
    folder = max(ranks, key=lambda f: ranks[f])

    def read() -> Tree:
        reader = ocp.PyTreeCheckpointHandler()
        stored = reader.metadata(folder / "state").tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        return reader.restore(folder / "state", args=ocp.args.PyTreeRestore(restore_args=plain))

    return _verified(read, known[folder], folder)


def _verified(read: Callable[[], Tree], manifest: Manifest, folder: Path) -> Tree:
    """What `read` returns, if it is what was saved; else raises `Damaged`."""
    try:
        tree = read()
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # the machine's trouble, not the files'
    except Exception as error:  # the reader raises many types on damaged files
        raise Damaged(f"{folder}: unreadable: {str(error)[:120]!r}") from error
    if trouble := manifests.damage(tree, manifest):
        raise Damaged(f"{folder}: {trouble}")
    return tree


class _KeepBest(ocp.checkpoint_managers.PreservationPolicy):
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


def _as_array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else np.asarray(leaf)


def _anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process, so that all take the same way."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())

"""Checkpoints that are whole or unused: saved in the background, verified when read.

Orbax writes and deletes; this file adds what it leaves out. One flipped byte in the array data
would load silently as other weights, and a dtype mismatch would be cast silently, so each
checkpoint carries a manifest: per leaf the name, dtype, shape and sha256 of the bytes.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from infnet_jax.runs.manifest import check_matches, damage, make_manifest, read_manifest

Tree = Any
logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage: the newest ``keep``, and the best by metric.

    Offer the state after *every* step, so that a notice of preemption between two intervals still
    saves. Use it as a context manager, or call ``close``: both wait for the save under way.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        save_every: int,
        best_mode: str | None = "max",
        keep: int = 2,
    ):
        """Opens or creates the folder and removes what killed saves left in it.

        Args:
          directory: where the checkpoints go, one folder per step.
          save_every: steps between regular saves.
          best_mode: ``max`` or ``min``: which metric is better; None keeps no best checkpoint.
          keep: number of newest checkpoints to keep.

        Raises:
          ValueError: an argument is out of range.
        """
        if best_mode not in ("max", "min", None) or save_every < 1 or keep < 1:
            allowed = "best_mode must be max, min or None, save_every and keep at least 1"
            raise ValueError(
                f"best_mode {best_mode!r}, save_every {save_every}, keep {keep}: {allowed}"
            )
        self.directory = Path(directory).absolute()
        self.preempted = False  # true once the machine asked the process to end
        self._save_every, self._best_mode, self._previous_handler = save_every, best_mode, None
        self._scores: dict[int, float] = {}  # by step; higher is better
        newest, best = ocp.checkpoint_managers.LatestN(keep), _KeepBest(self._scores)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy([newest, best]),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(
            self.directory, item_names=("state", "manifest"), options=options
        )
        self._read_scores()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def handle_sigterm(self) -> None:
        """Lets SIGTERM set ``preempted``, so that the next offer saves and the loop can leave."""
        # Several processes must agree on the step: there `offer` asks JAX's own notice instead.
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def offer(
        self, step: int, state: Tree, metric: float | None = None, force: bool = False
    ) -> bool:
        """Saves ``state`` if it is due; returns at once while the files are written.

        Due are: a multiple of ``save_every``, a metric better than all before, preemption (which
        waits until the files are whole), and ``force``. A step that is already stored is not
        written again.

        Args:
          step: the number of updates ``state`` has had.
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
            manifest = make_manifest(state, step=step, metric=metric, score=score)
            items = {"state": ocp.args.StandardSave(state)}
            items["manifest"] = ocp.args.JsonSave(manifest)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        if self.preempted:
            self.wait()  # the machine may be gone soon
        return saved

    def restore(self, target: Tree) -> tuple[Tree, int] | None:
        """Reads the newest whole checkpoint into the structure and shardings of ``target``.

        A damaged one is reported, moved aside (``damaged-<step>``), and the one before it used.
        The target is a tree of arrays, or of ``jax.ShapeDtypeStruct`` with shardings.

        Returns:
          (state, step), or None where no whole checkpoint exists.

        Raises:
          ValueError: the stored tree has other leaves, dtypes or shapes than ``target``.
        """
        return self._restore_first(target, lambda: sorted(self._manager.all_steps(), reverse=True))

    def restore_best(self, target: Tree) -> tuple[Tree, int] | None:
        """As ``restore``, for the best metric; of equal ones the newest."""

        def by_score() -> list[int]:
            scored = set(self._manager.all_steps()) & set(self._scores)
            return sorted(scored, key=lambda step: (self._scores[step], step), reverse=True)

        return self._restore_first(target, by_score)

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

    def _read_scores(self) -> None:
        for step in self._manager.all_steps():
            try:
                score = read_manifest(self.directory / str(step))["score"]
            except (OSError, ValueError):
                continue  # damaged: `restore` will find and report it
            if score is not None:
                self._scores[step] = score

    def _restore_first(
        self, target: Tree, candidates: Callable[[], list[int]]
    ) -> tuple[Tree, int] | None:
        self.wait()
        target = jax.tree.map(lambda x: ocp.utils.to_shape_dtype_struct(_as_array(x)), target)
        found = None
        while found is None and (steps := candidates()):
            folder = self.directory / str(steps[0])
            state, trouble = self._try_restore(steps[0], folder, target)
            if _anywhere(bool(trouble)):
                self._set_aside(folder, trouble or "damaged as read by another process")
            else:
                found = state, steps[0]
        return found

    def _try_restore(self, step: int, folder: Path, target: Tree) -> tuple[Tree, str]:
        """(state, "") or (None, what is wrong with the files)."""
        try:
            manifest = read_manifest(folder)
        except (OSError, ValueError) as error:
            return None, str(error)
        check_matches(target, manifest, folder)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            state = self._manager.restore(step, args=args)["state"]
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # the machine's trouble, not the files'
        except Exception as error:  # the reader raises many types on damaged files
            return None, f"unreadable: {str(error)[:120]!r}"
        return state, damage(state, manifest)

    def _set_aside(self, folder: Path, trouble: str) -> None:
        aside = folder.with_name(f"damaged-{folder.name}")
        logger.warning("%s: %s; moved to %s, trying an earlier one", folder, trouble, aside.name)
        if jax.process_index() == 0:
            while aside.exists():
                aside = aside.with_name(f"{aside.name}-again")
            folder.rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {folder.name}")
        self._scores.pop(int(folder.name), None)
        self._manager.reload()


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

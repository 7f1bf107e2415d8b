"""The one training loop: steps, evaluations, checkpoints and log of a stage, whatever its task."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from infnet_jax.data.batches import Batches, eval_batches
from infnet_jax.data.sources import Source
from infnet_jax.evaluation import summary as present
from infnet_jax.runs import mesh as mesh_lib
from infnet_jax.runs.checkpoint import Checkpoints
from infnet_jax.runs.logs import RunLog
from infnet_jax.runs.workdir import write_text
from infnet_jax.tasks.state import Task, TrainState

PANEL_SLICES = 3


def fit(
    task: Task,
    section: ConfigDict,
    batches: Batches,
    held_out: Source,
    *,
    directory: Path,
    fresh: Callable[[], TrainState],
    seed: int,
    mesh: Any,
) -> dict | None:
    """Trains a task to its end, from its newest good checkpoint if it has one.

    Args:
      task: what to do; section: of the config, for `batch_size`, `size`, `eval_every` and, where
        it stands, `patience`.
      batches: what to train on; held_out: what to evaluate on, may be empty.
      directory: the stage's folder, whose name the log bears; gets `checkpoints/`,
        `metrics.jsonl`, `panels/`, `tensorboard/` and `parameters.txt`.
      fresh: makes the state of step 0.
      seed: of the steps' randomness; mesh: the devices.

    Returns:
      The timing of the stage, or None if it was asked to stop before its end.

    Raises:
      FloatingPointError: a loss that is not finite; the last good checkpoint stays.
    """
    monitored = len(held_out) > 0
    with Checkpoints(
        directory / "checkpoints",
        best_mode=task.metric_mode if monitored else None,
        save_every=section.eval_every,
    ) as saver:
        saver.handle_sigterm()
        state = mesh_lib.replicate(fresh(), mesh)
        overview = parameter_overview.get_parameter_overview(state.net.params, include_stats=False)
        write_text(directory / "parameters.txt", overview + "\n")
        restored = saver.restore(state)
        state, start = restored or (state, 0)
        evaluate = None
        if monitored:
            evaluate = _make_evaluate(task, section, held_out, batches.fields, mesh)
        with RunLog(
            directory,
            name=directory.name,
            total_steps=task.total_steps,
            batch_size=section.batch_size,
            start_step=start,
            active=jax.process_index() == 0,
        ) as log:
            finished = _loop(task, state, batches, mesh, seed, section, saver, log, evaluate)
            return log.timing() if finished else None


def init_variables(task: Task, seed: int) -> dict[str, Any]:
    """Fresh weights per player, from a generator that compiles in seconds, not in half a minute."""
    return jax.jit(task.variables)(jax.random.key(seed, impl="rbg"))


def _loop(
    task: Task,
    state: TrainState,
    batches: Batches,
    mesh: Any,
    seed: int,
    section: ConfigDict,
    saver: Checkpoints,
    log: RunLog,
    evaluate: Callable | None,
) -> bool:
    """At the top of each turn `state` has had exactly `step` updates. True when finished."""
    whole = mesh_lib.replicated(mesh)
    steps = {
        name: jax.jit(fn, donate_argnums=0, out_shardings=(whole, whole))
        for name, fn in task.steps.items()
    }
    root = jax.random.key(seed)
    start, pending = int(state.step), None
    stream = _batches(task, batches, mesh, start)
    for step in range(start, task.total_steps + 1):
        last, metric = step == task.total_steps, None
        # A resumed run evaluates its first state again: the log dropped that row, and whether
        # the stage has stalled must be known here too.
        if evaluate is not None and step and (last or step % section.eval_every == 0):
            pending = _fetch(log, pending)
            with log.paused():
                metric, state = _judge(task, evaluate, state, step, root, log)
        stalled = _stalled(state, step, section, metric)
        if last or stalled or saver.preempted or step % section.eval_every == 0:
            pending = _fetch(log, pending)
            with log.paused():
                saver.offer(step, state, metric=metric, force=last or stalled or saver.preempted)
        if last or stalled:
            return True
        if saver.preempted:
            return False
        phase = task.phase(step)
        if phase not in log.phases:  # its compilation must not count as time of the step before
            pending = _fetch(log, pending)
        state, out = steps[phase](state, next(stream), jax.random.fold_in(root, step))
        _fetch(log, pending)
        pending = (step, phase, out)
    return True


def _fetch(log: RunLog, pending: tuple | None) -> None:
    """Writes the metrics of an earlier step; one step late, so that the device never waits.

    They are those of the state that has had `step` updates, as those of an evaluation are: what
    a run that resumes at `step` will write again is what the log then drops.
    """
    if pending is None:
        return
    step, phase, out = pending
    values = {k: float(v) for k, v in jax.device_get(out).items()}
    bad = [k for k, v in values.items() if not np.isfinite(v)]
    if bad:
        raise FloatingPointError(
            f"{log.name}: {', '.join(bad)} not finite at step {step} (phase {phase}); "
            "the last good checkpoint is kept: lower the learning rate or set clip_norm"
        )
    log.scalars(step, values)
    log.tick(step + 1, phase)


def _judge(
    task: Task, evaluate: Callable, state: TrainState, step: int, root: jax.Array, log: RunLog
) -> tuple[float, TrainState]:
    """Evaluates, writes scalars and pictures, and notes the best in the state."""
    rows = evaluate(state, jax.random.fold_in(root, 0))
    scalars = task.summarise(rows)
    log.scalars(step, scalars)
    if jax.process_index() == 0:
        panel = {k: v[:PANEL_SLICES] for k, v in rows[0].items()}
        present.save_panel(log, panel, step)
    metric = float(np.float32(scalars[task.metric]))  # as the state holds the best one
    better = metric > float(state.best_metric)
    if task.metric_mode == "min":
        better = metric < float(state.best_metric)
    if better:
        like = state.best_metric.sharding
        state = state.replace(
            best_metric=jax.device_put(np.float32(metric), like),
            best_step=jax.device_put(np.int32(step), like),
        )
    return metric, state


def _stalled(state: TrainState, step: int, section: ConfigDict, metric: float | None) -> bool:
    """Early stopping: no better evaluation for `patience` evaluations (0: never)."""
    patience = section.get("patience", 0)
    if metric is None or not patience:
        return False
    return step - int(state.best_step) >= patience * section.eval_every


def _batches(task: Task, batches: Batches, mesh: Any, start: int) -> Iterator[dict[str, jax.Array]]:
    """The batch of each step from `start` on, as global arrays."""
    index = task.batch_index(start)
    stream = batches.iterate(index)
    batch = mesh_lib.shard_batch(next(stream), mesh)
    for step in range(start, task.total_steps):
        while index < task.batch_index(step):
            index, batch = index + 1, mesh_lib.shard_batch(next(stream), mesh)
        yield batch
    stream.close()


def _make_evaluate(
    task: Task, section: ConfigDict, held_out: Source, fields: Sequence[str], mesh: Any
) -> Callable[[TrainState, jax.Array], list[dict[str, np.ndarray]]]:
    """A function that evaluates every held-out example once; rows of padding are dropped."""

    def with_valid(state: TrainState, batch: dict, key: jax.Array) -> dict:
        return {**task.evaluate(state, batch, key), "valid": batch["valid"]}

    step = jax.jit(with_valid, out_shardings=mesh_lib.replicated(mesh))

    def evaluate(state: TrainState, key: jax.Array) -> list[dict[str, np.ndarray]]:
        rows = []
        for batch in eval_batches(
            held_out, batch_size=section.batch_size, size=section.size, fields=fields
        ):
            out = jax.device_get(step(state, mesh_lib.shard_batch(batch, mesh), key))
            valid = out.pop("valid")
            rows.append({name: value[valid] for name, value in out.items()})
        return rows

    return evaluate

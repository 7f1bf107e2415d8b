"""The one training loop: steps, evaluations, checkpoints and log, whatever the task."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from infnet_jax.data import Batches, Paired, Source, eval_batches
from infnet_jax.runs import mesh as meshes, write_npz, write_text
from infnet_jax.runs.checkpoint import Checkpoints
from infnet_jax.runs.logs import RunLog
from infnet_jax.tasks.state import Task, TrainState

PANEL_SLICES = 3
_Pending = tuple[int, str, dict[str, jax.Array]]  # step, phase and metrics of a step
Rows = list[dict[str, np.ndarray]]  # of each evaluated batch, an array a name, a row an example


class _Training(NamedTuple):
    """What stays the same from step to step; `evaluate` is None without held-out examples."""

    task: Task
    section: ConfigDict
    batches: Batches | Paired
    mesh: Mesh
    root: jax.Array
    evaluate: Callable[[TrainState, jax.Array], Rows] | None
    saver: Checkpoints
    log: RunLog


def fit(
    task: Task,
    section: ConfigDict,
    batches: Batches | Paired,
    held_out: Source,
    *,
    directory: Path,
    name: str,
    fresh: Callable[[], TrainState],
    seed: int,
    mesh: Mesh,
) -> dict | None:
    """Trains a task on `batches` to its end, from its newest good checkpoint if it has one.

    Evaluates on `held_out`, if not empty. The `section` of the config says `batch_size`, `size`,
    `eval_every` and perhaps `patience`. `directory` gets `checkpoints/`, `metrics.jsonl`,
    `panels/`, `tensorboard/` and `parameters.txt`; `name` is for the log. `fresh` makes the state
    of step 0; `seed` is of the steps' randomness.

    Returns the timing, None if asked to stop. A loss that is not finite is a FloatingPointError.
    """
    monitored = len(held_out) > 0
    mode, folder = task.metric_mode if monitored else None, directory / "checkpoints"
    with Checkpoints(folder, best_mode=mode, save_every=section.eval_every) as saver:
        saver.handle_sigterm()
        state = meshes.replicate(fresh(), mesh)
        overview = parameter_overview.get_parameter_overview(state.net.params, include_stats=False)
        write_text(directory / "parameters.txt", overview + "\n")
        state, start = saver.restore(state) or (state, 0)
        evaluate = None
        if monitored:
            evaluate = _make_evaluate(task, section, held_out, batches.fields, mesh)
        steps = dict(start_step=start, total_steps=task.total_steps, batch_size=section.batch_size)
        with RunLog(directory, name=name, **steps, active=jax.process_index() == 0) as log:
            root = jax.random.key(seed)
            job = _Training(task, section, batches, mesh, root, evaluate, saver, log)
            return log.timing() if _run(job, state) else None


def init_variables(task: Task, seed: int) -> dict[str, Any]:
    """Fresh weights per player, from a generator that compiles in seconds, not in half a minute."""
    return jax.jit(task.variables)(jax.random.key(seed, impl="rbg"))


def _run(job: _Training, state: TrainState) -> bool:
    """At the top of each turn `state` has had exactly `step` updates. True when finished."""
    task, section, saver, log = job.task, job.section, job.saver, job.log
    whole = meshes.replicated(job.mesh)
    steps = {
        name: jax.jit(fn, donate_argnums=0, out_shardings=(whole, whole))
        for name, fn in task.steps.items()
    }
    start, patience = int(state.step), section.get("patience", 0) * section.eval_every
    stream = _stream(job, start)
    pending: list[_Pending] = []
    for step in range(start, task.total_steps + 1):
        last, stop, stalled, metric = step == task.total_steps, saver.preempted, False, None
        due = last or step % section.eval_every == 0
        if due or stop:
            _fetch(log, pending)
            with log.paused():
                # A resumed run evaluates its first state again: the log dropped that row, and
                # whether the stage has stalled must be known here too.
                if job.evaluate is not None and step and due:
                    metric, state = _judge(job, state, step)
                    # No better one for `patience` evaluations (0: never).
                    stalled = 0 < patience <= step - int(state.best_step)
                saver.offer(step, state, metric=metric, force=last or stalled or stop)
        if last or stalled:
            return True
        if stop:
            return False
        phase = task.phase(step)
        if phase not in log.phases:  # its compilation must not count as time of the step before
            _fetch(log, pending)
        state, out = steps[phase](state, next(stream), jax.random.fold_in(job.root, step))
        _fetch(log, pending)
        pending.append((step, phase, out))
    return True


def _fetch(log: RunLog, pending: list[_Pending]) -> None:
    """Writes the metrics of an earlier step; one step late, so that the device never waits.

    They are those of the state that has had `step` updates, as those of an evaluation are: what
    a run that resumes at `step` will write again is what the log then drops.
    """
    while pending:
        step, phase, out = pending.pop()
        values = {k: float(v) for k, v in jax.device_get(out).items()}
        if bad := [k for k, v in values.items() if not np.isfinite(v)]:
            raise FloatingPointError(
                f"{log.name}: {', '.join(bad)} not finite at step {step} (phase {phase}); "
                "the last good checkpoint is kept: lower the learning rate or set clip_norm"
            )
        log.scalars(step, values)
        log.tick(step + 1, phase)


def _judge(job: _Training, state: TrainState, step: int) -> tuple[float, TrainState]:
    """Evaluates, writes scalars and pictures, and notes the best in the state."""
    assert job.evaluate is not None
    task, log = job.task, job.log
    rows = job.evaluate(state, jax.random.fold_in(job.root, 0))
    scalars = task.summarise(list(rows))
    log.scalars(step, scalars)
    if task.panel is not None and jax.process_index() == 0:
        few = {k: v[:PANEL_SLICES] for k, v in rows[0].items()}
        write_npz(log.metrics_path.parent / "panels" / f"{step:08d}.npz", few)
        grey = np.round(np.clip(task.panel(few), 0, 1) * 255).astype(np.uint8)
        log.image("panel", np.repeat(grey[..., None], 3, axis=-1), step)
    metric = float(np.float32(scalars[task.metric]))  # as the state holds the best one
    better = np.less if task.metric_mode == "min" else np.greater
    if better(metric, float(state.best_metric)):
        best = jax.device_put((np.float32(metric), np.int32(step)), state.best_metric.sharding)
        state = state.replace(best_metric=best[0], best_step=best[1])
    return metric, state


def _stream(job: _Training, start: int) -> Iterator[dict[str, jax.Array]]:
    """The batch of each step from `start` on, as global arrays."""
    index = job.task.batch_index(start)
    stream = job.batches.iterate(index)
    batch = meshes.shard_batch(next(stream), job.mesh)
    for step in range(start, job.task.total_steps):
        while index < job.task.batch_index(step):
            index, batch = index + 1, meshes.shard_batch(next(stream), job.mesh)
        yield batch
    stream.close()


def _make_evaluate(
    task: Task, section: ConfigDict, held_out: Source, fields: tuple[str, ...], mesh: Mesh
) -> Callable[[TrainState, jax.Array], Rows]:
    """A function that evaluates every held-out example once; rows of padding are dropped."""

    def with_valid(state: TrainState, batch: dict, key: jax.Array) -> dict[str, jax.Array]:
        return {**task.evaluate(state, batch, key), "valid": batch["valid"]}

    step = jax.jit(with_valid, out_shardings=meshes.replicated(mesh))

    def evaluate(state: TrainState, key: jax.Array) -> Rows:
        rows = []
        shape = dict(batch_size=section.batch_size, size=section.size)
        for batch in eval_batches(held_out, **shape, fields=fields):
            out = jax.device_get(step(state, meshes.shard_batch(batch, mesh), key))
            valid = out.pop("valid")
            rows.append({name: value[valid] for name, value in out.items()})
        return rows

    return evaluate

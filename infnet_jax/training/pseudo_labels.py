"""Learning from unlabelled slices before the final fine-tuning.

`pseudo` (Semi-Inf-Net, Fan et al. 2020): a teacher, trained on the labelled slices, maps a random
group of unlabelled ones; the group joins the pool, and the network trains on pool and labelled
slices before it maps the next group. A fresh network then pre-trains on the whole pool, and the
`segment` stage fine-tunes it on the labelled slices; `multi` takes all of it but the last layer.

`mean_teacher`: the teacher only; `segment` goes on from it. What `segment` holds out is held out.
"""

import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from infnet_jax.data import Source, Subset, WithPriors, sources, text
from infnet_jax.evaluation import predictor as networks
from infnet_jax.files import read_npz
from infnet_jax.plan import Stage
from infnet_jax.runs import write_json, write_npz
from infnet_jax.tasks.state import Task, TrainState
from infnet_jax.training import loop
from infnet_jax.training.stage import Run, make_batches, start

FIELDS = ("image", "mask", "prior")  # a soft label is a `prior`: the target of these networks


class _Shared(NamedTuple):
    """What all networks of the stage share; labelled slices have their masks as soft labels."""

    stage: Stage
    run: Run
    semi: ConfigDict  # the stage's own keys
    kept: Source
    held: Source

    def overlaid(self, part: str) -> Stage:
        """The stage with the settings of `semi.<part>` laid over those of `segment`."""
        section = self.stage.section.copy_and_resolve_references()
        section.update(self.semi[part])
        return self.stage._replace(section=section)


def run(stage: Stage, run: Run) -> dict | None:
    """Trains the networks of the stage, each by the settings of `config.segment` and its own.

    Writes `teacher/`, and for `pseudo` a training folder `round<k>/` a group beside its maps
    `round<k>.npz` (uint8 [S, S] by id), `pool/` and `pseudo.json`. The last weights, or their
    average, serve; of hundreds of rounds the newest alone keeps its checkpoints. Returns the
    timing, None if asked to stop.
    """
    began, steps, data = time.perf_counter(), 0, run.plan.data
    labelled = sources.open_training(data.train, data, masks=True)
    labelled = WithPriors(labelled, sources.lesion_maps(labelled))
    count = stage.section.validation
    kept, held = sources.split_validation(labelled, count=count, seed=run.plan.seed)
    assert stage.semi is not None
    shared = _Shared(stage, run, stage.semi, Subset(labelled, kept), Subset(labelled, held))
    for timing in _networks(shared):
        if timing is None:
            return None
        steps += timing["steps"]
    return {"name": stage.name, "seconds": time.perf_counter() - began, "steps": steps}


def partition(count: int, size: int, seed: int) -> list[np.ndarray]:
    """Deals 0 .. `count` - 1 at random to int64 arrays of `size`, the last one possibly smaller."""
    order = np.random.default_rng(seed).permutation(count)
    return [order[i : i + size] for i in range(0, count, size)]


def pseudo_label(prob: np.ndarray, stretch: bool) -> np.ndarray:
    """A probability map [S, S] as a soft label of eight bits, uint8 [S, S].

    `stretch` takes it to the full range first, as the public code does: healthy slices get lesions.
    """
    low, high = (float(prob.min()), float(prob.max())) if stretch else (0.0, 1.0)
    return np.round(255 * (prob - low) / max(high - low, 1e-12)).astype(np.uint8)


def _networks(shared: _Shared) -> Iterator[dict | None]:
    """Trains one network after another; yields their timings, None when asked to stop."""
    semi, plan, folder = shared.semi, shared.run.plan, shared.stage.folder
    yield _train_alone(shared, "teacher", shared.kept)
    if semi.kind != "pseudo":
        return
    unlabelled = sources.open_training(semi.split, plan.data, masks=False)
    groups = partition(len(unlabelled), semi.group_size, plan.seed)
    yield from _rounds(shared, unlabelled, groups)
    pool = WithPriors(unlabelled, read_npz(folder, "round*.npz"))
    # How much is marked in pseudo-labels and in true masks: a collapse shows here.
    marked, true = (
        float(np.mean([(source[i]["prior"] >= 128).mean() for i in range(len(source))]))
        for source in (pool, shared.kept)
    )
    counts = {"rounds": len(groups), "slices": len(pool)}
    write_json(folder / "pseudo.json", {**counts, "marked": marked, "marked_in_masks": true})
    yield _train_alone(shared, "pool", pool)


def _rounds(shared: _Shared, unlabelled: Source, groups: list[np.ndarray]) -> Iterator[dict | None]:
    """Maps a group, adds it to the pool, trains on pool and labelled slices; group by group."""
    semi, folder, plan = shared.semi, shared.stage.folder, shared.run.plan
    stage = shared.overlaid("round")
    section, predictor = stage.section, shared.run.predictor(shared.stage)
    # One task for all rounds: what it compiles is compiled once.
    task = shared.run.task(stage, soft=True)
    maps, earlier = read_npz(folder, "round*.npz"), "teacher"
    for k, group in enumerate(groups):
        name = f"round{k:04d}"
        if (done := folder / name / "done.json").exists():
            yield json.loads(done.read_text())
            earlier = name
            continue
        weights = networks.load_weights(folder / earlier / "checkpoints", "latest")
        if not (folder / f"{name}.npz").exists():
            source = Subset(unlabelled, group)
            found = {
                text(source[i]["id"]): pseudo_label(probs[..., 0], semi.stretch)
                for i, probs in enumerate(predictor.using([weights]).maps(source))
            }
            write_npz(folder / f"{name}.npz", found)
            maps |= found
        pool = WithPriors(Subset(unlabelled, np.concatenate(groups[: k + 1])), maps)
        epoch = -(-(len(shared.kept) + len(pool)) // section.batch_size) * len(section.scales)
        longer = task._replace(total_steps=semi.epochs * epoch)
        fresh = functools.partial(task.start, {"net": weights})
        yield _train(shared, name, stage, longer, [shared.kept, pool], fresh, plan.seed + k)
        if k and jax.process_index() == 0:
            shutil.rmtree(folder / earlier / "checkpoints", ignore_errors=True)
        earlier = name


def _train_alone(shared: _Shared, name: str, source: Source) -> dict | None:
    """Trains the teacher, or a fresh network on the pool; the held-out slices watch it."""
    stage, folder, run = shared.overlaid(name), shared.stage.folder / name, shared.run
    if (done := folder / "done.json").exists():
        return json.loads(done.read_text())
    task = run.task(stage, soft=name == "pool")
    fresh = functools.partial(start, task, stage, stage.networks[0], folder, run)
    return _train(shared, name, stage, task, [source], fresh, run.plan.seed, shared.held)


def _train(
    shared: _Shared,
    name: str,
    stage: Stage,
    task: Task,
    parts: list[Source],
    fresh: Callable[[], TrainState],
    seed: int,
    held: Source = (),
) -> dict | None:
    """One network to its end; a marker tells that it is done."""
    folder, run = shared.stage.folder / name, shared.run
    batches = make_batches(parts, stage.section, seed, FIELDS)
    place: dict[str, Any] = dict(directory=folder, name=run.label(folder), mesh=run.mesh)
    timing = loop.fit(task, stage.section, batches, held, seed=seed, fresh=fresh, **place)
    if timing is not None:
        write_json(folder / "done.json", timing)
    return timing

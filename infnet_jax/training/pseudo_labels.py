"""Learning from unlabelled slices before the final fine-tuning.

`pseudo` (Semi-Inf-Net, Fan et al. 2020): a teacher, trained on the labelled slices, maps a random
group of unlabelled ones; the group joins the pool, and the network trains on pool and labelled
slices before it maps the next group. A fresh network then pre-trains on the whole pool, and the
`segment` stage fine-tunes it on the labelled slices; `multi` takes all of it but the last layer.

`mean_teacher`: the teacher only; `segment` goes on from it with unlabelled slices in each batch.

The slices that `segment` holds out are held out here too, and the test split is never opened.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from infnet_jax import tasks
from infnet_jax.data import splits
from infnet_jax.data.sources import Source, WithPriors, lesion_maps, select, text
from infnet_jax.evaluation import networks
from infnet_jax.evaluation.predictor import Predictor
from infnet_jax.files import read_npz
from infnet_jax.plan import Stage
from infnet_jax.runs import write_json, write_npz
from infnet_jax.tasks.state import Task, TrainState
from infnet_jax.training import loop
from infnet_jax.training.data import make_batches
from infnet_jax.training.stage import Run, label, start

FIELDS = ("image", "mask", "prior")  # a soft label is a `prior`: the target of these networks


class _Shared(NamedTuple):
    """What all networks of the stage share; labelled slices have their masks as soft labels."""

    stage: Stage
    run: Run
    kept: Source
    held: Source

    @property
    def semi(self) -> ConfigDict:
        """The stage's own keys."""
        assert self.stage.semi is not None
        return self.stage.semi


def run(stage: Stage, run: Run) -> dict | None:
    """Trains the networks of the stage, each by the settings of `config.segment` and its own.

    Writes `teacher/`, and for `pseudo` a training folder `round<k>/` a group beside its maps
    `round<k>.npz` (uint8 [S, S] by id), `pool/` and `pseudo.json`. The last weights of each network
    serve, averaged if it keeps an average; the newest round alone keeps its checkpoints, since
    there may be hundreds.

    Returns:
      The timing, or None if it was asked to stop.
    """
    began, steps = time.perf_counter(), 0
    data = run.plan.data
    labelled = splits.open_training(data.train, data, masks=True)
    labelled = WithPriors(labelled, lesion_maps(labelled))
    count = stage.section.validation
    kept, held = splits.split_validation(labelled, count=count, seed=run.plan.seed)
    shared = _Shared(stage, run, select(labelled, kept), select(labelled, held))
    for timing in _networks(shared):
        if timing is None:
            return None
        steps += timing["steps"]
    return {"name": stage.name, "seconds": time.perf_counter() - began, "steps": steps}


def partition(count: int, size: int, seed: int) -> list[np.ndarray]:
    """Deals `count` slices at random to groups of `size`, the last one possibly smaller.

    Returns:
      Indices 0 .. count - 1, int64, an array a group.
    """
    order = np.random.default_rng(seed).permutation(count)
    return [order[i : i + size] for i in range(0, count, size)]


def pseudo_label(prob: np.ndarray, stretch: bool) -> np.ndarray:
    """A probability map [S, S] as a soft label of eight bits, uint8 [S, S].

    Args:
      stretch: to the full range first, as the public code does; a slice without lesion then gets
        one all the same.
    """
    low, high = (float(prob.min()), float(prob.max())) if stretch else (0.0, 1.0)
    return np.round(255 * (prob - low) / max(high - low, 1e-12)).astype(np.uint8)


def _networks(shared: _Shared) -> Iterator[dict | None]:
    """Trains one network after another; yields their timings, None when asked to stop."""
    yield _train_alone(shared, "teacher", [shared.kept])
    semi, plan = shared.semi, shared.run.plan
    if semi.kind != "pseudo":
        return
    unlabelled = splits.open_training(semi.split, plan.data, masks=False)
    groups = partition(len(unlabelled), semi.group_size, plan.seed)
    yield from _rounds(shared, unlabelled, groups)
    pool = WithPriors(unlabelled, read_npz(shared.stage.folder, "round*.npz"))
    _write_report(shared, pool, len(groups))
    yield _train_alone(shared, "pool", [pool])


def _rounds(shared: _Shared, unlabelled: Source, groups: list[np.ndarray]) -> Iterator[dict | None]:
    """Maps a group, adds it to the pool, trains on pool and labelled slices; group by group."""
    semi, folder, plan = shared.semi, shared.stage.folder, shared.run.plan
    stage = _overlaid(shared, "round")
    section = stage.section
    # One task for all rounds: what it compiles is compiled once.
    task = tasks.make(stage, shared.run.norm(stage), 1, soft=True)
    predictor = Predictor(
        shared.stage, shared.run.statistics, views=plan.views, batch_size=plan.evaluate.batch_size
    )
    maps, earlier = read_npz(folder, "round*.npz"), "teacher"
    for k, group in enumerate(groups):
        name = f"round{k:04d}"
        if (done := folder / name / "done.json").exists():
            yield json.loads(done.read_text())
            earlier = name
            continue
        weights = networks.load_weights(folder / earlier / "checkpoints", "latest")
        if not (folder / f"{name}.npz").exists():
            source = select(unlabelled, group)
            found = {
                text(source[i]["id"]): pseudo_label(probs[..., 0], semi.stretch)
                for i, probs in enumerate(predictor.using([weights]).maps(source))
            }
            write_npz(folder / f"{name}.npz", found)
            maps |= found
        pool = WithPriors(select(unlabelled, np.concatenate(groups[: k + 1])), maps)
        epoch = -(-(len(shared.kept) + len(pool)) // section.batch_size) * len(section.scales)

        def fresh(weights: networks.Weights = weights) -> TrainState:
            return task.start({"net": weights})

        longer = task._replace(total_steps=semi.epochs * epoch)
        sources, seed = [shared.kept, pool], plan.seed + k
        yield _train(shared, name, section, sources, seed=seed, task=longer, fresh=fresh)
        if k and jax.process_index() == 0:
            shutil.rmtree(folder / earlier / "checkpoints", ignore_errors=True)
        earlier = name


def _train_alone(shared: _Shared, name: str, sources: list[Source]) -> dict | None:
    """Trains the teacher, or a fresh network on the pool; the held-out slices watch it."""
    folder, run = shared.stage.folder / name, shared.run
    if (done := folder / "done.json").exists():
        return json.loads(done.read_text())
    stage = _overlaid(shared, name)
    task = tasks.make(stage, run.norm(stage), 1, soft=name == "pool")

    def fresh() -> TrainState:
        return start(task, stage, stage.networks[0], folder, run.plan)

    return _train(
        shared,
        name,
        stage.section,
        sources,
        seed=run.plan.seed,
        task=task,
        fresh=fresh,
        held=shared.held,
    )


def _train(
    shared: _Shared,
    name: str,
    section: ConfigDict,
    sources: list[Source],
    *,
    task: Task,
    fresh: Callable[[], TrainState],
    seed: int,
    held: Source = (),
) -> dict | None:
    """One network to its end; a marker tells that it is done."""
    folder = shared.stage.folder / name
    timing = loop.fit(
        task,
        section,
        make_batches(sources, section, seed, FIELDS),
        held,
        directory=folder,
        name=label(folder, shared.run.plan),
        mesh=shared.run.mesh,
        seed=seed,
        fresh=fresh,
    )
    if timing is not None:
        write_json(folder / "done.json", timing)
    return timing


def _overlaid(shared: _Shared, part: str) -> Stage:
    """The stage with the settings of `semi.<part>` laid over those of `segment`."""
    section = shared.stage.section.copy_and_resolve_references()
    section.update(shared.semi[part])
    return shared.stage._replace(section=section)


def _write_report(shared: _Shared, pool: Source, rounds: int) -> None:
    """How much is marked in pseudo-labels and in true masks: a collapse shows here."""
    shares = [
        float(np.mean([(source[i]["prior"] >= 128).mean() for i in range(len(source))]))
        for source in (pool, shared.kept)
    ]
    write_json(
        shared.stage.folder / "pseudo.json",
        {"rounds": rounds, "slices": len(pool), "marked": shares[0], "marked_in_masks": shares[1]},
    )

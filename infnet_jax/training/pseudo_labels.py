"""The `semi` stage: what unlabelled slices teach before the last fine-tuning.

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
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from infnet_jax import tasks
from infnet_jax.data import splits
from infnet_jax.data.batches import Batches, Paired
from infnet_jax.data.sources import Source, WithPriors, lesion_maps, select, text
from infnet_jax.evaluation import networks
from infnet_jax.files import read_npz
from infnet_jax.runs.workdir import write_json, write_npz
from infnet_jax.tasks.state import Task, TrainState
from infnet_jax.training import loop

KINDS = ("pseudo", "mean_teacher")


class _Stage(NamedTuple):
    """What all networks of the stage share; labelled slices have their masks as `prior` too."""

    config: ConfigDict
    folder: Path
    mesh: Any
    statistics: tuple[float, float]
    kept: Source
    held: Source
    start: Callable[[Task, Path], TrainState]


def run(
    config: ConfigDict,
    *,
    workdir: Path,
    dataset: Path,
    mesh: Any,
    statistics: tuple[float, float],
    start: Callable[[Task, Path], TrainState],
) -> dict | None:
    """Trains the networks of the stage, each by the settings of `config.segment` and its own.

    Writes `semi/teacher/`, and for `pseudo` a training folder `semi/round<k>/` a group beside its
    maps `semi/round<k>.npz` (uint8 [S, S] by id), `semi/pool/` and `semi/pseudo.json`. The last
    weights of each network serve, averaged if it keeps an average; the newest round alone keeps
    its checkpoints, since there may be hundreds.

    Args:
      start: (task, folder of the network) -> state of step 0, for teacher and pool.

    Returns:
      The timing, or None if it was asked to stop.
    """
    began, steps = time.perf_counter(), 0
    labelled = splits.open_training(
        config.data.train, splits.of_config(config, dataset), masks=True
    )
    labelled = WithPriors(labelled, lesion_maps(labelled))
    kept, held = splits.split_validation(
        labelled, count=config.segment.validation, seed=config.seed
    )
    stage = _Stage(
        config,
        workdir / "semi",
        mesh,
        statistics,
        select(labelled, kept),
        select(labelled, held),
        start,
    )
    for timing in _networks(stage, dataset):
        if timing is None:
            return None
        steps += timing["steps"]
    return {"name": "semi", "seconds": time.perf_counter() - began, "steps": steps}


def result_folder(config: ConfigDict, workdir: Path) -> Path:
    """The checkpoints from which `segment` starts."""
    part = "pool" if config.semi.kind == "pseudo" else "teacher"
    return workdir / "semi" / part / "checkpoints"


def partition(count: int, size: int, seed: int) -> list[np.ndarray]:
    """Deals `count` slices at random to groups of `size`, the last one possibly smaller."""
    order = np.random.default_rng(seed).permutation(count)
    return [order[i : i + size] for i in range(0, count, size)]


def pseudo_label(prob: np.ndarray, stretch: bool) -> np.ndarray:
    """A probability map [S, S] as a soft label of eight bits, uint8.

    Args:
      stretch: to the full range first, as the public code does; a slice without lesion then gets
        one all the same.
    """
    low, high = (float(prob.min()), float(prob.max())) if stretch else (0.0, 1.0)
    return np.round(255 * (prob - low) / max(high - low, 1e-12)).astype(np.uint8)


def pair(batches: Batches, config: ConfigDict, dataset: Path) -> Paired:
    """The batches of `segment` with the slices of `semi.split` beside them."""
    unlabelled = [
        splits.open_training(config.semi.split, splits.of_config(config, dataset), masks=False)
    ]
    return Paired(batches, _batches(unlabelled, config.segment, config.seed, ("image",)))


def _networks(stage: _Stage, dataset: Path) -> Iterator[dict | None]:
    """Trains one network after another; yields their timings, None when asked to stop."""
    semi = stage.config.semi
    yield _train_alone(stage, "teacher", [stage.kept])
    if semi.kind != "pseudo":
        return
    unlabelled = splits.open_training(
        semi.split, splits.of_config(stage.config, dataset), masks=False
    )
    groups = partition(len(unlabelled), semi.group_size, stage.config.seed)
    yield from _rounds(stage, unlabelled, groups)
    pool = WithPriors(unlabelled, read_npz(stage.folder, "round*.npz"))
    _write_report(stage, pool, len(groups))
    yield _train_alone(stage, "pool", [pool])


def _rounds(stage: _Stage, unlabelled: Source, groups: list[np.ndarray]) -> Iterator[dict | None]:
    """Maps a group, adds it to the pool, trains on pool and labelled slices; group by group."""
    config, semi = stage.config, stage.config.semi
    section = _section(config, "round")
    task = tasks.make_segment(config, section, stage.statistics, soft=True)
    sweep = networks.make_sweep("segment", config, stage.statistics)
    maps, weights_of = read_npz(stage.folder, "round*.npz"), "teacher"
    for k, group in enumerate(groups):
        name = f"round{k:04d}"
        if (done := stage.folder / name / "done.json").exists():
            yield json.loads(done.read_text())
        else:
            weights = networks.load_weights(stage.folder / weights_of / "checkpoints", "latest")
            source = select(unlabelled, group)
            if not (stage.folder / f"{name}.npz").exists():
                found = {
                    text(source[i]["id"]): pseudo_label(prob, semi.stretch)
                    for i, prob in enumerate(sweep(weights, source))
                }
                write_npz(stage.folder / f"{name}.npz", found)
                maps |= found
            pool = WithPriors(select(unlabelled, np.concatenate(groups[: k + 1])), maps)
            epoch = -(-(len(stage.kept) + len(pool)) // section.batch_size) * len(section.scales)
            # One task for all rounds: what it compiles is compiled once.
            yield _train(
                stage,
                name,
                section,
                [stage.kept, pool],
                seed=config.seed + k,
                task=task._replace(total_steps=semi.epochs * epoch),
                fresh=lambda w=weights: task.start({"net": w}),
            )
            if k and jax.process_index() == 0:
                shutil.rmtree(stage.folder / weights_of / "checkpoints", ignore_errors=True)
        weights_of = name


def _train_alone(stage: _Stage, name: str, sources: list[Source]) -> dict | None:
    """Trains the teacher, or a fresh network on the pool; the held-out slices watch it."""
    if (done := stage.folder / name / "done.json").exists():
        return json.loads(done.read_text())
    section = _section(stage.config, name)
    task = tasks.make_segment(stage.config, section, stage.statistics, soft=name == "pool")
    return _train(
        stage,
        name,
        section,
        sources,
        seed=stage.config.seed,
        task=task,
        held=stage.held,
        fresh=lambda: stage.start(task, stage.folder / name),
    )


def _train(
    stage: _Stage,
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
    batches = _batches(sources, section, seed, ("image", "mask", "prior"))
    where = stage.folder / name
    timing = loop.fit(
        task, section, batches, held, directory=where, mesh=stage.mesh, seed=seed, fresh=fresh
    )
    if timing is not None:
        write_json(where / "done.json", timing)
    return timing


def _section(config: ConfigDict, part: str) -> ConfigDict:
    """The settings of `segment` with those of `semi.<part>` in their place."""
    section = config.segment.copy_and_resolve_references()
    section.update(config.semi[part])
    return section


def _batches(
    sources: list[Source], section: ConfigDict, seed: int, fields: tuple[str, ...]
) -> Batches:
    return Batches(
        sources, batch_size=section.batch_size, size=section.size, seed=seed, fields=fields
    )


def _write_report(stage: _Stage, pool: Source, rounds: int) -> None:
    """How much is marked in pseudo-labels and in the true masks: a collapse shows here."""
    shares = [
        float(np.mean([(source[i]["prior"] >= 128).mean() for i in range(len(source))]))
        for source in (pool, stage.kept)
    ]
    write_json(
        stage.folder / "pseudo.json",
        {"rounds": rounds, "slices": len(pool), "marked": shares[0], "marked_in_masks": shares[1]},
    )

"""The walk through the stages of a run."""

import collections
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from infnet_jax import tasks
from infnet_jax.data import sources, splits
from infnet_jax.data.mix import Mix
from infnet_jax.data.sources import select
from infnet_jax.evaluation import networks, summary as present, test_split as predict, thresholds
from infnet_jax.models.infnet import is_output_layer
from infnet_jax.runs import mesh as mesh_lib
from infnet_jax.runs.transfer import transfer
from infnet_jax.runs.workdir import claim, write_json
from infnet_jax.tasks.state import Task, TrainState
from infnet_jax.training import (
    checks,
    data as stage_data,
    loop,
    prior as crossfit,
    pseudo_labels as semi,
)
from infnet_jax.weights import convert

STAGES = ("pretrain", "prior", "semi", "segment", "pretrain_multi", "multi", "evaluate")
# Stage -> where its first weights may come from; the first of these that is run counts.
ORIGINS = {
    "segment": ("semi", "pretrain"),
    "prior": ("pretrain",),
    "semi": ("pretrain",),
    "multi": ("pretrain_multi", "semi"),
}


def run(
    config: ConfigDict,
    *,
    workdir: Path,
    dataset: Path,
    name: str,
    command: str,
    mix: Mix | None = None,
) -> Path:
    """Runs the stages of a config; finished ones are skipped, an interrupted one resumes.

    Args:
      config: from a file in `configs/`.
      workdir: everything is written below it; made if missing.
      dataset: folder of a prepared dataset.
      name, command: for the summary.
      mix: what `pretrain` trains on; None: the dataset's own `pretrain.splits`.

    Returns:
      The path of `summary.md`.

    Raises:
      ValueError: a workdir of another config, a batch the devices cannot share, bad config values.
      FloatingPointError: a loss that is not finite; the last good checkpoint stays.
    """
    workdir = Path(workdir).absolute()
    mesh = mesh_lib.make_mesh()
    for stage in config.stages:
        if stage not in STAGES or stage not in config:
            raise ValueError(f"stages: {stage!r} is none of this config's stages")
        section = tasks.section_of(stage)
        mesh_lib.check_batch(config[section].batch_size, mesh, f"{section}.batch_size")
    checks.check(config)
    if "semi" in config.stages:
        mesh_lib.check_batch(config.semi.round.batch_size, mesh, "semi.round.batch_size")
    if config.weights:
        convert.load_imported(config.weights)  # unfit ones must not leave a workdir behind
    if "evaluate" in config.stages:
        splits.open_test(
            splits.of_config(config, dataset)
        )  # a wrong split must not come out after the training
    stage_data.check_held_out(config, dataset)  # nor more folds than patients
    claim(workdir, config)
    images = splits.open_whole(config.data.train, splits.of_config(config, dataset))
    statistics = sources.statistics(
        images, splits.visible(images, splits.of_config(config, dataset))
    )
    write_json(workdir / "statistics.json", dict(zip(("mean", "sd"), statistics, strict=True)))
    timings = []
    for stage in config.stages:
        done = workdir / stage / "done.json"
        if done.exists():
            logging.info("%s: finished before, skipped", stage)
            timings.append(json.loads(done.read_text()))
            continue
        timing = _run_stage(stage, config, workdir, dataset, mesh, statistics, mix)
        if timing is None:
            raise SystemExit(f"{stage}: stopped on request; the same command resumes it")
        write_json(done, timing)
        timings.append(timing)
    return present.write(
        workdir, config, timings=timings, name=name, command=command, dataset=dataset
    )


def _run_stage(
    stage: str,
    config: ConfigDict,
    workdir: Path,
    dataset: Path,
    mesh: Any,
    statistics: tuple[float, float],
    mix: Mix | None = None,
) -> dict | None:
    """Runs one stage; returns its timing, None if it was asked to stop."""
    if stage == "semi":
        return semi.run(
            config,
            workdir=workdir,
            dataset=dataset,
            mesh=mesh,
            statistics=statistics,
            start=lambda task, folder: _start(task, stage, config, workdir, folder, config.seed),
        )
    if stage == "prior":
        return _run_prior(config, workdir, dataset, mesh, statistics)
    if stage != "evaluate":
        return train_stage(stage, config, workdir, dataset, mesh, statistics, mix)
    began = time.perf_counter()
    test = stage_data.open_test(config, workdir, dataset)
    train = splits.open_training(config.data.train, splits.of_config(config, dataset), masks=True)
    unseen = cuts = alone = None
    if config.evaluate.choose_threshold or config[tasks.last_trained(config)].folds:
        unseen = _unseen(config, dataset, workdir, statistics)
    if config.evaluate.choose_threshold:
        cuts = thresholds.choose(config, workdir=workdir, unseen=unseen)
        if len(cuts) > 1:
            alone = thresholds.choose_alone(config, unseen)
    predict.evaluate(
        config,
        workdir=workdir,
        test=test,
        train=train,
        statistics=statistics,
        unseen=unseen,
        thresholds=cuts,
        alone=alone,
    )
    return {"name": stage, "seconds": time.perf_counter() - began}


def _run_prior(
    config: ConfigDict, workdir: Path, dataset: Path, mesh: Any, statistics: tuple[float, float]
) -> dict | None:
    """Trains the folds of `prior`, then has each map the slices it has not seen."""
    if config.prior.kind == "truth":
        return {"name": "prior", "seconds": 0.0, "steps": 0}
    timing = train_stage("prior", config, workdir, dataset, mesh, statistics)
    if timing is None:
        return None
    began = time.perf_counter()
    source = stage_data.open_sources("prior", config, dataset, workdir)[-1]
    crossfit.write(
        config,
        workdir=workdir,
        dataset=dataset,
        statistics=statistics,
        held_out=stage_data.held_out("prior", config, source),
    )
    return {**timing, "seconds": timing["seconds"] + time.perf_counter() - began}


def _unseen(
    config: ConfigDict, dataset: Path, workdir: Path, statistics: tuple[float, float]
) -> thresholds.Unseen:
    """Training slices that were held out, or of other folds, and the mean of their maps."""
    stage = tasks.last_trained(config)
    found: dict[int, list[np.ndarray]] = collections.defaultdict(list)
    source = stage_data.open_sources(stage, config, dataset, workdir)[-1]
    _, ensemble = networks.load_evaluated(config, workdir)
    run = networks.make_sweep(stage, config, statistics)
    for weights, part in zip(ensemble, stage_data.held_out(stage, config, source), strict=True):
        for i, probs in zip(part.tolist(), run(weights, select(source, part)), strict=True):
            found[i].append(probs)
    order = sorted(found)
    maps = [np.mean(found[i], axis=0) for i in order]
    return thresholds.Unseen(select(source, np.array(order)), maps)


def train_stage(
    stage: str,
    config: ConfigDict,
    workdir: Path,
    dataset: Path,
    mesh: Any,
    statistics: tuple[float, float],
    mix: Mix | None = None,
) -> dict | None:
    """Trains a stage's networks to their end; returns the timing, None if asked to stop."""
    section, ensemble, timings = config[tasks.section_of(stage)], tasks.members(config, stage), []
    streams = stage_data.open_data(stage, config, dataset, workdir, mix)
    for number, (member, (batches, held_out)) in enumerate(zip(ensemble, streams, strict=True), 1):
        directory = workdir / stage / member.folder
        done = directory / "done.json"
        if member.folder and done.exists():
            timings.append(json.loads(done.read_text()))
            continue
        if member.folder:
            print(f"{stage}: network {number} of {len(ensemble)}", file=sys.stderr)
        epoch = -(-batches.example_count // section.batch_size)
        task = tasks.make(stage, config, statistics, epoch)
        timing = loop.fit(
            task,
            section,
            batches,
            held_out,
            directory=directory,
            mesh=mesh,
            seed=member.seed,
            fresh=functools.partial(_start, task, stage, config, workdir, directory, member.seed),
        )
        if timing is None:
            return None
        timings.append(timing)
        if member.folder:
            write_json(done, timing)
    if len(ensemble) == 1:
        return timings[0]
    return {"name": stage, **{key: sum(t[key] for t in timings) for key in ("seconds", "steps")}}


def _start(
    task: Task, stage: str, config: ConfigDict, workdir: Path, directory: Path, seed: int
) -> TrainState:
    """Fresh weights, or what an earlier stage or an imported file gives, listed in a report."""
    trees = loop.init_variables(task, seed)
    origin = next((o for o in ORIGINS.get(stage, ()) if o in config.stages), None)
    if stage == "multi" and tasks.starts_from_prior(config):
        origin = "prior"
    if origin:
        mode = config[tasks.section_of(stage)].transfer
        folder = workdir / origin / (directory.name if origin == "prior" else "") / "checkpoints"
        folder = semi.result_folder(config, workdir) if origin == "semi" else folder
        learned = networks.load_weights(folder, "latest")
    elif config.weights and (not stage.endswith("multi") or config.multi.net.kind == "unet_lite0"):
        mode, origin = "matching", config.weights
        learned, _ = convert.load_imported(config.weights)
    else:
        return task.start(trees)
    try:
        trees["net"], report = transfer(
            trees["net"],
            learned,
            mode=mode,
            is_output_layer=lambda name: is_output_layer(tuple(name.split("/"))),
        )
        if report.mismatched and origin == config.weights:
            raise ValueError(f"shapes differ at {report.mismatched[0]}")
    except ValueError as error:
        raise ValueError(f"weights from {origin}: {error}") from error
    listing = {"from": origin, "mode": mode, **report._asdict()}
    write_json(directory / "transfer.json", listing)
    n = len(report.loaded)
    where = f"from {origin} ({mode}), see transfer.json"
    print(f"{directory.name}: {n} arrays {where}", file=sys.stderr)
    return task.start(trees)

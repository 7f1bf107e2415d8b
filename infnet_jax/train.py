"""The walk through the stages of a run."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from infnet_jax import (
    convert,
    crossfit,
    data,
    loop,
    mesh as mesh_lib,
    predict,
    present,
    semi,
    splits,
    tasks,
)
from infnet_jax.mix import Mix
from infnet_jax.models.infnet import is_output_layer
from infnet_jax.state import Task, TrainState
from infnet_jax.transfer import transfer
from infnet_jax.workdir import claim, write_json

STAGES = ("pretrain", "prior", "semi", "segment", "pretrain_multi", "multi", "evaluate")
# Stages of several networks, all by the settings of `segment`.
WALKS = {"prior": crossfit.run, "semi": semi.run}
# Stage -> where its first weights may come from; the first of these that is run counts.
ORIGINS = {
    "segment": ("semi", "pretrain"), "prior": ("pretrain",), "semi": ("pretrain",),
    "multi": ("pretrain_multi",),
}  # fmt: skip


def run(
    config: ConfigDict, *, workdir: Path, dataset: Path, name: str, command: str,
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
        section = "segment" if stage in WALKS else stage
        mesh_lib.check_batch(config[section].batch_size, mesh, f"{section}.batch_size")
    if "semi" in config.stages:
        mesh_lib.check_batch(config.semi.round.batch_size, mesh, "semi.round.batch_size")
    if config.weights:
        convert.load_imported(config.weights)  # unfit ones must not leave a workdir behind
    if "evaluate" in config.stages:
        splits.open_test(dataset, config)  # a wrong split must not come out after the training
    claim(workdir, config)
    images = splits.open_whole(dataset, config.data.train, config)
    statistics = data.statistics(images, splits.visible(images, config))
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
    stage: str, config: ConfigDict, workdir: Path, dataset: Path, mesh: Any,
    statistics: tuple[float, float], mix: Mix | None = None,
) -> dict | None:
    """Runs one stage; returns its timing, None if it was asked to stop."""
    if stage in WALKS:
        return WALKS[stage](
            config, workdir=workdir, dataset=dataset, mesh=mesh, statistics=statistics,
            start=lambda task, folder: _start(task, stage, config, workdir, folder),
        )
    if stage != "evaluate":
        return train_stage(stage, config, workdir, dataset, mesh, statistics, mix)
    began = time.perf_counter()
    test = open_test(config, workdir, dataset)
    train = splits.open_training(dataset, config.data.train, config, masks=True)
    if config.evaluate.choose_threshold:
        unseen, maps = _unseen(config, dataset, workdir, statistics)
        found = predict.choose_threshold(config, workdir=workdir, unseen=unseen, maps=maps)
        config = config.copy_and_resolve_references()
        config.evaluate.threshold = found
    predict.evaluate(config, workdir=workdir, test=test, train=train, statistics=statistics)
    return {"name": stage, "seconds": time.perf_counter() - began}


def _unseen(
    config: ConfigDict, dataset: Path, workdir: Path, statistics: tuple[float, float]
) -> tuple[data.Source, list[np.ndarray]]:
    """Training slices that no weight has seen, held out or of other folds, and their maps."""
    if tasks.is_ensemble(config):
        train = splits.open_training(dataset, config.data.train, config, masks=True)
        train = crossfit.with_priors(train, config.data.train, config, workdir)
        return train, [e["prior"][..., 0] / np.float32(255) for e in data.examples(train)]
    stage = tasks.last_trained(config)
    _, held_out = _open_data(stage, config, dataset, workdir)
    _, (weights,) = predict.load_evaluated(config, workdir)
    return held_out, predict.sweep(stage, config, weights, held_out, statistics)


def open_test(config: ConfigDict, workdir: Path, dataset: Path) -> data.Source:
    """The test slices, with the priors of a multi-class network where the run trains one."""
    test = splits.open_test(dataset, config)
    if tasks.last_trained(config) != "multi" or not config.multi.with_prior:
        return test
    return crossfit.with_priors(test, config.data.test, config, workdir)


def train_stage(
    stage: str, config: ConfigDict, workdir: Path, dataset: Path, mesh: Any,
    statistics: tuple[float, float], mix: Mix | None = None,
) -> dict | None:
    """Trains one network to its end; returns its timing, None if asked to stop."""
    section = config[stage]
    batches, held_out = _open_data(stage, config, dataset, workdir, mix)
    task = tasks.make(stage, config, statistics, -(-batches.example_count // section.batch_size))
    return loop.fit(
        task, section, batches, held_out, directory=workdir / stage, mesh=mesh, seed=config.seed,
        fresh=lambda: _start(task, stage, config, workdir, workdir / stage),
    )


def _open_data(
    stage: str, config: ConfigDict, dataset: Path, workdir: Path, mix: Mix | None = None
) -> tuple[data.Batches, data.Source]:
    """The training stream of a stage and its held-out examples (whole groups)."""
    section, fields, weights = config[stage], ("image", "mask"), None
    if stage == "pretrain" and mix is not None:
        sources = mesh_lib.first_process_first(lambda: _open_mix(mix, workdir / stage))
        weights = mix.weights
    else:
        masks = stage in ("segment", "multi")
        sources = [splits.open_training(dataset, s, config, masks=masks) for s in section.splits]
    if stage in ("multi", "pretrain_multi") and config.multi.with_prior:
        fields = ("image", "mask", "prior")
        sources = [
            crossfit.with_priors(source, split, config, workdir)
            for source, split in zip(sources, section.splits, strict=True)
        ]
    # The last split gives the held-out examples: for pre-training that is the largest one.
    train, held_out = data.split_validation(
        sources[-1], count=section.validation, seed=config.seed
    )
    kept = [*sources[:-1], data.select(sources[-1], train)]
    batches = data.Batches(
        kept, batch_size=section.batch_size, size=section.size, seed=config.seed, fields=fields,
        weights=weights, process_index=jax.process_index(), process_count=jax.process_count(),
    )
    if stage == "segment" and tasks.has_mean_teacher(config):
        batches = semi.pair(batches, config, dataset)
    return batches, data.select(sources[-1], held_out)


def _open_mix(mix: Mix, directory: Path) -> list[data.Source]:
    """The parts of a mix without slices of the test split, as `mix.json` lists them.

    Finding those takes long for a large part, so a run that resumes reads the list.

    Raises:
      ValueError: a dataset has no such split, or nothing of a part is left.
    """
    sources, listing = [data.open_split(part.folder, part.split) for part in mix.parts], []
    path = directory / "mix.json"
    kept = json.loads(path.read_text()) if path.exists() else None
    for i, (part, source) in enumerate(zip(mix.parts, sources, strict=True)):
        dropped = set(kept[i]["dropped"] if kept else mix.copies(part))
        ids = [data.text(source[n]["id"]) for n in range(len(source))] if dropped else []
        rest = [n for n, found in enumerate(ids) if found not in dropped]
        if dropped and not rest:
            raise ValueError(f"data.pretrain: all slices of {part} are in the test split too")
        listing.append({
            "dataset": str(part.folder), "split": part.split, "weight": part.weight,
            "examples": len(source), "dropped": sorted(dropped),
        })
        print(f"pretrain: {part}: {len(dropped)} of {len(source)} slices dropped, near-copies of "
              "the test split", file=sys.stderr)
        sources[i] = data.select(source, rest) if dropped else source
    write_json(path, listing)
    return sources


def _start(
    task: Task, stage: str, config: ConfigDict, workdir: Path, directory: Path
) -> TrainState:
    """Fresh weights, or what an earlier stage or an imported file gives, listed in a report."""
    trees = loop.init_variables(task, config.seed)
    origin = next((o for o in ORIGINS.get(stage, ()) if o in config.stages), None)
    if origin:
        mode = config["segment" if stage in WALKS else stage].transfer
        folder = workdir / origin / "checkpoints"
        folder = semi.result_folder(config, workdir) if origin == "semi" else folder
        learned = predict.load_weights(folder, "latest")
    elif config.weights and (
        stage in ("pretrain", "segment", *WALKS) or config.multi.net.kind == "unet_lite0"
    ):
        mode, origin = "matching", config.weights
        learned, _ = convert.load_imported(config.weights)
    else:
        return task.start(trees)
    try:
        trees["net"], report = transfer(
            trees["net"], learned, mode=mode,
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

"""Runs the stages of a config: `run`."""

import collections
import json
import time
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from infnet_jax.data import Subset, sources
from infnet_jax.data.sources import Mix
from infnet_jax.evaluation import predictor as networks, summary, test_split
from infnet_jax.evaluation.out_of_fold import OutOfFold
from infnet_jax.evaluation.predictor import Predictor
from infnet_jax.plan import Plan, Stage
from infnet_jax.plan.resolve import resolve
from infnet_jax.runs import claim, mesh as meshes, write_json
from infnet_jax.training import prior, pseudo_labels, stage as stages
from infnet_jax.training.stage import Run
from infnet_jax.weights import load_imported


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
      workdir: everything is written below it; made if missing.
      dataset: folder of a prepared dataset.
      name, command: for the summary, whose path is returned.
      mix: what pre-training uses; None: the splits of its section.

    Raises:
      ValueError: a workdir of another config, a batch the devices cannot share, bad config values.
      FloatingPointError: a loss that is not finite; the last good checkpoint stays.
      SystemExit: asked to stop; the same command resumes.
    """
    plan, mesh = resolve(config, Path(workdir).absolute(), dataset), meshes.make_mesh()
    _check(plan, mesh)
    claim(plan.workdir, config)
    images = sources.open_whole(plan.data.train, plan.data)
    mean, sd = sources.statistics(images, sources.visible(images, plan.data))
    write_json(plan.workdir / "statistics.json", {"mean": mean, "sd": sd})
    shared, timings = Run(plan, mesh, (mean, sd), mix), []
    for stage in plan.stages:
        done = stage.folder / "done.json"
        if done.exists():
            logging.info("%s: finished before, skipped", stage.name)
            timings.append(json.loads(done.read_text()))
            continue
        timing = STEPS[stage.runs](stage, shared)
        if timing is None:
            raise SystemExit(f"{stage.name}: stopped on request; the same command resumes it")
        write_json(done, timing)
        timings.append(timing)
    return summary.write(plan, timings=timings, name=name, command=command)


def _check(plan: Plan, mesh: meshes.Mesh) -> None:
    """Refuses what would only fail after a training, by a ValueError that names the key."""
    for stage in plan.stages:
        meshes.check_batch(stage.section.batch_size, mesh, f"{stage.key}.batch_size")
        if stage.semi is not None:
            meshes.check_batch(stage.semi.round.batch_size, mesh, "semi.round.batch_size")
        if stage.runs == "evaluate":
            sources.open_test(plan.data)  # a wrong split must not come out after the training
    if plan.weights:
        load_imported(plan.weights)  # unfit ones must not leave a workdir behind
    stages.check_held_out(plan)


def evaluate(stage: Stage, run: Run) -> dict:
    """Evaluates the final networks on the test split; returns the timing."""
    began, plan = time.perf_counter(), run.plan
    part, ensemble = networks.load_final(plan)
    final = run.predictor(plan.final)
    test_split.evaluate(
        plan,
        final.using(ensemble),
        part=part,
        test=stages.open_test(plan),
        train=sources.open_training(plan.data.train, plan.data, masks=True),
        out_of_fold=_out_of_fold(plan, final, ensemble),
    )
    return {"name": stage.name, "seconds": time.perf_counter() - began}


def _out_of_fold(
    plan: Plan, final: Predictor, ensemble: list[networks.Weights]
) -> OutOfFold | None:
    """Training slices that were held out, or of other folds, and the mean of their maps."""
    if not (plan.evaluate.choose_threshold or plan.final.folds):
        return None
    found: dict[int, list[np.ndarray]] = collections.defaultdict(list)
    source = stages.open_sources(plan.final, plan)[-1]
    for weights, part in zip(ensemble, stages.held_out(plan.final, source), strict=True):
        maps = final.using([weights]).maps(Subset(source, part))
        for i, probs in zip(part.tolist(), maps, strict=True):
            found[i].append(probs)
    order = sorted(found)
    maps = [np.mean(found[i], axis=0) for i in order]
    return OutOfFold(Subset(source, order), maps, final.classes)


STEPS = {
    "train": stages.train,
    "out_of_fold": prior.run,
    "pseudo_labels": pseudo_labels.run,
    "evaluate": evaluate,
}

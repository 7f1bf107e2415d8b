"""Trains the networks of one stage, whatever they learn."""

import functools
import json
import sys
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from infnet_jax import tasks
from infnet_jax.data.splits import Mix
from infnet_jax.evaluation import networks
from infnet_jax.models import is_output_layer
from infnet_jax.plan import Network, Plan, Stage
from infnet_jax.runs import write_json
from infnet_jax.runs.checkpoint import transfer
from infnet_jax.tasks.normalise import Norm
from infnet_jax.tasks.state import Task, TrainState
from infnet_jax.training import data, loop
from infnet_jax.weights import convert


class Run(NamedTuple):
    """What all stages of a run share.

    Attributes:
      plan: its stages; mesh: the devices.
      statistics: mean and sd of the training images, 0..1.
      mix: what pre-training uses instead of its splits, if anything.
    """

    plan: Plan
    mesh: Mesh
    statistics: tuple[float, float]
    mix: Mix | None = None

    def norm(self, stage: Stage) -> Norm:
        """The input scale of a stage."""
        return tasks.make_norm(stage, self.statistics)


def train(stage: Stage, run: Run) -> dict | None:
    """Trains a stage's networks to their end; finished ones are skipped, one resumes.

    Returns:
      The timing, None if asked to stop.
    """
    timings = []
    streams = data.open_data(stage, run.plan, run.mix)
    pairs = zip(stage.networks, streams, strict=True)
    for number, (network, (batches, held_out)) in enumerate(pairs, 1):
        done = network.folder / "done.json"
        if stage.averages and done.exists():
            timings.append(json.loads(done.read_text()))
            continue
        if stage.averages:
            print(f"{stage.name}: network {number} of {len(stage.networks)}", file=sys.stderr)
        epoch = -(-batches.example_count // stage.section.batch_size)
        task = tasks.make(stage, run.norm(stage), epoch)
        timing = loop.fit(
            task,
            stage.section,
            batches,
            held_out,
            directory=network.folder,
            name=label(network.folder, run.plan),
            mesh=run.mesh,
            seed=network.seed,
            fresh=functools.partial(start, task, stage, network, network.folder, run.plan),
        )
        if timing is None:
            return None
        timings.append(timing)
        if stage.averages:
            write_json(done, timing)
    if not stage.averages:
        return timings[0]
    total = {key: sum(t[key] for t in timings) for key in ("seconds", "steps")}
    return {"name": stage.name, **total}


def label(folder: Path, plan: Plan) -> str:
    """How the log calls the network of a folder: `segment`, `multi/fold0`."""
    return folder.relative_to(plan.workdir).as_posix()


def start(task: Task, stage: Stage, network: Network, folder: Path, plan: Plan) -> TrainState:
    """Fresh weights, or those of an earlier stage or an imported file, listed in a report.

    Args:
      task: of the stage; network: whose start it is.
      folder: gets `transfer.json`.
    """
    trees = loop.init_variables(task, network.seed)
    if network.start is not None:
        learned = networks.load_weights(network.start, "latest")
    elif stage.origin:
        learned, _ = convert.load_imported(stage.origin)
    else:
        return task.start(trees)
    try:
        trees["net"], report = transfer(
            trees["net"],
            learned,
            mode=stage.transfer,
            is_output_layer=lambda name: is_output_layer(tuple(name.split("/"))),
        )
        if report.mismatched and network.start is None:
            raise ValueError(f"shapes differ at {report.mismatched[0]}")
    except ValueError as error:
        raise ValueError(f"weights from {stage.origin}: {error}") from error
    listing = {"from": stage.origin, "mode": stage.transfer, **report._asdict()}
    write_json(folder / "transfer.json", listing)
    where = f"from {stage.origin} ({stage.transfer}), see transfer.json"
    print(f"{label(folder, plan)}: {len(report.loaded)} arrays {where}", file=sys.stderr)
    return task.start(trees)

"""One stage: what it trains on and holds out, what its networks start from, and their training."""

import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from infnet_jax import tasks
from infnet_jax.data import Batches, Paired, Source, Subset, WithPriors, sources, text
from infnet_jax.data.sources import Mix
from infnet_jax.evaluation import predictor as networks
from infnet_jax.evaluation.predictor import Predictor
from infnet_jax.models import is_output_layer
from infnet_jax.plan import Network, Plan, Stage
from infnet_jax.runs import mesh as meshes, write_json
from infnet_jax.runs.checkpoint import transfer
from infnet_jax.tasks.state import Task, TrainState
from infnet_jax.training import loop
from infnet_jax.weights import load_imported


class Run(NamedTuple):
    """What all stages of a run share."""

    plan: Plan
    mesh: Mesh  # the devices
    statistics: tuple[float, float]  # mean and sd of the training images, 0..1
    mix: Mix | None = None  # what pre-training uses instead of its splits, if anything

    def task(self, stage: Stage, epoch: int = 1, soft: bool = False) -> Task:
        """What a stage does; `epoch` in steps; with `soft` the truth is the slices' prior."""
        return tasks.make(stage, tasks.make_norm(stage, self.statistics), epoch, soft)

    def predictor(self, stage: Stage) -> Predictor:
        """The networks of a stage as a function, without weights yet."""
        size = self.plan.evaluate.batch_size
        return Predictor(stage, self.statistics, views=self.plan.views, batch_size=size)

    def label(self, folder: Path) -> str:
        """How the log calls the network of a folder: `segment`, `multi/fold0`."""
        return folder.relative_to(self.plan.workdir).as_posix()


def train(stage: Stage, run: Run) -> dict | None:
    """Trains a stage's networks to their end; finished ones are skipped, one resumes.

    Returns the timing, None if asked to stop.
    """
    timings = []
    pairs = zip(stage.networks, open_data(stage, run.plan, run.mix), strict=True)
    for number, (network, (batches, held)) in enumerate(pairs, 1):
        done = network.folder / "done.json"
        if stage.averages and done.exists():
            timings.append(json.loads(done.read_text()))
            continue
        if stage.averages:
            print(f"{stage.name}: network {number} of {len(stage.networks)}", file=sys.stderr)
        task = run.task(stage, -(-batches.example_count // stage.section.batch_size))
        timing = loop.fit(
            task,
            stage.section,
            batches,
            held,
            directory=network.folder,
            name=run.label(network.folder),
            mesh=run.mesh,
            seed=network.seed,
            fresh=functools.partial(start, task, stage, network, network.folder, run),
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


def start(task: Task, stage: Stage, network: Network, folder: Path, run: Run) -> TrainState:
    """Fresh weights, or those of an earlier stage or an imported file: see `transfer.json`."""
    trees = loop.init_variables(task, network.seed)
    if network.start is not None:
        learned = networks.load_weights(network.start, "latest")
    elif stage.origin:
        learned, _ = load_imported(stage.origin)
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
    print(f"{run.label(folder)}: {len(report.loaded)} arrays {where}", file=sys.stderr)
    return task.start(trees)


def open_data(
    stage: Stage, plan: Plan, mix: Mix | None = None
) -> Iterator[tuple[Batches | Paired, Source]]:
    """For each network of a stage its training stream and its held-out examples."""
    *others, last = open_sources(stage, plan, mix)
    weights = mix.weights if mix and stage.mix else None
    for network, held in zip(stage.networks, held_out(stage, last), strict=True):
        train = Subset(last, np.setdiff1d(np.arange(len(last)), held))
        stream = make_batches([*others, train], stage.section, network.seed, stage.fields, weights)
        if stage.semi is None:
            yield stream, Subset(last, held)
            continue
        # A mean teacher looks at as many unlabelled slices in each batch.
        unlabelled = sources.open_training(stage.semi.split, plan.data, masks=False)
        also = make_batches([unlabelled], stage.section, plan.seed, ("image",))
        yield Paired(stream, also), Subset(last, held)


def make_batches(
    parts: Sequence[Source],
    section: ConfigDict,
    seed: int,
    fields: Sequence[str],
    weights: Sequence[float] | None = None,
) -> Batches:
    """The training stream of a section's `batch_size` and `size`."""
    shape = dict(batch_size=section.batch_size, size=section.size)
    return Batches(parts, **shape, seed=seed, fields=fields, weights=weights)


def open_sources(stage: Stage, plan: Plan, mix: Mix | None = None) -> list[Source]:
    """What a stage trains on; the last gives the held-out examples: in pre-training the largest."""
    if mix is not None and stage.mix:
        return meshes.first_process_first(lambda: _open_mix(mix, stage.folder))
    opened = [sources.open_training(s, plan.data, masks=stage.supervised) for s in stage.splits]
    if stage.prior == "none":
        return opened
    return [with_priors(s, name, plan) for s, name in zip(opened, stage.splits, strict=True)]


def open_test(plan: Plan) -> Source:
    """The test slices, with priors where the evaluated networks have one."""
    test = sources.open_test(plan.data)
    return test if plan.final.prior == "none" else with_priors(test, plan.data.test, plan)


def with_priors(source: Source, split: str, plan: Plan) -> Source:
    """The whole split called `split`, or a part of it, with a `prior` as `prior.kind` says."""
    if plan.prior_kind == "truth":  # an upper bound: nobody has it at test time
        return WithPriors(source, sources.lesion_maps(source))
    sums: dict[str, list[np.ndarray]] = {}
    for path in sorted(plan.prior.folder.glob("fold*.npz")) if plan.prior else ():
        with np.load(path) as z:
            for key in z.files:
                where, _, name = key.partition("/")
                if where == split:
                    sums.setdefault(name, []).append(z[key])
    means = {name: np.asarray(np.mean(found, axis=0)) for name, found in sums.items()}
    return WithPriors(source, {name: np.round(m).astype(np.uint8) for name, m in means.items()})


def held_out(stage: Stage, source: Source) -> list[np.ndarray]:
    """For each network of a stage the examples that it does not train on (whole groups).

    Returns indices of `source`, int64, an array a network. A ValueError for more folds than groups,
    or where no slice is left to train on.
    """
    count, folds = stage.section.validation, stage.folds
    try:
        return [
            sources.split_validation(source, count=count, seed=network.seed)[1]
            if network.fold is None
            else sources.group_folds(source, folds, network.seed)[network.fold]
            for network in stage.networks
        ]
    except ValueError as error:
        key = f"folds={folds}" if folds else f"validation={count}"
        raise ValueError(f"{stage.name}.{key}: {error}") from error


def check_held_out(plan: Plan) -> None:
    """Refuses what `held_out` would refuse in any stage of a run, before the first one.

    A ValueError also where a network would start from one that has learned from slices which it
    holds out itself.
    """
    unseen: dict[str, list[list[str]]] = {}
    for stage in plan.stages:
        upper_bound = stage.runs == "out_of_fold" and plan.prior_kind == "truth"
        if not stage.supervised or stage.runs == "pseudo_labels" or upper_bound:
            continue
        source = sources.open_training(stage.splits[-1], plan.data, masks=True)
        parts = held_out(stage, source)
        if plan.final.paired:  # it reads each slice
            unseen[stage.name] = [[text(source[i]["id"]) for i in part] for part in parts]
    final, prior = plan.final, plan.prior
    if prior and final.paired and unseen[final.name] != unseen[prior.name]:
        final_repeats, repeats = (len(s.networks) // max(s.folds, 1) for s in (final, prior))
        raise ValueError(
            "multi.from_prior=True: both stages must leave out the same slices, choose "
            f"multi.folds={prior.folds} and multi.repeats={repeats} "
            f"(those of prior), not {final.folds} and {final_repeats}"
        )


def _open_mix(mix: Mix, directory: Path) -> list[Source]:
    """The parts of a mix without slices of the test split, as `mix.json` lists them.

    Finding those takes long for a large part, so a run that resumes reads the list. A ValueError
    where a dataset has no such split, or nothing of a part is left.
    """
    path = directory / "mix.json"
    kept = json.loads(path.read_text()) if path.exists() else None
    opened: list[Source] = [sources.open_split(p.folder or "", p.split) for p in mix.parts]
    listing: list[dict] = []
    for i, (part, source) in enumerate(zip(mix.parts, opened, strict=True)):
        dropped, count = set(kept[i]["dropped"] if kept else mix.copies(part)), len(source)
        if dropped:
            rest = [n for n in range(count) if text(source[n]["id"]) not in dropped]
            if not rest:
                raise ValueError(f"data.pretrain: all slices of {part} are in the test split too")
            opened[i] = Subset(source, rest)
        found = {"dataset": str(part.folder), "split": part.split, "weight": part.weight}
        listing.append({**found, "examples": count, "dropped": sorted(dropped)})
        copies = f"{len(dropped)} of {count} slices dropped, near-copies of the test split"
        print(f"pretrain: {part}: {copies}", file=sys.stderr)
    write_json(path, listing)
    return opened

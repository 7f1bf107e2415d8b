"""What each stage of a run trains on, holds out, and is tested on."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from infnet_jax.data import splits
from infnet_jax.data.batches import Batches, Paired
from infnet_jax.data.sources import Source, WithPriors, lesion_maps, open_split, select, text
from infnet_jax.data.splits import Mix
from infnet_jax.plan import Plan, Stage
from infnet_jax.runs import mesh as meshes, write_json


def open_data(
    stage: Stage, plan: Plan, mix: Mix | None = None
) -> Iterator[tuple[Batches | Paired, Source]]:
    """For each network of a stage its training stream and its held-out examples."""
    *others, last = open_sources(stage, plan, mix)
    for network, held in zip(stage.networks, held_out(stage, last), strict=True):
        train = select(last, np.setdiff1d(np.arange(len(last)), held))
        weights = mix.weights if mix and stage.mix else None
        batches = make_batches([*others, train], stage.section, network.seed, stage.fields, weights)
        if stage.semi is None:
            yield batches, select(last, held)
            continue
        # A mean teacher looks at as many unlabelled slices in each batch.
        unlabelled = splits.open_training(stage.semi.split, plan.data, masks=False)
        also = make_batches([unlabelled], stage.section, plan.seed, ("image",))
        yield Paired(batches, also), select(last, held)


def make_batches(
    sources: Sequence[Source],
    section: ConfigDict,
    seed: int,
    fields: Sequence[str],
    weights: Sequence[float] | None = None,
) -> Batches:
    """The training stream of a section's `batch_size` and `size`."""
    shape = dict(batch_size=section.batch_size, size=section.size)
    return Batches(sources, **shape, seed=seed, fields=fields, weights=weights)


def open_sources(stage: Stage, plan: Plan, mix: Mix | None = None) -> list[Source]:
    """What a stage trains on; the last gives the held-out examples: in pre-training the largest."""
    if mix is not None and stage.mix:
        return meshes.first_process_first(lambda: _open_mix(mix, stage.folder))
    sources = [
        splits.open_training(name, plan.data, masks=stage.supervised) for name in stage.splits
    ]
    if stage.prior == "none":
        return sources
    return [with_priors(s, name, plan) for s, name in zip(sources, stage.splits, strict=True)]


def open_test(plan: Plan) -> Source:
    """The test slices, with priors where the evaluated networks have one."""
    test = splits.open_test(plan.data)
    return test if plan.final.prior == "none" else with_priors(test, plan.data.test, plan)


def with_priors(source: Source, split: str, plan: Plan) -> Source:
    """The source with a `prior` in each example, as `prior.kind` says.

    Args:
      source: of the whole split called `split`, or a part of it.
    """
    if plan.prior_kind == "truth":  # an upper bound: nobody has it at test time
        return WithPriors(source, lesion_maps(source))
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

    Returns:
      Indices of `source`, int64, an array a network.

    Raises:
      ValueError: more folds than groups, or no slice left to train on.
    """
    held = []
    for network in stage.networks:
        count = stage.section.validation
        try:
            held.append(
                splits.split_validation(source, count=count, seed=network.seed)[1]
                if network.fold is None
                else splits.group_folds(source, stage.folds, network.seed)[network.fold]
            )
        except ValueError as error:
            key = f"validation={count}" if network.fold is None else f"folds={stage.folds}"
            raise ValueError(f"{stage.name}.{key}: {error}") from error
    return held


def check_held_out(plan: Plan) -> None:
    """Refuses what `held_out` would refuse in any stage of a run, before the first one.

    Raises:
      ValueError: see `held_out`; or a network would start from one that has learned from slices
        which it holds out itself.
    """
    unseen: dict[str, list[list[str]]] = {}
    for stage in plan.stages:
        if not stage.supervised or stage.runs == "pseudo_labels":
            continue
        if stage.runs == "out_of_fold" and plan.prior_kind == "truth":
            continue
        source = splits.open_training(stage.splits[-1], plan.data, masks=True)
        parts = held_out(stage, source)
        if plan.final.paired:  # it reads each slice
            unseen[stage.name] = [[text(source[i]["id"]) for i in part] for part in parts]
    final, prior = plan.final, plan.prior
    if prior and final.paired and unseen[final.name] != unseen[prior.name]:
        dealt = [f"{stage.folds} and {_repeats(stage)}" for stage in (prior, final)]
        raise ValueError(
            "multi.from_prior=True: both stages must leave out the same slices, choose "
            f"multi.folds={prior.folds} and multi.repeats={_repeats(prior)} "
            f"(those of prior), not {dealt[1]}"
        )


def _repeats(stage: Stage) -> int:
    return len(stage.networks) // max(stage.folds, 1)


def _open_mix(mix: Mix, directory: Path) -> list[Source]:
    """The parts of a mix without slices of the test split, as `mix.json` lists them.

    Finding those takes long for a large part, so a run that resumes reads the list.

    Raises:
      ValueError: a dataset has no such split, or nothing of a part is left.
    """
    sources: list[Source] = [open_split(part.folder or "", part.split) for part in mix.parts]
    listing: list[dict] = []
    path = directory / "mix.json"
    kept = json.loads(path.read_text()) if path.exists() else None
    for i, (part, source) in enumerate(zip(mix.parts, sources, strict=True)):
        dropped = set(kept[i]["dropped"] if kept else mix.copies(part))
        ids = [text(source[n]["id"]) for n in range(len(source))] if dropped else []
        rest = [n for n, found in enumerate(ids) if found not in dropped]
        if dropped and not rest:
            raise ValueError(f"data.pretrain: all slices of {part} are in the test split too")
        listing.append(
            {
                "dataset": str(part.folder),
                "split": part.split,
                "weight": part.weight,
                "examples": len(source),
                "dropped": sorted(dropped),
            }
        )
        print(
            f"pretrain: {part}: {len(dropped)} of {len(source)} slices dropped, near-copies of "
            "the test split",
            file=sys.stderr,
        )
        sources[i] = select(source, rest) if dropped else source
    write_json(path, listing)
    return sources

"""What each stage of a run trains on, holds out, and is tested on."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from infnet_jax import tasks
from infnet_jax.data import splits
from infnet_jax.data.batches import Batches
from infnet_jax.data.mix import Mix
from infnet_jax.data.sources import Source, open_split, select, text
from infnet_jax.runs import mesh as mesh_lib
from infnet_jax.runs.workdir import write_json
from infnet_jax.training import prior as crossfit, pseudo_labels as semi

SUPERVISED = ("prior", "segment", "multi")


def open_data(
    stage: str, config: ConfigDict, dataset: Path, workdir: Path, mix: Mix | None = None
) -> Iterator[tuple[Batches, Source]]:
    """For each network of a stage its training stream and its held-out examples."""
    section, fields = config[tasks.section_of(stage)], ("image", "mask")
    if stage in ("multi", "pretrain_multi") and config.multi.with_prior:
        fields = ("image", "mask", "prior")  # averaged ones too: held-out slices are scored so
    *others, last = open_sources(stage, config, dataset, workdir, mix)
    ensemble = tasks.members(config, stage)
    for member, held in zip(ensemble, held_out(stage, config, last), strict=True):
        train = np.setdiff1d(np.arange(len(last)), held)
        batches = Batches(
            [*others, select(last, train)],
            batch_size=section.batch_size,
            size=section.size,
            seed=member.seed,
            fields=fields,
            weights=mix.weights if stage == "pretrain" and mix is not None else None,
        )
        if stage == "segment" and tasks.has_mean_teacher(config):
            batches = semi.pair(batches, config, dataset)
        yield batches, select(last, held)


def open_test(config: ConfigDict, workdir: Path, dataset: Path) -> Source:
    """The test slices, with the priors of a multi-class network where the run trains one."""
    test = splits.open_test(splits.of_config(config, dataset))
    if tasks.last_trained(config) != "multi" or not config.multi.with_prior:
        return test
    return crossfit.with_priors(test, config.data.test, config, workdir)


def open_sources(
    stage: str, config: ConfigDict, dataset: Path, workdir: Path, mix: Mix | None = None
) -> list[Source]:
    """What a stage trains on; the last gives the held-out examples: in pre-training the largest."""
    if stage == "pretrain" and mix is not None:
        return mesh_lib.first_process_first(lambda: _open_mix(mix, workdir / stage))
    masks = stage in SUPERVISED
    names = _split_names(stage, config)
    sources = [
        splits.open_training(s, splits.of_config(config, dataset), masks=masks) for s in names
    ]
    if stage in ("multi", "pretrain_multi") and config.multi.with_prior:
        return [
            crossfit.with_priors(source, split, config, workdir)
            for source, split in zip(sources, names, strict=True)
        ]
    return sources


def held_out(stage: str, config: ConfigDict, source: Source) -> list[np.ndarray]:
    """For each network of a stage the examples that it does not train on (whole groups).

    Raises:
      ValueError: more folds than groups, or no slice left to train on.
    """
    section, held = config[stage], []  # `prior` deals by its own folds
    for member in tasks.members(config, stage):
        try:
            held.append(
                splits.split_validation(source, count=section.validation, seed=member.seed)[1]
                if member.fold is None
                else splits.group_folds(source, section.folds, member.seed)[member.fold]
            )
        except ValueError as error:
            key = "validation" if member.fold is None else "folds"
            raise ValueError(f"{stage}.{key}={section[key]}: {error}") from error
    return held


def check_held_out(config: ConfigDict, dataset: Path) -> None:
    """What `held_out` would refuse in any stage of a run, before the first one.

    Raises:
      ValueError: see `held_out`; or a network of `multi` would start from one of `prior` that has
        learned from slices which it holds out itself.
    """
    unseen = {}
    for stage in SUPERVISED:
        if stage in config.stages and not (stage == "prior" and config.prior.kind == "truth"):
            name = _split_names(stage, config)[-1]
            source = splits.open_training(name, splits.of_config(config, dataset), masks=True)
            parts = held_out(stage, config, source)
            if tasks.starts_from_prior(config):  # it reads each slice
                unseen[stage] = [[text(source[i]["id"]) for i in part] for part in parts]
    if tasks.starts_from_prior(config) and unseen["multi"] != unseen["prior"]:
        raise ValueError(
            "multi.from_prior=True: both stages must leave out the same slices, choose "
            f"multi.folds={config.prior.folds} and multi.repeats={config.prior.repeats} "
            f"(those of prior), not {config.multi.folds} and {config.multi.repeats}"
        )


def _split_names(stage: str, config: ConfigDict) -> list[str]:
    """The splits that a stage trains on; the folds of a prior share the labelled one."""
    return [config.data.train] if stage == "prior" else list(config[stage].splits)


def _open_mix(mix: Mix, directory: Path) -> list[Source]:
    """The parts of a mix without slices of the test split, as `mix.json` lists them.

    Finding those takes long for a large part, so a run that resumes reads the list.

    Raises:
      ValueError: a dataset has no such split, or nothing of a part is left.
    """
    sources, listing = [open_split(part.folder, part.split) for part in mix.parts], []
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

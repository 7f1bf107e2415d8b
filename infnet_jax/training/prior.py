"""The `prior` stage: a single-class map of every slice from networks that have not seen it.

A multi-class network that is trained beside true masks learns to copy them, and then meets
predictions when it is tested. So each training slice gets the map of the fold that left it out,
and every other slice the mean over the folds.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from infnet_jax import tasks
from infnet_jax.data import splits
from infnet_jax.data.sources import Source, WithPriors, examples, lesion_maps, select, text
from infnet_jax.evaluation import lung_scores, metrics, networks
from infnet_jax.runs.workdir import write_json, write_npz

KINDS = ("crossfit", "truth")


def write(
    config: ConfigDict,
    *,
    workdir: Path,
    dataset: Path,
    statistics: tuple[float, float],
    held_out: list[np.ndarray],
) -> None:
    """Writes what the trained folds say of the slices that each has not seen.

    `prior/fold<k>.npz` (its maps of every split) and `prior/cross_validation.json`: the mean Dice
    of the training slices' maps at the threshold. Of lungs, which are no prior,
    `prior/fold<k>.json`, `prior/lungs/` and the last file hold what `lung_scores` says.

    Args:
      held_out: for each fold what it has not seen of the labelled training slices.
    """
    finds_lungs = tasks.target(config) == "lung"
    whole = splits.open_whole(config.data.train, splits.of_config(config, dataset))
    labelled = splits.labelled(whole, splits.of_config(config, dataset))
    source = select(whole, labelled)
    sweep = networks.make_sweep("segment", config, statistics)
    for k, held in enumerate(held_out):
        path = workdir / "prior" / (f"fold{k}.json" if finds_lungs else f"fold{k}.npz")
        if path.exists():
            continue
        weights = networks.load_weights(workdir / "prior" / f"fold{k}" / "checkpoints", "latest")
        run_fold = functools.partial(sweep, weights)
        if finds_lungs:
            cut, pictures = config.evaluate.threshold, workdir / "prior" / "lungs"
            rows = lung_scores.measure(select(source, held), run_fold, cut, pictures)
            write_json(path, rows)
        else:
            kept = np.delete(labelled, held)
            _write_maps(config, path, kept, dataset, run_fold)
    if jax.process_index() == 0:
        _write_score(config, workdir, source)


def with_priors(source: Source, split: str, config: ConfigDict, workdir: Path) -> Source:
    """The source with a `prior` in each example, as `config.prior.kind` says.

    Args:
      source: of the whole split called `split`, or a part of it.
    """
    if config.prior.kind == "truth":  # an upper bound: nobody has it at test time
        return WithPriors(source, lesion_maps(source))
    sums: dict[str, list[np.ndarray]] = {}
    for path in sorted((workdir / "prior").glob("fold*.npz")):
        with np.load(path) as z:
            for key in z.files:
                where, _, name = key.partition("/")
                if where == split:
                    sums.setdefault(name, []).append(z[key])
    maps = {name: np.round(np.mean(found, axis=0)).astype(np.uint8) for name, found in sums.items()}
    return WithPriors(source, maps)


def _write_maps(
    config: ConfigDict,
    path: Path,
    kept: np.ndarray,
    dataset: Path,
    sweep: Callable[[Source], list[np.ndarray]],
) -> None:
    """The fold's maps: of the training slices it has not seen, and of all the other splits."""
    found = {}
    for split in dict.fromkeys([config.data.train, config.data.test, *config.prior.splits]):
        source = splits.open_whole(split, splits.of_config(config, dataset))
        if split == config.data.train:
            source = select(source, np.setdiff1d(np.arange(len(source)), kept))
        for i, prob in enumerate(sweep(source)):
            name = f"{split}/{text(source[i]['id'])}"
            found[name] = np.round(255 * prob).astype(np.uint8)
    write_npz(path, found)


def _write_score(config: ConfigDict, workdir: Path, source: Source) -> None:
    """Cross-validated Dice: each training slice by the network that had not seen it."""
    path, dice = workdir / "prior" / "cross_validation.json", {}
    if tasks.target(config) == "lung":
        folds = sorted((workdir / "prior").glob("fold*.json"))
        rows = [json.loads(fold.read_text()) for fold in folds]
        write_json(path, lung_scores.summarise({k: row[k] for row in rows for k in row}))
        return
    cut = 255 * config.evaluate.threshold
    for example in examples(with_priors(source, config.data.train, config, workdir)):
        truth = example["mask"][..., 0] > 0
        prior = example["prior"][..., 0].astype(np.float32)
        found = metrics.resize_map(prior, truth.shape) >= cut
        if total := truth.sum() + found.sum():
            dice[example["id"]] = float(2 * (truth & found).sum() / total)
    mean = float(np.mean(list(dice.values()))) if dice else None
    write_json(path, {"dice": mean, "slices": dice})

"""Out-of-fold stages: each training slice is mapped by a network that has not seen it.

A multi-class network that is trained beside true masks learns to copy them, and then meets
predictions when it is tested. So each training slice gets the map of the fold that left it out as
its prior, and every other slice the mean over the folds. Lung networks are cross-validated in the
same way: their maps are scored, not kept.
"""

import json
import time
from pathlib import Path

import jax
import numpy as np

from infnet_jax.data import splits
from infnet_jax.data.sources import Source, examples, select, text
from infnet_jax.dice import dice
from infnet_jax.evaluation import networks, out_of_fold
from infnet_jax.evaluation.predictor import Predictor
from infnet_jax.evaluation.soft_metrics import resize_map
from infnet_jax.plan import Plan, Stage
from infnet_jax.runs import write_json, write_npz
from infnet_jax.training import data
from infnet_jax.training.stage import Run, train


def run(stage: Stage, run: Run) -> dict | None:
    """Trains the folds of a stage, then has each map the slices it has not seen.

    Writes `fold<k>.npz` (the fold's maps of every split) and `cross_validation.json`: the mean Dice
    of the training slices' maps at the threshold. Of lungs, `fold<k>.json`, `lungs/` and the last
    file hold what `out_of_fold` measures.

    Returns:
      The timing, None if asked to stop.
    """
    plan = run.plan
    if plan.prior_kind == "truth":
        return {"name": stage.name, "seconds": 0.0, "steps": 0}
    timing = train(stage, run)
    if timing is None:
        return None
    began = time.perf_counter()
    whole = splits.open_whole(plan.data.train, plan.data)
    labelled = splits.labelled(whole, plan.data)
    source = select(whole, labelled)
    held_out = data.held_out(stage, data.open_sources(stage, plan)[-1])
    predictor = Predictor(
        stage, run.statistics, views=plan.views, batch_size=plan.evaluate.batch_size
    )
    write = _write_lungs if stage.learns == "lung" else _write_maps
    for k, (network, held) in enumerate(zip(stage.networks, held_out, strict=True)):
        path = stage.folder / f"fold{k}.{'json' if stage.learns == 'lung' else 'npz'}"
        if not path.exists():
            weights = networks.load_weights(network.folder / "checkpoints", "latest")
            write(path, predictor.using([weights]), plan, labelled, held)
    if jax.process_index() == 0:
        score = _score_lungs(stage) if stage.learns == "lung" else _score(plan, source)
        write_json(stage.folder / "cross_validation.json", score)
    return {**timing, "seconds": timing["seconds"] + time.perf_counter() - began}


def _write_maps(
    path: Path, predictor: Predictor, plan: Plan, labelled: np.ndarray, held: np.ndarray
) -> None:
    """The fold's maps: of training slices it has not seen, and of all the other splits.

    Args:
      labelled: indices, in the training split, of the slices that may be learned from.
      held: which of them the fold has not seen.
    """
    learned, found = np.delete(labelled, held), {}
    for split in dict.fromkeys([plan.data.train, plan.data.test, *plan.prior_splits]):
        source = splits.open_whole(split, plan.data)
        if split == plan.data.train:
            source = select(source, np.setdiff1d(np.arange(len(source)), learned))
        for i, probs in enumerate(predictor.maps(source)):
            name = f"{split}/{text(source[i]['id'])}"
            found[name] = np.round(255 * probs[..., 0]).astype(np.uint8)
    write_npz(path, found)


def _write_lungs(
    path: Path, predictor: Predictor, plan: Plan, labelled: np.ndarray, held: np.ndarray
) -> None:
    """Scores and pictures of the lungs that the fold finds; arguments as of `_write_maps`."""
    whole = splits.open_whole(plan.data.train, plan.data)
    unseen = select(whole, labelled[held])
    pictures = path.parent / "lungs"

    def maps(source: Source) -> list[np.ndarray]:
        return [probs[..., 0] for probs in predictor.maps(source)]

    write_json(path, out_of_fold.measure_lungs(unseen, maps, plan.evaluate.threshold, pictures))


def _score(plan: Plan, source: Source) -> dict:
    """Cross-validated Dice: each training slice by the network that had not seen it."""
    found, cut = {}, 255 * plan.evaluate.threshold
    for example in examples(data.with_priors(source, plan.data.train, plan)):
        truth = example["mask"][..., 0] > 0
        prior = example["prior"][..., 0].astype(np.float32)
        value = float(dice(resize_map(prior, truth.shape) >= cut, truth))
        if not np.isnan(value):
            found[example["id"]] = value
    mean = float(np.mean(list(found.values()))) if found else None
    return {"dice": mean, "slices": found}


def _score_lungs(stage: Stage) -> dict:
    """What all folds found of lungs."""
    rows = [json.loads(fold.read_text()) for fold in sorted(stage.folder.glob("fold*.json"))]
    return out_of_fold.summarise_lungs({k: row[k] for row in rows for k in row})

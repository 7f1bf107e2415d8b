"""Out-of-fold stages: each training slice is mapped by a network that has not seen it.

A multi-class network that is trained beside true masks learns to copy them, and meets predictions
when it is tested. So the prior of a training slice is the map of the fold that left it out, of any
other slice the mean over the folds. Maps of lung networks are scored so, not kept.
"""

import json
import time
from pathlib import Path

import jax
import numpy as np

from infnet_jax.data import Source, Subset, sources, text
from infnet_jax.dice import dice
from infnet_jax.evaluation import out_of_fold, predictor as networks
from infnet_jax.evaluation.predictor import Predictor
from infnet_jax.evaluation.soft_metrics import resize_map
from infnet_jax.plan import Plan, Stage
from infnet_jax.runs import write_json, write_npz
from infnet_jax.training import stage as stages
from infnet_jax.training.stage import Run


def run(stage: Stage, run: Run) -> dict | None:
    """Trains the folds of a stage, then has each map the slices it has not seen.

    Writes `fold<k>.npz` (the fold's maps of every split) and `cross_validation.json`: the mean Dice
    of the training slices' maps at the threshold. Of lungs, `fold<k>.json`, `lungs/` and the last
    file hold what `out_of_fold` measures. Returns the timing, None if asked to stop.
    """
    plan, lungs = run.plan, stage.learns == "lung"
    if plan.prior_kind == "truth":
        return {"name": stage.name, "seconds": 0.0, "steps": 0}
    timing = stages.train(stage, run)
    if timing is None:
        return None
    began = time.perf_counter()
    whole = sources.open_whole(plan.data.train, plan.data)
    labelled = sources.labelled(whole, plan.data)
    held_out = stages.held_out(stage, stages.open_sources(stage, plan)[-1])
    predictor = run.predictor(stage)
    for k, (network, held) in enumerate(zip(stage.networks, held_out, strict=True)):
        path = stage.folder / f"fold{k}.{'json' if lungs else 'npz'}"
        if not path.exists():
            weights = networks.load_weights(network.folder / "checkpoints", "latest")
            fold = predictor.using([weights])
            if lungs:
                _write_lungs(path, fold, plan, Subset(whole, labelled[held]))
            else:
                _write_maps(path, fold, plan, np.delete(labelled, held))
    if jax.process_index() == 0:
        score = _score_lungs(stage) if lungs else _score(plan)
        write_json(stage.folder / "cross_validation.json", score)
    return {**timing, "seconds": timing["seconds"] + time.perf_counter() - began}


def _write_maps(path: Path, predictor: Predictor, plan: Plan, learned: np.ndarray) -> None:
    """The fold's maps of all splits, but for the training slices that it has learned from."""
    found = {}
    for split in dict.fromkeys([plan.data.train, plan.data.test, *plan.prior_splits]):
        source = sources.open_whole(split, plan.data)
        if split == plan.data.train:
            source = Subset(source, np.setdiff1d(np.arange(len(source)), learned))
        for i, probs in enumerate(predictor.maps(source)):
            name = f"{split}/{text(source[i]['id'])}"
            found[name] = np.round(255 * probs[..., 0]).astype(np.uint8)
    write_npz(path, found)


def _write_lungs(path: Path, predictor: Predictor, plan: Plan, unseen: Source) -> None:
    """Scores and pictures of the lungs that the fold finds in slices it has not seen."""

    def maps(source: Source) -> list[np.ndarray]:
        return [probs[..., 0] for probs in predictor.maps(source)]

    cut, folder = plan.evaluate.threshold, path.parent / "lungs"
    write_json(path, out_of_fold.measure_lungs(unseen, maps, cut, folder))


def _score(plan: Plan) -> dict:
    """Cross-validated Dice: each training slice by the network that had not seen it."""
    found, cut, name = {}, 255 * plan.evaluate.threshold, plan.data.train
    source = sources.open_training(name, plan.data, masks=True)
    for example in sources.examples(stages.with_priors(source, name, plan)):
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

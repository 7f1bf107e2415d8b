"""The prior of each slice comes from networks that have not seen it."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs import multi
from infnet_jax.data import text
from infnet_jax.data.sources import examples, open_split
from infnet_jax.evaluation import predictor as networks
from infnet_jax.plan.resolve import resolve
from infnet_jax.training import loop, prior, stage as stages


class Flat:
    """A Predictor whose network answers 40 (k + 1) / 255 everywhere, k the fold."""

    def __init__(self, *_, fold=0, **__):
        self.fold = fold

    def using(self, weights):
        return Flat(fold=weights[0])

    def maps(self, source):
        return [np.full((4, 4, 1), 40 * (self.fold + 1) / 255, np.float32)] * len(source)


def number(checkpoints: Path, part: str) -> int:
    return int(checkpoints.parent.name.removeprefix("fold"))


@pytest.fixture
def fit(phantom, monkeypatch, tmp_path):
    """fit() runs the stage with `Flat` -> plan, [(folder, slices, left out), ...], timing."""
    trained = []

    def record(task, section, batches, held_out, *, directory, **_):
        groups = {text(held_out[i]["group"]) for i in range(len(held_out))}
        trained.append((directory.name, batches.example_count, groups))
        return {"steps": 8, "seconds": 1.0}

    monkeypatch.setattr(loop, "fit", record)
    monkeypatch.setattr(networks, "load_weights", number)
    monkeypatch.setattr(stages, "Predictor", Flat)

    def run(**changes):
        config = multi.get_config("tiny")
        config.update_from_flattened_dict(changes)
        plan = resolve(config, tmp_path, phantom)
        timing = prior.run(plan.prior, stages.Run(plan, None, (0.3, 0.2)))
        return plan, trained, timing

    return run


def priors(plan, split):
    source = stages.with_priors(open_split(plan.data.folder, split), split, plan)
    return [(text(e["group"]), e["prior"]) for e in (source[i] for i in range(len(source)))]


def left_out_by(trained):
    """Group -> the fold that has not seen it."""
    return {group: k for k, (_, _, groups) in enumerate(trained) for group in groups}


def score(folder):
    return json.loads((folder / "prior" / "cross_validation.json").read_text())


def test_a_training_slice_gets_the_fold_that_left_it_out(fit, phantom):
    plan, trained, timing = fit()
    assert [name for name, _, _ in trained] == ["fold0", "fold1"] and timing["steps"] == 16
    n = len(open_split(phantom, "train"))
    assert sum(n - seen for _, seen, _ in trained) == n  # each slice is left out once
    left_out = left_out_by(trained)
    for group, found in priors(plan, "train"):
        assert found.shape == (4, 4, 1) and (found == 40 * (left_out[group] + 1)).all()
    assert all((p == 60).all() for _, p in priors(plan, "test"))  # the mean


def test_a_prior_of_two_deals_is_the_mean_of_both_that_left_the_slice_out(fit):
    plan, trained, timing = fit(**{"prior.repeats": 2})
    assert [name for name, _, _ in trained] == [f"fold{k}" for k in range(4)]
    assert timing["steps"] == 32
    first, second = left_out_by(trained[:2]), left_out_by(trained[2:])
    assert first != second
    for group, found in priors(plan, "train"):
        assert (found == 20 * (first[group] + second[group] + 4)).all()
    assert all((p == 100).all() for _, p in priors(plan, "test"))


def test_beyond_the_label_budget_a_slice_gets_the_mean(fit, tmp_path):
    plan, trained, _ = fit(**{"data.labels": (4,)})
    assert [seen for _, seen, _ in trained] == [2, 2]  # two patients, two slices each
    left_out = left_out_by(trained)
    found = priors(plan, "train")
    assert len(left_out) == 2 and len(found) == 10
    for group, each in found:
        assert (each == (40 * (left_out[group] + 1) if group in left_out else 60)).all()
    assert len(score(tmp_path)["slices"]) <= 4  # no mask beyond the budget is read


def test_a_finished_fold_is_not_trained_again(fit, tmp_path):
    fit()
    (tmp_path / "prior" / "fold1" / "done.json").unlink()
    (tmp_path / "prior" / "fold1.npz").unlink()
    _, trained, _ = fit()
    assert [name for name, _, _ in trained] == ["fold0", "fold1", "fold1"]
    assert (tmp_path / "prior" / "fold1.npz").exists()


@pytest.mark.parametrize("threshold", [0.5, 0.1])
def test_the_cross_validated_dice_by_hand(fit, phantom, tmp_path, threshold):
    fit(**{"evaluate.threshold": threshold})
    share = {e["id"]: (e["mask"] > 0).mean() for e in examples(open_split(phantom, "train"))}
    if threshold == 0.5:  # 80 of 255 is below: nothing is marked, healthy slices are undefined
        assert score(tmp_path)["slices"] == {name: 0.0 for name in share if share[name]}
        return
    right = [2 * each / (1 + each) for each in share.values()]  # all marked: 0 where none is true
    assert score(tmp_path)["dice"] == pytest.approx(np.mean(right))


def test_the_true_mask_as_an_upper_bound(fit, phantom, tmp_path):
    plan, trained, _ = fit(**{"prior.kind": "truth"})
    assert not trained and not (tmp_path / "prior").exists()
    masks = (each["mask"] for each in examples(open_split(phantom, "test")))
    for (_, found), mask in zip(priors(plan, "test"), masks, strict=True):
        np.testing.assert_array_equal(found, 255 * (mask > 0))


def test_networks_past_the_tenth_keep_their_numbers(tmp_path, monkeypatch):
    """Read as 0, 1, 10, 2, a slice would get the map of a network that has seen it."""
    config = multi.get_config("tiny")
    config.multi.update(folds=3, repeats=4, validation=0)
    for k in range(12):
        (tmp_path / "multi" / f"fold{k}" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(networks, "load_weights", number)
    plan = resolve(config, tmp_path)
    assert networks.load_final(plan) == ("latest", list(range(12)))
    (tmp_path / "multi" / "fold11" / "checkpoints").rmdir()
    with pytest.raises(FileNotFoundError, match="multi: 11 of 12 networks are trained"):
        networks.load_final(plan)

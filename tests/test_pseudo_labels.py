"""The semi-supervised stage: who learns from what, in which order, and after any kill the same."""

import json
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from configs import semisup
from infnet_jax import tasks
from infnet_jax.data import Batches, text
from infnet_jax.data.sources import open_split
from infnet_jax.evaluation import predictor as networks
from infnet_jax.files import read_npz
from infnet_jax.plan.resolve import resolve
from infnet_jax.runs import mesh as meshes
from infnet_jax.runs.checkpoint import load_parameters
from infnet_jax.training import loop, pseudo_labels, stage as stages
from tests.toy import Crash, crash_at, make_toy

N_TRAIN, N_UNLABELLED = 10, 8  # of phantom/tiny


def small(**changes):
    """Two rounds; every network checkpoints each second step."""
    c = semisup.get_config("tiny")
    c.segment.update(size=16, eval_every=2)
    c.semi.update(changes)
    return c


class Flat:
    """A Predictor whose maps are the weight everywhere, rising from slice to slice."""

    def __init__(self, *_, value=0.0, **__):
        self.value = value

    def using(self, weights):
        return Flat(value=float(np.clip(weights[0]["params"]["w"], 0, 1)))

    def maps(self, source):
        steps = np.arange(1, len(source) + 1) / len(source)
        return list(np.float32(self.value * steps)[:, None, None, None] + np.zeros((4, 4, 1)))


@pytest.fixture
def play(phantom, monkeypatch):
    """play(folder, hook) runs the stage with a toy and `Flat`."""

    def run(folder, hook=lambda step: None, config=None):
        toy = partial(make_toy, 4, hook=hook, dice={}, field="prior", reuse=1)
        monkeypatch.setattr(tasks, "make", lambda *_: toy())
        monkeypatch.setattr(stages, "Predictor", Flat)
        plan = resolve(config or small(), folder, phantom)
        shared = stages.Run(plan, meshes.make_mesh(), (0.3, 0.25))
        return pseudo_labels.run(plan.stages[0], shared)

    return run


def result(folder):
    """Everything that later stages read: last weights, maps, markers and the report."""
    semi = folder / "semi"
    done = sorted(p.parent.name for p in semi.glob("*/done.json"))
    folders = [semi / name / "checkpoints" for name in ("teacher", "round0001", "pool")]
    weights = [float(load_parameters(f, "latest")["net"]["params"]["w"]) for f in folders]
    maps = {name: found.tobytes() for name, found in read_npz(semi, "round*.npz").items()}
    return weights, maps, done, (semi / "pseudo.json").read_text()


def test_each_slice_is_in_one_group_by_the_seed():
    groups = pseudo_labels.partition(13, 5, seed=1)
    assert [len(g) for g in groups] == [5, 5, 3]
    order = np.concatenate(groups).tolist()
    assert sorted(order) == list(range(13)) and order != list(range(13))
    assert order == np.concatenate(pseudo_labels.partition(13, 5, 1)).tolist()
    assert order != np.concatenate(pseudo_labels.partition(13, 5, 2)).tolist()


def test_soft_labels_of_eight_bits_by_hand():
    prob = np.float32([[0.25, 0.5], [0.375, 0.75]])
    plain, stretched = (pseudo_labels.pseudo_label(prob, stretch) for stretch in (False, True))
    assert plain.dtype == np.uint8 and plain.tolist() == [[64, 128], [96, 191]]
    assert stretched.tolist() == [[0, 128], [64, 255]]
    assert pseudo_labels.pseudo_label(np.full((2, 2), 0.4), True).tolist() == [[0, 0], [0, 0]]


@pytest.mark.slow
def test_killed_again_and_again_it_ends_the_same(play, tmp_path):
    calls, kills = [], 0
    timing = play(tmp_path / "whole", hook=calls.append)
    # Teacher and pool 4 steps; rounds of one epoch over 8 labelled slices and 5, then 8 others.
    assert timing["steps"] == len(calls) == 4 + 2 + 2 + 4
    weights, maps, done, _ = result(tmp_path / "whole")
    assert len(set(weights)) == 3 and len(maps) == N_UNLABELLED
    assert done == ["pool", "round0000", "round0001", "teacher"]
    assert not (tmp_path / "whole" / "semi" / "round0000" / "checkpoints").exists()
    finished = None
    while finished is None:
        left = iter(range(3))  # a kill at every fourth step, wherever that is

        def hook(_, left=left):
            if next(left, None) is None:
                raise Crash

        try:
            finished = play(tmp_path / "cut", hook=hook)
        except Crash:
            kills += 1
    assert kills >= 4 and result(tmp_path / "cut") == result(tmp_path / "whole")
    # What is finished is not trained again.
    assert play(tmp_path / "whole", hook=crash_at(*range(4)))["steps"] == timing["steps"]


def test_a_request_to_stop_ends_the_stage(play, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "fit", lambda *_, **__: None)
    assert play(tmp_path) is None and not list(tmp_path.rglob("done.json"))


def ids(source):
    return [text(source[i]["id"]) for i in range(len(source))]


@pytest.fixture
def recorded(play, monkeypatch, tmp_path):
    """recorded(**semi) -> [(name, ids by source, ids held out, steps, weight of step 0), ...]."""
    fitted = []

    def fit(task, section, batches, held, *, directory, fresh, **_):
        weight = float(fresh().net.params["w"])
        fitted.append((directory.name, batches, ids(held), task.total_steps, weight))
        return {"steps": task.total_steps}

    def weights(folder, part):
        value = {"teacher": 0.25, "round0000": 0.75}[folder.parent.name]
        return {"params": {"w": value}, "batch_stats": {}}

    monkeypatch.setattr(pseudo_labels, "make_batches", lambda parts, *_: [*map(ids, parts)])
    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(networks, "load_weights", weights)

    def run(**changes):
        play(tmp_path, config=small(**changes))
        return fitted

    return run


def test_who_learns_from_what(recorded, phantom):
    fitted = recorded(epochs=3)
    labelled, others = (ids(open_split(phantom, split)) for split in ("train", "unlabeled"))
    assert [n[0] for n in fitted] == ["teacher", "round0000", "round0001", "pool"]
    (_, teacher, held, _, _), first, second, pool = fitted
    assert len(held) == 2 and sorted(teacher[0] + held) == sorted(labelled)
    plan = resolve(small(), Path("w"), phantom)
    ((_, segment_held),) = stages.open_data(plan.final, plan)
    assert held == ids(segment_held)
    assert first[1][0] == second[1][0] == teacher[0] and first[2] == second[2] == []
    assert len(first[1][1]) == 5 and second[1][1][:5] == first[1][1]
    assert sorted(second[1][1]) == sorted(others) and pool[1] == [others] and pool[2] == held
    assert (first[3], second[3]) == (3 * 2, 3 * 2)  # ceil(13 / 8), ceil(16 / 8) batches an epoch
    # Each round goes on from the network before it; the pool's starts afresh.
    assert (first[4], second[4], pool[4]) == (0.25, 0.75, 3.0)


def test_the_maps_are_those_of_the_network_before_the_round(recorded, tmp_path):
    recorded()
    for k, weight, n in ((0, 0.25, 5), (1, 0.75, 3)):
        maps = read_npz(tmp_path / "semi", f"round{k:04d}.npz").values()
        assert all(found.dtype == np.uint8 for found in maps)
        right = [round(255 * weight * (i + 1) / n) for i in range(n)]
        assert [int(found[0, 0]) for found in maps] == right
    report = json.loads((tmp_path / "semi" / "pseudo.json").read_text())
    assert (report["rounds"], report["slices"]) == (2, 8)
    assert report["marked"] == 2 / 8  # maps of .25 i / 5 stay below one half; .5 and .75 do not
    assert 0 < report["marked_in_masks"] < 0.5


def test_a_mean_teacher_needs_the_teacher_only(recorded):
    assert [n[0] for n in recorded(kind="mean_teacher")] == ["teacher"]


def test_batches_of_a_mean_teacher_hold_unlabelled_images(phantom):
    plan = resolve(small(kind="mean_teacher"), Path("w"), phantom)
    ((batches, _),) = stages.open_data(plan.final, plan)
    assert batches.fields == ("image", "mask") and batches.example_count == N_TRAIN - 2
    with closing(batches.iterate(1)) as stream:
        batch = next(stream)
    assert {batch[name].shape for name in ("image", "mask", "unlabelled")} == {(8, 16, 16, 1)}
    source = open_split(phantom, "unlabeled")
    stray = Batches([source], batch_size=8, size=16, seed=0, fields=("image",))
    np.testing.assert_array_equal(batch["unlabelled"], stray[1]["image"])

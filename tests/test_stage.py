"""What the networks of a stage start from, and which networks are trained."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import multi, multi_semisup, selfsup, supervised
from infnet_jax import tasks, training
from infnet_jax.evaluation import predictor as networks
from infnet_jax.plan.resolve import resolve
from infnet_jax.runs import claim
from infnet_jax.runs.checkpoint import Checkpoints
from infnet_jax.training import loop, stage as stages
from tests.toy import make_toy


def config_of(**segment):
    """A supervised one, with these keys of `segment`."""
    config = supervised.get_config("tiny")
    config.segment.update(segment)
    return config


def started(config, folder, task=None):
    """The state of step 0 of the final stage's first network."""
    plan = resolve(config, folder)
    network, run = plan.final.networks[0], stages.Run(plan, None, (0.3, 0.25))
    task = task or run.task(plan.final)
    return stages.start(task, plan.final, network, network.folder, run), task


def imported(folder, value):
    folder.mkdir()
    save_file({"params/w": np.asarray(value, np.float32)}, folder / "variables.safetensors")
    (folder / "report.json").write_text("{}")
    return str(folder)


def test_a_network_starts_from_imported_weights(tmp_path):
    config = config_of()
    config.weights = imported(tmp_path / "good", 5.0)
    assert float(started(config, tmp_path, make_toy())[0].net.params["w"]) == 5.0
    listing = json.loads((tmp_path / "segment" / "transfer.json").read_text())
    assert listing["loaded"] == ["params/w"] and listing["from"] == config.weights
    config.weights = imported(tmp_path / "wide", [5.0, 6.0])
    with pytest.raises(ValueError, match=r"wide.*no leaf to load; shapes differ at params/w"):
        started(config, tmp_path, make_toy())


@pytest.mark.slow
def test_three_classes_start_from_what_pseudo_labels_have_taught(tmp_path):
    config = multi_semisup.get_config("tiny")
    config.weights = "imagenet_lite0"  # of an earlier stage: not of this one
    plan = resolve(config, tmp_path)
    single = stages.Run(plan, None, (0.3, 0.25)).task(plan.stages[1])
    learned = loop.init_variables(single, 7)
    with Checkpoints(tmp_path / "semi" / "pool" / "checkpoints", save_every=4) as pool:
        pool.offer(4, single.start(learned))
    state, task = started(config, tmp_path)
    found, fresh = state.net.params, loop.init_variables(task, 0)["net"]["params"]
    for part in ("trunk", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, found[part], learned["net"]["params"][part])
    jax.tree.map(np.testing.assert_array_equal, found["out_seg"], fresh["out_seg"])


def test_a_run_that_is_refused_leaves_nothing_behind(tmp_path, phantom):
    def run(config, folder):
        training.run(config, workdir=folder, dataset=phantom, name="x", command="x")

    config, used = config_of(), tmp_path / "used"
    config.weights = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        run(config, tmp_path / "run")
    config = selfsup.get_config("tiny")
    claim(used, config)
    claim(used, config)  # its own may come again
    before = (used / "config.json").read_bytes()
    config.segment.optim.momentum = 0.5
    with pytest.raises(ValueError, match=r"segment.optim.momentum = 0.9 \(now 0.5\)"):
        run(config, used)
    assert [*tmp_path.rglob("*")] == [used, used / "config.json"]
    assert (used / "config.json").read_bytes() == before


def test_a_multi_class_network_without_prior_needs_none_in_its_test_slices(tmp_path, phantom):
    config = multi.get_config("tiny")
    config.multi.prior_use = "none"
    assert "prior" not in stages.open_test(resolve(config, tmp_path, phantom))[0]


@pytest.fixture
def recorded(phantom, monkeypatch, tmp_path):
    """recorded(config) -> the seeds of the networks that `segment` trains, by folder; timing."""
    trained = {}

    def fit(*_, directory, seed, **__):
        trained[directory.name] = seed
        return {"steps": 2, "seconds": 0.5}

    def run(config):
        plan = resolve(config, tmp_path, phantom)
        return trained, stages.train(plan.final, stages.Run(plan, None, (0.3, 0.2)))

    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(tasks, "make", lambda *_: make_toy())
    return run


def test_all_slices_twice_by_two_seeds(recorded, capsys):
    trained, timing = recorded(config_of(repeats=2, validation=0))
    assert trained == {"seed0": 0, "seed1": 1}
    assert timing == {"name": "segment", "seconds": 1.0, "steps": 4}
    said = [line for line in capsys.readouterr().err.splitlines() if "network" in line]
    assert said == ["segment: network 1 of 2", "segment: network 2 of 2"]


def test_folds_dealt_twice_are_those_of_the_next_seed(recorded, phantom, tmp_path):
    config = config_of(folds=2, repeats=2, validation=0)
    assert recorded(config)[0] == {"fold0": 0, "fold1": 0, "fold2": 1, "fold3": 1}
    again = config_of(folds=2, validation=0)
    again.seed = 1
    twice, once = (resolve(c, tmp_path, phantom) for c in (config, again))
    source = stages.open_sources(twice.final, twice)[-1]
    second = stages.held_out(twice.final, source)[2:]
    for a, b in zip(second, stages.held_out(once.final, source), strict=True):
        np.testing.assert_array_equal(a, b)


def test_out_of_fold_maps_are_the_mean_of_one_network_of_each_deal(phantom, tmp_path):
    plan = resolve(config_of(folds=2, repeats=2, validation=0), tmp_path, phantom)

    class Numbered:
        classes = ("infection",)

        def using(self, weights):
            self.number = weights[0]
            return self

        def maps(self, source):
            return [np.full((2, 2, 1), float(self.number))] * len(source)

    found = training._out_of_fold(plan, Numbered(), [0, 1, 2, 3])
    source = stages.open_sources(plan.final, plan)[-1]
    held = stages.held_out(plan.final, source)
    assert len(found.source) == len(found.maps) == len(source)
    for i, probs in enumerate(found.maps):
        both = [k for k, part in enumerate(held) if i in part]
        assert len(both) == 2 and (probs == np.mean(both)).all()


def test_weights_used_for_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "load_weights", lambda folder, part: part)
    assert networks.load_final(resolve(config_of(), tmp_path)) == ("best", ["best"])
    ended = resolve(config_of(validation=0), tmp_path)
    assert networks.load_final(ended) == ("latest", ["latest"])

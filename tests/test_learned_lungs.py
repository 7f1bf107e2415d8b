"""Lungs as what a network learns: the target, the presets, a run, and its use in `predict`."""

import json

import numpy as np
import pytest

from configs import lung, supervised
from infnet_jax import verbs
from infnet_jax.data import Batches, decode
from infnet_jax.data.sources import LungTarget, examples, open_split
from infnet_jax.evaluation.predictor import Predictor
from infnet_jax.plan.resolve import resolve
from infnet_jax.training import run
from tests.scans import chest


def test_the_target_is_the_lung_and_the_lesion_is_kept(phantom):
    plain = list(examples(open_split(phantom, "test")))
    source = open_split(phantom, "test", "lung")
    assert len(source) == len(plain)
    for i, (e, before) in enumerate(zip(examples(source), plain, strict=True)):
        np.testing.assert_array_equal(e["mask"], before["lung"])  # there it holds all lesions
        np.testing.assert_array_equal(decode(source[i], "lesion"), before["mask"])
    batch = Batches([source], batch_size=2, size=64, seed=0)[0]
    assert batch["mask"].mean() > 0.1
    with pytest.raises(ValueError, match="data.target='lungs': choose infection or lung"):
        open_split(phantom, "test", "lungs")


def test_slices_without_a_known_lung_are_left_out():
    picture = np.zeros((2, 2, 1), np.uint8)
    made = [
        {
            "id": str(i),
            "image": picture,
            "mask": picture,
            "lung": picture + i,
            "lung_known": i % 2 == 1,
        }
        for i in range(4)
    ]
    target = LungTarget(made)
    assert [e["id"] for e in (target[i] for i in range(len(target)))] == ["1", "3"]
    assert target[1]["lung"].max() == 3 and target[1]["mask"].max() == 1
    made[3]["lung"] = np.uint8([[1, 0], [0, 0]])[..., None]
    made[3]["mask"] = np.uint8([[2, 1], [0, 0]])[..., None]
    assert target[1]["mask"][..., 0].tolist() == [[1, 1], [0, 0]]  # lesions count as lung
    for none in ([], made[:1], [{"id": "a", "image": picture, "mask": picture}]):
        with pytest.raises(ValueError, match="no lung masks"):
            LungTarget(none)


@pytest.mark.parametrize("preset", lung.PRESETS)
def test_presets_find_lungs_with_the_network_of_supervised(preset, tmp_path):
    config = lung.get_config(preset)
    like = preset if preset in ("tiny", "lite") else "demo"
    assert config.model == supervised.get_config(like).model
    plan = resolve(config, tmp_path)
    assert plan.final.classes == ("lung",) and plan.prior is None
    assert ("cross_validation" in config.stages) == (preset in ("folders", "lite"))
    with pytest.raises(ValueError, match="choose demo, folders, lite, tiny"):
        lung.get_config("semiseg")


@pytest.fixture(scope="module")
def lung_run(phantom, tmp_path_factory):
    """The workdir of a tiny run of lungs."""
    config = lung.get_config("tiny")
    config.segment.update(size=32, steps=2, eval_every=2)
    config.model.update(decoder="unet", trunk="plain", width=2)
    config.evaluate.tta = False
    workdir = tmp_path_factory.mktemp("lungs") / "run"
    run(config, workdir=workdir, dataset=phantom, name="lung:tiny", command="")
    return workdir


@pytest.mark.slow
def test_a_run_of_lungs_is_scored_on_lungs(lung_run, phantom):
    result = json.loads((lung_run / "evaluation.json").read_text())
    assert list(result["classes"]) == ["lung"]
    floor = result["classes"]["lung"]["floors"]["all_positive"]["toolbox"]["mean"]["dice"]
    area = [(e["lung"] > 0).mean() for e in examples(open_split(phantom, "test"))]
    assert floor == pytest.approx(np.mean([2 * a / (1 + a) for a in area]), abs=0.01)


@pytest.mark.slow
def test_a_run_of_lungs_is_refused_for_lesions_and_serves_for_lungs(lung_run):
    with pytest.raises(ValueError, match="that run finds lung; it is for --lungs"):
        Predictor.load(lung_run)
    network = Predictor.load(lung_run, lungs=True)
    (found,) = network([chest()])
    assert found.probs.shape == (96, 96, 1)
    finder, name = verbs.choose_lungs(str(lung_run))
    assert name.startswith("network, run run, weights ") and callable(finder)
    with pytest.raises(ValueError, match="--lungs nowhere: give morphology"):
        verbs.choose_lungs("nowhere")

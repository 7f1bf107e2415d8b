"""Lungs from a network: the target, its config, the run, and the choice in predict."""

import json

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import tfds_builders
from configs import common, lung, supervised
from infnet_jax import tasks
from infnet_jax.clinic import imaging, lung_network, lungs
from infnet_jax.data.batches import Batches
from infnet_jax.data.sources import LungTarget, decode, examples, open_split
from infnet_jax.evaluation import networks
from infnet_jax.evaluation.predictor import Predictor
from infnet_jax.training import run as train
from infnet_jax.verbs import lungs as find_lungs
from tests.scans import chest


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("tfds"))


def test_the_target_is_the_lung_and_the_lesion_is_kept(dataset):
    plain = list(examples(open_split(dataset, "test")))
    source = open_split(dataset, "test", "lung")
    assert len(source) == len(plain)
    for i, (e, before) in enumerate(zip(examples(source), plain, strict=True)):
        np.testing.assert_array_equal(e["mask"], before["lung"])  # there it holds all lesions
        np.testing.assert_array_equal(decode(source[i], "lesion"), before["mask"])
    batch = Batches([source], batch_size=2, size=64, seed=0)[0]
    assert batch["mask"].mean() > 0.1
    with pytest.raises(ValueError, match="data.target='lungs': choose infection or lung"):
        open_split(dataset, "test", "lungs")


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
def test_presets_find_lungs_with_the_network_of_supervised(preset):
    config = lung.get_config(preset)
    assert tasks.target(config) == "lung" and networks.classes(config) == {"lung": None}
    like = preset if preset in ("tiny", "lite") else "demo"
    assert config.model == supervised.get_config(like).model
    assert tasks.make("segment", config, (0.4, 0.2), 5).total_steps == config.segment.steps
    assert ("prior" in config.stages) == (preset in ("folders", "lite"))


def test_configs_of_lesions_are_as_they_were():
    """A new key would part old workdirs from their configs."""
    config = common.get_base()
    assert "target" not in config.data and tasks.target(config) == "mask"
    assert networks.classes(config) == {"infection": None}
    with pytest.raises(ValueError, match="choose demo, folders, lite, tiny"):
        lung.get_config("semiseg")


def test_a_part_under_no_lung_is_dropped_and_a_narrowing_lung_is_not():
    found = np.zeros((5, 60, 60), bool)
    for i, half in enumerate((8, 12, 20, 14, 6)):  # the lung, largest in the middle
        found[i, 30 - half : 30 + half, 10:30] = True
    right = found.copy()
    found[3, 30:36, 30:46] = True  # hangs together with the lung: part of it
    right[3, 30:36, 30:46] = True
    found[4, 40:50, 12:40] = True  # under the lung of slice 3 with less than 0.4 of it
    found[0, 20:22, 40:50] = True  # above the apex, under nothing
    found[4, 30:33, 34:44] = right[4, 30:33, 34:44] = True  # a second strip under the lung: kept
    np.testing.assert_array_equal(lungs._without_newcomers(found), right)
    # Much gas below makes its slice the largest, and not the one to start from.
    found, right = np.zeros((2, 3, 60, 60), bool)
    found[:, 10:40, 5:20] = found[:2, 10:40, 25:40] = found[2, 15:35, 25:40] = True
    right[:] = found
    found[2, 42:52, 5:25] = True
    found[2, 42:52, 30:40] = True
    np.testing.assert_array_equal(lungs._without_newcomers(found), right)


def test_each_lung_is_closed_by_itself():
    y, x = np.mgrid[:120, :200]
    both = [((y - 60) / 40) ** 2 + ((x - c) / 30) ** 2 < 1 for c in (50, 130)]
    whole = both[0] | both[1]
    notch = (np.abs(y - 60) < 3) & (x < 32)  # a dense lesion at the outer wall of one lung
    closed = lung_network._close_each(whole & ~notch)
    lost = whole & notch & ~closed
    assert lost.sum() < 0.15 * (whole & notch).sum() and (whole & ~notch <= closed).all()
    assert (closed & ~whole).sum() < 0.01 * whole.sum()  # 20 pixels between them stay free
    dome = (np.abs(y - 60) < 6) & (x < 40)  # 8 % of the lung
    assert not (lung_network._close_each(whole & ~dome) & dome)[60].any()
    assert not lung_network._close_each(np.zeros((9, 9), bool)).any()
    one = np.zeros((9, 9), bool)
    one[4, 4] = True
    np.testing.assert_array_equal(lung_network._close_each(one), one)


def test_a_second_pass_sees_the_lungs_larger():
    """The first pass marks a square; in its crop the network then marks the left half only."""
    shapes = []

    def run(pictures):
        for picture in pictures:
            shapes.append(picture.shape)
            prob = np.zeros(picture.shape, np.float32)
            if picture.shape == (100, 80):
                prob[40:61, 20:61] = 1
            else:
                assert picture.max() == 9 and picture[1, 2] == 9  # the crop is where the lung is
                prob[:, : prob.shape[1] // 2] = 1
            yield prob

    picture = np.zeros((100, 80), np.uint8)
    picture[40:61, 20:61] = 9
    found = lung_network.find(run, [picture, picture], 0.5)
    assert shapes == [(100, 80)] * 2 + [(23, 45)] * 2  # 5 % of 20 and of 40 on either side
    where = np.argwhere(found)
    assert where.min(0).tolist() == [0, 39, 18] and where.max(0).tolist() == [1, 61, 39]
    nothing = lung_network.find(lambda ps: [np.float32(0 * p) for p in ps], [picture], 0.5)
    assert nothing.shape == (1, 100, 80) and not nothing.any()


def test_tidy_drops_specks_fills_holes_and_drops_islands():
    found = np.zeros((3, 80, 80), bool)
    found[:, 10:60, 10:30] = found[:, 10:60, 45:65] = True
    right = found.copy()
    found[:, 30:33, 20:23] = False  # a vessel
    found[1, 70:72, 70:72] = True  # a speck
    found[2, 68:78, 5:15] = True  # large in its slice, nothing beside a lung: bowel
    np.testing.assert_array_equal(lung_network.tidy(found), right)
    assert not lung_network.tidy(np.zeros((2, 8, 8), bool)).any()


class Small(nn.Module):
    """One convolution in place of Inf-Net, which takes a minute to compile."""

    @nn.compact
    def __call__(self, x, *, train):
        self.variable("batch_stats", "none", jnp.zeros, (1,))
        logits = nn.Conv(1, (3, 3))(x)
        return dict.fromkeys(("coarse", "s32", "s16", "s8", "edge"), logits)


def test_a_run_of_lungs_and_what_it_is_good_for(dataset, monkeypatch, tmp_path):
    """A run that is refused as lesions, and serves as lungs."""
    monkeypatch.setattr(tasks, "make_net", lambda config: Small())
    config = lung.get_config("tiny")
    config.segment.update(size=32, steps=2, eval_every=2)
    config.evaluate.tta = False
    train.run(config, workdir=tmp_path / "run", dataset=dataset, name="lung:tiny", command="")
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert list(result["classes"]) == ["lung"]
    floor = result["classes"]["lung"]["floors"]["all_positive"]["toolbox"]["mean"]["dice"]
    area = [(e["lung"] > 0).mean() for e in examples(open_split(dataset, "test"))]
    assert floor == pytest.approx(np.mean([2 * a / (1 + a) for a in area]), abs=0.01)
    with pytest.raises(ValueError, match="finds lung; it is for --lungs"):
        Predictor(tmp_path / "run")
    finder, name = find_lungs.choose(str(tmp_path / "run"))
    assert name.startswith("network, run run, weights ")
    cv2.imwrite(str(tmp_path / "a.png"), chest())
    scan = imaging.read(imaging.find([tmp_path / "a.png"])[0])
    found = finder(scan)
    assert found.shape == (1, 96, 96) and found.dtype == bool
    lesions = supervised.get_config("tiny")
    (tmp_path / "run" / "config.json").write_text(lesions.to_json())
    with pytest.raises(ValueError, match="finds infection; give a run of configs/lung.py"):
        find_lungs.choose(str(tmp_path / "run"))

"""Test-time averaging, and the table and pictures that a run leaves."""

import json
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from configs import multi as multi_config, supervised
from infnet_jax import tasks
from infnet_jax.evaluation import (
    networks,
    test_split as predict_stage,
    thresholds as thresholds_lib,
)
from infnet_jax.tasks import normalise, segment
from infnet_jax.tasks.supervised import average_views


class Ramp:
    """A stand-in for a network that no flip or turn leaves alone: the input times a ramp."""

    output = "s8"

    def apply(self, variables, view, train):
        side = view.shape[1]
        ramp = jnp.arange(side * side, dtype=jnp.float32).reshape(1, side, side, 1) / side
        return {"edge": view, self.output: variables["scale"] * view * ramp}


NORM = normalise.Norm(mean=(0.0,), sd=(1.0,), input_sd=(1.0,))
IMAGE = np.random.default_rng(0).integers(0, 255, (2, 6, 6, 1), np.uint8)


def predict(image, tta):
    return np.asarray(segment.predict(Ramp(), {"scale": 0.5}, jnp.asarray(image), NORM, tta=tta))


def test_a_unet_is_read_by_its_one_map(monkeypatch):
    expected = predict(IMAGE, True)
    monkeypatch.setattr(Ramp, "output", "logits")
    np.testing.assert_array_equal(predict(IMAGE, True), expected)


def test_averaging_is_the_mean_over_the_eight_views_turned_back():
    total = np.zeros((2, 6, 6, 1))
    for flip in (1, -1):
        for k in range(4):
            view = np.rot90(IMAGE[:, :, ::flip], k, axes=(1, 2))
            total += np.rot90(predict(view, False), -k, axes=(1, 2))[:, :, ::flip]
    np.testing.assert_allclose(predict(IMAGE, True), total / 8, rtol=1e-5)


def test_averaged_map_turns_with_its_slice_and_a_single_pass_does_not():
    turned = np.rot90(IMAGE, 1, axes=(1, 2))
    back = np.rot90(predict(turned, True), -1, axes=(1, 2))
    np.testing.assert_allclose(back, predict(IMAGE, True), rtol=1e-5)
    single = np.rot90(predict(turned, False), -1, axes=(1, 2))
    assert np.abs(single - predict(IMAGE, False)).max() > 0.01


@pytest.mark.parametrize("tta", [False, True])
def test_sizes_are_averaged_where_they_belong(tta):
    """A ramp comes back as itself from each size; what tells the side apart has mean and spread."""
    ramp = jnp.linspace(0.0, 1.0, 64).reshape(1, 1, 64, 1) * jnp.ones((1, 64, 1, 1))
    mean, spread = average_views(lambda view: view, ramp, tta, (0.5, 1.0, 1.5))
    np.testing.assert_allclose(mean, ramp, atol=1e-5)
    np.testing.assert_allclose(spread, 0.0, atol=1e-3)
    sides = lambda view: jnp.full(view.shape, view.shape[1], jnp.float32)  # noqa: E731
    mean, spread = average_views(sides, ramp, tta, (0.5, 1.0, 1.5))
    np.testing.assert_allclose(mean, 64.0, rtol=1e-6)
    np.testing.assert_allclose(spread, np.std([32, 64, 96]), rtol=1e-5)


def test_the_threshold_is_the_one_with_the_best_dice_on_held_out_slices(tmp_path):
    """Lesion at 0.8 and 0.3, rest at 0.6 and 0.1: cutting below 0.3 or above 0.6 decides."""
    truth = np.zeros((4, 4, 1), np.uint8)
    truth[:2] = 1
    prob = np.full((4, 4), 0.1, np.float32)
    prob[:2], prob[1, 0], prob[3, 3] = 0.8, 0.3, 0.6
    config = supervised.get_config("tiny")
    held_out = [{"mask": truth, "image": truth, "id": "a"}]
    unseen = thresholds_lib.Unseen(held_out, [prob])
    choose = partial(thresholds_lib.choose, config, workdir=tmp_path, unseen=unseen)
    found = choose()
    # All 8 and 1 false below 0.3: 16 / 17; above 0.6 one is missed: 14 / 15.
    assert found == {"infection": 0.3}  # .15 to .3 are equal: the nearest to 0.5
    assert json.loads((tmp_path / "thresholds.json").read_text()) == found
    prob[1, 0] = 0.55
    prob[3, 2:] = 0.5  # now cutting at 0.5 costs two more
    assert choose() == {"infection": 0.55}


def test_a_pixel_gets_the_class_that_exceeds_its_threshold_most():
    thresholds = {"ggo": 0.1, "consolidation": 0.4}
    probs = np.float32(
        [
            [0.95, 0.04, 0.01],  # none
            [0.80, 0.15, 0.05],  # ground glass alone
            [0.40, 0.12, 0.48],  # both, equally: the first
            [0.30, 0.10, 0.60],  # consolidation, 1.5 against 1
            [0.20, 0.30, 0.50],  # ground glass, 3 against 1.25
            [0.75, 0.10, 0.15],  # exactly at the threshold counts
        ]
    )[None]
    np.testing.assert_array_equal(networks.mark(probs, thresholds), [[0, 1, 1, 2, 1, 1]])
    halves = dict.fromkeys(thresholds, 0.5)
    np.testing.assert_array_equal(networks.mark(probs, halves), [[0, 0, 0, 2, 2, 0]])
    found = networks.mark(np.float32([[0.2, 0.7]]), {"infection": 0.7})
    assert found.dtype == np.uint8 and found.tolist() == [[0, 1]]


def test_thresholds_of_two_classes_are_chosen_together(tmp_path):
    """Ground glass is known at .3 only; consolidation is right at .8 and spills over at .4."""
    config = multi_config.get_config("tiny")
    truth = np.zeros((4, 4, 1), np.uint8)
    truth[:2], truth[2] = 1, 2
    probs = np.zeros((4, 4, 3), np.float32)
    probs[:2, :, 1], probs[:2, :, 2] = 0.3, 0.4
    probs[2, :, 2], probs[3, :, 1] = 0.8, 0.1
    unseen = thresholds_lib.Unseen([{"mask": truth, "image": truth, "id": "a"}], [probs])
    found = thresholds_lib.choose(config, workdir=tmp_path, unseen=unseen)
    np.testing.assert_array_equal(networks.mark(probs, found), truth[..., 0])
    assert found == {"ggo": 0.3, "consolidation": 0.5}


def test_a_class_alone_is_cut_where_its_own_map_is_best():
    """Ground glass is at .3 among pixels that say .6 of consolidation too."""
    config = multi_config.get_config("tiny")
    truth = np.zeros((4, 4, 1), np.uint8)
    truth[:2], truth[2] = 1, 2
    probs = np.zeros((4, 4, 3), np.float32)
    probs[:2, :, 1], probs[1, :, 2] = 0.3, 0.6
    probs[2, :, 2], probs[3, 0, 2], probs[3, :, 1] = 0.6, 0.35, 0.15
    unseen = thresholds_lib.Unseen([{"mask": truth, "image": truth, "id": "a"}], [probs])
    found = thresholds_lib.choose_alone(config, unseen)
    assert found["ggo"] == (0.3, 1.0)  # a mask would have to part with four of its eight pixels
    # Four of eight marked: 8 / 12; from .4 on, since .35 marks one more: 8 / 13.
    assert found["consolidation"] == (0.5, pytest.approx(8 / 12))
    alone = supervised.get_config("tiny")
    one = thresholds_lib.Unseen([{"mask": truth, "image": truth, "id": "a"}], [probs[..., 1]])
    assert thresholds_lib.choose_alone(alone, one)["infection"] == (0.3, pytest.approx(16 / 20))


def test_a_class_alone_is_cut_as_the_toolbox_scores_it():
    """All 8 pixels at .3, 4 at .7; a healthy slice, a pixel of it at .45, scores 0 anyway."""
    truth = np.zeros((4, 4, 1), np.uint8)
    truth[:2] = 1
    sick, healthy = np.zeros((2, 4, 4), np.float32)
    sick[0], sick[1], healthy[0, 0] = 0.7, 0.3, 0.45
    cases = [{"mask": m, "image": m, "id": "a"} for m in (truth, np.zeros_like(truth))]
    unseen = thresholds_lib.Unseen(cases, [sick, healthy])
    # Toolbox (1 + 0) / 2 against (8 / 12 + 0) / 2; empty-aware it would be 1 / 2 against 8 / 12.
    found = thresholds_lib.choose_alone(supervised.get_config("tiny"), unseen)
    assert found["infection"] == (0.3, pytest.approx(1 / 2))


def test_losses_of_a_slice_by_hand(monkeypatch):
    """Logits of 0 everywhere: every probability is one half."""

    class Flat:
        def apply(self, variables, x, train):
            logits = jnp.zeros((*x.shape[:3], 1))
            return dict.fromkeys((*segment.MAPS, "edge"), logits)

    config = supervised.get_config("tiny")
    config.segment.size = 32
    mask = np.ones((32, 32, 1), np.uint8)
    test = [{"image": mask, "mask": m * mask, "id": "a"} for m in (0, 1)]
    monkeypatch.setattr(networks, "load_weights", lambda folder, part: {})
    monkeypatch.setattr(tasks, "make_net", lambda config: Flat())
    found = predict_stage.losses(config, workdir=Path(), test=test, statistics=(0.4, 0.2))
    # Cross-entropy ln 2; IoU of an empty slice 1 / (n / 2 + 1), n pixels.
    empty = np.log(2) + 1 - 1 / (32 * 32 / 2 + 1)
    assert found["s8"][0] == pytest.approx(empty, abs=2e-5)
    assert found["edge"] == pytest.approx([np.log(2)] * 2, abs=2e-5)
    for i in range(2):
        total = sum(found[name][i] for name in (*segment.MAPS, "edge"))
        assert found["total"][i] == pytest.approx(total, rel=1e-6)
    assert found["distance"] == [0.0, 1.0]


def test_losses_of_three_classes_by_hand(monkeypatch):
    class Flat:
        def apply(self, variables, x, train):
            assert x.shape[-1] == 2  # slice and prior
            return {"logits": jnp.zeros((*x.shape[:3], 3))}

    config = multi_config.get_config("tiny")
    config.multi.size = 32
    mask = np.full((32, 32, 1), 2, np.uint8)
    test = [{"image": mask, "mask": mask, "prior": mask, "id": "a"}]
    monkeypatch.setattr(networks, "load_weights", lambda folder, part: {})
    monkeypatch.setattr(tasks, "make_multi_net", lambda config: Flat())
    found = predict_stage.losses(config, workdir=Path(), test=test, statistics=(0.4, 0.2))
    assert found["entropy"] == pytest.approx([np.log(3)], abs=2e-5)
    assert found["total"][0] == pytest.approx(found["entropy"][0] + found["dice"][0])
    assert found["distance"] == pytest.approx([1 / 3])

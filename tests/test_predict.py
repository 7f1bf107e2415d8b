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
    metrics,
    networks,
    run_figures,
    summary as present,
    test_split as predict_stage,
    thresholds as thresholds_lib,
)
from infnet_jax.evaluation.metrics import floors
from infnet_jax.tasks import segment


def test_result_table_holds_the_model_in_both_readings_and_the_floors():
    truth = np.zeros((4, 4), bool)
    truth[:2] = True  # 8 of 16 pixels
    prob = np.where(truth, 0.9, 0.1).astype(np.float32)
    prob[3, 3] = 0.8  # one false positive: Dice at 0.5 is 16 / 17
    records = [metrics.toolbox(prob, truth)]
    result = {r: metrics.summarise(records, r) for r in ("toolbox", "empty_aware")}
    masks = [metrics.toolbox((prob >= 0.85).astype(np.float32), truth)]
    masks = {r: metrics.summarise(masks, r) for r in ("toolbox", "empty_aware")}
    floor = floors([truth], [truth])
    result = {"classes": {"infection": {**result, "masks": masks, "floors": floor}}}
    lines = present.result_table(json.loads(json.dumps(result))).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "model, toolbox reading",
        "model, empty-aware reading",
        "its masks, toolbox reading",
        "its masks, empty-aware reading",
        "floor: all positive",
        "floor: mean training mask",
    ]
    assert lines[2].split("|")[3].strip() == f"{16 / 17:.3f}"
    assert lines[4].split("|")[3].strip() == "1.000"  # the false positive is below .85
    assert lines[6].split("|")[3].strip() == f"{2 * 8 / 24:.3f}"  # all positive: 2 * 8 / (8 + 16)
    assert lines[7].split("|")[3].strip() == "1.000"  # the training mask is the truth here
    two = {"classes": {n: result["classes"]["infection"] for n in ("ggo", "consolidation")}}
    lines = present.result_table(json.loads(json.dumps(two))).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2::6]] == [
        "ggo, model, toolbox reading",
        "consolidation, model, toolbox reading",
    ]


def test_pretraining_table_compares_coach_and_random_masks(tmp_path):
    stage = tmp_path / "pretrain"
    (stage / "panels").mkdir(parents=True)
    rows = [
        {
            "step": 4,
            "rec_coach": 0.9,
            "rec_random": 0.9,
            "harder_share": 0.5,
            "mask_difference": 0.0,
        },
        {
            "step": 8,
            "rec_coach": 0.3,
            "rec_random": 0.2,
            "harder_share": 0.75,
            "mask_difference": 0.125,
        },
    ]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pictures, tables = run_figures.pretrain(tmp_path, "pretrain")
    assert "| ratio | 1.50 |" in tables[0][1]  # of the last evaluation, not the first
    assert "| 0.125 |" in tables[0][1] and "| 0.75 |" in tables[0][1]
    assert [path.name for path, _ in pictures] == ["pretrain_curves.png"]
    assert (tmp_path / "figures" / "pretrain_curves.png").stat().st_size > 5000


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

"""Thresholds chosen on out-of-fold slices, and lungs beside the true ones, counted by hand."""

import cv2
import numpy as np
import pytest

from infnet_jax.clinic import lungs
from infnet_jax.data import decode, text
from infnet_jax.data.sources import open_split
from infnet_jax.evaluation import out_of_fold
from infnet_jax.evaluation.out_of_fold import OutOfFold, choose, choose_alone, cross_validated
from infnet_jax.evaluation.predictor import mark
from tests.drawn import cells_of

LESIONS = ("ggo", "consolidation")


def slices(*pairs, classes=LESIONS):
    """Of (truth [H, W], map) pairs."""
    truths = [np.asarray(truth, np.uint8)[..., None] for truth, _ in pairs]
    cases = [{"mask": truth, "image": truth, "id": "a"} for truth in truths]
    maps = [probs if probs.ndim == 3 else probs[..., None] for _, probs in pairs]
    return OutOfFold(cases, maps, classes)


@pytest.fixture
def two():
    """Truth: rows 0 and 1 ground glass, row 2 consolidation; and a map of zeros."""
    truth = np.zeros((4, 4))
    truth[:2], truth[2] = 1, 2
    return truth, np.zeros((4, 4, 3), np.float32)


def test_the_threshold_is_the_one_with_the_best_dice():
    """Lesion at 0.8 and 0.3, rest at 0.6 and 0.1: cutting below 0.3 or above 0.6 decides."""
    truth = np.zeros((4, 4))
    truth[:2] = 1
    prob = np.full((4, 4), 0.1, np.float32)
    prob[:2], prob[1, 0], prob[3, 3] = 0.8, 0.3, 0.6
    unseen = slices((truth, prob), classes=("infection",))
    # All 8 and 1 false below 0.3: 16 / 17; above 0.6 one is missed: 14 / 15.
    assert choose(unseen) == {"infection": 0.3}  # .15 to .3 are equal: the nearest to 0.5
    assert cross_validated(unseen, {"infection": 0.3}) == {"infection": pytest.approx(16 / 17)}
    prob[1, 0] = 0.55
    prob[3, 2:] = 0.5  # now cutting at 0.5 costs two more
    assert choose(unseen) == {"infection": 0.55}


def test_thresholds_of_two_classes_are_chosen_together(two):
    """Ground glass is known at .3 only; consolidation is right at .8 and spills over at .4."""
    truth, probs = two
    probs[:2, :, 1], probs[:2, :, 2] = 0.3, 0.4
    probs[2, :, 2], probs[3, :, 1] = 0.8, 0.1
    found = choose(slices((truth, probs)))
    np.testing.assert_array_equal(mark(probs, found), truth)
    assert found == {"ggo": 0.3, "consolidation": 0.5}


def test_a_class_alone_is_cut_where_its_own_map_is_best(two):
    """Ground glass is at .3 among pixels that say .6 of consolidation too."""
    truth, probs = two
    probs[:2, :, 1], probs[1, :, 2] = 0.3, 0.6
    probs[2, :, 2], probs[3, 0, 2], probs[3, :, 1] = 0.6, 0.35, 0.15
    found = choose_alone(slices((truth, probs)))
    assert found["ggo"] == (0.3, 1.0)  # a mask would have to part with four of its eight pixels
    # Four of eight marked: 8 / 12; from .4 on, since .35 marks one more: 8 / 13.
    assert found["consolidation"] == (0.5, pytest.approx(8 / 12))
    alone = choose_alone(slices((truth, probs[..., 1]), classes=("infection",)))
    assert alone["infection"] == (0.3, pytest.approx(16 / 20))


def test_a_class_alone_is_cut_as_the_toolbox_scores_it():
    """All 8 pixels at .3, 4 at .7; a healthy slice, a pixel of it at .45, scores 0 anyway."""
    truth = np.zeros((4, 4))
    truth[:2] = 1
    sick, healthy = np.zeros((2, 4, 4), np.float32)
    sick[0], sick[1], healthy[0, 0] = 0.7, 0.3, 0.45
    unseen = slices((truth, sick), (np.zeros((4, 4)), healthy), classes=("infection",))
    # Toolbox (1 + 0) / 2 against (8 / 12 + 0) / 2; empty-aware it would be 1 / 2 against 8 / 12.
    assert choose_alone(unseen)["infection"] == (0.3, pytest.approx(1 / 2))


def test_how_much_of_the_lesions_is_kept(phantom, monkeypatch, tmp_path):
    source = open_split(phantom, "train", "lung")
    known = {decode(source[i], "image").tobytes(): i for i in range(len(source))}
    right = {}

    def run(examples):
        """Finds the left lung, and nothing in a crop, which is not to be asked for."""
        maps = []
        for e in examples:
            i = known[e["image"].tobytes()]
            found = decode(source[i], "lung")[..., 0] > 0
            found[:, :32] = False  # the right lung is missed
            lesion = decode(source[i], "lesion")[..., 0] > 0
            if lesion.any():
                right[text(source[i]["id"])] = (lesion & found).sum() / lesion.sum()
            maps.append(found.astype(np.float32))
        return maps

    # So much room that the second pass would see the whole picture, and is left out.
    monkeypatch.setattr(lungs, "ROOM", 9.0)
    rows = out_of_fold.measure_lungs(source, run, 0.5, tmp_path)
    assert len(rows) == len(source)
    kept = {name: row["kept"] for name, row in rows.items() if row["kept"] is not None}
    assert kept == pytest.approx(right, abs=0.02) and 0.2 < np.mean(list(right.values())) < 0.8
    assert 0.5 < out_of_fold.summarise_lungs(rows)["parts"]["all"]["dice"] < 0.8
    for name, row in rows.items():
        picture = cv2.imread(str(tmp_path / f"{name}.png"), -1)
        assert picture.any() == bool(row["dice"]) and not picture[:, :32].any()


def volume(gas=False):
    """Three slices of a volume: examples, and a map of lung at .6 with four lesion pixels at .4."""
    lung = np.zeros((40, 40, 1), np.uint8)
    lung[5:35, 2:15] = lung[5:35, 25:38] = 1
    lesion = np.zeros_like(lung)
    lesion[5:15, 5:15] = 1
    made, maps = [], {}
    for i in (10, 9, 11):
        found = lung[..., 0].astype(np.float32) * 0.6
        found[5:7, 5:7] = 0.4
        if i == 11 and gas:
            found[5:10, 18:22] = 0.9
        image = np.full_like(lung, i)
        maps[i] = found
        masks = {"lung": lung, "lesion": lesion}
        made.append({"id": f"set/z{i}".encode(), "image": image, "volume": b"v", **masks})

    def run(examples):
        assert len({e["image"].shape for e in examples}) == 1
        if examples[0]["image"].shape == lung.shape:
            return [maps[int(e["image"][0, 0, 0])] for e in examples]
        return [maps[int(e["image"][0, 0, 0])][4:36, 1:39] for e in examples]

    return made, run


def test_lungs_of_a_volume_are_tidied_together(monkeypatch, tmp_path):
    """Gas below the lungs hangs together with none of them, so it goes, in a volume only."""
    monkeypatch.setattr(lungs, "ROOM", 9.0)  # one pass
    monkeypatch.setattr(lungs, "CLOSING_EACH", 0.0)
    made, run = volume(gas=True)
    n = 780  # pixels of both lungs, of which four are missed: a corner
    rows = out_of_fold.measure_lungs(made, run, 0.5, tmp_path)
    assert rows["set/z9"] == pytest.approx({"dice": 2 * (n - 4) / (2 * n - 4), "kept": 0.96})
    assert rows["set/z11"]["dice"] == pytest.approx(2 * (n - 4) / (2 * n - 4))
    part = out_of_fold.summarise_lungs(rows)["parts"]["set"]
    assert part["kept_slices"] == 0 and part["infected"] == part["slices"] == 3
    for e in made:
        del e["volume"]
    alone = out_of_fold.measure_lungs(made, run, 0.5, tmp_path)
    assert alone["set/z11"]["dice"] == pytest.approx(2 * (n - 4) / (2 * n - 4 + 20))
    dice = pytest.approx((2 + 2 * n / (2 * n + 20)) / 3)
    whole = {"slices": 3, "dice": dice, "infected": 3, "kept": 1.0, "kept_slices": 1.0}
    rows = out_of_fold.measure_lungs(made, run, 0.3, tmp_path)
    assert out_of_fold.summarise_lungs(rows)["parts"]["set"] == whole


def test_lung_table():
    row = {"slices": 3, "dice": 0.98, "infected": 0, "kept": None, "kept_slices": None}
    head, _, cells = cells_of(out_of_fold.lung_table({"parts": {"all": row}}))
    assert head[2] == "Dice, mean over slices" and cells == ["all", "3", "0.980", "0", "", ""]

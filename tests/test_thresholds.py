"""Thresholds are chosen on out-of-fold slices: each choice by hand."""

import numpy as np
import pytest

from infnet_jax.evaluation.predictor import mark
from infnet_jax.evaluation.thresholds import OutOfFold, choose, choose_alone, cross_validated

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

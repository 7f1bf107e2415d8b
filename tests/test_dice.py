"""Dice by hand, with each reading of two empty masks."""

import numpy as np
import pytest

from infnet_jax.dice import defined_mean, dice, dice_of_counts

A = np.array([[1, 1, 0, 0]], bool)
B = np.array([[0, 1, 1, 0]], bool)
NONE = np.zeros((1, 4), bool)


def test_by_hand():
    assert dice(A, B) == 0.5
    assert dice(A, NONE) == 0.0
    np.testing.assert_array_equal(dice_of_counts([1, 2], [4, 4]), [0.5, 1.0])


@pytest.mark.parametrize("empty", [0.0, 1.0])
def test_two_empty_masks_have_the_value_asked_for(empty):
    assert dice(NONE, NONE, empty=empty) == empty
    assert np.isnan(dice(NONE, NONE))


def test_one_value_a_slice_and_the_mean_of_defined_ones():
    values = dice(np.stack([A, NONE, A]), np.stack([B, NONE, A]), axis=(1, 2))
    np.testing.assert_array_equal(values, [0.5, np.nan, 1.0])
    assert defined_mean(values) == 0.75
    assert np.isnan(defined_mean([np.nan]))


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="equal"):
        dice(A, B[:, :2])

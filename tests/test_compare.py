"""Intervals, signed ranks and Holm's correction against numbers made by hand."""

import numpy as np
import pytest

from infnet_jax.evaluation import compare

NAN = float("nan")


def one_class(rows):
    return np.array(rows, float)[..., None]


def test_mean_leaves_undefined_values_out_and_averages_classes():
    ggo = [[0.2, 0.4], [0.6, NAN]]  # 0.4
    consolidation = [[NAN, NAN], [NAN, 0.9]]  # 0.9
    assert compare.mean(np.stack([ggo, consolidation], -1)) == pytest.approx(0.65)
    assert compare.mean(one_class([[0.2, 0.4], [0.6, NAN]])) == pytest.approx(0.4)
    assert np.isnan(compare.mean(one_class([[NAN, NAN]])))


def test_means_of_a_slice():
    values = np.stack([[[0.2, NAN], [0.4, NAN]], [[0.6, NAN], [NAN, NAN]]], -1)
    np.testing.assert_allclose(compare.per_slice(values), [0.4, NAN])


def test_interval_over_slices_by_hand():
    """Of two slices 0 and 1, a draw is 0, 1/2 or 1 with chance 1/4, 1/2, 1/4."""
    values = one_class([[0.0, 1.0]])
    assert compare.interval(values) == (0.0, 1.0)
    assert compare.interval(values, level=0.4) == (0.5, 0.5)
    assert compare.interval(one_class([[0.3, 0.3, NAN]])) == pytest.approx((0.3, 0.3))
    assert all(np.isnan(compare.interval(one_class([[NAN]]))))


def test_interval_draws_seeds_too():
    """Slices alike, seeds apart: all the spread is that of two seeds."""
    values = one_class([[0.0] * 50, [1.0] * 50])
    assert compare.interval(values) == (0.0, 1.0)
    assert compare.interval(values, level=0.4) == (0.5, 0.5)


def test_interval_covers_the_mean_of_a_normal_sample():
    rng = np.random.default_rng(3)
    values = rng.normal(0.7, 0.1, (1, 400, 1))
    low, high = compare.interval(values)
    assert low < compare.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
    assert compare.interval(values) == (low, high) != compare.interval(values, seed=1)


def test_signed_ranks_by_hand():
    ours, theirs = np.array([0.5, 0.6, 0.7, 0.8, 0.95]), np.array([0.4, 0.4, 0.4, 0.4, 0.4])
    assert compare.wilcoxon(ours, theirs) == pytest.approx(2 / 2**5)  # all five up: 1 of 32 signs
    theirs[0] = 0.6  # the smallest difference points down: rank sums 1 and 14, 2 of 32 signs
    theirs[1] = 0.45
    assert compare.wilcoxon(ours, theirs) == pytest.approx(2 * 2 / 2**5)
    assert compare.wilcoxon(np.append(ours, NAN), np.append(theirs, 0.1)) == pytest.approx(4 / 32)
    assert compare.wilcoxon(ours, ours) == 1.0
    assert np.isnan(compare.wilcoxon(np.array([NAN]), np.array([0.5])))


def test_holm_by_hand():
    assert compare.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert compare.holm([0.5, 0.9]) == [1.0, 1.0]
    got = compare.holm([0.02, NAN, 0.03])  # a family of two
    assert got[::2] == pytest.approx([0.04, 0.04]) and np.isnan(got[1])
    assert compare.holm([]) == []

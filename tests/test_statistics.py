"""Intervals, tests, ROC curves and agreement against numbers worked out by hand."""

import numpy as np
import pytest

from infnet_jax.evaluation import statistics

NAN = float("nan")


def one_class(rows):
    return np.array(rows, float)[..., None]


def test_mean_leaves_undefined_values_out_and_averages_classes():
    ggo = [[0.2, 0.4], [0.6, NAN]]  # 0.4
    consolidation = [[NAN, NAN], [NAN, 0.9]]  # 0.9
    assert statistics.mean(np.stack([ggo, consolidation], -1)) == pytest.approx(0.65)
    assert statistics.mean(one_class([[0.2, 0.4], [0.6, NAN]])) == pytest.approx(0.4)
    assert np.isnan(statistics.mean(one_class([[NAN, NAN]])))


def test_means_of_a_slice():
    values = np.stack([[[0.2, NAN], [0.4, NAN]], [[0.6, NAN], [NAN, NAN]]], -1)
    np.testing.assert_allclose(statistics.per_slice(values), [0.4, NAN])


def test_interval_over_slices_by_hand():
    """Of four slices one is 1: a draw's mean is k / 4, k binomial with chance 1/4.

    P(k = 0) = 0.32, P(k <= 2) = 0.949 and P(k <= 3) = 0.996.
    """
    values = [0.0, 1.0, 0.0, 0.0]
    assert statistics.interval(one_class([values])) == (0.0, 0.75)
    assert statistics.bootstrap_interval(values) == (0.0, 0.75)
    assert statistics.bootstrap_interval([*values, NAN]) == (0.0, 0.75)  # only defined ones drawn
    for values, value in (([0.3, 0.3, NAN], 0.3), ([NAN], NAN)):
        same = pytest.approx((value, value), nan_ok=True)
        assert statistics.interval(one_class([values])) == same
        assert statistics.bootstrap_interval(values) == same


def test_interval_draws_seeds_too():
    """Slices alike, seeds apart: all the spread is that of the seeds, as of the slices above."""
    values = one_class([[0.0] * 50, [1.0] * 50, [0.0] * 50, [0.0] * 50])
    assert statistics.interval(values) == (0.0, 0.75)


def test_intervals_cover_the_mean_of_a_normal_sample():
    values = np.random.default_rng(3).normal(0.7, 0.1, 400)
    half = 1.96 * values.std() / 20
    expected = pytest.approx((values.mean() - half, values.mean() + half), abs=0.0015)
    assert statistics.interval(values[None, :, None]) == expected
    assert statistics.bootstrap_interval(values) == expected
    assert statistics.bootstrap_interval(values) == statistics.bootstrap_interval(values)


def test_signed_ranks_by_hand():
    ours, theirs = np.array([0.5, 0.6, 0.7, 0.8, 0.95]), np.array([0.4, 0.4, 0.4, 0.4, 0.4])
    p = statistics.wilcoxon(ours, theirs)
    assert p == pytest.approx(2 / 2**5)  # all five up: 1 of 32 signs
    theirs[0] = 0.6  # the smallest difference points down: rank sums 1 and 14, 2 of 32 signs
    theirs[1] = 0.45
    assert statistics.wilcoxon(ours, theirs) == pytest.approx(2 * 2 / 2**5)
    p = statistics.wilcoxon(np.append(ours, NAN), np.append(theirs, 0.1))
    assert p == pytest.approx(4 / 32)
    assert statistics.wilcoxon(ours, ours) == 1.0
    assert np.isnan(statistics.wilcoxon(np.array([NAN]), np.array([0.5])))


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    got = statistics.holm([0.02, NAN, 0.03])  # a family of two
    assert got[::2] == pytest.approx([0.04, 0.04]) and np.isnan(got[1])
    assert statistics.holm([]) == []


def test_roc_by_hand():
    curve = statistics.roc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    assert curve.auc == pytest.approx(0.75)
    assert curve.threshold.tolist() == [np.inf, 0.8, 0.4, 0.35, 0.1]
    assert curve.sensitivity.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.specificity.tolist() == [1, 1, 0.5, 0.5, 0]
    assert statistics.roc([0.2, 0.2], [True, False]).auc == pytest.approx(0.5)  # ties: half


def test_roc_of_histograms_counts_ties_half():
    # Scores .1 .4 .4 .8, truth 0 1 0 1: .4 > .1, .4 = .4, .8 > .1, .8 > .4, so 3.5 of 4 pairs.
    fpr, tpr, auc = statistics.roc_from_histograms([0, 1, 1], [1, 1, 0])
    assert auc == pytest.approx(3.5 / 4)
    assert (fpr.tolist(), tpr.tolist()) == ([0, 0, 0.5, 1], [0, 0.5, 1, 1])
    assert np.isnan(statistics.roc_from_histograms([0, 0], [1, 1])[2])


def test_sensitivity_at_a_specificity_by_hand():
    curve = statistics.roc([0.1, 0.2, 0.3, 0.4, 0.35, 0.8, 0.05], [False] * 4 + [True] * 3)
    assert statistics.sensitivity_at(curve, 0.95) == (pytest.approx(1 / 3), 1.0, 0.8)
    assert statistics.sensitivity_at(curve, 0.75) == (pytest.approx(2 / 3), 0.75, 0.35)
    assert statistics.sensitivity_at(curve, 0.0) == (1.0, 0.0, 0.05)
    worst = statistics.roc([0.9, 0.1], [False, True])
    assert statistics.sensitivity_at(worst, 0.95) == (0.0, 1.0, np.inf)


@pytest.mark.parametrize(
    "shares, infected, words",
    [
        ([0.1], [True], "alike"),
        ([np.nan, 1], [True, False], "patient 0"),
        ([0.1, 0.2], [True], "one share each"),
    ],
)
def test_a_roc_needs_both_kinds_and_a_share_each(shares, infected, words):
    with pytest.raises(ValueError, match=words):
        statistics.roc(shares, infected)


def test_errors_and_limits_by_hand():
    true, predicted = [1, 2, 3, 10], [2, 2, 1, 13]  # differences 1, 0, -2, 3
    assert statistics.mean_absolute_error(true, predicted) == 1.5
    found = statistics.limits(true, predicted)
    assert found.bias == 0.5
    sd = np.sqrt((0.5**2 + 0.5**2 + 2.5**2 + 2.5**2) / 3)  # n - 1
    assert found.high - 0.5 == pytest.approx(1.96 * sd) == pytest.approx(0.5 - found.low)
    assert np.isnan(statistics.limits([1], [2]).low)


def test_rank_correlation_by_hand_with_ties():
    assert statistics.spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert statistics.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 * (1 + 1 + 1 + 1) / (4 * 15)
    assert statistics.spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    # Ranks 1.5 1.5 3 4 and 1 2 3 4, centred: -1 -1 .5 1.5 and -1.5 -.5 .5 1.5
    assert statistics.spearman([0, 0, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(statistics.spearman([5, 5], [1, 2]))


def test_classes_by_hand():
    true, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 0]
    found = statistics.classes(true, predicted)
    assert found.accuracy == 0.5 and found.majority == 0.5
    # F1: class 0 2*2/(3+3), class 1 2*1/(2+2), class 2 0/(1+1)
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # Squared distances seen: 1 + 1 + 4 = 6. By chance, from totals 3 2 1 and 3 2 1:
    # (1 * (3*2 + 2*3 + 2*1 + 1*2) + 4 * (3*1 + 1*3)) / 6 = (16 + 24) / 6
    assert found.kappa == pytest.approx(1 - 6 / (40 / 6))
    assert statistics.classes([0, 1, 2], [0, 1, 2])[:3:2] == (1, 1)
    assert statistics.classes([0, 1, 2], [0, 1, 2]).kappa == 1
    assert statistics.classes([0, 0, 1, 1], [1, 1, 0, 0]).kappa == -1
    always = statistics.classes([0, 0, 0, 2], [0, 0, 0, 0])
    assert (always.accuracy, always.majority, always.kappa) == (0.75, 0.75, 0)
    assert always.macro_f1 == pytest.approx((6 / 7 + 0) / 2)  # class 1 is nobody's
    assert np.isnan(statistics.classes([1, 1], [1, 1]).kappa)


@pytest.mark.parametrize(
    "true, predicted, words",
    [([1, 2], [1], "give pairs"), ([], [], "give pairs"), ([1, np.nan], [1, 2], "pair 1 holds")],
)
def test_what_cannot_be_paired_is_refused(true, predicted, words):
    for name in ("mean_absolute_error", "limits", "spearman", "classes"):
        with pytest.raises(ValueError, match=words):
            getattr(statistics, name)(true, predicted)


@pytest.mark.parametrize("wrong", [[0, 0.5], [-1, 0]])
def test_classes_are_whole_numbers(wrong):
    with pytest.raises(ValueError, match="whole numbers"):
        statistics.classes([0, 1], wrong)

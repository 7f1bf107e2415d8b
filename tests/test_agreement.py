"""Agreement statistics against numbers worked out by hand."""

import numpy as np
import pytest

from infnet_jax.evaluation import agreement


def test_errors_and_limits_by_hand():
    true, predicted = [1, 2, 3, 10], [2, 2, 1, 13]  # differences 1, 0, -2, 3
    assert agreement.mean_absolute_error(true, predicted) == 1.5
    found = agreement.limits(true, predicted)
    assert found.bias == 0.5
    sd = np.sqrt((0.5**2 + 0.5**2 + 2.5**2 + 2.5**2) / 3)  # n - 1
    assert found.high - 0.5 == pytest.approx(1.96 * sd) == pytest.approx(0.5 - found.low)
    assert np.isnan(agreement.limits([1], [2]).low)


def test_rank_correlation_by_hand_with_ties():
    assert agreement.spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert agreement.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 * (1 + 1 + 1 + 1) / (4 * 15)
    assert agreement.spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    # Ranks 1.5 1.5 3 4 and 1 2 3 4, centred: -1 -1 .5 1.5 and -1.5 -.5 .5 1.5
    assert agreement.spearman([0, 0, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(agreement.spearman([5, 5], [1, 2]))


def test_classes_by_hand():
    true, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 0]
    found = agreement.classes(true, predicted)
    assert found.accuracy == 0.5 and found.majority == 0.5
    # F1: class 0 2*2/(3+3), class 1 2*1/(2+2), class 2 0/(1+1)
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # Squared distances seen: 1 + 1 + 4 = 6. By chance, from totals 3 2 1 and 3 2 1:
    # (1 * (3*2 + 2*3 + 2*1 + 1*2) + 4 * (3*1 + 1*3)) / 6 = (16 + 24) / 6
    assert found.kappa == pytest.approx(1 - 6 / (40 / 6))
    assert agreement.classes([0, 1, 2], [0, 1, 2])[:3:2] == (1, 1)
    assert agreement.classes([0, 1, 2], [0, 1, 2]).kappa == 1
    assert agreement.classes([0, 0, 1, 1], [1, 1, 0, 0]).kappa == -1
    always = agreement.classes([0, 0, 0, 2], [0, 0, 0, 0])
    assert (always.accuracy, always.majority, always.kappa) == (0.75, 0.75, 0)
    assert always.macro_f1 == pytest.approx((6 / 7 + 0) / 2)  # class 1 is nobody's
    assert np.isnan(agreement.classes([1, 1], [1, 1]).kappa)


@pytest.mark.parametrize(
    "true, predicted, words",
    [([1, 2], [1], "give pairs"), ([], [], "give pairs"), ([1, np.nan], [1, 2], "pair 1 holds")],
)
def test_what_cannot_be_paired_is_refused(true, predicted, words):
    for what in (
        agreement.mean_absolute_error,
        agreement.limits,
        agreement.spearman,
        agreement.classes,
    ):
        with pytest.raises(ValueError, match=words):
            what(true, predicted)


@pytest.mark.parametrize("wrong", [[0, 0.5], [-1, 0]])
def test_classes_are_whole_numbers(wrong):
    with pytest.raises(ValueError, match="whole numbers"):
        agreement.classes([0, 1], wrong)

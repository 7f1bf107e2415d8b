"""Metrics against hand-computed numbers, brute force and plain re-derivations of the formulas."""

import math

import numpy as np
import pytest

from infnet_jax.evaluation import metrics, soft_metrics

NAN = float("nan")
RATIOS = ("dice", "iou", "sensitivity", "specificity", "precision")


def block(rows: int, columns: int, size: int = 4) -> np.ndarray:
    return np.outer(np.arange(size) < rows, np.arange(size) < columns)


def pairs(seed: int = 0, count: int = 6):
    """Random (map, truth) pairs with blobs, ties and odd sizes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shape = tuple(rng.integers(5, 14, 2))
        truth = rng.random(shape) < rng.uniform(0.2, 0.6)
        truth[0, 0], truth[-1, -1] = True, False
        steps = rng.choice([7, 255, 10**6])
        yield np.round(rng.random(shape) * steps) / steps, truth


def brute_force(prob_map, truth):
    """The 256 passes, one comparison each."""
    spread = (prob_map - prob_map.min()) / (prob_map.max() - prob_map.min())
    rows = []
    for i in range(256):
        marked = spread >= 1 - i / 255 - 1e-12
        pairs = (marked, truth), (marked, ~truth), (~marked, truth), (~marked, ~truth)
        tp, fp, fn, tn = (np.sum(one & other) for one, other in pairs)
        if tp == 0:
            rows.append([0.0] * 5)
            continue
        dice, iou = 2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn)
        rows.append([dice, iou, tp / (tp + fn), tn / (tn + fp), tp / (tp + fp)])
    return np.array(rows).T


def plain_e_measure(marked, truth):
    """E-measure pixel by pixel."""
    n, mark, lesion = truth.size, marked.astype(float), truth.astype(float)
    if not truth.any():
        return (1 - mark).sum() / (n - 1)
    if truth.all():
        return mark.sum() / (n - 1)
    total = 0.0
    for m, g in zip(mark.ravel(), lesion.ravel(), strict=True):
        a, b = m - mark.mean(), g - lesion.mean()
        total += (2 * a * b / (a * a + b * b + 2.2e-16) + 1) ** 2 / 4
    return total / (n - 1)


def plain_s_measure(values, truth):
    """S-measure with explicit loops over the quadrants."""
    share = truth.sum() / truth.size

    def objects(x):
        return 2 * np.mean(x) / (np.mean(x) ** 2 + 1 + (np.std(x, ddof=1) if len(x) > 1 else 0))

    s_object = share * objects(values[truth]) + (1 - share) * objects(1 - values[~truth])
    row, column = (math.floor(np.mean(where + 1) + 0.5) for where in np.nonzero(truth))
    halves = slice(0, row), slice(row, None)
    s_region = 0.0
    for part in ((r, c) for r in halves for c in (slice(0, column), slice(column, None))):
        x, y = values[part].ravel(), truth[part].ravel().astype(float)
        if x.size == 0:
            continue
        (vx, cov), (_, vy) = np.cov(x, y) if x.size > 1 else np.zeros((2, 2))
        above = 4 * x.mean() * y.mean() * cov
        below = (x.mean() ** 2 + y.mean() ** 2) * (vx + vy)
        s_region += x.size / truth.size * (above / below if above else float(below == 0))
    return max(0.0, (s_object + s_region) / 2)


def plain_weighted_f(values, truth):
    """Weighted F with explicit loops; the nearest lesion pixel must be unique."""
    lesion, error = np.argwhere(truth).tolist(), np.abs(values - truth)
    copied, distance = error.copy(), np.zeros(truth.shape)
    for r, c in np.ndindex(truth.shape):
        distance[r, c], *where = min((math.hypot(r - a, c - b), a, b) for a, b in lesion)
        copied[r, c] = error[*where]
    reach = range(-3, 4)
    kernel = np.array([[math.exp(-(i * i + j * j) / 50) for j in reach] for i in reach])
    padded = np.pad(copied, 3)
    weighted = error.copy()
    for r, c in np.ndindex(truth.shape):
        if truth[r, c]:
            smooth = (padded[r : r + 7, c : c + 7] * kernel).sum() / kernel.sum()
            weighted[r, c] = min(error[r, c], smooth)
        else:
            weighted[r, c] *= 2 - math.exp(math.log(0.5) / 5 * distance[r, c])
    recall = 1 - weighted[truth].mean()
    hits = truth.sum() - weighted[truth].sum()
    precision = hits / (hits + weighted[~truth].sum())
    return 2 * recall * precision / (recall + precision)


def test_hand_case():
    # Truth: the upper left 2 x 2; marked: the upper row of 4. TP 2, FP 2, FN 2, TN 10.
    record = metrics.toolbox(block(1, 4), block(2, 2))
    found = metrics.threshold_scores(record)
    assert [found[name] for name in RATIOS] == pytest.approx([0.5, 1 / 3, 0.5, 10 / 12, 0.5])
    assert record["mae"] == pytest.approx(4 / 16)
    # Every threshold above 0 marks the row, the last one everything (Dice 8 / 20).
    assert record["curves"]["dice"][:-1] == pytest.approx(0.5)
    assert record["curves"]["dice"][-1] == pytest.approx(0.4)
    assert metrics.summarise([record])["mean"]["dice"] == pytest.approx((255 * 0.5 + 0.4) / 256)


@pytest.mark.parametrize(
    ("marked", "truth", "expected"),
    [
        (block(0, 0), block(0, 0), (NAN, NAN, NAN, 1.0, NAN)),
        (block(1, 2), block(0, 0), (0.0, 0.0, NAN, 14 / 16, 0.0)),
        (block(0, 0), block(1, 2), (0.0, 0.0, 0.0, 1.0, 0.0)),
        (block(2, 4), block(4, 4), (2 / 3, 0.5, 0.5, NAN, 1.0)),
        (block(1, 1), ~block(3, 4), (0.0, 0.0, 0.0, 11 / 12, 0.0)),
    ],
)
def test_empty_aware_reading_of_empty_and_full(marked, truth, expected):
    record = metrics.toolbox(marked, truth)
    aware = metrics.threshold_scores(record, "none", "empty_aware")
    assert [aware[name] for name in RATIOS] == pytest.approx(list(expected), nan_ok=True)
    toolbox = metrics.threshold_scores(record, "none")  # no true positive: 0, specificity too
    assert (marked & truth).any() or [toolbox[name] for name in RATIOS] == [0.0] * 5


def test_soft_measures_of_empty_and_full_truth():
    half = np.full((4, 4), 0.25)
    half[0, 0] = 1.0  # min-max gives one pixel of 1, fifteen of 0
    empty, full = metrics.toolbox(half, block(0, 0)), metrics.toolbox(half, block(4, 4))
    assert empty["s_measure"] == pytest.approx(15 / 16)
    assert full["s_measure"] == pytest.approx(1 / 16)
    assert empty["curves"]["e_measure"][0] == pytest.approx(15 / 15)
    assert full["curves"]["e_measure"][0] == pytest.approx(1 / 15)
    assert math.isnan(empty["weighted_f"])
    assert metrics.summarise([empty])["weighted_f"] == 0.0
    assert math.isnan(metrics.summarise([empty], "empty_aware")["weighted_f"])


def test_perfect_map_scores_one():
    truth = block(2, 3)
    record = metrics.toolbox(truth, truth)
    for kind in ("minmax", "none", "adaptive"):
        found = metrics.threshold_scores(record, kind)
        assert [found[name] for name in RATIOS] == [1.0] * 5
    assert record["s_measure"] == pytest.approx(1.0) == record["weighted_f"]
    assert record["mae"] == 0.0


def test_curves_equal_brute_force():
    for prob_map, truth in pairs(count=12):
        record = metrics.toolbox(prob_map, truth)
        found = np.stack([record["curves"][name] for name in RATIOS])
        np.testing.assert_allclose(found, brute_force(prob_map, truth), atol=1e-12)


def test_every_eight_bit_level_reaches_its_threshold_in_single_precision_too():
    ramp = np.arange(256).reshape(16, 16) / 255
    record = metrics.toolbox(ramp, np.ones((16, 16), bool))
    np.testing.assert_array_equal(record["tp"], np.arange(1, 257))
    # Stretching levels 20..122 (a range of 102) puts every fifth exactly on a threshold i/255.
    levels = np.arange(20, 123).reshape(1, -1) / 255
    truth = np.ones(levels.shape, bool)
    double, single = (metrics.toolbox(levels.astype(f"f{n}"), truth) for n in (8, 4))
    np.testing.assert_array_equal(single["tp"], double["tp"])
    assert single["minmax"] == double["minmax"] == (52, 0)


def test_soft_measures_equal_plain_formulas():
    for prob_map, truth in pairs(seed=1, count=8):
        record = metrics.toolbox(prob_map, truth)
        spread = soft_metrics.minmax(prob_map)
        assert record["s_measure"] == pytest.approx(plain_s_measure(spread, truth), abs=1e-9)
        for i in (0, 60, 128, 255):
            expected = plain_e_measure(spread >= 1 - i / 255 - 1e-12, truth)
            assert record["curves"]["e_measure"][i] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("spot", [(2, 3), (0, 0), (8, 10)])
def test_weighted_f_equals_plain_formula(spot):
    # One lesion pixel, then a full row: the nearest lesion pixel is unique in both.
    values = np.random.default_rng(3).random((9, 11))
    single, row = np.zeros((2, 9, 11), bool)
    single[spot], row[spot[0]] = True, True
    for truth in (single, row):
        expected = plain_weighted_f(values, truth)
        assert soft_metrics.weighted_f(values, truth) == pytest.approx(expected, abs=1e-9)


def test_adaptive_threshold():
    values = np.zeros((4, 4))
    values[0] = [1.0, 0.5, 0.25, 0.25]  # mean .125, threshold .25
    assert metrics.toolbox(values, block(1, 3))["adaptive"] == (3, 1)
    assert metrics.toolbox(1 - values, block(1, 1))["adaptive"] == (0, 12)  # capped at 1
    blank = metrics.toolbox(np.zeros((4, 4)), block(1, 3))
    assert blank["adaptive"] == (3, 13)  # threshold 0 marks everything
    assert metrics.threshold_scores(blank, "adaptive", "empty_aware")["sensitivity"] == 0.0


def test_minmax_and_raw_thresholds_differ():
    records = [metrics.toolbox(block(2, 2) * 0.4, block(2, 2), threshold=t) for t in (0.5, 0.4)]
    kinds = (records[0], "minmax"), (records[0], "none"), (records[1], "none")
    assert [metrics.threshold_scores(*kind)["dice"] for kind in kinds] == [1.0, 0.0, 1.0]


def test_maps_are_resized_to_the_truth():
    truth = np.repeat(np.repeat(block(2, 2), 2, 0), 2, 1)
    record = metrics.toolbox(block(2, 2), truth)
    assert record["pixels"] == 64
    # Half-pixel bilinear: .75 / .25 beside the border, so .5 cuts exactly at the lesion's edge
    # except at its corner, where .75 * .75 still exceeds .5.
    assert record["minmax"] == (16, 0)


def test_summary_averages_slices_before_thresholds():
    first, second = np.array([[1.0, 0.2], [0.0, 0.0]]), np.array([[0.2, 1.0], [0.0, 0.0]])
    truth = np.array([[True, False], [False, False]])
    records = [metrics.toolbox(one, truth) for one in (first, second)]
    summary = metrics.summarise(records)
    assert set(metrics.SCORES) == set(summary["mean"])
    # Down to .2: Dice 1 and 0 (mean .5); from .2 on: 2/3 for both; all marked: .4.
    assert summary["max"]["dice"] == pytest.approx(2 / 3)
    assert summary["mean"]["dice"] == pytest.approx((204 * 0.5 + 51 * 2 / 3 + 0.4) / 256)


def test_summary_counts_what_it_leaves_out():
    pairs = (block(2, 2), block(2, 2)), (block(0, 0), block(0, 0)), (block(1, 1), block(0, 0))
    records = [metrics.toolbox(marked, truth) for marked, truth in pairs]
    toolbox, aware = (metrics.summarise(records, reading) for reading in metrics.READINGS)
    assert toolbox["images"] == 3 and toolbox["empty_truths"] == 2
    assert toolbox["none"]["dice"] == pytest.approx(1 / 3)
    assert aware["none"]["dice"] == pytest.approx(1 / 2)
    out = aware["undefined"]
    assert (out["none"]["dice"], out["none"]["sensitivity"], out["curves"]["dice"]) == (1, 2, 1)
    assert toolbox["undefined"]["none"]["dice"] == 0
    assert toolbox["none"]["specificity"] == pytest.approx(1 / 3)
    assert aware["none"]["specificity"] == pytest.approx((1 + 1 + 15 / 16) / 3)


def test_roc_auc_of_pooled_pixels():
    truth = np.array([[False, True, False, True]])
    levels = np.array([[26, 102, 102, 204]]) / 255  # 3.5 of 4 pairs of pixels are in order
    one = metrics.toolbox(levels, truth)
    summary = metrics.summarise([one])
    assert summary["roc_auc"] == pytest.approx(3.5 / 4)
    fpr, tpr = summary["roc"]
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    second = metrics.toolbox(np.array([[128, 153, 179, 230]]) / 255, truth)
    # Lesion 102 204 153 230, rest 26 102 128 179: 1.5 + 4 + 3 + 4 of 16 pairs.
    assert metrics.summarise([one, second])["roc_auc"] == pytest.approx(12.5 / 16)


def test_columns_of_a_slice():
    probs, mask = block(2, 2) * 0.4, block(2, 4).astype(np.float32)
    records = metrics.toolbox(probs, block(2, 2)), metrics.toolbox(mask, block(2, 2))
    assert metrics.slice_scores("ggo", *records) == {
        "dice_ggo": pytest.approx(2 * 4 / (4 + 8)),  # of the mask
        "dice_ggo_toolbox": 1.0,  # of the stretched map
        "dice_ggo_mean": pytest.approx((255 * 1.0 + 8 / 20) / 256),
    }


def test_floors_by_hand():
    left, both = block(4, 2), block(4, 4)
    train = [left] * 3 + [~left] + [left] * 2  # left in 5 of 6, right in 1 of 6, below 0.2
    found = metrics.floors(train, [left, both])
    # All positive: 2 * 8 / (16 + 8) and 1. Left half: 1 and 2/3 (all marked at threshold 0).
    assert found["all_positive"]["toolbox"]["minmax"]["dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["mean_training_mask"]["toolbox"]["minmax"]["dice"] == pytest.approx(5 / 6)


RECORD, OTHER = (metrics.toolbox(block(1, 1), block(1, 1), t) for t in (0.5, 0.3))


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (metrics.toolbox, (np.full((4, 4), 2.0), block(1, 1)), "probabilities"),
        (metrics.toolbox, (np.full((4, 4), NAN), block(1, 1)), "probabilities"),
        (metrics.toolbox, (np.zeros((4, 4)), block(1, 1).astype(int)), "bool"),
        (metrics.toolbox, (np.zeros((4, 4, 1)), block(1, 1)), r"\[h, w\]"),
        (metrics.threshold_scores, (RECORD, "max"), "normalise 'max'"),
        (metrics.summarise, ([RECORD], "other"), "reading 'other'"),
        (metrics.summarise, ([],), "no slices"),
        (metrics.summarise, ([RECORD, OTHER],), "different thresholds"),
        (metrics.floors, ([], [block(4, 2)]), "at least one"),
    ],
)
def test_bad_input_is_refused(call, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(*arguments)

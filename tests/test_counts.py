"""Summed metrics: same figures as the per-slice toolbox, mergeable, blind to padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax import counts, metrics

UPDATE = jax.jit(counts.update)


def batch(seed: int = 0, size: int = 8, side: int = 12):
    rng = np.random.default_rng(seed)
    truth = rng.random((size, side, side, 1)) < 0.3
    truth[0] = False  # an empty truth, with a blank map in slice 0 and not in slice 1
    truth[1] = False
    truth[2] = True
    probs = np.rint(255 * (0.5 * truth + 0.5 * rng.random(truth.shape))) / 255
    probs[0] = 0
    probs[3] *= 0.4  # below .5 unless stretched
    return probs.astype(np.float32), truth.astype(np.uint8), np.ones(size, bool)


def same(one, other):
    for name in one.__dataclass_fields__:
        np.testing.assert_allclose(
            getattr(one, name), getattr(other, name), rtol=1e-6, err_msg=name
        )


def cut(data, *index):
    return tuple(part[index[0]] for part in data)


@pytest.mark.parametrize("reading", metrics.READINGS)
def test_equals_the_per_slice_toolbox(reading):
    probs, truth, valid = batch()
    found = counts.compute(UPDATE(counts.empty(), probs, truth, valid), reading)
    records = [metrics.toolbox(p[..., 0], t[..., 0] > 0) for p, t in zip(probs, truth, strict=True)]
    expected = metrics.summarise(records, reading)
    for kind in ("mean", "max", "minmax", "none"):
        for name in metrics.RATIOS:
            assert found[kind][name] == pytest.approx(expected[kind][name], abs=2e-6), (kind, name)
    for kind in ("minmax", "none"):
        for name in metrics.RATIOS:
            assert found["undefined"][kind][name] == expected["undefined"][kind][name]
    for name in ("images", "empty_truths", "reading", "mae", "roc_auc"):
        assert found[name] == pytest.approx(expected[name], abs=2e-6)
    assert found["images"] == 8 and found["empty_truths"] == 2


def test_padded_slices_change_nothing():
    probs, truth, valid = batch()
    clean = UPDATE(counts.empty(), probs[:5], truth[:5], valid[:5])
    padded = probs.copy()
    padded[5:] = np.nan
    valid[5:] = False
    same(UPDATE(counts.empty(), padded, truth, valid), clean)
    same(UPDATE(clean, padded, truth, np.zeros(8, bool)), clean)


def test_merge_of_parts_is_the_whole():
    data = batch()
    whole = UPDATE(counts.empty(), *data)
    half = slice(None, None, 2), slice(1, None, 2)
    one, other = (UPDATE(counts.empty(), *cut(data, part)) for part in half)
    same(jax.jit(counts.merge)(one, other), whole)
    same(counts.merge(other, one), whole)
    same(counts.merge(whole, counts.empty()), whole)
    same(UPDATE(one, *cut(data, half[1])), whole)


def test_scan_and_shapes_agree():
    probs, truth, valid = batch()
    whole = UPDATE(counts.empty(), probs, truth, valid)
    same(UPDATE(counts.empty(), probs[..., 0], truth[..., 0] > 0, valid), whole)

    def step(carry, one):
        return counts.update(carry, *(part[None] for part in one)), None

    scanned, _ = jax.lax.scan(step, counts.empty(), tuple(map(jnp.asarray, (probs, truth, valid))))
    same(scanned, whole)


def test_histograms_stay_exact_beyond_int32():
    one = UPDATE(counts.empty(), *batch())
    doubled = one
    for _ in range(26):  # 8 slices of 144 pixels become 7.7e10
        doubled = counts.merge(doubled, doubled)
    low, high = np.asarray(doubled.histogram_low), np.asarray(doubled.histogram_high)
    total = low.astype(np.int64) + (high.astype(np.int64) << 20)
    np.testing.assert_array_equal(total, np.asarray(one.histogram_low).astype(np.int64) << 26)
    assert counts.compute(doubled)["roc_auc"] == pytest.approx(counts.compute(one)["roc_auc"])


def test_nan_probabilities_show_in_the_mae():
    probs, truth, valid = batch()
    probs[4, 0, 0] = np.nan
    assert np.isnan(counts.compute(UPDATE(counts.empty(), probs, truth, valid))["mae"])


def test_threshold_is_applied():
    probs, truth = np.full((1, 4, 4, 1), 0.3, np.float32), np.ones((1, 4, 4, 1), np.uint8)
    valid = np.ones(1, bool)
    low = UPDATE(counts.empty(), probs, truth, valid, 0.3)
    assert counts.compute(low)["none"]["dice"] == 1.0
    assert counts.compute(UPDATE(counts.empty(), probs, truth, valid))["none"]["dice"] == 0.0


def test_errors():
    probs, truth, valid = batch()
    with pytest.raises(ValueError, match="no valid slice"):
        counts.compute(counts.empty())
    with pytest.raises(ValueError, match="do not match"):
        counts.update(counts.empty(), probs, truth[:4], valid)
    with pytest.raises(ValueError, match="reading 'other'"):
        counts.compute(counts.empty(), "other")

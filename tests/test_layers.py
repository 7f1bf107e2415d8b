"""Primitives against direct formulae in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from infnet_jax.models import layers


def _array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_batch_norm_uses_biased_batch_and_stores_unbiased_running_variance():
    x = 3.0 + _array(2, 2, 3, 5)
    layer = layers.BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=False)
    y, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = x.reshape(-1, 5).astype(np.float64)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 5), expected, atol=1e-5)
    stats = new["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


def test_batch_norm_in_evaluation_uses_running_statistics_only():
    x = _array(2, 2, 2, 1)
    one = jnp.ones(1)
    stats, params = {"mean": 0.5 * one, "var": 4 * one}, {"scale": 2 * one, "bias": one}
    y = layers.BatchNorm().apply({"params": params, "batch_stats": stats}, x, train=False)
    np.testing.assert_allclose(y, (x - 0.5) / np.sqrt(4.0 + 1e-5) * 2 + 1, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_batch_norm_gradient_equals_that_of_the_two_pass_formula():
    x, weight = 2.0 + _array(2, 3, 3, 4), _array(2, 3, 3, 4, seed=1)
    layer = layers.BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=False)

    def ours(x):
        return jnp.sum(weight * layer.apply(variables, x, train=True, mutable=["batch_stats"])[0])

    def direct(x):
        mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        return jnp.sum(weight * (x - mean) / jnp.sqrt(var + 1e-5))

    np.testing.assert_allclose(jax.grad(ours)(x), jax.grad(direct)(x), atol=2e-5)


def test_batch_norm_stays_exact_far_from_zero_once_the_running_mean_has_followed():
    x = 1e4 + _array(4, 8, 8, 1)
    layer = layers.BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=False)
    variables["batch_stats"]["mean"] = jnp.array([1e4])
    y, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    assert abs(float(jnp.std(y)) - 1.0) < 1e-2


def test_max_pool_pads_with_minus_infinity():
    x = _array(2, 6, 8, 3) - 10.0
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    pooled = layers.max_pool(jnp.asarray(x), 3, 2, 1)
    np.testing.assert_array_equal(pooled, windows.max((-2, -1)))


def test_avg_pool_counts_the_padding():
    pooled = layers.avg_pool(jnp.ones((1, 4, 4, 1)), 3, 2, 1)[0, :, :, 0]
    np.testing.assert_allclose(pooled, [[4 / 9, 6 / 9], [6 / 9, 1.0]], rtol=1e-6)
    wide = jnp.tile(jnp.arange(5.0).reshape(1, 5, 1, 1), (1, 1, 2, 1))
    np.testing.assert_allclose(layers.avg_pool(wide, 2, 2)[0, :, 0, 0], [0.5, 2.5])


@pytest.mark.parametrize("size", [3, 31])
def test_box_filter_is_the_zero_padded_mean(size):
    x, half = _array(1, 9, 12, 2), size // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
    means = windows.sum((-2, -1)) / size**2
    np.testing.assert_allclose(layers.box_filter(jnp.asarray(x), size), means, atol=1e-5)
    with pytest.raises(ValueError, match="odd size, got 4"):
        layers.box_filter(jnp.ones((1, 8, 8, 1)), 4)


def _interpolated(x, size, align_corners):
    """Linearly by scipy, plane by plane."""
    axes = []
    for n_in, n_out in zip(x.shape[1:3], size, strict=True):
        k = np.arange(n_out)
        axes.append(
            k * (n_in - 1) / (n_out - 1) if align_corners else (k + 0.5) * n_in / n_out - 0.5
        )
    grid = np.meshgrid(*axes, indexing="ij")
    planes = x.transpose(0, 3, 1, 2)
    out = [[map_coordinates(p, grid, order=1, mode="nearest") for p in image] for image in planes]
    return np.transpose(out, (0, 2, 3, 1))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(16, 24), (4, 6), (2, 3), (8, 4), (11, 7), (8, 36)])
def test_resize_bilinear_equals_interpolation_without_antialias(size, align_corners):
    x = _array(2, 8, 12, 3)
    ours = layers.resize_bilinear(jnp.asarray(x), size, align_corners=align_corners)
    np.testing.assert_allclose(ours, _interpolated(x, size, align_corners), atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_even_down_scaling_is_the_mean_of_two_samples(factor):
    x = np.arange(16, dtype=np.float32) ** 2
    ours = layers.resize_bilinear(jnp.asarray(x).reshape(1, 16, 1, 1), (16 // factor, 1))
    middle = factor // 2
    np.testing.assert_allclose(ours[0, :, 0, 0], (x[middle - 1 :: factor] + x[middle::factor]) / 2)


@pytest.mark.parametrize("source", [[0, 0, 1, 1, 2, 2], [0, 1, 2], [0, 1], [0, 0, 1, 2]])
def test_resize_nearest_takes_the_floor_pixel(source):
    x = np.asarray([10.0, 20.0, 30.0])
    ours = layers.resize_nearest(jnp.asarray(x).reshape(1, 3, 1, 1), (len(source), 1))
    np.testing.assert_array_equal(ours[0, :, 0, 0], x[source])

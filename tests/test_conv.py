"""Convolutions and their gradients against those of the framework."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax.models import conv


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check_equal(ours: Any, framework: Any, x: np.ndarray, weights: np.ndarray) -> None:
    """Same outputs, and same gradients by both arguments."""
    expected, pull = jax.vjp(framework, x, weights)
    result, pull_ours = jax.vjp(ours, x, weights)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    gradient = array(*expected.shape, seed=2)
    for mine, theirs in zip(pull_ours(gradient), pull(gradient), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def framework(stride: int, padding: Any, **options: Any) -> Any:
    options |= {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "padding": padding}
    options["window_strides"] = (stride, stride)
    return partial(jax.lax.conv_general_dilated, **options)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [
        *[((1, 1), stride, 1, (0, 0)) for stride in (1, 2)],
        *[((3, 3), 1, 1, padding) for padding in ((1, 1), (2, 1), (3, 3))],
        *[((3, 3), 1, 3, (3, 3)), ((3, 3), 1, 2, (0, 0)), ((1, 1), 1, 1, (1, 1))],
        *[((3, 3), 2, 1, (1, 1)), ((7, 7), 2, 1, (3, 3))],
        *[((1, 5), 1, 1, (0, 2)), ((5, 1), 1, 1, (2, 0))],
    ],
)
def test_a_convolution_equals_that_of_the_framework(kernel, stride, dilation, padding):
    sides = [(p, p) for p in padding]
    theirs = framework(stride, sides, rhs_dilation=(dilation, dilation))
    ours = partial(conv.convolve, stride=stride, padding=padding, dilation=dilation)
    check_equal(ours, theirs, array(2, 9, 10, 3), array(*kernel, 3, 4, seed=1))


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding"), [(1, 1, (0, 0)), (3, 3, (3, 3)), ((1, 5), 1, (0, 2))]
)
def test_the_layer_keeps_the_size_and_adds_its_bias(kernel, dilation, padding):
    x, layer = array(2, 8, 10, 3), conv.Conv(4, kernel, 1, dilation, use_bias=True)
    weights = layer.init(jax.random.key(0), x)["params"]["kernel"]
    result = layer.apply({"params": {"kernel": weights, "bias": jnp.arange(4.0)}}, x)
    plain = conv.convolve(x, weights, stride=1, padding=padding, dilation=dilation)
    assert result.shape == (2, 8, 10, 4)
    np.testing.assert_allclose(result, plain + jnp.arange(4.0), atol=1e-6)


def test_a_window_by_hand():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    kernel = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 4.0]])[:, :, None, None]
    ours = conv.convolve(x, kernel, stride=2, padding=(1, 1), dilation=1)[0, :, :, 0]
    np.testing.assert_array_equal(ours, [[0 + 4 * 5, 2 * 2 + 4 * 7], [2 * 8, 5 + 2 * 10]])


def test_conv_computes_in_its_dtype_and_keeps_float32_parameters():
    layer = conv.Conv(4, 1, dtype="bfloat16")
    variables = layer.init(jax.random.key(0), array(1, 2, 2, 3))
    assert layer.apply(variables, array(1, 2, 2, 3)).dtype == jnp.bfloat16
    assert variables["params"]["kernel"].dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 11), (7, 10)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_convolution_is_the_grouped_one_padded_as_tensorflow_does(kernel, stride, size):
    def ours(x, weights):
        return conv.DepthwiseConv(kernel, stride).apply({"params": {"kernel": weights}}, x)

    theirs = framework(stride, "SAME", feature_group_count=3)
    check_equal(ours, theirs, array(2, *size, 3), array(kernel, kernel, 1, 3, seed=1))

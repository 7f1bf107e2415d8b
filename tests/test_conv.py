"""Convolutions against sums over their windows and against the framework's gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax.models import conv


def _array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _naive_conv(x, kernel, stride, padding, dilation):
    (ph, pw), (kh, kw) = padding, kernel.shape[:2]
    x = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    rows = (x.shape[1] - dilation * (kh - 1) - 1) // stride + 1
    columns = (x.shape[2] - dilation * (kw - 1) - 1) // stride + 1
    out = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            for a in range(kh):
                for b in range(kw):
                    pixel = x[:, top + a * dilation, left + b * dilation]
                    out[:, i, j] += pixel @ kernel[a, b]
    return out


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [
        (1, 1, 1, (0, 0)),
        (1, 2, 1, (0, 0)),
        (3, 2, 1, (1, 1)),
        (3, 1, 3, (3, 3)),
        ((1, 5), 1, 1, (0, 2)),
        (7, 2, 1, (3, 3)),
    ],
)
def test_conv_equals_the_sum_over_its_window(kernel, stride, dilation, padding):
    x = _array(2, 8, 10, 3)
    layer = conv.Conv(4, kernel, stride, dilation, use_bias=True)
    params = layer.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.arange(4.0)
    ours = layer.apply({"params": params}, x)
    naive = _naive_conv(x, np.asarray(params["kernel"]), stride, padding, dilation) + np.arange(4)
    np.testing.assert_allclose(ours, naive, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [
        ((1, 1), 1, 1, (0, 0)),
        ((1, 1), 2, 1, (0, 0)),
        ((1, 1), 1, 1, (1, 1)),
        ((3, 3), 1, 1, (1, 1)),
        ((3, 3), 1, 3, (3, 3)),
        ((3, 3), 1, 2, (0, 0)),
        ((3, 3), 1, 1, (2, 1)),
        ((3, 3), 1, 1, (3, 3)),
        ((3, 3), 2, 1, (1, 1)),
        ((1, 5), 1, 1, (0, 2)),
        ((5, 1), 1, 1, (2, 0)),
        ((7, 7), 2, 1, (3, 3)),
    ],
)
def test_gradients_of_a_convolution_equal_those_of_the_framework(kernel, stride, dilation, padding):
    x, weights = _array(2, 9, 10, 3), _array(*kernel, 3, 4, seed=1)

    def framework(x, weights):
        return jax.lax.conv_general_dilated(
            x,
            weights,
            (stride, stride),
            [(p, p) for p in padding],
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def ours(x, weights):
        return conv.convolve(x, weights, stride=stride, padding=padding, dilation=dilation)

    expected, pull = jax.vjp(framework, x, weights)
    result, pull_ours = jax.vjp(ours, x, weights)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    gradient = _array(*expected.shape, seed=2)
    for mine, theirs in zip(pull_ours(gradient), pull(gradient), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_conv_computes_in_its_dtype_and_keeps_float32_parameters():
    layer = conv.Conv(4, 1, dtype="bfloat16")
    variables = layer.init(jax.random.key(0), _array(1, 2, 2, 3))
    assert layer.apply(variables, _array(1, 2, 2, 3)).dtype == jnp.bfloat16
    assert variables["params"]["kernel"].dtype == jnp.float32


@pytest.mark.parametrize("size", [(8, 11), (7, 10)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_convolution_is_the_grouped_one_padded_as_tensorflow_does(kernel, stride, size):
    x = _array(2, *size, 3)
    layer = conv.DepthwiseConv(kernel, stride)
    weights = _array(kernel, kernel, 1, 3, seed=1)
    ours = layer.apply({"params": {"kernel": weights}}, x)
    gradient = _array(*ours.shape, seed=2)

    def grouped(x, weights):
        return jax.lax.conv_general_dilated(
            x,
            weights,
            (stride, stride),
            "SAME",
            feature_group_count=3,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def by_layer(x, weights):
        return layer.apply({"params": {"kernel": weights}}, x)

    expected, pull = jax.vjp(grouped, x, weights)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    pulled = jax.vjp(by_layer, x, weights)[1](gradient)
    for mine, other in zip(pulled, pull(gradient), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)

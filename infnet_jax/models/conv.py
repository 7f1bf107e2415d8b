"""Convolutions, NHWC, with explicit symmetric padding and gradients that are fast on a CPU.

On a CPU, XLA (0.10) computes filter gradients on one core, from transposed copies of both operands.
There they are written as one matrix product; forward passes and all other devices keep XLA's.
"""

from functools import partial, reduce
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
Pair = tuple[int, int]
Saved = tuple[Array, Array]  # input and kernel, or their gradients


def convolve(x: Array, kernel: Array, *, stride: int, padding: Pair, dilation: int) -> Array:
    """[B, H, W, I] with [kh, kw, I, O] -> [B, H', W', O]; zeros around, `padding` a side."""
    if (*kernel.shape[:2], *padding) == (1, 1, 0, 0):
        # A matrix product of 2-D arrays: with more axes XLA copies an operand for the gradient.
        x = x[:, ::stride, ::stride] if stride > 1 else x
        if jax.default_backend() == "cpu":
            rows = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
            return rows.reshape(*x.shape[:-1], kernel.shape[-1])
        return jnp.dot(x, kernel[0, 0])
    if jax.default_backend() == "cpu" and stride == 1:
        return _convolve_cpu(x, kernel, padding, dilation)
    return _convolve(x, kernel, stride, padding, dilation)


def _convolve(x: Array, kernel: Array, stride: int, padding: Pair, dilation: int) -> Array:
    layout, sides = ("NHWC", "HWIO", "NHWC"), [(p, p) for p in padding]
    strides, dilations = (stride,) * 2, (dilation,) * 2
    return lax.conv_general_dilated(x, kernel, strides, sides, None, dilations, layout)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_cpu(x: Array, kernel: Array, padding: Pair, dilation: int) -> Array:
    return _convolve(x, kernel, 1, padding, dilation)


def _backward(padding: Pair, dilation: int, saved: Saved, gradient: Array) -> Saved:
    """That of the filter is x shifted by columns times the gradient shifted by rows."""
    x, kernel = saved
    _, pull = jax.vjp(lambda x: _convolve(x, kernel, 1, padding, dilation), x)
    (kh, kw, channels, features), (ph, pw) = kernel.shape, padding
    height, width = x.shape[1], gradient.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (pw, pw), (0, 0)))
    columns = [x[:, :, q * dilation : q * dilation + width] for q in range(kw)]
    short = (kh - 1) * dilation - ph  # negative: rows that see nothing but padding fall away
    zero = jnp.zeros((), gradient.dtype)
    tall = lax.pad(gradient, zero, ((0, 0, 0), (short, short, 0), (0, 0, 0), (0, 0, 0)))
    rows = [tall[:, r * dilation : r * dilation + height] for r in reversed(range(kh))]
    left = jnp.concatenate(columns, -1).reshape(-1, kw * channels)
    right = jnp.concatenate(rows, -1).reshape(-1, kh * features)
    weights = lax.dot_general(left, right, (((0,), (0,)), ((), ())))
    return pull(gradient)[0], weights.reshape(kw, channels, kh, features).transpose(2, 0, 1, 3)


_convolve_cpu.defvjp(lambda x, kernel, *at: (_convolve_cpu(x, kernel, *at), (x, kernel)), _backward)


class Conv(nn.Module):
    """2-D convolution [B, H, W, I] -> [B, H', W', O] with symmetric explicit padding.

    `padding` is the zeros added on each side; None means `dilation * (kernel // 2)`, which keeps
    the size at stride 1. `dtype` is of the computation and the output; parameters stay float32.
    """

    features: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    dilation: int = 1
    padding: int | None = None
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kh, kw = (self.kernel,) * 2 if isinstance(self.kernel, int) else self.kernel
        kernel = self.param("kernel", self.kernel_init, (kh, kw, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        padding = (self.dilation * (kh // 2), self.dilation * (kw // 2))
        padding = padding if self.padding is None else (self.padding, self.padding)
        y = convolve(x, kernel, stride=self.stride, padding=padding, dilation=self.dilation)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


def same_padding(x: Array, kernel: int, stride: int) -> Array:
    """Pads [B, H, W, C] with zeros as TensorFlow does for "SAME": an odd one goes to the end."""
    short = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[1:3]]
    return jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in short), (0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: Array, kernel: Array, stride: int) -> Array:
    """Sum of shifted products, fused into one pass: [B, H, W, C] with [k, k, C], unpadded."""
    k = kernel.shape[0]
    spans = [stride * ((n - k) // stride) + 1 for n in x.shape[1:3]]
    rows, columns = ([slice(i, i + span, stride) for i in range(k)] for span in spans)
    places = product(enumerate(rows), enumerate(columns))
    return reduce(jnp.add, (x[:, row, column] * kernel[i, j] for (i, row), (j, column) in places))


def _depthwise_backward(stride: int, saved: Saved, gradient: Array) -> Saved:
    x, kernel = saved
    k = kernel.shape[0]
    spans = [stride * (n - 1) + 1 for n in gradient.shape[1:3]]
    widths = [(k - 1, n - span, stride - 1) for n, span in zip(x.shape[1:3], spans, strict=True)]
    spread = lax.pad(gradient, jnp.zeros((), gradient.dtype), [(0, 0, 0), *widths, (0, 0, 0)])

    # A loop: fused into one, these sums take three times as long.
    def one_weight(_: None, place: Array) -> tuple[None, Array]:
        start = (0, place // k, place % k, 0)
        window = lax.dynamic_slice(x, start, (x.shape[0], *spans, x.shape[3]))
        return None, jnp.sum(window[:, ::stride, ::stride] * gradient, (0, 1, 2))

    _, weights = lax.scan(one_weight, None, jnp.arange(k * k))
    return _depthwise(spread, kernel[::-1, ::-1], 1), weights.reshape(kernel.shape)


_depthwise.defvjp(lambda x, kernel, s: (_depthwise(x, kernel, s), (x, kernel)), _depthwise_backward)


class DepthwiseConv(nn.Module):
    """One square kernel a channel, [B, H, W, C] -> [B, H', W', C], padded by `same_padding`."""

    kernel: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        x = same_padding(x.astype(self.dtype), self.kernel, self.stride)
        return _depthwise(x, kernel[:, :, 0].astype(self.dtype), self.stride)

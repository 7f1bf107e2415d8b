"""Array primitives shared by all networks: NHWC, explicit symmetric padding, fast on CPU and TPU.

Three differ from what a framework offers by default, visibly in the outputs of a converted network:
down-scaling has no antialias filter, stride-2 windows are padded equally on both sides (XLA's
"SAME" is not), and running variances are the unbiased ones.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from infnet_jax.models.conv import Conv, he_fan_out

INPAINT_HEADS = ("none", "tanh_parallel", "linear_replace")
_ROWS, _COLUMNS = 1, 2
_KEEP = 0.9  # weight of the old running statistics (torch's momentum is one minus it)


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis, as torch does it; `dtype` is the output's.

    The batch is normalised by its biased variance while the running variance takes the unbiased
    one (n / (n - 1)); `flax.linen.BatchNorm` uses the biased one for both. Statistics are float32.
    """

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises x; `train` uses and updates with batch statistics (collection batch_stats)."""
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        run_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        run_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x = x.astype(jnp.float32)
        mean, var = run_mean.value, run_var.value
        if train:
            axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            # One pass over x; shifting by the running mean avoids the cancellation of E[x²]-E[x]².
            shift = run_mean.value
            offset = jnp.mean(x - shift, axes)
            mean = shift + offset
            var = jnp.maximum(jnp.mean(jnp.square(x - shift), axes) - jnp.square(offset), 0.0)
            if not self.is_initializing():
                unbiased = var * (n / max(n - 1, 1))
                run_mean.value = _KEEP * run_mean.value + (1 - _KEEP) * lax.stop_gradient(mean)
                run_var.value = _KEEP * run_var.value + (1 - _KEEP) * lax.stop_gradient(unbiased)
        factor = scale * lax.rsqrt(var + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


class Layer(NamedTuple):
    """Makes bias-free convolutions with batch norm; its fields are those of `Conv`, `BatchNorm`."""

    train: bool
    dtype: DTypeLike
    epsilon: float = 1e-5
    padding: int | None = None

    def __call__(
        self, x: Array, conv: str, norm: str, features: int, kernel: int, stride: int = 1
    ) -> Array:
        """Maps [B, H, W, C] to [B, H', W', features], no activation.

        Makes two submodules, called `conv` and `norm`, of the module whose compact method calls it.
        """
        options = self.padding, False, he_fan_out, self.dtype
        x = Conv(features, kernel, stride, 1, *options, name=conv)(x)
        return BatchNorm(self.epsilon, self.dtype, name=norm)(x, train=self.train)


def max_pool(x: Array, size: int, stride: int, padding: int = 0) -> Array:
    """Max-pool [B, H, W, C] over size x size windows by slices, padded with -inf on every side."""
    for axis in (_ROWS, _COLUMNS):
        x = reduce(jnp.maximum, _shifted(x, axis, size, stride, padding, -jnp.inf))
    return x


def avg_pool(x: Array, size: int, stride: int, padding: int = 0) -> Array:
    """Mean of [B, H, W, C] over size x size windows; zeros around, which count."""
    for axis in (_ROWS, _COLUMNS):
        total = reduce(jnp.add, _shifted(x, axis, size, stride, padding, 0.0))
        x = total * jnp.asarray(1.0 / size, x.dtype)
    return x


def _shifted(x: Array, axis: int, size: int, stride: int, pad: int, outside: float) -> list[Array]:
    """The first, second, ... cell of every window along one axis, `size` arrays."""
    if pad:
        config = [(pad, pad, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        x = lax.pad(x, jnp.asarray(outside, x.dtype), config)
    count = (x.shape[axis] - size) // stride + 1
    return [_window(x, axis, start, count, stride) for start in range(size)]


def _window(x: Array, axis: int, start: int, count: int, stride: int) -> Array:
    return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)


def box_filter(x: Array, size: int) -> Array:
    """Mean of float [B, H, W, C] over a centred box of odd size; zeros outside, which count."""
    if size % 2 == 0:
        raise ValueError(f"box_filter needs an odd size, got {size}")
    half = size // 2
    for axis in (_ROWS, _COLUMNS):
        window, padding = [1] * x.ndim, [(0, 0)] * x.ndim
        window[axis], padding[axis] = size, (half, half)
        x = lax.reduce_window(x, np.zeros((), x.dtype), lax.add, window, (1,) * x.ndim, padding)
    return x / (size * size)


def resize_bilinear(x: Array, size: Sequence[int], *, align_corners: bool = False) -> Array:
    """Resizes float [B, H, W, C] to [B, size[0], size[1], C] linearly, without antialias.

    With `align_corners` the corner pixels' centres coincide, else the images' outer borders.
    """
    for axis, n_out in zip((_ROWS, _COLUMNS), size, strict=True):
        n_in = x.shape[axis]
        factor = n_in // n_out
        if n_in == n_out:
            continue
        if not align_corners and n_in == factor * n_out and factor % 2 == 0:
            # Even down-scaling samples midway between two pixels: two slices do it.
            left = _window(x, axis, factor // 2 - 1, n_out, factor)
            x = (left + _window(x, axis, factor // 2, n_out, factor)) * 0.5
            continue
        out = np.arange(n_out)
        centres = (out + 0.5) * (n_in / n_out) - 0.5
        place = out * ((n_in - 1) / max(n_out - 1, 1)) if align_corners else centres
        # Linear interpolation along the axis as a matrix [n_out, n_in]; edges are repeated.
        matrix = np.stack([np.interp(place, np.arange(n_in), unit) for unit in np.eye(n_in)], 1)
        pattern = "oh,bhwc->bowc" if axis == _ROWS else "ow,bhwc->bhoc"
        x = jnp.einsum(pattern, jnp.asarray(matrix, x.dtype), x, precision=lax.Precision.HIGHEST)
    return x


def resize_nearest(x: Array, size: Sequence[int]) -> Array:
    """Resizes [B, H, W, C] by taking source pixel floor(i * in / out), as torch's "nearest"."""
    for axis, n_out in zip((_ROWS, _COLUMNS), size, strict=True):
        n_in = x.shape[axis]
        if n_out % n_in == 0:
            x = jnp.repeat(x, n_out // n_in, axis) if n_out != n_in else x
        else:
            x = jnp.take(x, np.arange(n_out) * n_in // n_out, axis)
    return x


def check_divisible(x: Array, multiple: int, network: str) -> None:
    """Raises ValueError unless H and W of x [B, H, W, C] are multiples of `multiple`, from 1 on."""
    height, width = x.shape[1:3]
    if height % multiple or width % multiple or not height or not width:
        size = f"got {height} x {width}"
        raise ValueError(f"{network} needs height and width divisible by {multiple}, {size}")


def check_head(head: str, inpaint_head: str) -> None:
    """Raises ValueError unless a network with this `inpaint_head` has the head."""
    if head not in ("segment", "inpaint"):
        raise ValueError(f"head must be segment or inpaint, got {head!r}")
    if head == "inpaint" and inpaint_head == "none":
        raise ValueError("head 'inpaint' needs inpaint_head other than 'none'")

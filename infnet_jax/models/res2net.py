"""Res2Net-50 v1b 26w x 4s feature trunk (Gao et al. 2019), the original Inf-Net's default."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.conv import Conv, he_fan_out
from infnet_jax.models.layers import BatchNorm, avg_pool, max_pool

_BLOCKS = (3, 4, 6, 3)
_SPLITS = 4
_BASE_WIDTH = 26


class Bottle2neck(nn.Module):
    """Bottleneck whose 3x3 convolution works on four channel splits, each fed the one before.

    The first block of a stage (`first`) does not pass splits on, and pools its fourth split;
    later blocks copy it. Output has 4 * `channels` channels.
    """

    channels: int
    stride: int
    first: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        def conv(name: str, features: int, kernel: int, stride: int = 1) -> Conv:
            return Conv(
                features, kernel, stride, kernel_init=he_fan_out, dtype=self.dtype, name=name
            )

        def norm(name: str, y: Array) -> Array:
            return BatchNorm(dtype=self.dtype, name=name)(y, train=train)

        width, out = self.channels * _BASE_WIDTH // 64, 4 * self.channels
        y = nn.relu(norm("bn1", conv("conv1", width * _SPLITS, 1)(x)))
        splits = jnp.split(y, _SPLITS, axis=-1)
        parts: list[Array] = []
        for i in range(_SPLITS - 1):
            part = splits[i] if self.first or i == 0 else parts[-1] + splits[i]
            part = conv(f"convs_{i}", width, 3, self.stride)(part)
            parts.append(nn.relu(norm(f"bns_{i}", part)))
        last = avg_pool(splits[-1], 3, self.stride, 1) if self.first else splits[-1]
        y = norm("bn3", conv("conv3", out, 1)(jnp.concatenate([*parts, last], axis=-1)))
        if self.stride > 1 or x.shape[-1] != out:
            if self.stride > 1:
                x = avg_pool(x, self.stride, self.stride, count_padding=False, ceil=True)
            x = norm("downsample_bn", conv("downsample_conv", out, 1)(x))
        return nn.relu(y + x)


class Res2Net(nn.Module):
    """Trunk that returns the feature maps after each of its four stages.

    Attributes:
        max_pool: False leaves out the 3x3/2 pool after the stem (see `resnet.ResNet`).
        dtype: compute dtype.
    """

    max_pool: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """Maps [B, H, W, C] to taps f4, f8, f16, f32 of 256, 512, 1024 and 2048 channels."""
        for i, (features, stride) in enumerate(((32, 2), (32, 1), (64, 1))):
            x = Conv(
                features, 3, stride, kernel_init=he_fan_out, dtype=self.dtype, name=f"stem_conv{i}"
            )(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"stem_bn{i}")(x, train=train))
        if self.max_pool:
            x = max_pool(x, 3, 2, 1)
        taps = {}
        for stage, blocks in enumerate(_BLOCKS):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                x = Bottle2neck(
                    64 << stage, stride, i == 0, self.dtype, name=f"layer{stage + 1}_{i}"
                )(x, train=train)
            taps[f"f{4 << stage}"] = x
        return taps

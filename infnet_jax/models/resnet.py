"""ResNet-18 and ResNet-50 feature trunks (He et al. 2016; stride on the 3x3 of a bottleneck)."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.conv import Conv, he_fan_out
from infnet_jax.models.layers import BatchNorm, max_pool

_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet-18); output has `channels` channels."""

    channels: int
    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        def conv(name: str, kernel: int, stride: int) -> Conv:
            return Conv(
                self.channels, kernel, stride, kernel_init=he_fan_out, dtype=self.dtype, name=name
            )

        def norm(name: str, y: Array) -> Array:
            return BatchNorm(dtype=self.dtype, name=name)(y, train=train)

        y = nn.relu(norm("bn1", conv("conv1", 3, self.stride)(x)))
        y = norm("bn2", conv("conv2", 3, 1)(y))
        if self.stride > 1 or x.shape[-1] != self.channels:
            x = norm("downsample_bn", conv("downsample_conv", 1, self.stride)(x))
        return nn.relu(y + x)


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 with a shortcut (ResNet-50); output has 4 * `channels` channels."""

    channels: int
    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        def conv(name: str, features: int, kernel: int, stride: int) -> Conv:
            return Conv(
                features, kernel, stride, kernel_init=he_fan_out, dtype=self.dtype, name=name
            )

        def norm(name: str, y: Array) -> Array:
            return BatchNorm(dtype=self.dtype, name=name)(y, train=train)

        out = 4 * self.channels
        y = nn.relu(norm("bn1", conv("conv1", self.channels, 1, 1)(x)))
        y = nn.relu(norm("bn2", conv("conv2", self.channels, 3, self.stride)(y)))
        y = norm("bn3", conv("conv3", out, 1, 1)(y))
        if self.stride > 1 or x.shape[-1] != out:
            x = norm("downsample_bn", conv("downsample_conv", out, 1, self.stride)(x))
        return nn.relu(y + x)


class ResNet(nn.Module):
    """Trunk that returns the feature maps after each of its four stages.

    Attributes:
        depth: 18 or 50.
        width: channels of the first stage (64 as published); each stage doubles it, and depth 50
            has four times as many at its outputs.
        max_pool: False leaves out the 3x3/2 pool after the stem, so that every tap has twice the
            resolution: for small inputs, and for the coach.
        dtype: compute dtype.
    """

    depth: int = 50
    width: int = 64
    max_pool: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """Maps [B, H, W, C] to taps f4, f8, f16, f32.

        The names are the strides with the stem's pool; without it the strides are 2, 4, 8, 16.

        Raises:
            ValueError: for a depth other than 18 or 50.
        """
        if self.depth not in _BLOCKS:
            raise ValueError(f"ResNet depth must be one of {sorted(_BLOCKS)}, got {self.depth}")
        block = BasicBlock if self.depth == 18 else Bottleneck
        x = Conv(self.width, 7, 2, kernel_init=he_fan_out, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(x, train=train))
        if self.max_pool:
            x = max_pool(x, 3, 2, 1)
        taps = {}
        for stage, blocks in enumerate(_BLOCKS[self.depth]):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                x = block(self.width << stage, stride, self.dtype, name=f"layer{stage + 1}_{i}")(
                    x, train=train
                )
            taps[f"f{4 << stage}"] = x
        return taps

"""EfficientNet-lite0 feature trunk (Tan & Le 2019; the lite form has ReLU6 and no gates).

A light trunk whose ImageNet weights come from the package registry (extra `pretrained`).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.conv import Conv, DepthwiseConv, he_fan_out, same_padding
from infnet_jax.models.layers import BatchNorm

# Of each stage: blocks, kernel, stride, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_TAPS = {0: "f2", 1: "f4", 2: "f8", 4: "f16", 6: "f32"}  # the last stage of each resolution
# Published with momentum .99, for long training: in some hundred steps a share of ImageNet's
# statistics would stay in the running ones.
_NORM = dict(epsilon=1e-3, momentum=0.9)


class InvertedBottleneck(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a shortcut where shapes allow it."""

    channels: int
    kernel: int
    stride: int
    expansion: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        def norm(name: str, y: Array) -> Array:
            return BatchNorm(dtype=self.dtype, name=name, **_NORM)(y, train=train)

        def point(name: str, features: int, y: Array) -> Array:
            return Conv(features, 1, kernel_init=he_fan_out, dtype=self.dtype, name=name)(y)

        y = x
        if self.expansion > 1:
            y = nn.relu6(norm("bn0", point("expand", self.expansion * x.shape[-1], y)))
        y = DepthwiseConv(self.kernel, self.stride, dtype=self.dtype, name="depthwise")(y)
        y = nn.relu6(norm("bn1", y))
        y = norm("bn2", point("project", self.channels, y))
        return x + y if y.shape == x.shape else y


class EfficientNetLite0(nn.Module):
    """Trunk of 3.0 million parameters; windows of stride 2 are padded as in TensorFlow.

    Attributes:
        max_pool: False gives the stem stride 1, so that every tap has twice the resolution (there
            is no pool here; the name is that of the ResNets' switch).
        dtype: compute dtype.
    """

    max_pool: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """Maps [B, H, W, C] to taps f2 to f32 of 16, 24, 40, 112 and 320 channels."""
        stride = 2 if self.max_pool else 1
        x = same_padding(x, 3, stride)
        x = Conv(32, 3, stride, padding=0, kernel_init=he_fan_out, dtype=self.dtype, name="stem")(x)
        x = nn.relu6(BatchNorm(dtype=self.dtype, name="stem_bn", **_NORM)(x, train=train))
        taps, index = {}, 0
        for stage, (blocks, kernel, stride, expansion, channels) in enumerate(_STAGES):
            for i in range(blocks):
                x = InvertedBottleneck(
                    channels,
                    kernel,
                    1 if i else stride,
                    expansion,
                    self.dtype,
                    name=f"block{index}",
                )(x, train=train)
                index += 1
            if stage in _TAPS:
                taps[_TAPS[stage]] = x
        return taps

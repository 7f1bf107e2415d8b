"""EfficientNet-lite0 trunk (Tan & Le 2019; lite: ReLU6, no gates); extra `pretrained` has weights.

The momentum is BatchNorm's .9, not the published .99 for long training: in some hundred steps a
share of ImageNet's statistics would stay in the running ones.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.conv import DepthwiseConv, same_padding
from infnet_jax.models.layers import BatchNorm, Layer

# Of each stage: blocks, kernel, stride, expansion, output channels.
_STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)]
_STAGES += [(3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]
_TAPS = (0, 1, 2, 4, 6)  # the last stage of each resolution
_EPSILON = 1e-3


class InvertedBottleneck(nn.Module):
    """1x1 expansion, depthwise, 1x1 projection, shortcut: [B, H, W, C] to `channels` channels."""

    channels: int
    kernel: int
    stride: int
    expansion: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        layer = Layer(train, self.dtype, _EPSILON)
        y = x
        if self.expansion > 1:
            y = nn.relu6(layer(y, "expand", "bn0", self.expansion * x.shape[-1], 1))
        y = DepthwiseConv(self.kernel, self.stride, dtype=self.dtype, name="depthwise")(y)
        y = BatchNorm(_EPSILON, dtype=self.dtype, name="bn1")(y, train=train)
        y = layer(nn.relu6(y), "project", "bn2", self.channels, 1)
        return x + y if y.shape == x.shape else y


class EfficientNetLite0(nn.Module):
    """Trunk of 3.0 million parameters; windows of stride 2 are padded as in TensorFlow.

    `max_pool=False` gives the stem stride 1, so that every map is twice as large (there is no pool
    here; the name is that of the ResNets' switch).
    """

    max_pool: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> list[Array]:
        """Maps [B, H, W, C] to five maps, strides 2 to 32, of 16, 24, 40, 112, 320 channels."""
        stride = 2 if self.max_pool else 1
        layer = Layer(train, self.dtype, _EPSILON, padding=0)
        x = nn.relu6(layer(same_padding(x, 3, stride), "stem", "stem_bn", 32, 3, stride))
        taps, index = [], 0
        for stage, (blocks, kernel, stride, expansion, channels) in enumerate(_STAGES):
            for i in range(blocks):
                shape = channels, kernel, 1 if i else stride, expansion
                x = InvertedBottleneck(*shape, self.dtype, name=f"block{index}")(x, train=train)
                index += 1
            if stage in _TAPS:
                taps.append(x)
        return taps

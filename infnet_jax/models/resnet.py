"""ResNet-18, ResNet-50 (He et al. 2016, the stride on the 3x3) and Res2Net-50 feature trunks.

Res2Net-50 v1b 26w x 4s after Gao et al. 2019, the original Inf-Net's default.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.layers import Layer, avg_pool, max_pool


class Residual(nn.Module):
    """Convolutions and a shortcut, [B, H, W, C] to four (`deep`) or one times `channels`.

    Two 3x3, the first strided, or (`deep`, the bottleneck) 1x1, 3x3 strided, 1x1.
    """

    channels: int
    stride: int
    deep: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        layer = Layer(train, self.dtype)
        n, s = self.channels, self.stride
        shapes = ((n, 1, 1), (n, 3, s), (4 * n, 1, 1)) if self.deep else ((n, 3, s), (n, 3, 1))
        y = x
        for i, shape in enumerate(shapes, start=1):
            y = layer(nn.relu(y) if i > 1 else y, f"conv{i}", f"bn{i}", *shape)
        if x.shape != y.shape:
            x = layer(x, "downsample_conv", "downsample_bn", y.shape[-1], 1, s)
        return nn.relu(y + x)


class Bottle2neck(nn.Module):
    """Bottleneck whose 3x3 convolution works on four channel splits, each fed the one before.

    The first block of a stage, which alone changes the shape, does not pass splits on and pools its
    fourth split; later blocks copy it. [B, H, W, C] -> [B, H', W', 4 * `channels`].
    """

    channels: int
    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        layer = Layer(train, self.dtype)
        width, out = self.channels * 26 // 64, 4 * self.channels
        first = x.shape[-1] != out
        *splits, last = jnp.split(nn.relu(layer(x, "conv1", "bn1", 4 * width, 1)), 4, axis=-1)
        parts: list[Array] = []
        for i, split in enumerate(splits):
            part = split if first or i == 0 else parts[-1] + split
            parts.append(nn.relu(layer(part, f"convs_{i}", f"bns_{i}", width, 3, self.stride)))
        last = avg_pool(last, 3, self.stride, 1) if first else last
        y = layer(jnp.concatenate([*parts, last], axis=-1), "conv3", "bn3", out, 1)
        if first:
            x = avg_pool(x, self.stride, self.stride) if self.stride > 1 else x
            x = layer(x, "downsample_conv", "downsample_bn", out, 1)
        return nn.relu(y + x)


# Of each trunk: its block, and how many of them a stage has.
KINDS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "resnet18": (partial(Residual, deep=False), (2, 2, 2, 2)),
    "resnet50": (partial(Residual, deep=True), (3, 4, 6, 3)),
    "res2net50": (Bottle2neck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """Trunk, `kind` of KINDS, that returns the feature maps of its stem and of its four stages.

    `width` is the channels of the first stage's 3x3 convolutions (64 as published); each stage
    doubles it, and bottlenecks have four times as many at their outputs. `max_pool=False` leaves
    out the pool after the stem, so that every later map is twice as large.
    """

    kind: str
    width: int = 64
    max_pool: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> list[Array]:
        """Maps [B, H, W, C] to five maps at strides 2, 4, 8, 16, 32, or 2, 2, 4, 8, 16 unpooled."""
        layer = Layer(train, self.dtype)
        block, stages = KINDS[self.kind]
        if self.kind == "res2net50":
            for i, features in enumerate((self.width // 2, self.width // 2, self.width)):
                x = nn.relu(layer(x, f"stem_conv{i}", f"stem_bn{i}", features, 3, 1 if i else 2))
        else:
            x = nn.relu(layer(x, "conv1", "bn1", self.width, 7, 2))
        taps = [x]
        x = max_pool(x, 3, 2, 1) if self.max_pool else x
        for stage, blocks in enumerate(stages):
            for i in range(blocks):
                shape = self.width << stage, 2 if stage > 0 and i == 0 else 1
                x = block(*shape, dtype=self.dtype, name=f"layer{stage + 1}_{i}")(x, train=train)
            taps.append(x)
        return taps

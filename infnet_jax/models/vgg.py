"""VGG-16 without batch norm, and FCN8s on it (Long et al. 2015), the public code's baseline."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.conv import Conv, he_fan_out
from infnet_jax.models.layers import BatchNorm, avg_pool, check_divisible, max_pool


class VGG16(nn.Module):
    """Trunk that returns the feature maps of its five stages.

    `width` is the channels of the first stage (64 in VGG-16); `pool` between the stages is "avg"
    (Inf-Net's change) or "max" (the original).
    """

    width: int = 64
    pool: str = "avg"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> list[Array]:
        """Maps [B, H, W, C] to five maps at strides 1, 2, 4, 8, 16 of 1, 2, 4, 8, 8 `width`s.

        `train` is accepted for the trunks' common signature and changes nothing.
        """
        conv = partial(Conv, use_bias=True, kernel_init=he_fan_out, dtype=self.dtype)
        pool = avg_pool if self.pool == "avg" else max_pool
        taps: list[Array] = []
        for stage, (factor, layers) in enumerate(((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)), start=1):
            x = pool(x, 2, 2) if taps else x
            for i in range(1, layers + 1):
                x = nn.relu(conv(factor * self.width, 3, name=f"conv{stage}_{i}")(x))
            taps.append(x)
        return taps


def doubling(features: int, dtype: DTypeLike, name: str | None = None) -> nn.ConvTranspose:
    """Transposed 3x3 convolution, stride 2: [B, H, W, C] -> [B, 2 H, 2 W, `features`].

    Padding 1 and output padding 1 of the public code: row r reaches rows 2r - 1 to 2r + 1.
    """
    layer = partial(nn.ConvTranspose, kernel_init=he_fan_out, dtype=dtype, name=name)
    return layer(features, (3, 3), (2, 2), padding=((1, 2), (1, 2)))


class FCN8s(nn.Module):
    """VGG-16 with max-pooling, and five transposed convolutions back to the input's size.

    Differs from the original FCN8s as the public code does: skips are added after the ReLU of
    512- and 256-channel maps, before their batch norm, instead of to class scores. `width` is the
    channels of VGG's first stage (64 as published); all others follow.
    """

    classes: int = 3
    width: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """Maps [B, H, W, C], H and W multiples of 32, to "logits": float32 [B, H, W, classes]."""
        check_divisible(x, 32, "FCN8s")
        taps = VGG16(self.width, "max", self.dtype, name="trunk")(x, train=train)
        pool3, pool4, x = (max_pool(tap, 2, 2) for tap in taps[2:])
        for i, factor in enumerate((8.0, 4.0, 2.0, 1.0, 0.5), start=1):
            x = nn.relu(doubling(int(factor * self.width), self.dtype, f"deconv{i}")(x))
            if i <= 2:
                x = x + (pool4, pool3)[i - 1]
            x = BatchNorm(dtype=self.dtype, name=f"bn{i}")(x, train=train)
        logits = Conv(self.classes, 1, use_bias=True, dtype=self.dtype, name="out_seg")(x)
        return {"logits": logits.astype(jnp.float32)}

"""VGG-16 feature trunk without batch normalisation, as Inf-Net and FCN8s use it."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.conv import Conv, he_fan_out
from infnet_jax.models.layers import avg_pool, max_pool

_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (multiple of the width, convolutions)
_POOLS = {"avg": avg_pool, "max": max_pool}


class VGG16(nn.Module):
    """Trunk that returns the feature maps of its five stages.

    Attributes:
      width: channels of the first stage, 64 in VGG-16.
      pool: between stages, "avg" (Inf-Net's change) or "max" (the original).
      dtype: compute dtype.
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
        taps: list[Array] = []
        for stage, (multiple, convolutions) in enumerate(_STAGES, start=1):
            x = _POOLS[self.pool](x, 2, 2) if taps else x
            for i in range(1, convolutions + 1):
                x = nn.relu(conv(multiple * self.width, 3, name=f"conv{stage}_{i}")(x))
            taps.append(x)
        return taps

"""VGG-16 feature trunk without batch normalisation, as Inf-Net and FCN8s use it."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.conv import Conv, he_fan_out
from infnet_jax.models.layers import avg_pool, max_pool

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (multiple of the width, convolutions)
POOLS = {"avg": avg_pool, "max": max_pool}


class VGG16(nn.Module):
    """Trunk that returns the feature maps after its second to fifth stage.

    Attributes:
        width: channels of the first stage, 64 in VGG-16.
        pool: between stages, "avg" (Inf-Net's change) or "max" (the original).
        dtype: compute dtype.
    """

    width: int = 64
    pool: str = "avg"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """Maps [B, H, W, C] to taps f4, f8, f16, f32 of 2, 4, 8 and 8 times `width` channels.

        The names keep their places in the ResNets; the strides here are 2, 4, 8 and 16. `train`
        is accepted for the trunks' common signature and changes nothing.
        """
        taps = {}
        for stage, (multiple, convolutions) in enumerate(STAGES):
            if stage:
                x = POOLS[self.pool](x, 2, 2)
            for i in range(convolutions):
                x = nn.relu(
                    Conv(
                        multiple * self.width,
                        3,
                        use_bias=True,
                        kernel_init=he_fan_out,
                        dtype=self.dtype,
                        name=f"conv{stage + 1}_{i + 1}",
                    )(x)
                )
            if stage:
                taps[f"f{2 << stage}"] = x
        return taps

"""VGG-16 feature trunk as Inf-Net uses it: no batch normalisation, average pooling."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.ops import Conv, avg_pool, he_fan_out

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, convolutions)


class VGG16(nn.Module):
    """Trunk that returns the feature maps after its second to fifth stage."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """Maps [B, H, W, C] to taps f4, f8, f16, f32 of 128, 256, 512 and 512 channels.

        The names keep their places in the ResNets; the strides here are 2, 4, 8 and 16. `train`
        is accepted for the trunks' common signature and changes nothing.
        """
        taps = {}
        for stage, (channels, convolutions) in enumerate(STAGES):
            if stage:
                x = avg_pool(x, 2, 2)
            for i in range(convolutions):
                x = nn.relu(
                    Conv(
                        channels, 3, use_bias=True, kernel_init=he_fan_out, dtype=self.dtype,
                        name=f"conv{stage + 1}_{i + 1}",
                    )(x)
                )  # fmt: skip
            if stage:
                taps[f"f{2 << stage}"] = x
        return taps

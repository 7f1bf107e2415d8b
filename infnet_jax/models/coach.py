"""The coach: a variational network that scores cells of an image, and masks made of its scores.

A mask holds 1 where the image stays visible and 0 where it is erased. The public code calls the
visible share "drop ratio"; here it is `keep_ratio`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.conv import Conv, he_fan_out
from infnet_jax.models.layers import check_divisible
from infnet_jax.models.resnet import ResNet


class Coach(nn.Module):
    """Scores each 16 x 16 cell of an image (Singh et al.; paper Fig. 2) by a ResNet-18.

    All kernels are drawn He-normal by fan-out except those of mu and logvar. The public code also
    draws the score's bias at random; a common shift of all scores leaves the masks unchanged, so
    ours starts at zero. `width` is the channels of the trunk's first stage (64 as published),
    `dtype` that of the computation; the three outputs are float32.
    """

    width: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool, key: Array | None = None) -> dict[str, Array]:
        """Maps [B, H, W, C] to score [B, H/16, W/16, 1], and mu and logvar of 100 channels.

        `key` draws z = mu + exp(logvar / 2) * noise, as the public code does always; None means
        z = mu. H or W not divisible by 16 is a ValueError.
        """
        check_divisible(x, 16, "coach")
        trunk = ResNet("resnet18", self.width, max_pool=False, dtype=self.dtype, name="trunk")
        x = trunk(x, train=train)[-1]

        def conv(name: str, x: Array, features: int, init: nn.initializers.Initializer) -> Array:
            layer = Conv(features, 1, use_bias=True, kernel_init=init, dtype=self.dtype, name=name)
            return layer(x).astype(jnp.float32)

        plain = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default
        mu, logvar = (conv(name, x, 100, plain) for name in ("mu", "logvar"))
        z = mu
        if key is not None:
            z = mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape, mu.dtype)
        return {"score": conv("score", z, 1, he_fan_out), "mu": mu, "logvar": logvar}


def visible_from_score(
    score: Array, *, keep_ratio: float, alpha: float, hard: bool, inclusive: bool = False
) -> Array:
    """Turns scores [B, h, w, 1] into float32 masks of visible cells (paper Eq. 3), 1 = visible.

    The threshold is the k-th largest score of each example, k = int(keep_ratio * cells).

    Args:
      keep_ratio: share of cells that stays visible, in (0, 1]; ValueError for a k below 1.
      alpha: steepness of the soft mask, sigmoid(alpha * (score - threshold)), which passes
        gradients to every score, and through the threshold to the k-th one.
      hard: cuts to 0 or 1 instead (no gradient).
      inclusive: k cells stay visible in hard masks; else k - 1, as in the public code.
    """
    cells = score.shape[1] * score.shape[2]
    k = int(keep_ratio * cells)
    if not 1 <= k <= cells:
        message = f"keep_ratio must keep between 1 and all of {cells} cells, got {keep_ratio}"
        raise ValueError(message)
    score = score.astype(jnp.float32)
    # A full sort instead of top_k: it stays split over the batch on several devices.
    ordered = jnp.sort(score.reshape(score.shape[0], cells), axis=-1)
    threshold = ordered[:, cells - k].reshape(-1, 1, 1, 1)
    if not hard:
        return jax.nn.sigmoid(alpha * (score - threshold))
    return (score >= threshold if inclusive else score > threshold).astype(jnp.float32)

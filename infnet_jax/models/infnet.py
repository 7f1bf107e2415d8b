"""Inf-Net: partial decoder, edge branch and three reverse-attention stages on a shared trunk.

Fan et al. 2020 (paper Fig. 1), with inpainting heads in two readings:

- `linear_replace` (paper Fig. 3): the last layer of every output gives way to a linear
  convolution to the image's channels, and these outputs are what the cascade carries.
- `tanh_parallel` (the authors' code): heads with tanh beside the segmentation layers, whose
  one-channel outputs remain the carries.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.infnet_blocks import RFB, EdgeBranch, PartialDecoder, ReverseAttention
from infnet_jax.models.layers import check_divisible, check_head, resize_bilinear


class InfNet(nn.Module):
    """Inf-Net with segmentation heads and optional inpainting heads, as `models.make` builds it.

    Initialisation (`init` with either head) creates the parameters of both heads.

    Attributes:
      trunk: maps an image to five feature maps, finest first; the finest is not used.
      multiple: height and width must be multiples of this.
      width: channels of the edge branch and reverse attentions (the deepest has four times as
        many).
      inpaint_head: one of `layers.INPAINT_HEADS`.
      image_channels: channels of an inpainting output.
      dtype: compute dtype; outputs are float32.
    """

    trunk: nn.Module
    multiple: int
    width: int = 64
    inpaint_head: str = "none"
    image_channels: int = 3
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.rfb8, self.rfb16, self.rfb32 = (RFB(dtype=self.dtype) for _ in range(3))
        heads: dict[str, Any] = {
            "inpaint_head": self.inpaint_head,
            "image_channels": self.image_channels,
            "dtype": self.dtype,
        }
        n = self.width
        self.partial_decoder = PartialDecoder(plain=True, **heads)
        self.edge_branch = EdgeBranch(features=n, kernel=3, **heads)
        self.reverse_attention32 = ReverseAttention(features=4 * n, inner=(5, 5, 5), **heads)
        self.reverse_attention16 = ReverseAttention(features=n, kernel=3, **heads)
        self.reverse_attention8 = ReverseAttention(features=n, kernel=3, **heads)

    def __call__(self, x: Array, *, train: bool, head: str = "segment") -> dict[str, Array]:
        """Maps images to five outputs at the input's size.

        Args:
          x: images [B, H, W, C], H and W multiples of `multiple`.
          train: whether batch normalisation uses (and updates by) batch statistics.
          head: "segment" (one channel of logits) or "inpaint" (image_channels, linear or tanh by
            `inpaint_head`).

        Returns:
          coarse, s32, s16, s8 (the final map) and edge, float32 [B, H, W, channels]; the public
          code's map5, map4, map3, map2 and edge.

        Raises:
          ValueError: an unknown head, an inpainting call of a network without inpainting heads, or
            a size that does not fit.
        """
        check_head(head, self.inpaint_head)
        check_divisible(x, self.multiple, f"Inf-Net on {type(self.trunk).__name__}")
        _, *taps = self.trunk(x, train=train)
        rfbs = (self.rfb32, self.rfb16, self.rfb8)
        reduced = [rfb(tap, train=train) for rfb, tap in zip(rfbs, taps[:0:-1], strict=True)]
        if self.is_initializing() and self.inpaint_head != "none":
            self._heads(taps, reduced, "segment" if head == "inpaint" else "inpaint", train)
        outputs = self._heads(taps, reduced, head, train)
        size = x.shape[1:3]
        return {k: resize_bilinear(v.astype(jnp.float32), size) for k, v in outputs.items()}

    def _heads(
        self, taps: list[Array], reduced: list[Array], head: str, train: bool
    ) -> dict[str, Array]:
        """The five outputs by name, each at the size of its features."""
        f4, f8, f16, f32 = taps
        mode: dict[str, Any] = {"head": head, "train": train}
        out: dict[str, Array] = {}
        guidance, edge = self.edge_branch(f4, **mode)
        carry, out["coarse"] = self.partial_decoder(*reduced, **mode)
        if head == "inpaint" and self.inpaint_head == "tanh_parallel":
            out["coarse"] = jnp.tanh(out["coarse"])  # the authors' code applies it twice here
        refine = self.reverse_attention32, self.reverse_attention16, self.reverse_attention8
        for name, stage, tap in zip(("s32", "s16", "s8"), refine, (f32, f16, f8), strict=True):
            carry, out[name] = stage(tap, guidance, carry, **mode, carries_on=name != "s8")
        return {**out, "edge": edge}

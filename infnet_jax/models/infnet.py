"""Inf-Net: partial decoder, edge branch and three reverse-attention stages on a shared trunk.

Fan et al. 2020 (paper Fig. 1), with inpainting heads in two readings:

- `linear_replace` (paper Fig. 3): the last layer of every output gives way to a linear
  convolution to the image's channels, and these outputs are what the cascade carries.
- `tanh_parallel` (the authors' code): heads with tanh beside the segmentation layers, whose
  one-channel outputs remain the carries.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.efficientnet import EfficientNetLite0
from infnet_jax.models.infnet_blocks import RFB, EdgeBranch, PartialDecoder, ReverseAttention
from infnet_jax.models.layers import check_divisible, resize_bilinear
from infnet_jax.models.res2net import Res2Net
from infnet_jax.models.resnet import ResNet
from infnet_jax.models.vgg import VGG16

BACKBONES = ("resnet18", "resnet50", "res2net50", "vgg16", "efficientnet_lite0")
INPAINT_HEADS = ("none", "tanh_parallel", "linear_replace")
HEADS = ("segment", "inpaint")


def is_output_layer(path: tuple[str, ...]) -> bool:
    """Whether a parameter path of InfNet lies in a last layer (what a transfer leaves behind)."""
    return any(part.startswith(("out_seg", "out_inpaint")) for part in path)


class InfNet(nn.Module):
    """Inf-Net with segmentation heads and optional inpainting heads.

    Initialisation (`init` with either head) creates the parameters of both heads.

    Attributes:
        backbone: one of BACKBONES.
        width: channels of the trunk's first stage and of the edge branch and reverse
            attentions (the deepest has four times as many); other than 64 for resnet18 only, and
            for efficientnet_lite0, whose own channels are fixed.
        max_pool: False leaves out the ResNets' stem pool (all resolutions double; small inputs).
        inpaint_head: one of INPAINT_HEADS.
        image_channels: channels of an inpainting output.
        dtype: compute dtype; outputs are float32.
    """

    backbone: str = "resnet50"
    width: int = 64
    max_pool: bool = True
    inpaint_head: str = "none"
    image_channels: int = 3
    dtype: DTypeLike = jnp.float32

    @property
    def stride(self) -> int:
        """Total stride of the trunk, which input sizes must be multiples of."""
        return 16 if self.backbone == "vgg16" or not self.max_pool else 32

    def setup(self) -> None:
        self._check_fields()
        if self.backbone == "vgg16":
            self.trunk = VGG16(dtype=self.dtype)
        elif self.backbone == "efficientnet_lite0":
            self.trunk = EfficientNetLite0(self.max_pool, self.dtype)
        elif self.backbone == "res2net50":
            self.trunk = Res2Net(self.max_pool, self.dtype)
        else:
            self.trunk = ResNet(int(self.backbone[6:]), self.width, self.max_pool, self.dtype)
        self.rfb8, self.rfb16, self.rfb32 = (RFB(dtype=self.dtype) for _ in range(3))
        heads = {
            "inpaint_head": self.inpaint_head,
            "image_channels": self.image_channels,
            "dtype": self.dtype,
        }
        self.partial_decoder = PartialDecoder(plain=True, **heads)
        self.edge_branch = EdgeBranch(features=self.width, kernel=3, **heads)
        self.reverse_attention32 = ReverseAttention(
            features=4 * self.width, inner=(5, 5, 5), **heads
        )
        self.reverse_attention16 = ReverseAttention(features=self.width, kernel=3, **heads)
        self.reverse_attention8 = ReverseAttention(features=self.width, kernel=3, **heads)

    def __call__(self, x: Array, *, train: bool, head: str = "segment") -> dict[str, Array]:
        """Maps images to five outputs at the input's size.

        Args:
            x: images [B, H, W, C], H and W divisible by the trunk's total stride.
            train: whether batch normalisation uses (and updates by) batch statistics.
            head: "segment" (one channel of logits) or "inpaint" (image_channels, linear or tanh
                by `inpaint_head`).

        Returns:
            coarse, s32, s16, s8 (the final map) and edge, float32 [B, H, W, channels]; the public
            code's map5, map4, map3, map2 and edge.

        Raises:
            ValueError: for an unknown field or head, an inpainting call of a network without
                inpainting heads, or a size that is not a multiple of the stride.
        """
        if head not in HEADS:
            raise ValueError(f"head must be one of {HEADS}, got {head!r}")
        if head == "inpaint" and self.inpaint_head == "none":
            raise ValueError("head 'inpaint' needs inpaint_head other than 'none'")
        check_divisible(x, self.stride, f"Inf-Net on {self.backbone}")
        taps = self.trunk(x, train=train)
        reduced = [
            rfb(taps[tap], train=train)
            for rfb, tap in ((self.rfb32, "f32"), (self.rfb16, "f16"), (self.rfb8, "f8"))
        ]
        if self.is_initializing() and self.inpaint_head != "none":
            self._heads(taps, reduced, "segment" if head == "inpaint" else "inpaint", train)
        outputs = self._heads(taps, reduced, head, train)
        size = x.shape[1:3]
        return {k: resize_bilinear(v.astype(jnp.float32), size) for k, v in outputs.items()}

    def _heads(
        self, taps: dict[str, Array], reduced: list[Array], head: str, train: bool
    ) -> dict[str, Array]:
        out: dict[str, Array] = {}
        mode = {"head": head, "train": train}
        guidance, edge = self.edge_branch(taps["f4"], **mode)
        carry, out["coarse"] = self.partial_decoder(*reduced, **mode)
        if head == "inpaint" and self.inpaint_head == "tanh_parallel":
            out["coarse"] = jnp.tanh(out["coarse"])  # the authors' code applies it twice here
        carry, out["s32"] = self.reverse_attention32(taps["f32"], guidance, carry, **mode)
        carry, out["s16"] = self.reverse_attention16(taps["f16"], guidance, carry, **mode)
        _, out["s8"] = self.reverse_attention8(
            taps["f8"], guidance, carry, **mode, carries_on=False
        )
        return {**out, "edge": edge}

    def _check_fields(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {BACKBONES}, got {self.backbone!r}")
        if self.inpaint_head not in INPAINT_HEADS:
            raise ValueError(
                f"inpaint_head must be one of {INPAINT_HEADS}, got {self.inpaint_head!r}"
            )
        if self.width != 64 and self.backbone not in ("resnet18", "efficientnet_lite0"):
            raise ValueError(
                f"width {self.width} is for resnet18 and efficientnet_lite0 only; "
                f"{self.backbone} has 64"
            )
        if not self.max_pool and self.backbone == "vgg16":
            raise ValueError("max_pool=False does not apply to vgg16, which has no stem pool")

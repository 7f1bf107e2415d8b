"""U-Net of the multi-class stage in both public variants, and the plain U-Net baseline.

The input holds the slice and the single-class network's map (the prior), concatenated over
channels. Two variants of the public code:

- plain (its "baseline", and the only one of the original Inf-Net): a U-Net; the inpainting head
  shares the decoder.
- improved: the input enters again at strides 4 and 16, and inpainting has a decoder of its own, so
  that pre-training reaches the encoder only.

With `classes=1` and the slice alone as input the plain variant is the usual U-Net baseline. On the
EfficientNet-lite0 trunk, whose weights may come from ImageNet, the same decoder ends at stride 2;
this one is nobody's published network.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.conv import Conv
from infnet_jax.models.efficientnet import EfficientNetLite0
from infnet_jax.models.layers import (
    BatchNorm,
    check_divisible,
    max_pool,
    resize_bilinear,
    resize_nearest,
)

INPAINT_HEADS = ("none", "tanh_parallel", "linear_replace")
HEADS = ("segment", "inpaint")
TRUNKS = ("plain", "efficientnet_lite0")
STRIDE = 16


class DoubleConv(nn.Module):
    """Twice a 3x3 convolution with bias, batch norm, ReLU; `middle` channels between the two."""

    features: int
    middle: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        for i, features in enumerate((self.middle, self.features), start=1):
            x = Conv(features, 3, use_bias=True, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"bn{i}")(x, train=train))
        return x


class Encoder(nn.Module):
    """Five resolutions of [B, H, W, C]: strides 1 to 16, widths 1, 2, 4, 8, 8 times `width`.

    `reinject` appends the input, resized to nearest pixels, to the features at strides 4 and 16.
    """

    width: int
    reinject: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> list[Array]:
        source, features = x, []
        for level, factor in enumerate((1, 2, 4, 8, 8)):
            if level:
                x = max_pool(x, 2, 2)
            width = factor * self.width
            x = DoubleConv(width, width, self.dtype, name=f"down{level}")(x, train=train)
            if self.reinject and level in (2, 4):
                again = resize_nearest(source, x.shape[1:3]).astype(x.dtype)
                x = jnp.concatenate([x, again], -1)
            features.append(x)
        return features


class Decoder(nn.Module):
    """From the encoder's five features back to stride 1, `width` channels."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: list[Array], *, train: bool) -> Array:
        *skips, x = features
        for level, factor in enumerate((4, 2, 1, 1), start=1):
            skip = skips.pop()
            x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)
            # A pool drops the last row or column of an odd size; zeros make up for it.
            missing = [skip.shape[axis] - x.shape[axis] for axis in (1, 2)]
            x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)))
            x = jnp.concatenate([skip, x], -1)
            block = DoubleConv(factor * self.width, x.shape[-1] // 2, self.dtype, name=f"up{level}")
            x = block(x, train=train)
        return x


class UNet(nn.Module):
    """U-Net with a segmentation head and an optional inpainting head.

    Initialisation (`init` with either head) creates the parameters of both. Module names match
    those of Inf-Net where weights move: `trunk` is the encoder, `out_*` are last layers.

    Attributes:
        classes: channels of the segmentation logits.
        width: channels at stride 1 (64 as published; 16 trains on two cores).
        improved: the second variant above.
        backbone: `plain`, or `efficientnet_lite0` (sizes must be multiples of 32).
        inpaint_head: `tanh_parallel` (the public code) or `linear_replace` (no tanh, as the paper
            describes its last layer), or `none`.
        image_channels: channels of the inpainting output, those of the input.
        dtype: compute dtype; outputs are float32.
    """

    classes: int = 3
    width: int = 64
    improved: bool = False
    backbone: str = "plain"
    inpaint_head: str = "none"
    image_channels: int = 6
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        if self.inpaint_head not in INPAINT_HEADS:
            raise ValueError(
                f"inpaint_head must be one of {INPAINT_HEADS}, got {self.inpaint_head!r}"
            )
        if self.backbone not in TRUNKS or (self.improved and self.backbone != "plain"):
            raise ValueError(
                f"backbone must be one of {TRUNKS}, improved only the first; got {self.backbone!r}"
            )
        if self.backbone == "plain":
            self.trunk = Encoder(self.width, self.improved, self.dtype)
        else:
            self.trunk = EfficientNetLite0(dtype=self.dtype)
        self.decoder = Decoder(self.width, self.dtype)
        self.out_seg = Conv(self.classes, 1, use_bias=True, dtype=self.dtype)
        if self.inpaint_head != "none":
            self.out_inpaint = Conv(self.image_channels, 1, use_bias=True, dtype=self.dtype)
            if self.improved:
                self.decoder_inpaint = Decoder(self.width, self.dtype)

    def __call__(self, x: Array, *, train: bool, head: str = "segment") -> dict[str, Array]:
        """Maps [B, H, W, C], any size that the backbone takes, to one output of the same size.

        Args:
            x: normalised input; of the multi-class network the slice, then the prior.
            train: whether batch normalisation uses (and updates by) batch statistics.
            head: "segment" or "inpaint".

        Returns:
            {"logits": float32 [B, H, W, classes]}, or {"recon": float32 [B, H, W,
            image_channels]}, in -1..1 with tanh.

        Raises:
            ValueError: for an unknown head, an inpainting call without inpainting head, or an
                image smaller than 16 x 16.
        """
        if head not in HEADS:
            raise ValueError(f"head must be one of {HEADS}, got {head!r}")
        if head == "inpaint" and self.inpaint_head == "none":
            raise ValueError("head 'inpaint' needs inpaint_head other than 'none'")
        if min(x.shape[1:3]) < STRIDE:
            raise ValueError(f"U-Net needs at least {STRIDE} x {STRIDE} pixels, got {x.shape[1:3]}")
        if self.backbone == "plain":
            features = self.trunk(x, train=train)
        else:
            check_divisible(x, 32, f"U-Net on {self.backbone}")
            taps = self.trunk(x, train=train)
            features = [taps[f"f{stride}"] for stride in (2, 4, 8, 16, 32)]
        if self.is_initializing() and self.inpaint_head != "none":
            self._head(features, "segment" if head == "inpaint" else "inpaint", train)
        outputs = self._head(features, head, train)
        return {name: resize_bilinear(y, x.shape[1:3]) for name, y in outputs.items()}

    def _head(self, features: list[Array], head: str, train: bool) -> dict[str, Array]:
        own = head == "inpaint" and self.improved
        x = (self.decoder_inpaint if own else self.decoder)(features, train=train)
        if head == "segment":
            return {"logits": self.out_seg(x).astype(jnp.float32)}
        recon = self.out_inpaint(x).astype(jnp.float32)
        return {"recon": jnp.tanh(recon) if self.inpaint_head == "tanh_parallel" else recon}

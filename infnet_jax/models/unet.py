"""U-Net of the multi-class stage in both public variants, and the plain U-Net baseline.

In the plain variant (the public code's "baseline") the inpainting head shares the decoder. In the
improved one the input enters again at strides 4 and 16, and inpainting has a decoder of its own, so
that pre-training reaches the encoder only. On other trunks the same decoder ends at the stride of
the trunk's finest map; these are nobody's published networks.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models import layers
from infnet_jax.models.conv import Conv


class DoubleConv(nn.Module):
    """Twice 3x3 convolution, batch norm, ReLU: [B, H, W, C] to `middle` to `features` channels."""

    features: int
    middle: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        for i, features in enumerate((self.middle, self.features), start=1):
            x = Conv(features, 3, use_bias=True, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(layers.BatchNorm(dtype=self.dtype, name=f"bn{i}")(x, train=train))
        return x


class Encoder(nn.Module):
    """The U-Net's own trunk, for images of any size from 16 x 16 on; `width` channels at stride 1.

    `improved` appends the input, resized to nearest pixels, to the features at strides 4 and 16.
    """

    width: int = 64
    improved: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> list[Array]:
        """Maps [B, H, W, C] to five maps at strides 1, 2, 4, 8, 16 of 1, 2, 4, 8, 8 `width`s."""
        source, features = x, []
        if min(x.shape[1:3]) < 16:
            raise ValueError(f"U-Net needs at least 16 x 16 pixels, got {x.shape[1:3]}")
        for level, width in enumerate(n * self.width for n in (1, 2, 4, 8, 8)):
            x = layers.max_pool(x, 2, 2) if level else x
            x = DoubleConv(width, width, self.dtype, name=f"down{level}")(x, train=train)
            if self.improved and level in (2, 4):
                again = layers.resize_nearest(source, x.shape[1:3]).astype(x.dtype)
                x = jnp.concatenate([x, again], -1)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Maps five feature maps, finest first, to [B, H, W, width] at the finest's H and W."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: list[Array], *, train: bool) -> Array:
        *skips, x = features
        for level, factor in enumerate((4, 2, 1, 1), start=1):
            skip = skips.pop()
            x = layers.resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)
            # A pool drops the last row or column of an odd size; zeros make up for it.
            missing = [skip.shape[axis] - x.shape[axis] for axis in (1, 2)]
            x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)))
            x = jnp.concatenate([skip, x], -1)
            block = DoubleConv(factor * self.width, x.shape[-1] // 2, self.dtype, name=f"up{level}")
            x = block(x, train=train)
        return x


class UNet(nn.Module):
    """U-Net with a segmentation head and an optional inpainting head, as `models.make` builds it.

    `init` with either head creates the parameters of both. Names match those of Inf-Net where
    weights move: `trunk`, and `out_*` for last layers.

    Attributes:
      trunk: maps an image, H and W multiples of `multiple`, to five feature maps, finest first.
      classes: channels of the segmentation logits.
      width: channels of the decoder's last block (64 as published; 16 trains on two cores).
      improved: gives inpainting a decoder of its own.
      inpaint_head: `tanh_parallel` (the public code), `linear_replace` (no tanh, as the paper
        describes its last layer) or `none`; its output has `image_channels`.
    """

    trunk: nn.Module
    multiple: int
    classes: int
    width: int = 64
    improved: bool = False
    inpaint_head: str = "none"
    image_channels: int = 6
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.decoder = Decoder(self.width, self.dtype)
        self.out_seg = Conv(self.classes, 1, use_bias=True, dtype=self.dtype)
        # Have parameters only where they are called.
        self.decoder_inpaint = Decoder(self.width, self.dtype)
        self.out_inpaint = Conv(self.image_channels, 1, use_bias=True, dtype=self.dtype)

    def __call__(self, x: Array, *, train: bool, head: str = "segment") -> dict[str, Array]:
        """Maps [B, H, W, C], any size that the trunk takes, to one float32 output of that size.

        Head "segment" gives {"logits": [B, H, W, classes]}, "inpaint" {"recon": [B, H, W,
        image_channels]}, in -1..1 with tanh. With `train` batch normalisation uses (and updates by)
        batch statistics. An unknown head, or a size that does not fit, is a ValueError.
        """
        layers.check_head(head, self.inpaint_head)
        layers.check_divisible(x, self.multiple, f"U-Net on {type(self.trunk).__name__}")
        features = self.trunk(x, train=train)
        if self.is_initializing() and self.inpaint_head != "none":
            self._head(features, "segment" if head == "inpaint" else "inpaint", train)
        outputs = self._head(features, head, train)
        return {name: layers.resize_bilinear(y, x.shape[1:3]) for name, y in outputs.items()}

    def _head(self, features: list[Array], head: str, train: bool) -> dict[str, Array]:
        own = head == "inpaint" and self.improved
        x = (self.decoder_inpaint if own else self.decoder)(features, train=train)
        if head == "segment":
            return {"logits": self.out_seg(x).astype(jnp.float32)}
        recon = self.out_inpaint(x).astype(jnp.float32)
        return {"recon": jnp.tanh(recon) if self.inpaint_head == "tanh_parallel" else recon}

"""Inf-Net: partial decoder, edge branch and three reverse-attention stages on a shared trunk.

Fan et al. 2020 (paper Fig. 1), with inpainting heads in two readings: `linear_replace` (paper
Fig. 3), where the last layer of every output gives way to a linear convolution to the image's
channels, and these outputs are what the cascade carries; and `tanh_parallel` (the authors' code),
heads with tanh beside the segmentation layers, whose one-channel outputs remain the carries.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.conv import Conv
from infnet_jax.models.layers import BatchNorm, check_divisible, check_head, resize_bilinear

Pair = tuple[Array, Array]


class ConvBN(nn.Module):
    """Bias-free convolution and batch norm, no activation: [B, H, W, C] -> [B, H, W, features]."""

    features: int
    kernel: int | tuple[int, int] = 1
    dilation: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        conv = Conv(self.features, self.kernel, 1, self.dilation, dtype=self.dtype, name="conv")
        return BatchNorm(dtype=self.dtype, name="bn")(conv(x), train=train)


class RFB(nn.Module):
    """Receptive-field block, four branches of growing reach and a shortcut: C -> 32 channels."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        def conv(name: str, y: Array, kernel: int | tuple[int, int], dilation: int = 1) -> Array:
            return ConvBN(32, kernel, dilation, self.dtype, name=name)(y, train=train)

        branches = [conv("branch0_0", x, 1)]
        for j, k in enumerate((3, 5, 7), start=1):
            y = conv(f"branch{j}_1", conv(f"branch{j}_0", x, 1), (1, k))
            branches.append(conv(f"branch{j}_3", conv(f"branch{j}_2", y, (k, 1)), 3, k))
        joined = conv("join", jnp.concatenate(branches, axis=-1), 3)
        return nn.relu(joined + conv("shortcut", x, 1))


class OutputLayers(nn.Module):
    """The last layers of one output: a segmentation layer and, where asked for, an inpainting one.

    Attributes:
      inpaint_head: one of `layers.INPAINT_HEADS`; its output has `image_channels`.
      kernel: window of the last layers.
      plain: a bias and no batch normalisation (as in the partial decoder).
      carries_on: False if nothing follows: a parallel head leaves the segmentation layer untouched.
    """

    inpaint_head: str
    image_channels: int
    kernel: int = 1
    plain: bool = False
    carries_on: bool = True
    dtype: DTypeLike = jnp.float32

    def outputs(self, x: Array, carry: Array | None, *, head: str, train: bool) -> Pair:
        """Returns (carry for the next stage, this output), [B, H, W, channels] of x [B, H, W, C].

        `carry`, the output of the stage before at x's resolution, is added to both.
        """

        def last(name: str, channels: int, plain: bool) -> Array:
            if plain:
                options = None, True, nn.initializers.lecun_normal(), self.dtype
                y = Conv(channels, self.kernel, 1, 1, *options, name=name)(x)
            else:
                y = ConvBN(channels, self.kernel, 1, self.dtype, name=name)(x, train=train)
            return y if carry is None else y + carry

        if head == "segment":
            out = last("out_seg", 1, self.plain)
            return out, out
        replaced = self.inpaint_head == "linear_replace"
        out = last("out_inpaint", self.image_channels, self.plain or replaced)
        if replaced:
            return out, out
        return (last("out_seg", 1, self.plain) if self.carries_on else out), jnp.tanh(out)


class PartialDecoder(OutputLayers):
    """Joins the three RFB maps, coarsest first, into the coarse map at the finest's resolution."""

    @nn.compact
    def __call__(self, f32: Array, f16: Array, f8: Array, *, head: str, train: bool) -> Pair:
        def up(x: Array, like: Array) -> Array:
            return resize_bilinear(x, like.shape[1:3], align_corners=True)

        def conv(name: str, x: Array) -> Array:
            return ConvBN(x.shape[-1], 3, 1, self.dtype, name=name)(x, train=train)

        coarse = up(f32, f16)
        gated16 = conv("up1", coarse) * f16
        gated8 = conv("up2", up(coarse, f8)) * conv("up3", up(f16, f8)) * f8
        x = conv("concat2", jnp.concatenate([gated16, conv("up4", coarse)], axis=-1))
        x = jnp.concatenate([gated8, conv("up5", up(x, f8))], axis=-1)
        return self.outputs(conv("conv4", conv("concat3", x)), None, head=head, train=train)


class EdgeBranch(OutputLayers):
    """Edge features (the guidance of all reverse-attention stages) and the edge output."""

    features: int = 64

    @nn.compact
    def __call__(self, x: Array, *, head: str, train: bool) -> Pair:
        for i, kernel in enumerate((1, 3, 3), start=1):
            x = ConvBN(self.features, kernel, 1, self.dtype, name=f"conv{i}")(x, train=train)
        return x, self.outputs(x, None, head=head, train=train)[1]


class ReverseAttention(OutputLayers):
    """Refines the carried map where it is not yet confident: weight 1 - sigmoid(carry).

    A carry of several channels (`linear_replace`) weighs by the mean of its channels. `inner` has
    the windows of the inner convolutions, each followed by a ReLU.
    """

    features: int = 64
    inner: tuple[int, ...] = (3, 3)

    @nn.compact
    def __call__(self, x: Array, guidance: Array, carry: Array, *, head: str, train: bool) -> Pair:
        def conv(name: str, x: Array, kernel: int) -> Array:
            return ConvBN(self.features, kernel, 1, self.dtype, name=name)(x, train=train)

        size = x.shape[1:3]
        carry = resize_bilinear(carry, size)
        x = (1 - jax.nn.sigmoid(jnp.mean(carry, axis=-1, keepdims=True))) * x
        x = jnp.concatenate([conv("squeeze", x, 1), resize_bilinear(guidance, size)], axis=-1)
        for i, kernel in enumerate(self.inner):
            x = nn.relu(conv(f"conv_{i}", x, kernel))
        return self.outputs(x, carry, head=head, train=train)


class InfNet(nn.Module):
    """Inf-Net with segmentation heads and optional inpainting heads, as `models.make` builds it.

    `init` with either head creates the parameters of both.

    Attributes:
      trunk: maps an image, H and W multiples of `multiple`, to five feature maps, finest first;
        the finest is not used.
      width: channels of the edge branch and reverse attentions, four times it in the deepest.
      inpaint_head: one of `layers.INPAINT_HEADS`; its outputs have `image_channels`.
    """

    trunk: nn.Module
    multiple: int
    width: int = 64
    inpaint_head: str = "none"
    image_channels: int = 3
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.rfb8, self.rfb16, self.rfb32 = (RFB(self.dtype) for _ in range(3))
        heads: dict[str, Any] = {"inpaint_head": self.inpaint_head, "dtype": self.dtype}
        heads["image_channels"] = self.image_channels
        n, last = self.width, {"carries_on": False, "kernel": 3, **heads}
        self.partial_decoder = PartialDecoder(plain=True, **heads)
        self.edge_branch = EdgeBranch(features=n, **last)
        self.reverse_attention32 = ReverseAttention(features=4 * n, inner=(5, 5, 5), **heads)
        self.reverse_attention16 = ReverseAttention(features=n, kernel=3, **heads)
        self.reverse_attention8 = ReverseAttention(features=n, **last)

    def __call__(self, x: Array, *, train: bool, head: str = "segment") -> dict[str, Array]:
        """Maps images [B, H, W, C] to five float32 outputs [B, H, W, channels].

        They are coarse, s32, s16, s8 (the final map) and edge; the public code's map5, map4, map3,
        map2 and edge. With `train` batch normalisation uses (and updates by) batch statistics;
        `head` is "segment" (one channel of logits) or "inpaint" (image_channels, linear or tanh by
        `inpaint_head`). An unknown head, or a size that does not fit, is a ValueError.
        """
        check_head(head, self.inpaint_head)
        check_divisible(x, self.multiple, f"Inf-Net on {type(self.trunk).__name__}")
        _, *taps = self.trunk(x, train=train)
        rfbs = (self.rfb32, self.rfb16, self.rfb8)
        reduced = [rfb(tap, train=train) for rfb, tap in zip(rfbs, taps[:0:-1], strict=True)]
        other = {"segment": "inpaint", "inpaint": "segment"}[head]
        if self.is_initializing() and self.inpaint_head != "none":
            self._heads(taps, reduced, head=other, train=train)
        outputs = self._heads(taps, reduced, head=head, train=train)
        size = x.shape[1:3]
        return {k: resize_bilinear(v.astype(jnp.float32), size) for k, v in outputs.items()}

    def _heads(self, taps: list[Array], reduced: list[Array], **mode: Any) -> dict[str, Array]:
        """The five outputs by name, each at the size of its features; `mode` is head and train."""
        f4, f8, f16, f32 = taps
        guidance, edge = self.edge_branch(f4, **mode)
        carry, coarse = self.partial_decoder(*reduced, **mode)
        if mode["head"] == "inpaint" and self.inpaint_head == "tanh_parallel":
            coarse = jnp.tanh(coarse)  # the authors' code applies it twice here
        carry, s32 = self.reverse_attention32(f32, guidance, carry, **mode)
        carry, s16 = self.reverse_attention16(f16, guidance, carry, **mode)
        _, s8 = self.reverse_attention8(f8, guidance, carry, **mode)
        return {"coarse": coarse, "s32": s32, "s16": s16, "s8": s8, "edge": edge}

"""The blocks of Inf-Net (Fan et al. 2020; paper Fig. 1 and 3), all on NHWC feature maps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from infnet_jax.models.conv import Conv
from infnet_jax.models.layers import BatchNorm, resize_bilinear


class ConvBN(nn.Module):
    """Bias-free convolution and batch normalisation, without activation."""

    features: int
    kernel: int | tuple[int, int] = 1
    dilation: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        conv = Conv(self.features, self.kernel, 1, self.dilation, dtype=self.dtype, name="conv")
        return BatchNorm(dtype=self.dtype, name="bn")(conv(x), train=train)


class RFB(nn.Module):
    """Receptive-field block: four branches of growing reach and a shortcut, to 32 channels."""

    features: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        def conv(name: str, y: Array, kernel: int | tuple[int, int], dilation: int = 1) -> Array:
            return ConvBN(self.features, kernel, dilation, self.dtype, name=name)(y, train=train)

        branches = [conv("branch0_0", x, 1)]
        for j, k in enumerate((3, 5, 7), start=1):
            y = conv(f"branch{j}_0", x, 1)
            y = conv(f"branch{j}_1", y, (1, k))
            y = conv(f"branch{j}_2", y, (k, 1))
            branches.append(conv(f"branch{j}_3", y, 3, k))
        joined = conv("join", jnp.concatenate(branches, axis=-1), 3)
        return nn.relu(joined + conv("shortcut", x, 1))


class OutputLayers(nn.Module):
    """The last layers of one output: a segmentation layer and, where asked for, an inpainting one.

    Attributes:
      inpaint_head: "none", "tanh_parallel" or "linear_replace".
      image_channels: channels of an inpainting output.
      kernel: window of the last layers.
      plain: whether the layers have a bias and no batch normalisation (the partial decoder's);
        `linear_replace` always does.
      dtype: compute dtype.
    """

    inpaint_head: str
    image_channels: int
    kernel: int = 1
    plain: bool = False
    dtype: DTypeLike = jnp.float32

    def _last(self, channels: int, plain: bool) -> nn.Module:
        if not plain:
            return ConvBN(channels, self.kernel, dtype=self.dtype)
        init = nn.initializers.lecun_normal()
        return Conv(channels, self.kernel, use_bias=True, kernel_init=init, dtype=self.dtype)

    def make_last(self) -> None:
        """Creates the layers; called from the blocks' setup."""
        self.out_seg = self._last(1, self.plain)
        if self.inpaint_head != "none":
            plain = self.plain or self.inpaint_head == "linear_replace"
            self.out_inpaint = self._last(self.image_channels, plain)

    def outputs(
        self, x: Array, carry: Array | None, *, head: str, train: bool, carries_on: bool = True
    ) -> tuple[Array, Array]:
        """Returns (what the next stage gets, this output), both at x's resolution.

        Args:
          x: features.
          carry: output of the stage before at x's resolution, added to both; None adds nothing.
          head: "segment" or "inpaint".
          train: mode of the batch normalisation.
          carries_on: False if nothing follows, so that a parallel head leaves the segmentation
            layer (and its running statistics) untouched.
        """

        def last(layer: nn.Module) -> Array:
            y = layer(x, train=train) if isinstance(layer, ConvBN) else layer(x)
            return y if carry is None else y + carry

        if head == "segment":
            out = last(self.out_seg)
            return out, out
        out = last(self.out_inpaint)
        if self.inpaint_head == "linear_replace":
            return out, out
        return (last(self.out_seg) if carries_on else out), jnp.tanh(out)


class PartialDecoder(OutputLayers):
    """Joins the three RFB maps, coarsest first, into the coarse map at the finest's resolution."""

    features: int = 32

    def setup(self) -> None:
        n = self.features

        def conv(features: int) -> ConvBN:
            return ConvBN(features, 3, dtype=self.dtype)

        self.up1, self.up2, self.up3, self.up4 = conv(n), conv(n), conv(n), conv(n)
        self.up5, self.concat2 = conv(2 * n), conv(2 * n)
        self.concat3, self.conv4 = conv(3 * n), conv(3 * n)
        self.make_last()

    def __call__(
        self, f32: Array, f16: Array, f8: Array, *, head: str, train: bool
    ) -> tuple[Array, Array]:
        def up(x: Array, like: Array) -> Array:
            return resize_bilinear(x, like.shape[1:3], align_corners=True)

        coarse = up(f32, f16)
        gated16 = self.up1(coarse, train=train) * f16
        gated8 = self.up2(up(coarse, f8), train=train) * self.up3(up(f16, f8), train=train) * f8
        x = jnp.concatenate([gated16, self.up4(coarse, train=train)], axis=-1)
        x = self.up5(up(self.concat2(x, train=train), f8), train=train)
        x = self.concat3(jnp.concatenate([gated8, x], axis=-1), train=train)
        return self.outputs(self.conv4(x, train=train), None, head=head, train=train)


class EdgeBranch(OutputLayers):
    """Edge features (the guidance of all reverse-attention stages) and the edge output."""

    features: int = 64

    def setup(self) -> None:
        self.conv1 = ConvBN(self.features, 1, dtype=self.dtype)
        self.conv2 = ConvBN(self.features, 3, dtype=self.dtype)
        self.conv3 = ConvBN(self.features, 3, dtype=self.dtype)
        self.make_last()

    def __call__(self, x: Array, *, head: str, train: bool) -> tuple[Array, Array]:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = conv(x, train=train)
        return x, self.outputs(x, None, head=head, train=train, carries_on=False)[1]


class ReverseAttention(OutputLayers):
    """Refines the carried map where it is not yet confident: weight 1 - sigmoid(carry).

    A carry of several channels (`linear_replace`) weighs by the mean of its channels.
    """

    features: int = 64
    inner: tuple[int, ...] = (3, 3)  # windows of the inner convolutions, each followed by a ReLU

    def setup(self) -> None:
        self.squeeze = ConvBN(self.features, 1, dtype=self.dtype)
        self.conv = [ConvBN(self.features, k, dtype=self.dtype) for k in self.inner]
        self.make_last()

    def __call__(
        self,
        x: Array,
        guidance: Array,
        carry: Array,
        *,
        head: str,
        train: bool,
        carries_on: bool = True,
    ) -> tuple[Array, Array]:
        size = x.shape[1:3]
        carry = resize_bilinear(carry, size)
        x = (1 - jax.nn.sigmoid(jnp.mean(carry, axis=-1, keepdims=True))) * x
        x = self.squeeze(x, train=train)
        x = jnp.concatenate([x, resize_bilinear(guidance, size)], axis=-1)
        for conv in self.conv:
            x = nn.relu(conv(x, train=train))
        return self.outputs(x, carry, head=head, train=train, carries_on=carries_on)

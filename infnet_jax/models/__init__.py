"""Networks as Flax linen modules, chosen by name: a decoder on a trunk.

All map NHWC arrays to float32 outputs; parameters are float32, the compute dtype is an argument.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
from jax import Array

from infnet_jax.models.efficientnet import EfficientNetLite0
from infnet_jax.models.infnet import InfNet
from infnet_jax.models.layers import INPAINT_HEADS
from infnet_jax.models.resnet import ResNet
from infnet_jax.models.unet import Encoder, UNet
from infnet_jax.models.vgg import VGG16, FCN8s


class Trunk(NamedTuple):
    """A feature trunk.

    `module(dtype=..., **options)`, of the options `width`, `max_pool` and `improved` those that it
    takes, gives a network that is called as `trunk(x, train=...)` and maps [B, H, W, C], H and W
    multiples of `multiple`, to a list of five feature maps, finest first, each of half the size of
    the one before. With `max_pool=False` all maps are twice as large.
    """

    module: Callable[..., nn.Module]
    multiple: int
    options: tuple[str, ...] = ()


TRUNKS: dict[str, Trunk] = {
    "efficientnet_lite0": Trunk(EfficientNetLite0, 32, ("max_pool",)),
    "plain": Trunk(Encoder, 1, ("width", "improved")),
    "res2net50": Trunk(partial(ResNet, "res2net50"), 32, ("max_pool",)),
    "resnet18": Trunk(partial(ResNet, "resnet18"), 32, ("width", "max_pool")),
    "resnet50": Trunk(partial(ResNet, "resnet50"), 32, ("max_pool",)),
    "vgg16": Trunk(VGG16, 16),
}
# Of each decoder the options that it uses.
DECODERS: dict[str, tuple[str, ...]] = {
    "fcn8s": ("width",),
    "infnet": ("width", "max_pool", "inpaint_head"),
    "unet": ("width", "inpaint_head", "improved"),
}
_NEUTRAL = {"max_pool": False, "improved": False, "inpaint_head": "none"}


def make(
    decoder: str, trunk: str, *, classes: int, channels: int, dtype: str, **options: Any
) -> nn.Module:
    """Returns a network: `network.apply(variables, x, train=...)` maps [B, H, W, C] to its outputs.

    Args:
      decoder: a key of DECODERS.
      trunk: a key of TRUNKS; `plain` is for `unet` only, `fcn8s` takes `vgg16` only.
      classes: channels of the segmentation output; 1 for `infnet`.
      channels: of the input and of inpainting outputs.
      **options: `width` (of the decoder, and of a trunk that has this option), `max_pool`,
        `inpaint_head`, `improved`; those that the decoder does not use are False or "none".

    Raises:
      ValueError: names or options that do not go together.
    """
    _check(decoder, trunk, classes, options)
    fields = {name: value for name, value in options.items() if name in DECODERS[decoder]}
    fields["dtype"] = dtype
    if decoder == "fcn8s":
        return FCN8s(classes, **fields)
    module, multiple, names = TRUNKS[trunk]
    of_trunk = {name: fields[name] for name in names if name in fields}
    fields |= {"trunk": module(dtype=dtype, **of_trunk), "image_channels": channels}
    if decoder == "unet":
        return UNet(classes=classes, multiple=multiple, **fields)
    return InfNet(multiple=multiple // (1 if fields.pop("max_pool", True) else 2), **fields)


def _check(decoder: str, trunk: str, classes: int, options: Mapping[str, Any]) -> None:
    """Raises ValueError as `make` does."""
    if decoder not in DECODERS:
        raise ValueError(f"model.decoder={decoder!r}: choose {_words(DECODERS)}")
    only = {"fcn8s": {"vgg16"}, "infnet": set(TRUNKS) - {"plain"}}
    trunks = sorted(only.get(decoder, TRUNKS))
    if trunk not in trunks:
        raise ValueError(f"model.trunk={trunk!r}: choose {_words(trunks)} for decoder {decoder}")
    if decoder == "infnet" and classes != 1:
        raise ValueError(f"model.decoder='infnet' has one class, not {classes}: choose unet")
    for name, value in options.items():
        if name not in DECODERS[decoder] and value != _NEUTRAL.get(name, ...):
            raise ValueError(f"model.{name}={value!r}: decoder {decoder} has no such option")
    head, of_trunk = options.get("inpaint_head", "none"), TRUNKS[trunk].options
    if head not in INPAINT_HEADS:
        raise ValueError(f"model.inpaint_head={head!r}: choose {_words(INPAINT_HEADS)}")
    if options.get("improved", False) and "improved" not in of_trunk:
        raise ValueError(f"model.improved=True: trunk {trunk} has no such option")
    if decoder == "infnet" and not options.get("max_pool", True) and "max_pool" not in of_trunk:
        raise ValueError(f"model.max_pool=False: trunk {trunk} has no stem pool to leave out")


def _words(names: Iterable[str]) -> str:
    return " or ".join(", ".join(names).rsplit(", ", 1))  # "a, b or c"


def final_map(outputs: Mapping[str, Array]) -> Array:
    """Returns the one map [B, H, W, C] that is used: Inf-Net's `s8`, else `logits` or `recon`."""
    return next(outputs[name] for name in ("s8", "logits", "recon") if name in outputs)


def is_output_layer(path: tuple[str, ...]) -> bool:
    """Whether a parameter path lies in a last layer (which a transfer leaves behind)."""
    return any(part.startswith(("out_seg", "out_inpaint")) for part in path)

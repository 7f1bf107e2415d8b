"""Networks as Flax linen modules: NHWC in, float32 parameters, compute dtype by argument."""

from collections.abc import Mapping
from typing import Any

from jax import Array


def final_map(outputs: Mapping[str, Array]) -> Array:
    """The one map that is read of a network: Inf-Net's `s8`, a U-Net's `logits` or `recon`."""
    return next(outputs[name] for name in ("s8", "logits", "recon") if name in outputs)


def make(
    decoder: str, trunk: str, *, classes: int, channels: int, dtype: str, **options: Any
) -> Any:
    """A network by name."""
    from infnet_jax.models.fcn8s import FCN8s
    from infnet_jax.models.infnet import InfNet
    from infnet_jax.models.unet import UNet

    if decoder == "infnet":
        return InfNet(backbone=trunk, image_channels=channels, dtype=dtype, **options)
    if decoder == "fcn8s":
        return FCN8s(dtype=dtype, width=options["width"])
    options.pop("max_pool", None)
    return UNet(classes=classes, backbone=trunk, image_channels=channels, dtype=dtype, **options)

"""Networks as Flax linen modules: NHWC in, float32 parameters, compute dtype by argument."""

from collections.abc import Mapping

from jax import Array


def final_map(outputs: Mapping[str, Array]) -> Array:
    """The one map that is read of a network: Inf-Net's `s8`, a U-Net's `logits` or `recon`."""
    return next(outputs[name] for name in ("s8", "logits", "recon") if name in outputs)

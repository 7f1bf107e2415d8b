"""Grey levels in, network input and reconstruction target out; one choice for all stages."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Norm(NamedTuple):
    """Per-channel constants on the 0..1 grey scale.

    The network sees `(x - mean) / input_sd`; the inpainting target is
    `clip((x - mean) / (3 * sd), -1, 1)` (as in the public code), so an erased pixel,
    zero in the input, is the mean grey.
    """

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    input_sd: tuple[float, ...]


_SD = (0.229, 0.224, 0.225)
RGB = {
    "imagenet": Norm((0.485, 0.456, 0.406), _SD, _SD),
    "aerial_bgr": Norm(
        (85.5517787014 / 255, 92.6691667083 / 255, 86.8147645556 / 255),
        (32.8860206505 / 255, 31.7342205253 / 255, 31.5361127226 / 255),
        (1 / 255,) * 3,
    ),
}


def make_norm(kind: str, channels: int, statistics: tuple[float, float]) -> Norm:
    """The named normalisation of 1 channel, or of 3 when the grey slice is repeated.

    Args:
      kind: `dataset` (`statistics`, the mean and sd of the training split on the 0..1 scale),
        `tf` (-1..1, as the EfficientNet-lite0 weights take it) or, for 3 channels, `imagenet`
        (RGB constants of the torchvision weights) or `aerial_bgr` (the aerial photo constants
        that the public pre-training inherited; input only mean-shifted, on the 0..255 scale).

    Raises:
      ValueError: unknown kind, or a 3-channel kind with another channel count.
    """
    if kind in ("dataset", "tf"):
        mean, sd = statistics if kind == "dataset" else (127 / 255, 128 / 255)
        return Norm((mean,) * channels, (sd,) * channels, (sd,) * channels)
    if kind not in RGB:
        raise ValueError(f"data.norm={kind!r}: choose dataset, imagenet, aerial_bgr or tf")
    if channels != 3:
        raise ValueError(f"data.norm={kind!r} needs data.channels=3, not {channels}")
    return RGB[kind]


def network_input(image: jax.Array, norm: Norm, prior: jax.Array | None = None) -> jax.Array:
    """What a network sees: the slice, or slice and prior, normalised alike as in the public code.

    `image` [B, H, W, 1] grey in 0..1 and `prior` [B, H, W, 1], an 8-bit probability -> float32
    [B, H, W, c], c the channels of `norm`, or [B, H, W, 2c]: the slice's, then the prior's.
    """
    x = (image - jnp.asarray(norm.mean)) / jnp.asarray(norm.input_sd)
    if prior is None:
        return x
    return jnp.concatenate([x, network_input(prior.astype(jnp.float32) / 255.0, norm)], -1)


def blank_input(norm: Norm, size: int, prior: bool) -> jax.Array:
    """Zeros shaped like `network_input` of one slice, with or without its prior."""
    return jnp.zeros((1, size, size, len(norm.mean) * (2 if prior else 1)))


def inpainting_target(image: jax.Array, norm: Norm) -> jax.Array:
    """[B, H, W, 1] grey in 0..1 to [B, H, W, channels] float32 in -1..1."""
    scaled = (image - jnp.asarray(norm.mean)) / (3.0 * jnp.asarray(norm.sd))
    return jnp.clip(scaled, -1.0, 1.0)


def grey(target: jax.Array, norm: Norm) -> jax.Array:
    """A target or reconstruction, [B, H, W, channels], back to grey in 0..1, [B, H, W]."""
    levels = target * (3.0 * jnp.asarray(norm.sd)) + jnp.asarray(norm.mean)
    return jnp.clip(levels.mean(axis=-1), 0.0, 1.0)

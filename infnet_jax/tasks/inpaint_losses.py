"""Targets and losses of inpainting and of the coach: scalars, float32, unequal shapes refused."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from infnet_jax.tasks.augment import Norm
from infnet_jax.tasks.losses import check_options, float32_pair, pixel_bce

CLAMP = 2.0
LAST_HEAD = "edge"
_PROBABILITY_FLOOR = 1e-6
_OPTIONS = {
    "kind": ("mse_clamped", "ce", "l1"),
    "reduction": ("sum_heads", "mean"),
    "region": ("erased", "visible"),
    "heads": ("all", "last"),
    "activation": ("tanh", "linear"),
}

Heads = Mapping[str, jax.Array]
Loss = tuple[jax.Array, dict[str, jax.Array]]


def inpainting_target(image: jax.Array, norm: Norm) -> jax.Array:
    """[B, H, W, 1] grey in 0..1 to [B, H, W, channels] float32 in -1..1."""
    scaled = (image - jnp.asarray(norm.mean)) / (3.0 * jnp.asarray(norm.sd))
    return jnp.clip(scaled, -1.0, 1.0)


def grey(target: jax.Array, norm: Norm) -> jax.Array:
    """A target or reconstruction, [B, H, W, channels], back to grey in 0..1, [B, H, W]."""
    levels = target * (3.0 * jnp.asarray(norm.sd)) + jnp.asarray(norm.mean)
    return jnp.clip(levels.mean(axis=-1), 0.0, 1.0)


def _pixel_error(output: jax.Array, target: jax.Array, kind: str, activation: str) -> jax.Array:
    output, target = float32_pair(output, target)
    if kind == "mse_clamped":
        return jnp.minimum((output - target) ** 2, CLAMP)
    if kind == "l1":
        return jnp.abs(output - target)
    level = (target + 1.0) / 2.0
    if activation == "linear":
        return pixel_bce(output, level)
    probability = jnp.clip((output + 1.0) / 2.0, _PROBABILITY_FLOOR, 1.0 - _PROBABILITY_FLOOR)
    return -level * jnp.log(probability) - (1.0 - level) * jnp.log1p(-probability)


def reconstruction(
    outputs: Heads,
    target: jax.Array,
    visible: jax.Array,
    *,
    kind: str = "mse_clamped",
    reduction: str = "sum_heads",
    region: str = "erased",
    heads: str = "all",
    activation: str = "tanh",
) -> Loss:
    """Reconstruction error over the pixels of a region: the loss, and its value per head.

    Per head: sum of error * weight / sum of weight over the *whole batch* (as in the public code),
    weight being 1 - visible (`region` `erased`) or `visible`; 0, gradient 0, for an empty region.

    Args:
      outputs: head name -> [B, H, W, C]; in -1..1 for tanh heads, unbounded for linear ones.
      target: [B, H, W, C] in -1..1.
      visible: [B, H, W, 1], 1 visible, 0 erased; soft masks of the coach allowed.
      kind: of error: `l1`; `mse_clamped`, the public code's squared error cut at 2; `ce`, the
        paper's algorithm 1, which leaves the distribution open: here a binary cross-entropy
        against (target + 1) / 2, of probability (output + 1) / 2 for tanh heads and
        sigmoid(output) for linear ones (`activation`). Its minimum is the entropy of the greys.
      reduction: `sum_heads` over heads and channels (the public code) or `mean` over both.
      heads: `all`, or `last` for the `edge` head alone (the public code's context term).
    """
    given = dict(kind=kind, reduction=reduction, region=region, heads=heads, activation=activation)
    check_options(_OPTIONS, given)
    if visible.shape != (*target.shape[:-1], 1):
        raise ValueError(f"visible has shape {visible.shape}; give {(*target.shape[:-1], 1)}")
    names = sorted(outputs) if heads == "all" else [LAST_HEAD]
    if not names or names[0] not in outputs:
        raise ValueError(f"heads={heads!r} finds no head among the outputs {sorted(outputs)}")
    weight = visible.astype(jnp.float32)
    weight = weight if region == "visible" else 1.0 - weight
    count = weight.sum()
    channels, parts = target.shape[-1] if reduction == "mean" else 1, {}
    for name in names:
        total = (_pixel_error(outputs[name], target, kind, activation) * weight).sum() / channels
        # The inner where keeps the unused branch's gradient finite.
        parts[name] = jnp.where(count > 0.0, total / jnp.where(count > 0.0, count, 1.0), 0.0)
    loss = sum(parts.values(), start=jnp.float32(0.0))
    return (loss / len(parts) if reduction == "mean" else loss), parts


def pixel_errors(
    outputs: Heads,
    target: jax.Array,
    *,
    kind: str = "mse_clamped",
    activation: str = "tanh",
    **_: object,
) -> jax.Array:
    """The error that `reconstruction` adds up, of each pixel [B, H, W], up to a constant factor."""
    errors = [_pixel_error(output, target, kind, activation) for output in outputs.values()]
    return jnp.stack(errors).mean((0, -1))


def inpaint_loss(
    outputs: Heads,
    target: jax.Array,
    visible: jax.Array,
    *,
    rec_weight: float = 0.99,
    context_heads: str = "last",
    kind: str = "mse_clamped",
    reduction: str = "sum_heads",
    activation: str = "tanh",
) -> Loss:
    """Loss of the inpainting network: rec_weight L_rec + (1 - rec_weight) L_context.

    L_rec is over the erased pixels and all heads, L_context over the visible pixels and
    `context_heads`; the paper has no context term (`rec_weight=1`), the public code .99 with the
    last head only. Other options and shapes are those of `reconstruction`. Returns the loss,
    float32 [], and {'rec', 'context', 'rec/<head>'...}, unweighted.
    """
    options = dict(kind=kind, reduction=reduction, activation=activation)
    error = partial(reconstruction, outputs, target, visible, **options)
    rec, rec_parts = error()
    context, _ = error(region="visible", heads=context_heads)
    parts = {"rec": rec, "context": context, **{f"rec/{k}": v for k, v in rec_parts.items()}}
    return rec_weight * rec + (1.0 - rec_weight) * context, parts


def kl_divergence(mu: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL of N(mu, exp(logvar)) from N(0, 1), summed over batch and dimensions, float32 [].

    [B, h, w, D] twice, averaged over space first, as in the public code.
    """
    mu, logvar = float32_pair(mu, logvar)
    mu, logvar = mu.mean((1, 2)), logvar.mean((1, 2))
    return 0.5 * (jnp.expm1(logvar) - logvar + mu**2).sum()


def coach_loss(rec: jax.Array, mu: jax.Array, logvar: jax.Array, kld_weight: float) -> jax.Array:
    """Loss of the coach, 1 - L_rec + kld_weight KL: it erases what is hard to rebuild.

    `rec` is the `reconstruction` loss under its mask; `kld_weight` is 0 in the paper's equation 1,
    1e-6 in the public code. Returns float32 [], unbounded below.
    """
    return 1.0 - rec + kld_weight * kl_divergence(mu, logvar)

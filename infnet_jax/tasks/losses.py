"""Losses of segmentation, inpainting and the coach, all computed in float32.

Segmentation losses return one value per example, so that the caller can leave out the padding of
a last batch. Inpainting losses divide by the erased (or visible) pixels of the *whole batch*, as
the public code does, and return one scalar. All of them raise ValueError on unequal shapes.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from infnet_jax.models import final_map, layers as ops

BOUNDARY_WINDOW = 31
BOUNDARY_GAIN = 5.0
CLAMP = 2.0
LAST_HEAD = "edge"
MAPS = ("coarse", "s32", "s16", "s8")
_PROBABILITY_FLOOR = 1e-6
_OPTIONS = {
    "weighting": ("boundary", "none"),
    "kind": ("mse_clamped", "ce", "l1"),
    "reduction": ("sum_heads", "mean"),
    "region": ("erased", "visible"),
    "heads": ("all", "last"),
    "activation": ("tanh", "linear"),
}


def _check_options(**options: str) -> None:
    for name, value in options.items():
        if value not in _OPTIONS[name]:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(_OPTIONS[name])}")


def _float32_pair(prediction: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Broadcasting [B, H, W, 1] against [B, H, W] would give a wrong number and no error.
    if prediction.shape != target.shape:
        raise ValueError(f"shapes {prediction.shape} and {target.shape} differ; give equal shapes")
    return prediction.astype(jnp.float32), target.astype(jnp.float32)


def _pixel_bce(logits: jax.Array, target: jax.Array) -> jax.Array:
    logits, target = _float32_pair(logits, target)
    return jax.nn.softplus(logits) - logits * target


def boundary_weights(target: jax.Array) -> jax.Array:
    """Pixel weights 1 + 5 |mean of a 31 x 31 window - target|, highest along the lesion's rim.

    [B, H, W, 1], 0 or 1 -> float32 like it, in 1..6; all ones for an empty target. The window's
    part outside the image counts as 0.
    """
    target = target.astype(jnp.float32)
    return 1.0 + BOUNDARY_GAIN * jnp.abs(ops.box_filter(target, BOUNDARY_WINDOW) - target)


def structure_loss(
    logits: jax.Array,
    target: jax.Array,
    *,
    weighting: Literal["boundary", "none"] = "boundary",
    lambda_bce: float = 1.0,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Boundary-weighted IoU plus `lambda_bce` times binary cross-entropy (paper, equation 4).

    The IoU term is boundary-weighted in both readings. They differ in the cross-entropy:
    `boundary` weights it by pixel, as published (`structure`); `none` is what the public code
    runs (`structure_as_run`): a legacy flag averages the cross-entropy over the whole batch
    first, so the weights cancel and each example carries the batch's mean.

    Args:
      logits: [B, H, W, 1], any float type.
      target: [B, H, W, 1], 0 or 1 (soft pseudo-labels in 0..1 also work).
      weighting: reading of the cross-entropy term.
      valid: bool [B], False for padding to keep out of the batch mean of `none`; all by default.

    Returns:
      float32 [B]. An empty target scores 1 - 1 / (sum of p + 1) in its IoU term, so predicting
      nothing on it costs (almost) nothing.
    """
    _check_options(weighting=weighting)
    logits, target = _float32_pair(logits, target)
    weights = boundary_weights(target)
    axes = (1, 2, 3)
    bce = _pixel_bce(logits, target)
    if weighting == "boundary":
        bce = (weights * bce).sum(axes) / weights.sum(axes)
    else:
        kept = jnp.ones(len(logits)) if valid is None else valid.astype(jnp.float32)
        bce = (bce.mean(axes) * kept).sum() / jnp.maximum(kept.sum(), 1.0)
    probability = jax.nn.sigmoid(logits)
    intersection = (weights * probability * target).sum(axes)
    total = (weights * (probability + target)).sum(axes)
    iou = (intersection + 1.0) / (total - intersection + 1.0)
    return 1.0 - iou + lambda_bce * bce


def edge_bce(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Mean binary cross-entropy of logits, also per class channel; [B, H, W, C] x2 -> [B]."""
    return _pixel_bce(logits, target).mean((1, 2, 3))


def focal_loss(
    logits: jax.Array, target: jax.Array, alpha: float = 1.0, gamma: float = 2.0
) -> jax.Array:
    """Mean of alpha (1 - p_t)^gamma (-log p_t), p_t the probability given to the true class.

    [B, H, W, C] twice -> float32 [B]. `alpha` multiplies both classes alike (the public code's
    reading, not a class balance); `gamma` is 0 (plain cross-entropy) or at least 1.
    """
    if gamma < 0.0 or 0.0 < gamma < 1.0:
        raise ValueError(f"gamma is {gamma}; its gradient needs 0 or at least 1")
    bce = _pixel_bce(logits, target)
    return (alpha * (-jnp.expm1(-bce)) ** gamma * bce).mean((1, 2, 3))


def edge_target(mask: jax.Array) -> jax.Array:
    """Edge map of a binary mask, made on the device so that it cannot fall out of step with it.

    Morphological gradient over the four neighbours: both sides of each boundary, two pixels wide.
    At the stored size of COVID-SemiSeg it reproduces the stored Canny edges (F1 .999, 2.9 % of
    the pixels). The image border is not an edge.

    [B, H, W, 1], 0 or 1 -> float32 like it; empty for an empty or a full mask.
    """
    mask = mask.astype(jnp.float32)
    height, width = mask.shape[1:3]
    padded = jnp.pad(mask, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    low = high = mask
    for row, column in ((0, 1), (2, 1), (1, 0), (1, 2)):
        neighbour = padded[:, row : row + height, column : column + width]
        low, high = jnp.minimum(low, neighbour), jnp.maximum(high, neighbour)
    return high - low


def _pixel_error(output: jax.Array, target: jax.Array, kind: str, activation: str) -> jax.Array:
    output, target = _float32_pair(output, target)
    if kind == "mse_clamped":
        return jnp.minimum((output - target) ** 2, CLAMP)
    if kind == "l1":
        return jnp.abs(output - target)
    level = (target + 1.0) / 2.0
    if activation == "linear":
        return _pixel_bce(output, level)
    probability = jnp.clip((output + 1.0) / 2.0, _PROBABILITY_FLOOR, 1.0 - _PROBABILITY_FLOOR)
    return -level * jnp.log(probability) - (1.0 - level) * jnp.log1p(-probability)


def reconstruction(
    outputs: Mapping[str, jax.Array],
    target: jax.Array,
    visible: jax.Array,
    *,
    kind: Literal["mse_clamped", "ce", "l1"] = "mse_clamped",
    reduction: Literal["sum_heads", "mean"] = "sum_heads",
    region: Literal["erased", "visible"] = "erased",
    heads: Literal["all", "last"] = "all",
    activation: Literal["tanh", "linear"] = "tanh",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Reconstruction error over the erased (or visible) pixels of the batch.

    Per head: sum of error * weight / sum of weight, weight being 1 - visible or visible.
    `mse_clamped` is the public code's squared error cut at 2. `ce` is the paper's algorithm 1,
    which leaves the distribution open; our reading is a binary cross-entropy against the grey
    level (target + 1) / 2, of probability (output + 1) / 2 for tanh heads and sigmoid(output) for
    linear ones. Its minimum is the entropy of the grey levels, not 0.

    Args:
      outputs: head name -> [B, H, W, C]; in -1..1 for tanh heads, unbounded for linear ones.
      target: [B, H, W, C] in -1..1.
      visible: [B, H, W, 1], 1 visible, 0 erased; soft masks of the coach allowed.
      kind: error of one pixel and channel.
      reduction: `sum_heads` sums over heads and channels as the public code does; `mean` divides
        by both numbers.
      region: pixels that count.
      heads: `all`, or `last` for the `edge` head alone (the public code's context term).
      activation: of the heads; matters for `ce` only.

    Returns:
      The loss, float32 [], and its value per head. Both are 0 with a zero gradient when the batch
      holds no pixel of the region.
    """
    _check_options(
        kind=kind, reduction=reduction, region=region, heads=heads, activation=activation
    )
    if visible.shape != (*target.shape[:-1], 1):
        raise ValueError(f"visible has shape {visible.shape}; give {(*target.shape[:-1], 1)}")
    names = sorted(outputs) if heads == "all" else [LAST_HEAD]
    if not names or names[0] not in outputs:
        raise ValueError(f"heads={heads!r} finds no head among the outputs {sorted(outputs)}")
    weight = visible.astype(jnp.float32)
    weight = weight if region == "visible" else 1.0 - weight
    count = weight.sum()
    channels = target.shape[-1] if reduction == "mean" else 1
    parts = {}
    for name in names:
        total = (_pixel_error(outputs[name], target, kind, activation) * weight).sum() / channels
        # The inner where keeps the unused branch's gradient finite.
        parts[name] = jnp.where(count > 0.0, total / jnp.where(count > 0.0, count, 1.0), 0.0)
    loss = sum(parts.values())
    return (loss / len(parts) if reduction == "mean" else loss), parts


def inpaint_loss(
    outputs: Mapping[str, jax.Array],
    target: jax.Array,
    visible: jax.Array,
    *,
    rec_weight: float = 0.99,
    context_heads: Literal["all", "last"] = "last",
    **options: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of the inpainting network: rec_weight L_rec + (1 - rec_weight) L_context.

    L_rec is over the erased pixels and all heads, L_context over the visible pixels and
    `context_heads`. The paper has no context term (`rec_weight=1`), the public code .99 with the
    last head only. `options` are `kind`, `reduction`, `activation` as in `reconstruction`.

    Returns:
      The loss, float32 [], and {'rec', 'context', 'rec/<head>'...}, unweighted.
    """
    rec, rec_parts = reconstruction(outputs, target, visible, region="erased", **options)
    context, _ = reconstruction(
        outputs, target, visible, region="visible", heads=context_heads, **options
    )
    parts = {"rec": rec, "context": context, **{f"rec/{k}": v for k, v in rec_parts.items()}}
    return rec_weight * rec + (1.0 - rec_weight) * context, parts


def kl_divergence(mu: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL of N(mu, exp(logvar)) from N(0, 1), summed over batch and dimensions.

    [B, h, w, D] twice, averaged over space first as in the public code -> float32 []; 0 when both
    are 0. It grows with the batch.
    """
    mu, logvar = _float32_pair(mu, logvar)
    mu, logvar = mu.mean((1, 2)), logvar.mean((1, 2))
    return 0.5 * (jnp.expm1(logvar) - logvar + mu**2).sum()


def coach_loss(rec: jax.Array, mu: jax.Array, logvar: jax.Array, kld_weight: float) -> jax.Array:
    """Loss of the coach, 1 - L_rec + kld_weight KL: it erases what is hard to rebuild.

    `rec` is the network's `reconstruction` loss under the coach's mask; `kld_weight` is 0 in the
    paper's equation 1 and 1e-6 in the public code. Returns float32 [], unbounded below.
    """
    return 1.0 - rec + kld_weight * kl_divergence(mu, logvar)


def make_infection_loss(
    *,
    kind: str = "structure",
    lambda_bce: float = 1.0,
    edge_weight: float = 1.0,
    alpha: float = 1.0,
    gamma: float = 2.0,
) -> Callable:
    """Eq. 5: the sum of the region loss on four maps and the edge loss.

    A U-Net has one map and no edge: its loss is the region loss alone.

    Args:
      kind: `structure` (boundary-weighted cross-entropy, as published), `structure_as_run`
        (the weights cancel, as the public code runs) or `focal`.
      lambda_bce: weight of the cross-entropy in eq. 4.
      edge_weight: weight of the edge term (eq. 5: 1).
      alpha, gamma: of the focal loss.

    Returns:
      `loss(outputs, mask) -> (scalar, parts)`; `mask` [B, H, W, 1] float32 in 0..1 (soft where
      it is a pseudo-label; its edge is then that of the pixels above one half).

    Raises:
      ValueError: unknown kind.
    """
    weighting = {"structure": "boundary", "structure_as_run": "none"}

    def region(logits: jax.Array, mask: jax.Array) -> jax.Array:
        if kind == "focal":
            return focal_loss(logits, mask, alpha=alpha, gamma=gamma)
        return structure_loss(logits, mask, weighting=weighting[kind], lambda_bce=lambda_bce)

    if kind not in (*weighting, "focal"):
        raise ValueError(f"segment.loss.kind={kind!r}: choose structure, structure_as_run or focal")

    def loss(outputs: Mapping[str, jax.Array], mask: jax.Array):
        if "edge" not in outputs:
            total = region(final_map(outputs), mask).mean()
            return total, {"region": total}
        parts = {name: region(outputs[name], mask).mean() for name in MAPS}
        edge = edge_target((mask > 0.5).astype(jnp.float32))
        parts["edge"] = edge_bce(outputs["edge"], edge).mean()
        return sum(parts[n] for n in MAPS) + edge_weight * parts["edge"], parts

    return loss

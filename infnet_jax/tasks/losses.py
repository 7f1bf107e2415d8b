"""Segmentation losses of one class and of several (the first is the background), in float32.

The losses return one value per example and raise ValueError on unequal shapes; the two factories
add them up to one scalar.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array

from infnet_jax.models import final_map, layers as ops

MAPS = ("coarse", "s32", "s16", "s8")  # of Inf-Net, deeply supervised
BOUNDARY_WINDOW = 31
BOUNDARY_GAIN = 5.0
_OPTIONS = {"weighting": ("boundary", "none"), "head": ("softmax", "sigmoid")}

Outputs = Mapping[str, Array]
Loss = Callable[[Outputs, Array], tuple[Array, dict[str, Array]]]


def check_options(known: Mapping[str, Sequence[str]], given: Mapping[str, str]) -> None:
    """Raises ValueError for an option whose value is none of those `known` for it."""
    for name, value in given.items():
        if value not in known[name]:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known[name])}")


def float32_pair(prediction: Array, target: Array) -> tuple[Array, Array]:
    """Both arrays in float32; ValueError on unequal shapes, which would broadcast unnoticed."""
    if prediction.shape != target.shape:
        raise ValueError(f"shapes {prediction.shape} and {target.shape} differ; give equal shapes")
    return prediction.astype(jnp.float32), target.astype(jnp.float32)


def _check_gamma(gamma: float) -> None:
    if gamma < 0.0 or 0.0 < gamma < 1.0:
        raise ValueError(f"gamma is {gamma}; its gradient needs 0 or at least 1")


def pixel_bce(logits: Array, target: Array) -> Array:
    """Binary cross-entropy of each logit, float32, shaped like the two arrays."""
    logits, target = float32_pair(logits, target)
    return jax.nn.softplus(logits) - logits * target


def boundary_weights(target: Array) -> Array:
    """Pixel weights 1 + 5 |mean of a 31 x 31 window, 0 outside - target|, highest along the rim.

    [B, H, W, 1], 0 or 1 -> float32 like it, in 1..6; all ones for an empty target.
    """
    target = target.astype(jnp.float32)
    return 1.0 + BOUNDARY_GAIN * jnp.abs(ops.box_filter(target, BOUNDARY_WINDOW) - target)


def structure_loss(
    logits: Array, target: Array, *, weighting: str = "boundary", lambda_bce: float = 1.0
) -> Array:
    """Boundary-weighted IoU plus `lambda_bce` times binary cross-entropy (paper, equation 4).

    `boundary` weights the cross-entropy by pixel too, as published; `none` is what the public code
    runs: a legacy flag averages the cross-entropy over the whole batch first, so the weights cancel
    and each example carries the batch's mean. Logits [B, H, W, 1] of any float type and a target
    like them in 0..1 -> float32 [B]. An empty target scores 1 - 1 / (sum of p + 1) in its IoU
    term, so predicting nothing on it costs (almost) nothing.
    """
    check_options(_OPTIONS, {"weighting": weighting})
    logits, target = float32_pair(logits, target)
    weights, bce, axes = boundary_weights(target), pixel_bce(logits, target), (1, 2, 3)
    if weighting == "boundary":
        bce = (weights * bce).sum(axes) / weights.sum(axes)
    else:
        bce = bce.mean(axes).sum() / len(logits)
    probability = jax.nn.sigmoid(logits)
    intersection = (weights * probability * target).sum(axes)
    total = (weights * (probability + target)).sum(axes)
    iou = (intersection + 1.0) / (total - intersection + 1.0)
    return 1.0 - iou + lambda_bce * bce


def edge_bce(logits: Array, target: Array) -> Array:
    """Mean binary cross-entropy of logits, also per class channel; [B, H, W, C] x2 -> [B]."""
    return pixel_bce(logits, target).mean((1, 2, 3))


def focal_loss(logits: Array, target: Array, alpha: float = 1.0, gamma: float = 2.0) -> Array:
    """Mean of alpha (1 - p_t)^gamma (-log p_t), p_t the probability given to the true class.

    [B, H, W, C] twice -> float32 [B]. `alpha` multiplies both classes alike (the public code's
    reading, not a class balance); `gamma` is 0 (plain cross-entropy) or at least 1.
    """
    _check_gamma(gamma)
    bce = pixel_bce(logits, target)
    return (alpha * (-jnp.expm1(-bce)) ** gamma * bce).mean((1, 2, 3))


def edge_target(mask: Array) -> Array:
    """Edge map of a binary mask: both sides of each boundary, two pixels wide.

    [B, H, W, 1], 0 or 1 -> float32 like it; empty for an empty or a full mask, since the image
    border is not an edge. A morphological gradient over four neighbours; at the stored size of
    COVID-SemiSeg it reproduces the stored Canny edges (F1 .999, 2.9 % of the pixels).
    """
    mask = mask.astype(jnp.float32)
    p = jnp.pad(mask, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    near = (mask, p[:, :-2, 1:-1], p[:, 2:, 1:-1], p[:, 1:-1, :-2], p[:, 1:-1, 2:])
    return reduce(jnp.maximum, near) - reduce(jnp.minimum, near)


def make_infection_loss(
    *,
    kind: str = "structure",
    lambda_bce: float = 1.0,
    edge_weight: float = 1.0,
    alpha: float = 1.0,
    gamma: float = 2.0,
) -> Loss:
    """Eq. 5: the region loss summed over four maps plus the edge's; of a U-Net's one map, it alone.

    `kind` of the region loss is `structure` (boundary-weighted cross-entropy, as published),
    `structure_as_run` (the weights cancel, as the public code runs) or `focal` (with `alpha` and
    `gamma`), else ValueError; `lambda_bce` is of eq. 4. Returns `loss(outputs, mask) -> (scalar,
    parts)`; `mask` [B, H, W, 1] float32 in 0..1, whose edge is that of the pixels above one half.
    """
    kinds = {
        "structure": partial(structure_loss, lambda_bce=lambda_bce),
        "structure_as_run": partial(structure_loss, weighting="none", lambda_bce=lambda_bce),
        "focal": partial(focal_loss, alpha=alpha, gamma=gamma),
    }
    if kind not in kinds:
        raise ValueError(f"segment.loss.kind={kind!r}: choose structure, structure_as_run or focal")

    def loss(outputs: Outputs, mask: Array) -> tuple[Array, dict[str, Array]]:
        if "edge" not in outputs:
            total = kinds[kind](final_map(outputs), mask).mean()
            return total, {"region": total}
        parts = {name: kinds[kind](outputs[name], mask).mean() for name in MAPS}
        edge = edge_target((mask > 0.5).astype(jnp.float32))
        parts["edge"] = edge_bce(outputs["edge"], edge).mean()
        return sum(parts[n] for n in MAPS) + edge_weight * parts["edge"], parts

    return loss


def class_targets(mask: Array, classes: int = 3, smoothing: float = 0.0) -> Array:
    """Class indices [B, H, W, 1] to one channel per class, float32 [B, H, W, classes] in 0..1.

    A pixel of a class beyond `classes` (pleural effusion in some sets) gets zeros: a softmax loss
    then leaves it out, and a sigmoid loss reads "none of these". The background channel is
    multiplied by 1 - `smoothing` (in 0..1, the public code: .1).
    """
    if mask.ndim != 4 or mask.shape[-1] != 1:
        raise ValueError(f"mask has shape {mask.shape}; give [B, H, W, 1]")
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"smoothing is {smoothing}; give a share in 0..1")
    target = jax.nn.one_hot(mask[..., 0].astype(jnp.int32), classes, dtype=jnp.float32)
    return target.at[..., 0].multiply(1.0 - smoothing) if smoothing else target


def class_probs(logits: Array, head: str) -> Array:
    """Probabilities, float32 [B, H, W, C]: over the classes (softmax) or each alone (sigmoid)."""
    check_options(_OPTIONS, {"head": head})
    logits = logits.astype(jnp.float32)
    return jax.nn.softmax(logits) if head == "softmax" else jax.nn.sigmoid(logits)


def class_cross_entropy(
    logits: Array, target: Array, *, head: str = "softmax", gamma: float = 0.0
) -> Array:
    """Cross-entropy, focal for gamma > 0 (then at least 1).

    softmax: mean over pixels of the sum over classes of t_c (1 - p_c)^gamma (-log p_c).
    sigmoid: mean over pixels and classes of (1 - q_c)^gamma b_c, with b_c the binary cross-entropy
    of a channel and q_c = exp(-b_c).
    Logits [B, H, W, C] and a target of `class_targets` like them -> float32 [B].
    """
    check_options(_OPTIONS, {"head": head})
    _check_gamma(gamma)
    logits, target = float32_pair(logits, target)
    if head == "softmax":
        log_p = jax.nn.log_softmax(logits)
        loss = -target * log_p
    else:
        loss = pixel_bce(logits, target)
        log_p = -loss
    if gamma:
        loss = (-jnp.expm1(log_p)) ** gamma * loss
    loss = loss.sum(-1).mean((1, 2))
    return loss if head == "softmax" else loss / logits.shape[-1]


def soft_dice(logits: Array, target: Array, *, head: str = "softmax") -> Array:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1), averaged over the lesion classes (not background).

    The sums are over the whole batch, which spares slices that lack a class: the loss of such a
    slice alone would count every falsely marked pixel as a complete miss. [B, H, W, C] twice, the
    targets hard (smoothed ones never reach 0) -> float32 [B], the batch's value for each, in 0..1;
    0 for a class absent and not predicted.
    """
    logits, target = float32_pair(logits, target)
    probs, target = class_probs(logits, head)[..., 1:], target[..., 1:]
    both, total = (probs * target).sum((0, 1, 2)), (probs + target).sum((0, 1, 2))
    loss = (1.0 - (2.0 * both + 1.0) / (total + 1.0)).mean(-1)
    return jnp.broadcast_to(loss, logits.shape[:1])


def make_lesion_loss(
    *, head: str = "softmax", gamma: float = 0.0, smoothing: float = 0.0, dice_weight: float = 1.0
) -> Loss:
    """Cross-entropy of three classes plus `dice_weight` times the soft Dice loss of the lesions.

    The public code is head `sigmoid`, dice_weight 0, gamma 0 or 2 (focal), smoothing .1 (of
    the cross-entropy's targets; the Dice term takes hard ones). ValueError for a wrong option.
    Returns `loss(outputs, mask) -> (scalar, parts)`; `outputs["logits"]` [B, H, W, 3], `mask`
    [B, H, W, 1] class indices.
    """

    def loss(outputs: Outputs, mask: Array) -> tuple[Array, dict[str, Array]]:
        logits = outputs["logits"]
        target = class_targets(mask, smoothing=smoothing)
        entropy = class_cross_entropy(logits, target, head=head, gamma=gamma).mean()
        if not dice_weight:
            return entropy, {"entropy": entropy}
        dice = soft_dice(logits, class_targets(mask), head=head).mean()
        return entropy + dice_weight * dice, {"entropy": entropy, "dice": dice}

    # A wrong option shows here, before anything is compiled.
    jax.eval_shape(loss, {"logits": jnp.zeros((1, 1, 1, 3))}, jnp.zeros((1, 1, 1, 1)))
    return loss

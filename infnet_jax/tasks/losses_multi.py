"""Losses of the multi-class network, for softmax and for sigmoid heads, computed in float32.

Channels are the classes in their order: 0 background, 1 ground-glass opacity, 2 consolidation.
Every loss gives one value per example and raises ValueError on unequal shapes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

Head = Literal["softmax", "sigmoid"]
_OPTIONS = {
    "head": ("softmax", "sigmoid"),
    "smoothed": ("all", "background"),
    "over": ("example", "batch"),
}


def _check_option(name: str, value: str) -> None:
    if value not in _OPTIONS[name]:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(_OPTIONS[name])}")


def _float32_pair(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    if logits.shape != target.shape:
        raise ValueError(f"shapes {logits.shape} and {target.shape} differ; give equal shapes")
    return logits.astype(jnp.float32), target.astype(jnp.float32)


def class_targets(
    mask: jax.Array,
    classes: int = 3,
    *,
    smoothing: float = 0.0,
    smoothed: Literal["all", "background"] = "all",
) -> jax.Array:
    """One channel per class, optionally smoothed.

    Args:
      mask: [B, H, W, 1], class indices of any number type. A pixel of a class beyond `classes`
        (pleural effusion in some sets) gets zeros: a softmax loss then leaves it out, and a
        sigmoid loss reads "none of these".
      classes: channels of the result.
      smoothing: s in 0..1, 0 for hard targets.
      smoothed: `all`: (1 - s) t + s / classes in every channel; `background`: only the background
        channel, times 1 - s (the public code, s = .1).

    Returns:
      float32 [B, H, W, classes] in 0..1.

    Raises:
      ValueError: the mask has not one channel, or an option is out of range.
    """
    _check_option("smoothed", smoothed)
    if mask.ndim != 4 or mask.shape[-1] != 1:
        raise ValueError(f"mask has shape {mask.shape}; give [B, H, W, 1]")
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"smoothing is {smoothing}; give a share in 0..1")
    target = jax.nn.one_hot(mask[..., 0].astype(jnp.int32), classes, dtype=jnp.float32)
    if not smoothing:
        return target
    if smoothed == "background":
        return target.at[..., 0].multiply(1.0 - smoothing)
    known = target.sum(-1, keepdims=True)
    return (1.0 - smoothing) * target + known * (smoothing / classes)


def class_probs(logits: jax.Array, head: Head) -> jax.Array:
    """Probabilities, float32 [B, H, W, C]: over the classes (softmax) or each alone (sigmoid)."""
    _check_option("head", head)
    logits = logits.astype(jnp.float32)
    return jax.nn.softmax(logits) if head == "softmax" else jax.nn.sigmoid(logits)


def class_cross_entropy(
    logits: jax.Array,
    target: jax.Array,
    *,
    head: Head = "softmax",
    class_weights: Sequence[float] = (),
    gamma: float = 0.0,
) -> jax.Array:
    """Weighted cross-entropy, focal for gamma > 0.

    softmax: mean over pixels of the sum over classes of w_c t_c (1 - p_c)^gamma (-log p_c).
    sigmoid: mean over pixels and classes of w_c (1 - q_c)^gamma b_c, with b_c the binary
    cross-entropy of a channel and q_c = exp(-b_c). The mean is not divided by the weights, so that
    a slice of background only keeps its small weight.

    Args:
      logits: [B, H, W, C], any float type.
      target: [B, H, W, C] in 0..1, as `class_targets` gives.
      head: what makes probabilities of the logits.
      class_weights: w_c, C non-negative numbers; empty for ones (as published).
      gamma: 0 for plain cross-entropy, else at least 1.

    Returns:
      float32 [B].
    """
    _check_option("head", head)
    logits, target = _float32_pair(logits, target)
    classes = logits.shape[-1]
    weights = tuple(class_weights) or (1.0,) * classes
    if len(weights) != classes or min(weights) < 0:
        raise ValueError(f"class_weights is {weights}; give {classes} non-negative numbers")
    if gamma < 0.0 or 0.0 < gamma < 1.0:
        raise ValueError(f"gamma is {gamma}; its gradient needs 0 or at least 1")
    if head == "softmax":
        log_p = jax.nn.log_softmax(logits)
        loss = -target * log_p
    else:
        loss = jax.nn.softplus(logits) - logits * target
        log_p = -loss
    if gamma:
        loss = (-jnp.expm1(log_p)) ** gamma * loss
    loss = (loss * jnp.asarray(weights)).sum(-1).mean((1, 2))
    return loss if head == "softmax" else loss / classes


def soft_dice(
    logits: jax.Array,
    target: jax.Array,
    *,
    head: Head = "softmax",
    over: Literal["example", "batch"] = "example",
) -> jax.Array:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1), averaged over the lesion classes (not background).

    Args:
      logits, target: [B, H, W, C]; give hard targets, since smoothed ones never reach 0.
      head: what makes probabilities of the logits.
      over: pixels of one sum: of each `example`, or of the whole `batch`, whose value every
        example then carries. The latter spares slices that lack a class, where the loss of an
        example counts every falsely marked pixel as a complete miss.

    Returns:
      float32 [B], in 0..1; 0 for a class that is absent and not predicted.
    """
    _check_option("over", over)
    logits, target = _float32_pair(logits, target)
    probs, target = class_probs(logits, head)[..., 1:], target[..., 1:]
    axes = (1, 2) if over == "example" else (0, 1, 2)
    both, total = (probs * target).sum(axes), (probs + target).sum(axes)
    loss = (1.0 - (2.0 * both + 1.0) / (total + 1.0)).mean(-1)
    return jnp.broadcast_to(loss, logits.shape[:1])


def make_lesion_loss(
    *,
    head: str = "softmax",
    gamma: float = 0.0,
    class_weights: Sequence[float] = (),
    smoothing: float = 0.0,
    smoothed: str = "all",
    dice_weight: float = 1.0,
    dice_over: str = "batch",
) -> Callable:
    """Cross-entropy plus `dice_weight` times the soft Dice loss of the lesion classes.

    The public code is head `sigmoid`, no weights, dice_weight 0, gamma 0 or 2 (focal), and with
    label smoothing .1 of the `background`.

    Args:
      head, gamma, class_weights: of `class_cross_entropy`.
      smoothing, smoothed: of `class_targets`; the Dice term takes hard targets.
      dice_weight: 0 leaves the Dice term out.
      dice_over: `example` or `batch`, see `soft_dice`.

    Returns:
      `loss(outputs, mask) -> (scalar, parts)`; `outputs["logits"]` [B, H, W, 3], `mask`
      [B, H, W, 1] class indices.

    Raises:
      ValueError: an unknown option or a number out of range.
    """

    def loss(outputs: Mapping[str, jax.Array], mask: jax.Array):
        logits = outputs["logits"]
        target = class_targets(mask, 3, smoothing=smoothing, smoothed=smoothed)
        entropy = class_cross_entropy(
            logits, target, head=head, class_weights=class_weights, gamma=gamma
        ).mean()
        if not dice_weight:
            return entropy, {"entropy": entropy}
        hard = class_targets(mask, 3)
        dice = soft_dice(logits, hard, head=head, over=dice_over).mean()
        return entropy + dice_weight * dice, {"entropy": entropy, "dice": dice}

    # A wrong option shows here, before anything is compiled.
    jax.eval_shape(loss, {"logits": jnp.zeros((1, 1, 1, 3))}, jnp.zeros((1, 1, 1, 1)))
    return loss

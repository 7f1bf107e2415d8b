"""The multi-class stage: background, ground-glass opacity, consolidation from slice and prior."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infnet_jax.tasks import augment, losses_multi, normalise
from infnet_jax.tasks.state import Task, make_player, make_state
from infnet_jax.tasks.supervised import average_views, make_update, training_sides

CLASSES = 3
LESIONS = {"ggo": 1, "consolidation": 2}


def make_loss(
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
      head, gamma, class_weights: of `losses_multi.class_cross_entropy`.
      smoothing, smoothed: of `losses_multi.class_targets`; the Dice term takes hard targets.
      dice_weight: 0 leaves the Dice term out.
      dice_over: `example` or `batch`, see `losses_multi.soft_dice`.

    Returns:
      `loss(outputs, mask) -> (scalar, parts)`; `outputs["logits"]` [B, H, W, 3], `mask`
      [B, H, W, 1] class indices.

    Raises:
      ValueError: an unknown option or a number out of range.
    """

    def loss(outputs: Mapping[str, jax.Array], mask: jax.Array):
        logits = outputs["logits"]
        target = losses_multi.class_targets(mask, CLASSES, smoothing=smoothing, smoothed=smoothed)
        entropy = losses_multi.class_cross_entropy(
            logits, target, head=head, class_weights=class_weights, gamma=gamma
        ).mean()
        if not dice_weight:
            return entropy, {"entropy": entropy}
        hard = losses_multi.class_targets(mask, CLASSES)
        dice = losses_multi.soft_dice(logits, hard, head=head, over=dice_over).mean()
        return entropy + dice_weight * dice, {"entropy": entropy, "dice": dice}

    # A wrong option shows here, before anything is compiled.
    jax.eval_shape(loss, {"logits": jnp.zeros((1, 1, 1, CLASSES))}, jnp.zeros((1, 1, 1, 1)))
    return loss


def make(
    *,
    net: Any,
    norm: normalise.Norm,
    size: int,
    scales: Sequence[float],
    steps: int,
    loss: Mapping[str, Any],
    augmentation: Mapping[str, Any],
    tx: optax.GradientTransformation,
    schedule: Callable,
    ema_decay: float,
    prior_use: str = "input",
) -> Task:
    """The supervised multi-class task.

    Its batches hold `image`, `mask` (class indices) and `prior` (8-bit probability of any lesion,
    a prediction of the single-class network), uint8 [B, S, S, 1] each; one draw of the
    augmentation moves all three, and grey levels change in the image only.

    Args:
      net: a module with outputs {"logits": [B, S, S, 3]}: `UNet` or `FCN8s`.
      norm, size, scales, steps, augmentation, tx, schedule, ema_decay: as `segment.make` takes.
      loss: keyword arguments of `make_loss`.
      prior_use: `input` or `average` as `views` takes it; `none` does without (as the public
        code does FCN8s) and needs none in its batches.
    """
    objective = make_loss(**loss)
    head = loss.get("head", "softmax")
    sides = training_sides(size, scales)
    update = make_update(net, objective, tx, schedule, ema_decay)
    names = ("image", "mask", "prior") if prior_use == "input" else ("image", "mask")

    def variables(key: jax.Array):
        channels = len(norm.mean) * (2 if prior_use == "input" else 1)
        return {"net": net.init(key, jnp.zeros((1, size, size, channels)), train=False)}

    def start(trees: Mapping[str, Any]):
        return make_state(make_player(trees["net"], tx, ema_decay > 0), None, "max")

    def make_step(side: int):
        def step(state, batch, key):
            fields = {name: batch[name] for name in names}
            fields["image"] = fields["image"].astype(jnp.float32) / 255.0
            fields = augment.augment(key, fields, **augmentation)
            if side != size:
                fields = augment.resize_batch(fields, side)
            x = network_input(fields["image"], fields.get("prior"), norm)
            return update(state, x, fields["mask"])

        return step

    def evaluate(state, batch, key):
        prior = None if prior_use == "none" else batch["prior"]
        probs = predict(
            net, state.net.averaged, batch["image"], prior, norm, head=head, prior_use=prior_use
        )
        return {"probs": probs, "mask": batch["mask"][..., 0]}

    phases = [f"size{side}" for side in sides]
    return Task(
        variables=variables,
        start=start,
        steps={name: make_step(side) for name, side in zip(phases, sides, strict=True)},
        phase=lambda step: phases[step % len(phases)],
        batch_index=lambda step: step // len(phases),
        evaluate=evaluate,
        total_steps=steps,
        summarise=summarise,
        metric="dice",
        metric_mode="max",
    )


def network_input(image: jax.Array, prior: jax.Array | None, norm: normalise.Norm) -> jax.Array:
    """Slice and prior, normalised alike as in the public code, concatenated over channels.

    Args:
      image: [B, H, W, 1], grey in 0..1.
      prior: [B, H, W, 1] uint8 probability; None for the slice alone.
      norm: of c channels.

    Returns:
      float32 [B, H, W, 2c]: c of the slice, then c of the prior; or [B, H, W, c].
    """
    x = normalise.network_input(image, norm)
    if prior is None:
        return x
    prior = normalise.network_input(prior.astype(jnp.float32) / 255.0, norm)
    return jnp.concatenate([x, prior], -1)


def views(
    net: Any,
    variables: Mapping,
    image: jax.Array,
    prior: jax.Array | None,
    norm: normalise.Norm,
    tta: bool = False,
    head: str = "softmax",
    prior_use: str = "input",
    scales: Sequence[float] = (1.0,),
) -> tuple[jax.Array, jax.Array | None]:
    """Class probabilities, and how far the views disagree.

    Args:
      image: [B, S, S, 1] uint8.
      prior: [B, S, S, 1] uint8 probability of any lesion; None for a network without prior.
      tta: average over the eight flips and quarter turns of the square.
      head: `softmax` or `sigmoid`, as in training.
      prior_use: `input`: the network is fed the prior beside the slice (paper). `average`: it is
        fed the slice alone, and `average_prior` joins its answer with the prior.
      scales: average over these sizes of slice and prior, factors of S.

    Returns:
      [B, S, S, 3] float32 in 0..1 (background, ground-glass opacity, consolidation), and the
      views' standard deviation, None of a single one.
    """
    fed = None if prior_use == "average" else prior
    x = network_input(image.astype(jnp.float32) / 255.0, fed, norm)

    def probs(view: jax.Array) -> jax.Array:
        logits = net.apply(variables, view, train=False)["logits"]
        return losses_multi.class_probs(logits, head)

    mean, spread = average_views(probs, x, tta, scales)
    if prior_use != "average":
        return mean, spread
    # The prior is the same for all views: of the background's spread half is left.
    return average_prior(mean, prior), None if spread is None else spread / 2


def average_prior(probs: jax.Array, prior: jax.Array) -> jax.Array:
    """Class probabilities from two opinions on where a lesion is and one on which.

    Any lesion's probability is the mean of the prior and of the sum of the classes; the classes
    share it as they share their sum.

    Args:
      probs: [..., 3], the background first; it does not count.
      prior: [..., 1] uint8 probability of any lesion.

    Returns:
      float32 [..., 3] in 0..1, summing to 1.
    """
    lesions = probs[..., 1:]
    total = lesions.sum(-1, keepdims=True)
    infected = (jnp.minimum(total, 1.0) + prior.astype(jnp.float32) / 255.0) / 2
    return jnp.concatenate([1 - infected, infected * lesions / jnp.maximum(total, 1e-12)], -1)


def predict(*args: Any, **kwargs: Any) -> jax.Array:
    """The first of what `views` returns."""
    return views(*args, **kwargs)[0]


def summarise(rows: list[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Mean Dice at 0.5 over slices of each lesion class, and the mean of the two, `dice`.

    Slices without the class in truth and prediction are left out of its mean; a class that no
    slice defines counts 0.
    """
    probs = np.concatenate([r["probs"] for r in rows]) >= 0.5
    mask = np.concatenate([r["mask"] for r in rows])
    found = {}
    for name, index in LESIONS.items():
        marked, truth = probs[..., index], mask == index
        total = marked.sum((1, 2)) + truth.sum((1, 2))
        defined = total > 0
        dice = 2.0 * (marked & truth).sum((1, 2))[defined] / total[defined]
        found[f"dice_{name}"] = float(dice.mean()) if defined.any() else 0.0
    return {"dice": float(np.mean(list(found.values()))), **found}

"""Fine-tuning: single-class lesion segmentation with deep supervision (eq. 4-5)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infnet_jax.models import final_map
from infnet_jax.tasks import augment, losses, normalise
from infnet_jax.tasks.state import Task, make_player, make_state
from infnet_jax.tasks.supervised import average_views, make_update, training_sides

MAPS = ("coarse", "s32", "s16", "s8")


def make_loss(
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
            return losses.focal_loss(logits, mask, alpha=alpha, gamma=gamma)
        return losses.structure_loss(logits, mask, weighting=weighting[kind], lambda_bce=lambda_bce)

    if kind not in (*weighting, "focal"):
        raise ValueError(f"segment.loss.kind={kind!r}: choose structure, structure_as_run or focal")

    def loss(outputs: Mapping[str, jax.Array], mask: jax.Array):
        if "edge" not in outputs:
            total = region(final_map(outputs), mask).mean()
            return total, {"region": total}
        parts = {name: region(outputs[name], mask).mean() for name in MAPS}
        edge = losses.edge_target((mask > 0.5).astype(jnp.float32))
        parts["edge"] = losses.edge_bce(outputs["edge"], edge).mean()
        return sum(parts[n] for n in MAPS) + edge_weight * parts["edge"], parts

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
    soft: bool = False,
) -> Task:
    """The supervised task.

    Args:
      net: an `InfNet`, or a `UNet` of one class; norm: input scale.
      size: side of the square training images, pixels.
      scales: each batch is used once per scale, one update each (multi-scale training); sides
        are rounded to multiples of 32.
      steps: updates in all.
      loss: keyword arguments of `make_loss`; augmentation: of `augment.augment`.
      schedule: update count -> learning rate, for the log.
      ema_decay: of the averaged weights (see `make_update`); 0 keeps none.
      soft: see `prepare`.
    """
    objective = make_loss(**loss)
    channels = len(norm.mean)
    sizes = training_sides(size, scales)
    update = make_update(net, objective, tx, schedule, ema_decay)

    def variables(key: jax.Array):
        image = jnp.zeros((1, size, size, channels))
        return {"net": net.init(key, image, train=False)}

    def start(trees: Mapping[str, Any]):
        return make_state(make_player(trees["net"], tx, ema_decay > 0), None, "max")

    def make_step(side: int):
        def step(state, batch, key):
            return update(state, *prepare(batch, key, side, norm, augmentation, soft))

        return step

    def evaluate(state, batch, key):
        probs = predict(net, state.net.averaged, batch["image"], norm)
        mask = (batch["mask"] > 0).astype(jnp.float32)
        return {"probs": probs[..., 0], "mask": mask[..., 0]}

    names = [f"size{side}" for side in sizes]
    return Task(
        variables=variables,
        start=start,
        steps={name: make_step(side) for name, side in zip(names, sizes, strict=True)},
        phase=lambda step: names[step % len(names)],
        batch_index=lambda step: step // len(names),
        evaluate=evaluate,
        total_steps=steps,
        summarise=summarise,
        metric="dice",
        metric_mode="max",
    )


def prepare(
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    side: int,
    norm: normalise.Norm,
    augmentation: Mapping[str, Any],
    soft: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Augmented network input [B, side, side, C] and target [B, side, side, 1], float32.

    Args:
      batch: uint8 [B, S, S, 1] each: `image` and `mask`, where any class but 0 is lesion.
      augmentation: keyword arguments of `augment.augment`.
      soft: the target is the batch's `prior`, an 8-bit probability, in place of its `mask`.
    """
    hard = (batch["mask"] > 0).astype(jnp.float32)
    fields = {
        "image": batch["image"].astype(jnp.float32) / 255.0,
        "mask": batch["prior"].astype(jnp.float32) / 255.0 if soft else hard,
    }
    fields = augment.augment(key, fields, **augmentation)
    fields = augment.resize_batch(fields, side)
    return normalise.network_input(fields["image"], norm), fields["mask"]


def views(
    net: Any,
    variables: Mapping,
    image: jax.Array,
    norm: normalise.Norm,
    tta: bool = False,
    scales: Sequence[float] = (1.0,),
) -> tuple[jax.Array, jax.Array | None]:
    """Infection probability of the final map, and how far the views disagree.

    Args:
      image: [B, S, S, 1] uint8.
      tta: average over the eight flips and quarter turns of the square.
      scales: average over these sizes of the slice, factors of S.

    Returns:
      [B, S, S, 1] float32 in 0..1, and the views' standard deviation, None of a single one.
    """
    x = normalise.network_input(image.astype(jnp.float32) / 255.0, norm)

    def probs(view: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(final_map(net.apply(variables, view, train=False)))

    return average_views(probs, x, tta, scales)


def predict(*args: Any, **kwargs: Any) -> jax.Array:
    """The first of what `views` returns."""
    return views(*args, **kwargs)[0]


def summarise(rows: list[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Mean Dice at 0.5 over slices; slices without lesion and without prediction are left out."""
    probs = np.concatenate([r["probs"] for r in rows]) >= 0.5
    mask = np.concatenate([r["mask"] for r in rows]) > 0.5
    both = (probs & mask).sum((1, 2))
    total = probs.sum((1, 2)) + mask.sum((1, 2))
    defined = total > 0
    dice = 2.0 * both[defined] / total[defined]
    return {"dice": float(dice.mean()) if defined.any() else 0.0}

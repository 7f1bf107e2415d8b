"""Supervised segmentation: one task for one class, three classes, soft labels and lungs.

What differs is a value: the `Target`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from infnet_jax.dice import defined_mean, dice
from infnet_jax.tasks import augment
from infnet_jax.tasks.normalise import Norm, network_input
from infnet_jax.tasks.state import Task, TrainState, gradient_step, make_player, make_state

Loss = Callable[[Mapping[str, jax.Array], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
Batch = Mapping[str, jax.Array]


class Target(NamedTuple):
    """What a network learns, and how its outputs are read.

    Attributes:
      classes: names of the labels 1, 2, ... in masks.
      prior: what a single-class map is to the network: `none`, `input` (fed beside the slice) or
        `average` (averaged with its answer).
      truth: (batch of uint8 [B, S, S, 1]) -> [B, S, S, 1], what the augmentation moves and the
        loss reads.
      loss: (outputs, truth) -> scalar and its parts.
      probs: outputs -> [B, S, S, K] float32 in 0..1: one channel of one class, else the background
        first.
    """

    classes: tuple[str, ...]
    prior: str
    truth: Callable[[Batch], jax.Array]
    loss: Loss
    probs: Callable[[Mapping[str, jax.Array]], jax.Array]

    @property
    def fields(self) -> tuple[str, ...]:
        """Pictures that the network is fed."""
        return ("image", "prior") if self.prior == "input" else ("image",)


def make(
    *,
    net: nn.Module,
    target: Target,
    norm: Norm,
    size: int,
    scales: Sequence[float],
    steps: int,
    augmentation: Mapping[str, Any],
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
) -> Task:
    """The supervised task.

    Args:
      net: a module whose outputs `target` reads; norm: input scale.
      size: side of the square training images, pixels.
      scales: each batch is used once per scale, one update each (multi-scale training); sides
        are rounded to multiples of 32.
      steps: updates in all.
      augmentation: keyword arguments of `augment.augment`; one draw moves slice, truth and prior.
      tx: optimiser; schedule: update count -> learning rate, for the log.
      ema_decay: of the averaged weights (see `make_update`); 0 keeps none.
    """
    sides = training_sides(size, scales)
    update = make_update(net, target.loss, tx, schedule, ema_decay)

    def variables(key: jax.Array) -> dict[str, Any]:
        channels = len(norm.mean) * len(target.fields)
        return {"net": net.init(key, jnp.zeros((1, size, size, channels)), train=False)}

    def start(trees: Mapping[str, Any]) -> TrainState:
        return make_state(make_player(trees["net"], tx, ema_decay > 0), None, "max")

    def make_step(side: int) -> Callable:
        def step(
            state: TrainState, batch: Batch, key: jax.Array
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            return update(state, *prepare(batch, key, side, target, norm, augmentation))

        return step

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        probs, _ = views(net, target, state.net.averaged, batch, norm)
        mask = batch["mask"] if len(target.classes) > 1 else batch["mask"] > 0
        return {"probs": probs, "mask": mask[..., 0].astype(jnp.float32)}

    def summarise(rows: list[dict[str, np.ndarray]]) -> dict[str, float]:
        return mean_dice(rows, target.classes)

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
        panel=panel,
    )


def prepare(
    batch: Batch,
    key: jax.Array,
    side: int,
    target: Target,
    norm: Norm,
    augmentation: Mapping[str, Any],
) -> tuple[jax.Array, jax.Array]:
    """Augmented network input [B, side, side, C] and truth [B, side, side, 1].

    Args:
      batch: uint8 [B, S, S, 1] each: `image`, `mask` and what else `target` reads.
      augmentation: keyword arguments of `augment.augment`.
    """
    fields = {"image": batch["image"].astype(jnp.float32) / 255.0, "mask": target.truth(batch)}
    if target.prior == "input":
        fields["prior"] = batch["prior"]
    fields = augment.augment(key, fields, **augmentation)
    fields = augment.resize_batch(fields, side)
    return network_input(fields["image"], norm, fields.get("prior")), fields["mask"]


def training_sides(size: int, scales: Sequence[float]) -> list[int]:
    """Side of the training images per scale, pixels; multiples of 32, `size` itself for scale 1."""
    return [max(32, round(size * s / 32) * 32) if s != 1 else size for s in scales]


def make_update(
    net: nn.Module,
    objective: Callable,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The update of a network on a prepared batch.

    Args:
      net: a module with batch statistics.
      objective: (outputs of `net`, truth) -> (scalar loss, dict of its parts).
      tx: optimiser; schedule: update count -> learning rate, for the log.
      ema_decay: of the averaged weights; early on the average follows faster, with decay
        min(ema_decay, (1 + step) / (10 + step)).

    Returns:
      `update(state, x, truth) -> (state, metrics)`.
    """

    def update(
        state: TrainState, x: jax.Array, truth: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def loss(params: Any) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
            trees = {"params": params, "batch_stats": state.net.batch_stats}
            outputs, new = net.apply(trees, x, train=True, mutable=["batch_stats"])
            total, parts = objective(outputs, truth)
            return total, (parts, new["batch_stats"])

        count = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1.0 + count) / (10.0 + count))
        player, total, parts, norm = gradient_step(state.net, loss, tx, decay)
        metrics = {
            "loss": total,
            **{f"loss_{k}": v for k, v in parts.items()},
            "grad": norm,
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return state.replace(step=state.step + 1, net=player), metrics

    return update


def views(
    net: nn.Module,
    target: Target,
    variables: Mapping[str, Any],
    batch: Batch,
    norm: Norm,
    *,
    tta: bool = False,
    scales: Sequence[float] = (1.0,),
) -> tuple[jax.Array, jax.Array | None]:
    """Probabilities, and how far the views disagree.

    Args:
      batch: uint8 [B, S, S, 1] each: `image`, and `prior` where `target` has one.
      tta: average over the eight flips and quarter turns of the square.
      scales: average over these sizes of slice and prior, factors of S.

    Returns:
      [B, S, S, K] float32 in 0..1, and the views' standard deviation, None of a single view.
    """
    prior = batch["prior"] if target.prior == "input" else None
    x = network_input(batch["image"].astype(jnp.float32) / 255.0, norm, prior)

    def probs(view: jax.Array) -> jax.Array:
        return target.probs(net.apply(variables, view, train=False))

    mean, spread = average_views(probs, x, tta, scales)
    if target.prior != "average":
        return mean, spread
    # The prior is the same for all views: of the background's spread half is left.
    return average_prior(mean, batch["prior"]), None if spread is None else spread / 2


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


def average_views(
    probs: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    tta: bool,
    scales: Sequence[float] = (1.0,),
) -> tuple[jax.Array, jax.Array | None]:
    """Mean and spread of `probs` over sizes, flips and quarter turns of square inputs.

    Args:
      probs: [B, s, s, C] -> [B, s, s, K].
      x: [B, S, S, C].
      tta: the eight flips and quarter turns; False takes the input as it stands.
      scales: each resizes the input as `training_sides` and multi-scale training do, and its map
        back.

    Returns:
      [B, S, S, K] the mean over the views, brought back, and their standard deviation (None of a
      single view).
    """
    size, maps = x.shape[1], []
    for side in training_sides(size, scales):
        scaled = _resize(x, side)
        found = _turned(probs, scaled) if tta else [probs(scaled)]
        maps += [_resize(view, size) for view in found]
    if len(maps) == 1:
        return maps[0], None
    views = jnp.stack(maps)
    return views.mean(0), views.std(0)


def _resize(x: jax.Array, side: int) -> jax.Array:
    """[B, S, S, C] to `side`, as training resizes its slices."""
    return augment.resize_batch({augment.IMAGE: x}, side)[augment.IMAGE]


def _turned(probs: Callable[[jax.Array], jax.Array], x: jax.Array) -> list[jax.Array]:
    """What `probs` finds in each flip and quarter turn, turned back."""
    turns = [(flip, k) for flip in (False, True) for k in range(4)]
    views = jnp.stack([jnp.rot90(x[:, :, ::-1] if f else x, k, axes=(1, 2)) for f, k in turns])
    # One copy of the network in the program: eight would take minutes to compile.
    found = jax.lax.map(probs, views)
    back = [jnp.rot90(y, -k, axes=(1, 2)) for y, (_, k) in zip(found, turns, strict=True)]
    return [y[:, :, ::-1] if f else y for y, (f, _) in zip(back, turns, strict=True)]


def mean_dice(rows: list[dict[str, np.ndarray]], classes: Sequence[str]) -> dict[str, float]:
    """Mean Dice at 0.5 over slices, empty-aware, of each class and of all, `dice`.

    Args:
      rows: `probs` [B, S, S, K] and `mask` [B, S, S], labels, of each batch.
      classes: names of the labels 1, 2, ...

    Returns:
      `dice`, the mean over the classes, and of several classes `dice_<class>`; a class that no
      slice defines counts 0.
    """
    probs = np.concatenate([r["probs"] for r in rows]) >= 0.5
    mask = np.concatenate([r["mask"] for r in rows])
    found = {}
    for label, name in enumerate(classes, start=1):
        each = dice(probs[..., label - 1 - len(classes)], mask == label, axis=(1, 2))
        found[name] = float(np.nan_to_num(defined_mean(each)))
    single = {} if len(classes) == 1 else {f"dice_{name}": d for name, d in found.items()}
    return {"dice": float(np.mean(list(found.values()))), **single}


def panel(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """A few evaluated slices as a grey picture 0..1: masks on the left, maps on the right."""
    probs, mask = rows["probs"], rows["mask"]
    labels = probs.shape[-1] - 1 or 1  # of three classes consolidation white, ground glass grey
    grey = probs @ np.linspace(0.0, 1.0, labels + 1) if labels > 1 else probs[..., 0]
    return np.concatenate([np.concatenate(list(c)) for c in (mask / labels, grey)], axis=1)

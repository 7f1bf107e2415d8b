"""The supervised task, for one class or several, and the maps of what it has trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infnet_jax.dice import defined_mean, dice
from infnet_jax.models import layers as ops
from infnet_jax.tasks import augment, state as state_lib
from infnet_jax.tasks.losses import Loss, Outputs
from infnet_jax.tasks.state import Batch, Metrics, Rows, Task, TrainState, Tree, Update

Probs = Callable[[jax.Array], jax.Array]


class Target(NamedTuple):
    """What a network learns to find."""

    classes: tuple[str, ...]  # names of labels 1, 2, ...
    channels: int  # K of its map: 1, or one more than `classes` with the background first
    # What a single-class map is to it: `none`, `input` beside the slice (as in the paper), or
    # `average` with the answer to the slice alone, by `average_prior`.
    prior: str
    truth: Callable[[Batch], jax.Array]  # uint8 batch -> [B, S, S, 1], moved with the slice
    loss: Loss  # (outputs of the network, truth) -> (scalar, parts)
    probs: Callable[[Outputs], jax.Array]  # outputs -> float32 [B, S, S, K] in 0..1

    def labels(self, mask: jax.Array) -> jax.Array:
        """Labels of a mask, uint8 like it; to a single class every marked pixel belongs."""
        return (mask > 0).astype(jnp.uint8) if len(self.classes) == 1 else mask


def training_sides(size: int, scales: Sequence[float]) -> list[int]:
    """Side of the training images per scale, pixels; multiples of 32, `size` itself for scale 1."""
    return [max(32, round(size * s / 32) * 32) if s != 1 else size for s in scales]


def resize(image: jax.Array, side: int) -> jax.Array:
    """[B, S, S, C] at another side, bilinear without antialias, corners on corners."""
    same = image.shape[1] == side
    return image if same else ops.resize_bilinear(image, (side, side), align_corners=True)


def resize_batch(fields: augment.Fields, side: int) -> dict[str, jax.Array]:
    """Fields [B, side, side, C], the image by `resize`, others by its grid's nearest pixel."""
    out = {**fields, "image": resize(fields["image"], side)}
    for name, x in fields.items():
        if name != "image" and x.ndim == 4 and x.shape[1] != side:
            nearest = np.floor(np.linspace(0, x.shape[1] - 1, side) + 0.5).astype(np.int32)
            out[name] = jnp.take(jnp.take(x, nearest, 1), nearest, 2)
    return out


@dataclass(frozen=True)
class Supervised:
    """The settings of the supervised task, and its steps."""

    net: Any  # a module with batch statistics, whose outputs `target` reads
    target: Target
    norm: augment.Norm
    size: int  # side of the square training images, pixels
    scales: Sequence[float]  # each batch is used once per scale, one update each
    steps: int  # updates in all
    augmentation: Mapping[str, Any]  # keyword arguments of `augment.augment`
    tx: optax.GradientTransformation
    schedule: optax.Schedule  # update count -> learning rate, for the log
    ema_decay: float  # of the average, at most (1 + step) / (10 + step); 0: none is kept

    def task(self) -> Task:
        """The task that the training loop runs."""
        sides = training_sides(self.size, self.scales)
        return Task(
            variables=self.variables,
            start=self.start,
            steps={f"size{side}": partial(self.step, side) for side in sides},
            phase=lambda step: f"size{sides[step % len(sides)]}",
            batch_index=lambda step: step // len(sides),
            evaluate=self.evaluate,
            total_steps=self.steps,
            metric="dice",
            metric_mode="max",
            summarise=partial(summarise, self.target.classes),
            panel=panel,
        )

    def variables(self, key: jax.Array) -> dict[str, Tree]:
        """Fresh weights."""
        blank = augment.blank_input(self.norm, self.size, self.target.prior == "input")
        return {"net": self.net.init(key, blank, train=False)}

    def start(self, trees: dict[str, Tree]) -> TrainState:
        """The state at step 0."""
        player = state_lib.make_player(trees["net"], self.tx, self.ema_decay > 0)
        return state_lib.make_state(player, None, "max")

    def prepare(self, batch: Batch, key: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
        """Augmented network input [B, side, side, C] and truth [B, side, side, 1].

        `batch` holds uint8 [B, S, S, 1]: `image`, `mask` and what else the target needs.
        """
        fields = {"image": batch["image"], "mask": self.target.truth(batch)}
        if self.target.prior == "input":
            fields["prior"] = batch["prior"]
        fields = resize_batch(augment.prepare(key, fields, self.augmentation), side)
        x = augment.network_input(fields["image"], self.norm, fields.get("prior"))
        return x, fields["mask"]

    def objective(self, outputs: Outputs, truth: Any) -> tuple[jax.Array, Metrics]:
        """The loss and its parts."""
        return self.target.loss(outputs, truth)

    def update(self, state: TrainState, x: jax.Array, truth: Any) -> Update:
        """The update of the network on a prepared batch; `truth` is what `objective` takes."""
        count = state.step.astype(jnp.float32)
        decay = jnp.minimum(self.ema_decay, (1.0 + count) / (10.0 + count))
        forward = state_lib.training_pass(self.net, state.net, x)
        player, total, parts, norm = state_lib.gradient_step(
            state.net, forward, lambda outputs: self.objective(outputs, truth), self.tx, decay
        )
        metrics = {"loss": total, **{f"loss_{k}": v for k, v in parts.items()}, "grad": norm}
        metrics["lr"] = jnp.asarray(self.schedule(state.step), jnp.float32)
        return state.replace(step=state.step + 1, net=player), metrics

    def step(self, side: int, state: TrainState, batch: Batch, key: jax.Array) -> Update:
        """One update at one side of the images."""
        return self.update(state, *self.prepare(batch, key, side))

    def evaluate(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        """Maps `probs` [B, S, S, K] and labels `mask` [B, S, S]."""
        probs, _ = views(self.net, self.target, state.net.averaged, batch, self.norm)
        return {"probs": probs, "mask": self.target.labels(batch["mask"])[..., 0]}


def summarise(classes: Sequence[str], rows: Sequence[Rows]) -> dict[str, float]:
    """Mean Dice at 0.5 over slices: of each class where there are several, and `dice`, their mean.

    A slice without the class in truth and prediction is left out; a class without a slice is 0.
    """
    joined, found = state_lib.join(rows), {}
    marked = joined["probs"][..., -len(classes) :] >= 0.5
    for k, name in enumerate(classes):
        each = dice(marked[..., k], joined["mask"] == k + 1, axis=(1, 2))
        found[f"dice_{name}"] = float(np.nan_to_num(defined_mean(each)))
    mean = {"dice": float(np.mean(list(found.values())))}
    return mean if len(classes) == 1 else {**mean, **found}


def panel(rows: Rows) -> np.ndarray:
    """True labels beside maps, the last class white."""
    count = max(rows["probs"].shape[-1] - 1, 1)
    maps = rows["probs"][..., -count:] @ (np.arange(1, count + 1) / count)
    return state_lib.grid(rows["mask"] / count, maps)


def views(
    net: Any, target: Target, variables: Tree, batch: Batch, norm: augment.Norm, **options: Any
) -> tuple[jax.Array, jax.Array | None]:
    """The map of a network, and how far its views disagree: `average_views` with `options`.

    `batch` holds uint8 [B, S, S, 1] each: `image` and, where the target needs it, `prior`.
    """
    prior = batch["prior"] if target.prior == "input" else None
    x = augment.network_input(batch["image"].astype(jnp.float32) / 255.0, norm, prior)

    def probs(view: jax.Array) -> jax.Array:
        return target.probs(net.apply(variables, view, train=False))

    mean, spread = average_views(probs, x, **options)
    if target.prior != "average":
        return mean, spread
    # The prior is the same for all views: of the background's spread half is left.
    return average_prior(mean, batch["prior"]), None if spread is None else spread / 2


def average_prior(probs: jax.Array, prior: jax.Array) -> jax.Array:
    """Class probabilities from two opinions on where a lesion is and one on which.

    Any lesion's probability is the mean of the prior and of the sum of the classes, which share it
    as they share their sum. `probs` [..., 3], the background first (it does not count), and `prior`
    [..., 1] uint8 -> float32 [..., 3] in 0..1, summing to 1.
    """
    lesions = probs[..., 1:]
    total = lesions.sum(-1, keepdims=True)
    infected = (jnp.minimum(total, 1.0) + prior.astype(jnp.float32) / 255.0) / 2
    return jnp.concatenate([1 - infected, infected * lesions / jnp.maximum(total, 1e-12)], -1)


def average_views(
    probs: Probs, x: jax.Array, tta: bool = False, scales: Sequence[float] = (1.0,)
) -> tuple[jax.Array, jax.Array | None]:
    """Mean and spread of `probs` over sizes, flips and quarter turns of square inputs.

    `probs` takes [B, s, s, C] to [B, s, s, K], `x` is [B, S, S, C]. With `tta` there are eight
    flips and quarter turns, else none; `scales` resize as in multi-scale training. Returns the mean
    of the views, brought back, and their sd (None of a single view), float32 [B, S, S, K] each.
    """
    maps = []
    for side in training_sides(x.shape[1], scales):
        scaled = resize(x, side)
        found = _turned(probs, scaled) if tta else [probs(scaled)]
        maps += [resize(view, x.shape[1]) for view in found]
    if len(maps) == 1:
        return maps[0], None
    stack = jnp.stack(maps)
    return stack.mean(0), stack.std(0)


def _turned(probs: Probs, x: jax.Array) -> list[jax.Array]:
    turns = [(flip, k) for flip in (False, True) for k in range(4)]
    stack = jnp.stack([jnp.rot90(x[:, :, ::-1] if f else x, k, axes=(1, 2)) for f, k in turns])
    # One copy of the network in the program: eight would take minutes to compile.
    found = jax.lax.map(probs, stack)
    back = [jnp.rot90(y, -k, axes=(1, 2)) for y, (_, k) in zip(found, turns, strict=True)]
    return [y[:, :, ::-1] if f else y for y, (f, _) in zip(back, turns, strict=True)]

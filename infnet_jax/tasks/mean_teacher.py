"""Mean teacher (Tarvainen & Valpola 2017): unlabelled slices teach through the averaged weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from infnet_jax.tasks import augment, supervised
from infnet_jax.tasks.losses import Outputs
from infnet_jax.tasks.state import Batch, Metrics, TrainState, Update

DISTURBANCES = ("cutout", "cutout_mode", "cutout_prob", "gamma", "contrast", "brightness", "noise")
STILL: dict[str, Any] = dict(flip_h=0.0, flip_v=0.0, quarter_turns=False)


def ramp(step: jax.Array, weight: float, ramp_steps: int) -> jax.Array:
    """Weight of the consistency loss: weight * exp(-5 (1 - t)^2), t from 0 to 1 in `ramp_steps`."""
    t = jnp.minimum(step / jnp.float32(max(ramp_steps, 1)), 1.0)
    return weight * jnp.exp(-5.0 * (1.0 - t) ** 2)


def views(
    key: jax.Array, image: jax.Array, side: int, augmentation: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """What teacher and student see of unlabelled slices: one position, grey levels of their own.

    `image` uint8 [B, S, S, 1] -> float32 [B, side, side, 1] twice, grey in 0..1. Settings of
    `augmentation` that are in DISTURBANCES are for the student alone.
    """
    keys = jax.random.split(key)
    moves = {k: v for k, v in augmentation.items() if k not in DISTURBANCES}
    disturbs = {k: v for k, v in augmentation.items() if k in DISTURBANCES}
    fields = supervised.resize_batch(augment.prepare(keys[0], {"image": image}, moves), side)
    return fields["image"], augment.augment(keys[1], fields, **STILL, **disturbs)["image"]


@dataclass(frozen=True)
class MeanTeacher(supervised.Supervised):
    """The supervised task with the consistency term; its batches also hold `unlabelled` images.

    The teacher, the averaged weights, sees each of them undisturbed; the student, which sees it in
    the same position with other grey levels, must agree. ValueError where no average is kept.
    """

    weight: float  # of `ramp`, like `ramp_steps`
    ramp_steps: int

    def __post_init__(self) -> None:
        if not self.ema_decay > 0:
            given = f"segment.ema_decay={self.ema_decay}"
            raise ValueError(f"{given}: the mean teacher is that average; choose 0.99 or so")

    def objective(self, outputs: Outputs, truth: tuple) -> tuple[jax.Array, Metrics]:
        """The supervised loss plus a share of the squared difference from the teacher's map.

        `truth` is (mask [L, H, W, 1], the teacher's map [U, H, W, K], share); the first L rows of
        the outputs belong to the mask, the rest to the teacher's map.
        """
        mask, taught, share = truth
        total, parts = self.target.loss({k: v[: len(mask)] for k, v in outputs.items()}, mask)
        student = self.target.probs({k: v[len(mask) :] for k, v in outputs.items()})
        consistency = ((student - taught) ** 2).mean()
        return total + share * consistency, {**parts, "consistency": consistency}

    def step(self, side: int, state: TrainState, batch: Batch, key: jax.Array) -> Update:
        """One update at one side of the images."""
        keys = jax.random.split(key)
        x, mask = self.prepare(batch, keys[0], side)
        plain, disturbed = views(keys[1], batch["unlabelled"], side, self.augmentation)
        seen = augment.network_input(plain, self.norm)
        taught = self.target.probs(self.net.apply(state.net.ema, seen, train=False))
        x = jnp.concatenate([x, augment.network_input(disturbed, self.norm)])
        share = ramp(state.step, self.weight, self.ramp_steps)
        return self.update(state, x, (mask, taught, share))

"""Mean teacher (Tarvainen & Valpola 2017): unlabelled slices teach through the averaged weights.

The teacher is the exponential average that the player keeps anyway. It sees each unlabelled slice
undisturbed; the student sees it in the same position with other grey levels, and must agree.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from infnet_jax.tasks import augment, normalise, supervised
from infnet_jax.tasks.losses import Outputs
from infnet_jax.tasks.state import Batch, Metrics, Step, Task, TrainState
from infnet_jax.tasks.supervised import Target

DISTURBANCES = ("cutout", "cutout_mode", "cutout_prob", "gamma", "contrast", "brightness", "noise")
STILL: dict[str, Any] = dict(flip_h=0.0, flip_v=0.0, quarter_turns=False)


def ramp(step: jax.Array, weight: float, ramp_steps: int) -> jax.Array:
    """Weight of the consistency loss: weight * exp(-5 (1 - t)^2), t from 0 to 1 in `ramp_steps`."""
    t = jnp.minimum(step / jnp.float32(max(ramp_steps, 1)), 1.0)
    return weight * jnp.exp(-5.0 * (1.0 - t) ** 2)


def make_objective(target: Target) -> Callable[[Outputs, tuple], tuple[jax.Array, Metrics]]:
    """The supervised loss plus a share of the squared difference from the teacher's map.

    Returns:
      `objective(outputs, (truth, taught, share)) -> (scalar, parts)`: the first rows of the outputs
      belong to `truth` [L, H, W, 1], the rest to the teacher's map `taught` [U, H, W, K].
    """

    def objective(outputs: Outputs, given: tuple) -> tuple[jax.Array, Metrics]:
        truth, taught, share = given
        total, parts = target.loss({k: v[: len(truth)] for k, v in outputs.items()}, truth)
        student = target.probs({k: v[len(truth) :] for k, v in outputs.items()})
        consistency = ((student - taught) ** 2).mean()
        return total + share * consistency, {**parts, "consistency": consistency}

    return objective


def views(
    key: jax.Array, image: jax.Array, side: int, augmentation: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """What teacher and student see of unlabelled slices: one position, grey levels of their own.

    Args:
      image: uint8 [B, S, S, 1].
      side: of the views, pixels.
      augmentation: keyword arguments of `augment.augment`: those that move pixels make the
        position, those in DISTURBANCES are for the student alone.

    Returns:
      Two float32 [B, side, side, 1], grey in 0..1.
    """
    keys = jax.random.split(key)
    moves = {k: v for k, v in augmentation.items() if k not in DISTURBANCES}
    disturbs = {k: v for k, v in augmentation.items() if k in DISTURBANCES}
    fields = augment.prepare(keys[0], {"image": image}, moves)
    fields = augment.resize_batch(fields, side)
    return fields["image"], augment.augment(keys[1], fields, **STILL, **disturbs)["image"]


def make(
    net: Any,
    target: Target,
    norm: normalise.Norm,
    *,
    weight: float,
    ramp_steps: int,
    size: int,
    scales: Sequence[float],
    steps: int,
    augmentation: Mapping[str, Any],
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
) -> Task:
    """The supervised task with the consistency term; its batches also hold `unlabelled` images.

    Args:
      weight, ramp_steps: of `ramp`.
      net, target, norm, and all others: as `supervised.make` takes them.

    Raises:
      ValueError: no average is kept, so that there is no teacher.
    """
    if not ema_decay > 0:
        raise ValueError(
            f"segment.ema_decay={ema_decay}: the mean teacher is that average; choose 0.99 or so"
        )
    update = supervised.make_update(net, make_objective(target), tx, schedule, ema_decay)

    def make_step(side: int) -> Step:
        def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
            keys = jax.random.split(key)
            x, truth = supervised.prepare(batch, keys[0], side, target, norm, augmentation)
            plain, disturbed = views(keys[1], batch["unlabelled"], side, augmentation)
            seen = normalise.network_input(plain, norm)
            taught = target.probs(net.apply(state.net.ema, seen, train=False))
            x = jnp.concatenate([x, normalise.network_input(disturbed, norm)])
            return update(state, x, (truth, taught, ramp(state.step, weight, ramp_steps)))

        return step

    task = supervised.make(
        net,
        target,
        norm,
        size=size,
        scales=scales,
        steps=steps,
        augmentation=augmentation,
        tx=tx,
        schedule=schedule,
        ema_decay=ema_decay,
    )
    sides = supervised.training_sides(size, scales)
    return task._replace(steps={f"size{side}": make_step(side) for side in sides})

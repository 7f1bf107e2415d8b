"""What the supervised tasks share: the update, the sides of multi-scale training, the views."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from infnet_jax.tasks import augment
from infnet_jax.tasks.state import update_player


def training_sides(size: int, scales: Sequence[float]) -> list[int]:
    """Side of the training images per scale, pixels; multiples of 32, `size` itself for scale 1."""
    return [max(32, round(size * s / 32) * 32) if s != 1 else size for s in scales]


def make_update(
    net: Any,
    objective: Callable,
    tx: optax.GradientTransformation,
    schedule: Callable,
    ema_decay: float,
) -> Callable:
    """The update of a network on a prepared batch.

    Args:
      net: a module with batch statistics.
      objective: (outputs of `net`, target) -> (scalar loss, dict of its parts).
      tx: optimiser; schedule: update count -> learning rate, for the log.
      ema_decay: of the averaged weights; early on the average follows faster, with decay
        min(ema_decay, (1 + step) / (10 + step)).

    Returns:
      `update(state, x, target) -> (state, metrics)`.
    """

    def update(state, x, target):
        def objective_of(params):
            outputs, new = net.apply(
                {"params": params, "batch_stats": state.net.batch_stats},
                x,
                train=True,
                mutable=["batch_stats"],
            )
            total, parts = objective(outputs, target)
            return total, (parts, new["batch_stats"])

        grad = jax.value_and_grad(objective_of, has_aux=True)
        (total, (parts, stats)), grads = grad(state.net.params)
        count = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1.0 + count) / (10.0 + count))
        player = update_player(state.net, grads, stats, tx, decay)
        metrics = {
            "loss": total,
            **{f"loss_{k}": v for k, v in parts.items()},
            "grad": optax.tree.norm(grads),
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return state.replace(step=state.step + 1, net=player), metrics

    return update


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

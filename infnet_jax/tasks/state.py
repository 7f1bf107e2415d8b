"""What a run carries from step to step, and the record by which the loop knows a stage."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

Tree = Any  # a nested dict of arrays


class Player(struct.PyTreeNode):
    """One network with its optimiser.

    `ema` holds exponentially averaged `params` and `batch_stats`, or is an empty dict when the
    stage keeps no average.
    """

    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema: Tree

    @property
    def variables(self) -> dict[str, Tree]:
        """The live weights, as `Module.apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def averaged(self) -> dict[str, Tree]:
        """The averaged weights, or the live ones where no average is kept."""
        return self.ema or self.variables


class TrainState(struct.PyTreeNode):
    """`step` counts the updates made; `coach` is None outside pre-training.

    `best_metric` and `best_step` belong to early stopping and live here so that a resumed run
    stops where an uninterrupted one would.
    """

    step: jax.Array
    net: Player
    coach: Player | None
    best_metric: jax.Array
    best_step: jax.Array


class Task(NamedTuple):
    """All that the loop knows of a stage; every function is pure."""

    variables: Callable[[jax.Array], dict[str, Tree]]  # key -> fresh weights per player
    start: Callable[[dict[str, Tree]], TrainState]  # weights per player -> state at step 0
    steps: dict[str, Callable]  # name -> (state, batch, key) -> (state, metrics)
    phase: Callable[[int], str]  # step -> a name in `steps`
    batch_index: Callable[[int], int]  # step -> which batch of the stream it uses
    evaluate: Callable  # (state, batch, key) -> dict of arrays with one row per example
    total_steps: int
    summarise: Callable[[list], dict[str, float]]  # evaluated batches, as numpy -> scalars
    metric: str  # the scalar of `summarise` that tells better from worse
    metric_mode: str  # 'max' or 'min'
    panel: Callable[[Mapping[str, Any]], Any] | None  # a few rows -> picture [H, W], grey 0..1


def make_player(variables: dict[str, Tree], tx: optax.GradientTransformation, ema: bool) -> Player:
    """A player at its first step: fresh optimiser state, the average equal to the weights."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    # Copies, since the averaged and the live tree are donated to the step together.
    average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats}) if ema else {}
    return Player(params=params, batch_stats=stats, opt_state=tx.init(params), ema=average)


def make_state(net: Player, coach: Player | None, metric_mode: str) -> TrainState:
    """A state that has had no update."""
    worst = -jnp.inf if metric_mode == "max" else jnp.inf
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        net=net,
        coach=coach,
        best_metric=jnp.asarray(worst, jnp.float32),
        best_step=jnp.zeros((), jnp.int32),
    )


def update_player(
    player: Player,
    grads: Tree,
    batch_stats: Tree,
    tx: optax.GradientTransformation,
    ema_decay: jax.Array | float = 0.0,
) -> Player:
    """One optimiser step; where an average is kept it moves by `1 - ema_decay`."""
    updates, opt_state = tx.update(grads, player.opt_state, player.params)
    params = optax.apply_updates(player.params, updates)
    ema = player.ema
    if ema:
        live = {"params": params, "batch_stats": batch_stats}
        ema = jax.tree.map(lambda a, b: a * ema_decay + b * (1.0 - ema_decay), ema, live)
    return Player(params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema)


def gradient_step(
    player: Player,
    loss: Callable[[Tree], tuple[jax.Array, tuple[Any, Tree]]],
    tx: optax.GradientTransformation,
    ema_decay: jax.Array | float = 0.0,
) -> tuple[Player, jax.Array, Any, jax.Array]:
    """One update of a player by the gradient of its loss.

    Args:
      loss: params -> (scalar, (what to report, new batch statistics)).

    Returns:
      The player after it, the loss, what was reported, and the gradient's norm.
    """
    grad = jax.value_and_grad(loss, has_aux=True)
    (total, (parts, stats)), grads = grad(player.params)
    return update_player(player, grads, stats, tx, ema_decay), total, parts, optax.tree.norm(grads)

"""What a run carries from step to step, and the record by which the loop knows a stage."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

Tree = Any  # a nested dict of arrays
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Rows = Mapping[str, np.ndarray]  # of evaluated examples, one row each


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

    @property
    def rival(self) -> Player:
        """The coach, where there is one."""
        assert self.coach is not None, "pre-training alone has a coach"
        return self.coach


Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]
Evaluate = Callable[[TrainState, Batch, jax.Array], Metrics]
Forward = Callable[[Tree], tuple[Any, Tree]]  # parameters -> (outputs, new batch statistics)


class Task(NamedTuple):
    """All that the loop knows of a stage; every function but the last two is pure JAX."""

    variables: Callable[[jax.Array], dict[str, Tree]]  # key -> fresh weights per player
    start: Callable[[dict[str, Tree]], TrainState]  # weights per player -> state at step 0
    steps: dict[str, Step]  # name -> (state, batch, key) -> (state, metrics)
    phase: Callable[[int], str]  # step -> a name in `steps`
    batch_index: Callable[[int], int]  # step -> which batch of the stream it uses
    evaluate: Evaluate  # (state, batch, key) -> dict of arrays with one row per example
    total_steps: int
    metric: str  # the scalar of `summarise` that tells better from worse
    metric_mode: str  # 'max' or 'min'
    summarise: Callable[[list[Rows]], dict[str, float]]  # evaluated batches -> scalars
    # a few examples -> picture [H, W], grey in 0..1; None: there is none to see
    panel: Callable[[Rows], np.ndarray] | None = None


def make_player(variables: dict[str, Tree], tx: optax.GradientTransformation, ema: bool) -> Player:
    """A player at its first step: fresh optimiser state, the average equal to the weights."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    # Copies, since the averaged and the live tree are donated to the step together.
    average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats}) if ema else {}
    return Player(params=params, batch_stats=stats, opt_state=tx.init(params), ema=average)


def make_state(net: Player, coach: Player | None, metric_mode: str) -> TrainState:
    """A state that has had no update."""
    worst = jnp.asarray(-jnp.inf if metric_mode == "max" else jnp.inf, jnp.float32)
    zero, first = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # both are donated
    return TrainState(step=zero, net=net, coach=coach, best_metric=worst, best_step=first)


def training_pass(net: Any, player: Player, x: jax.Array, **options: Any) -> Forward:
    """A module in training as a function of its parameters; `options` are its keyword arguments."""

    def forward(params: Tree) -> tuple[Any, Tree]:
        variables = {"params": params, "batch_stats": player.batch_stats}
        outputs, new = net.apply(variables, x, train=True, mutable=["batch_stats"], **options)
        return outputs, new["batch_stats"]

    return forward


def gradient_step(
    player: Player,
    forward: Forward,
    objective: Callable[[Any], tuple[jax.Array, Any]],
    tx: optax.GradientTransformation,
    ema_decay: jax.Array | float = 0.0,
) -> tuple[Player, jax.Array, Any, jax.Array]:
    """One update of a player by the gradient of an objective.

    Args:
      objective: outputs of `forward` -> (loss, whatever else is wanted).
      ema_decay: where an average is kept it moves by `1 - ema_decay`.

    Returns:
      The player after it, the loss, whatever else was wanted, and the norm of the gradient.
    """

    def loss_of(params: Tree) -> tuple[jax.Array, tuple[Any, Tree]]:
        outputs, stats = forward(params)
        loss, rest = objective(outputs)
        return loss, (rest, stats)

    (loss, (rest, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(player.params)
    updates, opt_state = tx.update(grads, player.opt_state, player.params)
    params, ema = optax.apply_updates(player.params, updates), player.ema
    if ema:
        live = {"params": params, "batch_stats": stats}
        ema = jax.tree.map(lambda a, b: a * ema_decay + b * (1.0 - ema_decay), ema, live)
    after = Player(params=params, batch_stats=stats, opt_state=opt_state, ema=ema)
    return after, loss, rest, optax.tree.norm(grads)


def join(rows: Sequence[Rows]) -> dict[str, np.ndarray]:
    """Evaluated batches end to end."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def grid(*columns: np.ndarray) -> np.ndarray:
    """A picture, one column of pictures [n, H, W] beside the other; float, cut to 0..1."""
    return np.clip(np.concatenate([np.concatenate(list(c)) for c in columns], axis=1), 0, 1)

"""What a run carries from step to step, its optimiser, and how the loop knows a stage."""

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
Forward = Callable[[Tree], tuple[Any, Tree]]  # parameters -> (outputs, new batch statistics)


class Player(struct.PyTreeNode):
    """One network with its optimiser; `ema` is averaged `params` and `batch_stats`, or empty."""

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
    """What a run carries from step to step."""

    step: jax.Array  # updates made
    net: Player
    coach: Player | None  # in pre-training alone
    best_metric: jax.Array  # of early stopping: a resumed run stops where a whole one would
    best_step: jax.Array

    @property
    def rival(self) -> Player:
        """The coach, where there is one."""
        assert self.coach is not None, "pre-training alone has a coach"
        return self.coach


Update = tuple[TrainState, Metrics]  # what a training step makes of a state
Step = Callable[[TrainState, Batch, jax.Array], Update]


class Task(NamedTuple):
    """All that the loop knows of a stage; the first two, `steps` and `evaluate` are pure JAX."""

    variables: Callable[[jax.Array], dict[str, Tree]]  # key -> fresh weights per player
    start: Callable[[dict[str, Tree]], TrainState]  # weights per player -> state at step 0
    steps: dict[str, Step]  # name -> (state, batch, key) -> (state, metrics)
    phase: Callable[[int], str]  # step -> a name in `steps`
    evaluate: Callable[[TrainState, Batch, jax.Array], Metrics]  # arrays of one row per example
    total_steps: int
    metric: str  # the scalar of `summarise` that tells better from worse
    metric_mode: str  # 'max' or 'min'
    summarise: Callable[[list[Rows]], dict[str, float]]  # evaluated batches -> scalars
    panel: Callable[[Rows], np.ndarray] | None = None  # a few examples -> [H, W], grey in 0..1
    batch_index: Callable[[int], int] = lambda step: step  # which batch of the stream it uses


def make_player(trees: Tree, tx: optax.GradientTransformation, ema: bool = False) -> Player:
    """A player at its first step: fresh optimiser state; an average, if any, equals the weights."""
    params, stats = trees["params"], trees.get("batch_stats", {})
    # Copies, since the averaged and the live tree are donated to the step together.
    average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats}) if ema else {}
    return Player(params, stats, tx.init(params), average)


def make_state(net: Player, coach: Player | None, metric_mode: str) -> TrainState:
    """A state that has had no update."""
    worst = jnp.asarray(-jnp.inf if metric_mode == "max" else jnp.inf, jnp.float32)
    zero, first = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # both are donated
    return TrainState(zero, net, coach, worst, first)


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
    """One update of a player, whose average, if it keeps one, moves by `1 - ema_decay`.

    `objective`: outputs -> (loss, rest). Returns the new player, loss, rest and gradient norm.
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
    return Player(params, stats, opt_state, ema), loss, rest, optax.tree.norm(grads)


def join(rows: Sequence[Rows]) -> dict[str, np.ndarray]:
    """Evaluated batches end to end."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def grid(*columns: np.ndarray) -> np.ndarray:
    """A picture, one column of pictures [n, H, W] beside the other; float, cut to 0..1."""
    return np.clip(np.concatenate([np.concatenate(list(c)) for c in columns], axis=1), 0, 1)


class LookaheadState(NamedTuple):
    """Slow weights and the count of fast updates, beside the inner optimiser's state."""

    inner: optax.OptState
    slow: optax.Params
    count: jax.Array  # type: ignore[assignment]  # as optax names it, which hides tuple.count


def lookahead(
    inner: optax.GradientTransformation, every: int, rate: float
) -> optax.GradientTransformation:
    """Lookahead (Zhang et al. 2019): each `every`-th update ends at `slow + rate * (fast - slow)`.

    Unlike in `optax.lookahead` slow weights are optimiser state: parameters keep their own tree.
    """

    def init(params: optax.Params) -> LookaheadState:
        slow = jax.tree.map(jnp.copy, params)
        return LookaheadState(inner.init(params), slow, jnp.zeros((), jnp.int32))

    def update(
        grads: optax.Updates, state: LookaheadState, params: optax.Params = None
    ) -> tuple[optax.Updates, LookaheadState]:
        updates, inner_state = inner.update(grads, state.inner, params)
        sync = (state.count + 1) % every == 0
        pull = lambda s, p, u: jnp.where(sync, s + rate * (p + u - s), s)  # noqa: E731
        slow = jax.tree.map(pull, state.slow, params, updates)
        updates = jax.tree.map(lambda s, p, u: jnp.where(sync, s - p, u), slow, params, updates)
        return updates, LookaheadState(inner_state, slow, state.count + 1)

    return optax.GradientTransformation(init, update)


def make_schedule(
    *,
    lr: float,
    total_steps: int,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    decay_every: int = 0,
    decay_rate: float = 0.1,
    boundaries: Sequence[int] = (),
    values: Sequence[float] = (),
) -> optax.Schedule:
    """A function from the update count to the learning rate, `lr` after a rise in `warmup_steps`.

    `schedule` is `constant`; `cosine` to 0 at `total_steps`; `step` (times `decay_rate` every
    `decay_every` updates, what the public code intends); `step_compounded` (what it does: at each
    update past `decay_every` the *current* rate is multiplied again, so training ends there);
    `piecewise` (`values[i]` up to `boundaries[i]`, one value more); else ValueError.
    """
    if schedule == "constant":
        base = optax.constant_schedule(lr)
    elif schedule == "cosine":
        base = optax.cosine_decay_schedule(lr, max(1, total_steps - warmup_steps))
    elif schedule in ("step", "step_compounded"):
        if decay_every <= 0:
            raise ValueError(f"schedule.schedule={schedule!r} needs schedule.decay_every > 0")
        power = (lambda n: n) if schedule == "step" else (lambda n: n * (n + 1) / 2)
        base = lambda count: lr * decay_rate ** power(count // decay_every)  # noqa: E731
    elif schedule == "piecewise":
        if len(values) != len(boundaries) + 1:
            needed = f"{len(boundaries) + 1} are needed, one more than schedule.boundaries"
            raise ValueError(f"schedule.values has {len(values)} entries; {needed}")
        edges, rates = jnp.asarray(boundaries, jnp.int32), jnp.asarray(values, jnp.float32)
        base = lambda count: rates[jnp.searchsorted(edges, count, side="right")]  # noqa: E731
    else:
        known = "constant, cosine, step, step_compounded or piecewise"
        raise ValueError(f"schedule.schedule={schedule!r}: choose {known}")
    rise = optax.linear_schedule(0.0, lr, warmup_steps)
    return optax.join_schedules([rise, base], [warmup_steps]) if warmup_steps else base


def make_optimizer(
    schedule: optax.Schedule,
    *,
    name: str = "adamw",
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    eps: float = 1e-8,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    lookahead_every: int = 0,
    lookahead_rate: float = 0.5,
) -> optax.GradientTransformation:
    """The optimiser chain: clipping, the rule, Lookahead; ValueError for an unknown rule.

    Args:
      name: `adam` and `sgd` add `weight_decay` to the gradient (L2, as torch does); `adamw`
        decouples it and spares biases and batch-norm scales (arrays of one axis).
      eps: of Adam, torch's by default. A larger one keeps Adam from magnifying rounding noise
        where the true gradient is 0 (a bias before batch norm), and runs from drifting apart.
      clip_value, clip_norm: bounds on each element and on the norm of the gradient; 0 is off.
      lookahead_every: fast updates per slow one (the public code: 5); 0 is off.
    """
    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    rules = {
        "adam": optax.adam(schedule, eps=eps),
        "adamw": optax.adamw(schedule, eps=eps, weight_decay=weight_decay, mask=matrices),
        "sgd": optax.sgd(schedule, momentum=momentum),
    }
    if name not in rules:
        raise ValueError(f"optim.name={name!r}: choose adam, adamw or sgd")
    chain = [optax.clip(clip_value)] if clip_value else []
    if clip_norm:
        chain.append(optax.clip_by_global_norm(clip_norm))
    if weight_decay and name != "adamw":
        chain.append(optax.add_decayed_weights(weight_decay))
    tx = optax.chain(*chain, rules[name])
    return lookahead(tx, lookahead_every, lookahead_rate) if lookahead_every else tx

"""Learning-rate schedules and the optimiser chain, from the keyword arguments of a config."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class LookaheadState(NamedTuple):
    """Slow weights and the count of fast updates, beside the inner optimiser's state."""

    inner: optax.OptState
    slow: optax.Params
    count: jax.Array  # type: ignore[assignment]  # as optax names it, which hides tuple.count


def lookahead(
    inner: optax.GradientTransformation, every: int, rate: float
) -> optax.GradientTransformation:
    """Lookahead (Zhang et al. 2019) on a plain parameter tree.

    Every `every`-th update the weights return to `slow + rate * (fast - slow)`. Unlike
    `optax.lookahead` the slow weights live in the optimiser state, so that the parameter tree
    of a checkpoint, of the averaged weights and of transfer stays the network's own.
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
    """A function from the update count to the learning rate.

    Args:
      lr: peak; total_steps: updates of the stage, the end of `cosine`.
      schedule: `constant`; `cosine` to 0; `step` (times `decay_rate` every `decay_every` updates,
        what the public code intends); `step_compounded` (what it does: at each update past
        `decay_every` the *current* rate is multiplied again, so training ends there);
        `piecewise` (`values[i]` up to `boundaries[i]`, one more value than boundaries).
      warmup_steps: linear rise from 0 before the schedule starts.

    Raises:
      ValueError: unknown schedule, or boundaries that do not fit the values.
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
    """The optimiser chain: clipping, the rule, Lookahead.

    Args:
      name: `adam` and `sgd` add `weight_decay` to the gradient (L2, as torch does); `adamw`
        decouples it and spares biases and batch-norm scales (arrays of one axis).
      eps: of Adam, torch's by default. A larger one keeps Adam from magnifying rounding noise into
        whole steps where the true gradient is 0 (a bias in front of batch norm), by which runs
        on different devices drift apart.
      clip_value: clamp of each gradient element (the public code: 0.5); 0 is off.
      clip_norm: bound on the global gradient norm; 0 is off.
      lookahead_every: fast updates per slow one (the public code: 5); 0 is off.

    Raises:
      ValueError: unknown name.
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
    chain.append(rules[name])
    tx = optax.chain(*chain)
    return lookahead(tx, lookahead_every, lookahead_rate) if lookahead_every else tx

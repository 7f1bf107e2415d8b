"""Pre-training by rotation: which quarter turn was a slice given (Gidaris et al. 2018).

The other pretext that the paper names beside inpainting. The state holds the trunk and a linear
head only, so that nothing but the trunk can be transferred.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from infnet_jax.tasks import augment, normalise
from infnet_jax.tasks.normalise import network_input
from infnet_jax.tasks.state import Task, make_player, make_state, update_player

TURNS = 4


def turn(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns each square example counter-clockwise by 90 degrees `turns` times, as `np.rot90` does.

    [B, S, S, C] and int [B] in 0..3 -> [B, S, S, C].
    """
    every = jnp.stack([jnp.rot90(x, k, axes=(1, 2)) for k in range(TURNS)])
    return every[turns, jnp.arange(len(x))]


def make(
    *,
    net: Any,
    norm: normalise.Norm,
    size: int,
    steps: int,
    augmentation: Mapping[str, Any],
    tx: optax.GradientTransformation,
    schedule: Callable,
    with_prior: bool = False,
) -> Task:
    """The four-class task: cross-entropy of a linear head on the trunk's pooled deepest features.

    Args:
      net: an `InfNet` or a `UNet`, whose trunk is trained.
      norm, size, with_prior: as `inpaint.make` takes them.
      steps: updates in all.
      augmentation: keyword arguments of `augment.augment`; its upside-down mirror images and
        quarter turns are left out, since after them the right answer cannot be seen.
      tx: optimiser; schedule: update count -> learning rate, for the log.
    """
    channels = len(norm.mean) * (2 if with_prior else 1)
    upright = {**augmentation, "flip_v": 0.0, "quarter_turns": False}
    head = nn.Dense(TURNS)

    def trunk(module: nn.Module, x: jax.Array, train: bool):
        return module.trunk(x, train=train)[-1].mean((1, 2))

    def logits(params: Mapping, stats: Mapping, x: jax.Array, train: bool):
        mutable = ["batch_stats"] if train else []
        pooled, new = net.apply(
            {"params": {"trunk": params["trunk"]}, "batch_stats": stats},
            x,
            train,
            method=trunk,
            mutable=mutable,
        )
        scores = head.apply({"params": params["out_rotation"]}, pooled.astype(jnp.float32))
        return scores, new.get("batch_stats", stats)

    def variables(key: jax.Array):
        keys, x = jax.random.split(key), jnp.zeros((1, size, size, channels))
        pooled, of_trunk = net.init_with_output(keys[0], x, False, method=trunk)
        params = {**of_trunk["params"], "out_rotation": head.init(keys[1], pooled)["params"]}
        return {"net": {**of_trunk, "params": params}}

    def start(trees: Mapping[str, Any]):
        return make_state(make_player(trees["net"], tx, False), None, "max")

    def prepare(batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        fields = {"image": batch["image"].astype(jnp.float32) / 255.0}
        if with_prior:
            fields["prior"] = batch["prior"].astype(jnp.float32)
        if key is not None:
            fields = augment.augment(key, fields, **upright)
        return network_input(fields["image"], norm, fields.get("prior"))

    def step(state, batch, key):
        keys = jax.random.split(key)
        x = prepare(batch, keys[0])
        turns = jax.random.randint(keys[1], (len(x),), 0, TURNS)

        def objective_of(params):
            scores, stats = logits(params, state.net.batch_stats, turn(x, turns), True)
            entropy = optax.softmax_cross_entropy_with_integer_labels(scores, turns).mean()
            return entropy, ((scores.argmax(-1) == turns).mean(), stats)

        grad = jax.value_and_grad(objective_of, has_aux=True)
        (loss, (right, stats)), grads = grad(state.net.params)
        player = update_player(state.net, grads, stats, tx)
        metrics = {
            "loss": loss,
            "train_accuracy": right.astype(jnp.float32),
            "grad": optax.tree.norm(grads),
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return state.replace(step=state.step + 1, net=player), metrics

    def evaluate(state, batch, key):
        """Whether each slice's four turns are told, [B, 4]."""
        x = prepare(batch, None)

        def told(k: jax.Array) -> jax.Array:
            turned = turn(x, jnp.full(len(x), k))
            scores, _ = logits(state.net.params, state.net.batch_stats, turned, False)
            return (scores.argmax(-1) == k).astype(jnp.float32)

        return {"told": jax.lax.map(told, jnp.arange(TURNS)).T}

    return Task(
        variables=variables,
        start=start,
        steps={"rotation": step},
        phase=lambda step: "rotation",
        batch_index=lambda step: step,
        evaluate=evaluate,
        total_steps=steps,
        summarise=summarise,
        metric="accuracy",
        metric_mode="max",
        panel=None,
    )


def summarise(rows: list[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Share of the slices' turns that were told; chance is 0.25."""
    return {"accuracy": float(np.concatenate([row["told"] for row in rows]).mean())}


def from_stage(stage, norm, steps_per_epoch):
    from infnet_jax import models
    from infnet_jax.tasks import optim

    s = stage.section
    schedule = optim.make_schedule(total_steps=s.steps, **s.net_schedule)
    return make(
        net=models.make(**stage.net.arguments),
        norm=norm,
        size=s.size,
        steps=s.steps,
        schedule=schedule,
        tx=optim.make_optimizer(schedule, **s.net_optim),
        augmentation=s.augmentation,
        with_prior=stage.prior == "input",
    )

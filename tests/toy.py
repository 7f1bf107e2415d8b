"""A task with one weight, for tests of the loop and of the stages around it."""

import jax
import jax.numpy as jnp
import optax

from infnet_jax.tasks.state import Task, make_player, make_state


class Crash(BaseException):
    """No error that anything in the loop may catch."""


def crash_at(*steps):
    """A hook that crashes before these steps."""

    def hook(step):
        if step in steps:
            raise Crash

    return hook


def make_toy(total=12, dice=None, hook=lambda step: None, lr=0.1, field="image", reuse=3):
    """One weight that moves by noise and by the batch, so that each step leaves its mark.

    Args:
      dice: updates -> Dice of an evaluation; the number of updates where it has none.
      hook: called with each step before it is made.
      field: the picture of the batch that pulls the weight; each batch is used `reuse` times.
    """
    tx = optax.sgd(lr)

    def step(state, batch, key):
        w = state.net.params["w"]
        pull = batch[field][0].astype(jnp.float32).mean() / 255.0  # one row: order matters
        moved = w - lr * (2 * (w - pull) + 0.1 * jax.random.normal(key))
        net = state.net.replace(params={"w": moved})
        return state.replace(step=state.step + 1, net=net), {"loss": (w - pull) ** 2}

    def evaluate(state, batch, key):
        mask = (batch["mask"] > 0).astype(jnp.float32)[..., 0]
        updates = jnp.full(mask.shape[0], state.step)
        return {"probs": mask[..., None] * state.net.params["w"], "mask": mask, "updates": updates}

    def summarise(rows):
        updates = int(rows[0]["updates"][0])
        assert all(len(row["updates"]) == 2 for row in rows)  # padding is dropped
        return {"dice": (dice or {}).get(updates, float(updates))}

    def phase(step):
        hook(step)
        return "toy"

    return Task(
        variables=lambda key: {"net": {"params": {"w": jnp.float32(3.0)}, "batch_stats": {}}},
        start=lambda trees: make_state(make_player(trees["net"], tx, False), None, "max"),
        steps={"toy": step},
        phase=phase,
        batch_index=lambda step: step // reuse,
        evaluate=evaluate,
        total_steps=total,
        summarise=summarise,
        metric="dice",
        metric_mode="max",
        panel=None,
    )

"""A task with one weight, for tests of the loop and around it; targets; reference losses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infnet_jax.models import final_map
from infnet_jax.tasks import losses
from infnet_jax.tasks.state import Task, make_player, make_state
from infnet_jax.tasks.supervised import Target

STILL = dict(flip_h=0.0, flip_v=0.0, quarter_turns=False)


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


def infection(truth=lambda batch: (batch["mask"] > 0).astype(jnp.float32), loss=None, **options):
    """The Target of a single class."""
    loss = loss or losses.make_infection_loss(**options)
    probs = lambda outputs: jax.nn.sigmoid(final_map(outputs))  # noqa: E731
    return Target(("infection",), 1, "none", truth, loss, probs)


def lesions(prior="input", head="softmax", **options):
    """The Target of two classes and the background."""
    loss = losses.make_lesion_loss(head=head, **options)
    probs = lambda outputs: losses.class_probs(outputs["logits"], head)  # noqa: E731
    return Target(("ggo", "consolidation"), 3, prior, lambda batch: batch["mask"], loss, probs)


def reference_losses(shared):
    """Stored values of the public code's losses, and what draws their inputs."""
    rule = json.loads((shared / "reference/losses.json").read_text())
    values = np.load(shared / "reference/losses.npz")

    def draw(offset, channels=1):
        shape = (len(values["structure_as_run"]), rule["size"], rule["size"], channels)
        return np.random.default_rng(rule["seed"] + offset).standard_normal(shape)

    return values, draw

"""The rotation pretext: what is turned is what is asked, and the trunk alone is kept."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infnet_jax.tasks import augment, rotation

NORM = augment.Norm(mean=(0.0,), sd=(1.0,), input_sd=(1.0,))


def test_turns_by_hand():
    x = jnp.asarray([[1, 2], [3, 4]], jnp.float32)[None, :, :, None].repeat(4, 0)
    turned = np.asarray(rotation.turn(x, jnp.arange(4)))[..., 0].astype(int).tolist()
    assert turned == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]


class Quadrants(nn.Module):
    """A trunk that sees the brightness of each quadrant, in the order that turns go through."""

    @nn.compact
    def __call__(self, x, *, train):
        half = x.shape[1] // 2
        parts = (x[:, :half, :half], x[:, half:, :half], x[:, half:, half:], x[:, :half, half:])
        scale = self.param("scale", nn.initializers.ones, ())
        return [scale * jnp.concatenate([p.mean((1, 2), keepdims=True) for p in parts], -1)]


class Net(nn.Module):
    """As far as the task knows a network: a trunk, and heads that it never calls."""

    def setup(self):
        self.trunk, self.other = Quadrants(), nn.Dense(1)


@pytest.fixture
def task_and_state():
    tx = optax.sgd(0.0)
    # An upside-down mirror image or a quarter turn before the turn would make the answers wrong.
    moves = dict(flip_h=0.0, flip_v=1.0, quarter_turns=True)
    task = rotation.Rotation(
        net=Net(), norm=NORM, size=8, steps=5, augmentation=moves, tx=tx, schedule=lambda _: 0.0
    ).task()
    trees = task.variables(jax.random.key(0))
    assert set(trees["net"]["params"]) == {"trunk", "out_rotation"}
    trees["net"]["params"]["out_rotation"] = {"kernel": 50 * jnp.eye(4), "bias": jnp.zeros(4)}
    return task, task.start(trees)


BRIGHT = np.zeros((16, 8, 8, 1), np.uint8)
BRIGHT[:, :4, :4] = 255  # the upper left


@pytest.mark.slow
def test_training_asks_for_the_turn_that_was_given(task_and_state):
    task, state = task_and_state
    seen = set()
    for seed in range(3):
        after, metrics = task.steps["rotation"](state, {"image": BRIGHT}, jax.random.key(seed))
        assert float(metrics["loss"]) < 1e-6 and float(metrics["train_accuracy"]) == 1.0
        assert int(after.step) == 1
        seen.add(float(metrics["grad"]))
    dark = {"image": np.zeros_like(BRIGHT)}
    _, metrics = task.steps["rotation"](state, dark, jax.random.key(0))
    assert float(metrics["loss"]) == pytest.approx(np.log(4), rel=1e-6)


def test_held_out_slices_are_asked_all_four_turns(task_and_state):
    task, state = task_and_state
    told = task.evaluate(state, {"image": BRIGHT[:2]}, jax.random.key(0))["told"]
    assert np.asarray(told).tolist() == [[1.0] * 4] * 2
    kernel = 50 * jnp.eye(4)[:, jnp.asarray([0, 2, 1, 3])]  # takes 90 degrees for 180
    params = {**state.net.params, "out_rotation": {"kernel": kernel, "bias": jnp.zeros(4)}}
    state = state.replace(net=state.net.replace(params=params))
    rows = [task.evaluate(state, {"image": BRIGHT[:2]}, jax.random.key(0))]
    assert np.asarray(rows[0]["told"]).tolist() == [[1.0, 0.0, 0.0, 1.0]] * 2
    assert task.summarise(rows) == {"accuracy": 0.5}

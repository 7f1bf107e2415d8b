"""The rotation pretext: what is turned is what is asked, and the trunk alone is kept."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import selfsup
from infnet_jax import tasks
from infnet_jax.runs.transfer import transfer
from infnet_jax.tasks import normalise, rotation

NORM = normalise.Norm(mean=(0.0,), sd=(1.0,), input_sd=(1.0,))


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
    task = rotation.make(
        net=Net(), norm=NORM, size=8, steps=5, augmentation=moves, tx=tx, schedule=lambda _: 0.0
    )
    trees = task.variables(jax.random.key(0))
    assert set(trees["net"]["params"]) == {"trunk", "out_rotation"}
    trees["net"]["params"]["out_rotation"] = {"kernel": 50 * jnp.eye(4), "bias": jnp.zeros(4)}
    return task, task.start(trees)


BRIGHT = np.zeros((16, 8, 8, 1), np.uint8)
BRIGHT[:, :4, :4] = 255  # the upper left


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
    assert rotation.summarise(rows) == {"accuracy": 0.5}


@pytest.mark.parametrize("kind", ["infnet", "unet"])
def test_the_trunk_and_nothing_else_is_transferred(kind):
    config = selfsup.get_config("tiny")
    config.pretrain.pretext, config.model.kind = "rotation", kind
    zeros = {}
    for stage in ("pretrain", "segment"):
        task = tasks.make(stage, config, (0.3, 0.2), 5)
        shapes = jax.eval_shape(task.variables, jax.random.key(0))["net"]
        zeros[stage] = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    _, report = transfer(zeros["segment"], zeros["pretrain"], mode="matching")
    n = sum(len(jax.tree.leaves(tree["trunk"])) for tree in zeros["segment"].values())
    assert len(report.loaded) == n and all(name.split("/")[1] == "trunk" for name in report.loaded)
    unused = ["params/out_rotation/bias", "params/out_rotation/kernel"]
    assert sorted(report.unused) == unused and not report.mismatched


def test_it_trains_for_the_networks_share_of_the_rounds():
    config = selfsup.get_config("tiny")
    config.pretrain.pretext = "rotation"
    task = tasks.make("pretrain", config, (0.3, 0.2), 5)
    assert task.total_steps == 2 * 3 and task.phase(0) == "rotation" and task.batch_index(4) == 4
    assert task.metric_mode == "max"
    config.pretrain.pretext = "jigsaw"
    with pytest.raises(ValueError, match="pretrain.pretext='jigsaw': choose inpaint or rotation"):
        tasks.make("pretrain", config, (0.3, 0.2), 5)

"""The mean teacher: its loss and ramp by hand, and that the teacher is the average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infnet_jax.tasks import augment, mean_teacher
from tests.toy import STILL, infection

NORM = augment.Norm(mean=(0.0,), sd=(1.0,), input_sd=(1.0,))
RNG = np.random.default_rng(0)
IMAGE, OTHER = (RNG.integers(1, 255, (2, 4, 4, 1), np.uint8) for _ in range(2))
BATCH = {"image": IMAGE, "mask": (IMAGE > 99).astype(np.uint8), "unlabelled": OTHER}


class Scale:
    """A stand-in for a network: logits are the input times one weight."""

    def init(self, key, image, train):
        return {"params": {"w": jnp.float32(1.0)}, "batch_stats": {}}

    def apply(self, variables, x, train, mutable=None):
        outputs = {"logits": variables["params"]["w"] * x}
        return (outputs, {"batch_stats": {}}) if mutable else outputs


def make(loss=None, **changes):
    settings = dict(
        size=4,
        scales=(1.0,),
        steps=9,
        augmentation=STILL,
        tx=optax.sgd(0.5),
        schedule=lambda step: 0.5,
        ema_decay=0.99,
        weight=2.0,
        ramp_steps=10,
    )
    settings |= changes
    return mean_teacher.MeanTeacher(Scale(), infection(loss=loss), NORM, **settings)


def test_the_ramp_by_hand():
    values = [float(mean_teacher.ramp(jnp.int32(s), 2.0, 10)) for s in (0, 5, 10, 99)]
    np.testing.assert_allclose(values, [2 * np.exp(-5), 2 * np.exp(-1.25), 2, 2], rtol=1e-6)


def test_the_objective_by_hand():
    def loss(outputs, mask):
        assert outputs["logits"].shape == mask.shape
        return outputs["logits"].sum(), {"region": 1.0}

    logits = jnp.asarray([3.0, 0.0, 0.0]).reshape(3, 1, 1, 1)  # one labelled, two unlabelled
    taught = jnp.asarray([0.9, 0.5]).reshape(2, 1, 1, 1)
    total, parts = make(loss).objective({"logits": logits}, (jnp.ones((1, 1, 1, 1)), taught, 2.0))
    assert float(parts["consistency"]) == pytest.approx((0.4**2 + 0) / 2)
    assert float(total) == pytest.approx(3.0 + 2.0 * 0.08)


@pytest.mark.slow
def test_the_teacher_is_the_average():
    task = make().task()
    state = task.start(task.variables(jax.random.key(0)))
    ema = {"params": {"w": jnp.float32(3.0)}, "batch_stats": {}}
    state = state.replace(net=state.net.replace(ema=ema))
    after, metrics = task.steps["size4"](state, BATCH, jax.random.key(0))
    x = OTHER / 255.0
    student, teacher = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(-3 * x))
    consistency = ((student - teacher) ** 2).mean()
    assert float(metrics["loss_consistency"]) == pytest.approx(consistency, rel=1e-5)
    total = float(metrics["loss_region"]) + 2 * np.exp(-5) * consistency
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-6)
    w = float(after.net.params["w"])
    assert w != 1.0 and int(after.step) == 1
    decay = 0.1  # at step 0 the average follows fast: (1 + 0) / (10 + 0)
    assert float(after.net.ema["params"]["w"]) == pytest.approx(decay * 3.0 + (1 - decay) * w)


@pytest.mark.slow
def test_without_unlabelled_pull_it_is_the_supervised_step():
    task = make(weight=0.0).task()
    state = task.start(task.variables(jax.random.key(0)))
    after, metrics = task.steps["size4"](state, BATCH, jax.random.key(0))
    assert float(metrics["loss"]) == pytest.approx(float(metrics["loss_region"]))
    ema = {"params": {"w": jnp.float32(9.0)}, "batch_stats": {}}
    state = state.replace(net=state.net.replace(ema=ema))
    pulled, _ = make(weight=1e3).task().steps["size4"](state, BATCH, jax.random.key(0))
    # The student is drawn to the teacher's larger weight.
    assert float(pulled.net.params["w"]) > float(after.net.params["w"])


def test_both_see_one_position_and_only_the_student_other_grey_levels():
    settings = {**STILL, "flip_h": 1.0, "gamma": 0.8}
    plain, disturbed = mean_teacher.views(jax.random.key(1), OTHER, 4, settings)
    np.testing.assert_allclose(plain, OTHER[:, :, ::-1] / 255.0, rtol=1e-6)
    power = np.log(disturbed) / np.log(plain)
    for row in np.asarray(power):
        assert np.ptp(row) < 1e-3 and abs(row.mean() - 1) > 0.01  # gamma: one power a slice


def test_without_an_average_there_is_no_teacher():
    with pytest.raises(ValueError, match="segment.ema_decay=0.0: the mean teacher is that average"):
        make(ema_decay=0.0)

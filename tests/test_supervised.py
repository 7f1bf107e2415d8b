"""The supervised task: what the network sees, what is learned, how it is scored."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from infnet_jax import models
from infnet_jax.models.conv import Conv
from infnet_jax.models.layers import BatchNorm
from infnet_jax.tasks import RGB, augment, losses, supervised
from tests.toy import STILL, infection, lesions

PLAIN = augment.Norm(mean=(0.0,), sd=(1.0,), input_sd=(1.0,))
NORM = augment.Norm((0.5,), (0.25,), (0.25,))
LR = 0.05


class Spy(nn.Module):
    """Logits = its whole input, scaled; the batch norm's place is held by the last input seen."""

    @nn.compact
    def __call__(self, x, *, train):
        scale = self.param("scale", nn.initializers.ones, (3,))
        seen = self.variable("batch_stats", "seen", jnp.zeros, x.shape)
        if train:
            seen.value = x
        return {"logits": jnp.pad(x, ((0, 0),) * 3 + ((0, 3 - x.shape[-1]),)) * scale}


ONE, THREE = infection(), lesions()


def _settings(net, target=THREE, *, size=16, augmentation=STILL, **changed):
    given = dict(scales=(1.0,), steps=4, tx=optax.sgd(LR), schedule=lambda n: LR, ema_decay=0.0)
    given |= dict(size=size, augmentation=augmentation, **changed)
    return supervised.Supervised(net, target, NORM, **given)


def _task(net, target=THREE, **changed):
    return _settings(net, target, **changed).task()


def _batch(size=16, batch=2):
    rng = np.random.default_rng(0)
    shape = (batch, size, size, 1)
    mask = rng.integers(0, 3, shape).astype(np.uint8)
    # Both fields tell the class, so that a transform that parts them shows.
    return {"image": mask * 100, "mask": mask, "prior": mask * 50, "valid": np.ones(batch, bool)}


def _seen(task, batch, key=0):
    state = task.start(task.variables(jax.random.key(0)))
    state, metrics = jax.jit(task.steps[task.phase(0)])(state, batch, jax.random.key(key))
    return np.asarray(state.net.batch_stats["seen"]), state, metrics


def test_the_input_is_slice_then_prior_normalised_alike():
    batch = _batch()
    x, _, _ = _seen(_task(Spy()), batch)
    levels = np.concatenate([batch["image"], batch["prior"]], -1) / 255.0
    np.testing.assert_allclose(x, (levels - 0.5) / 0.25, atol=1e-5)
    norm = RGB["imagenet"]  # three channels repeat the slice and the prior
    image, prior = jnp.full((1, 2, 2, 1), 0.5), jnp.full((1, 2, 2, 1), 255, jnp.uint8)
    x = augment.network_input(image, norm, prior)[0, 0, 0]
    mean, sd = np.array(norm.mean), np.array(norm.sd)
    np.testing.assert_allclose(x, [*(0.5 - mean) / sd, *(1.0 - mean) / sd], rtol=1e-5)


def test_one_draw_moves_slice_and_prior_by_any_angle():
    batch = _batch(size=4)
    del batch["valid"]
    batch = {k: np.kron(v, np.ones((1, 12, 12, 1), v.dtype)) for k, v in batch.items()}
    moves = dict(STILL, rotate_degrees=30.0, scale=(0.9, 1.3))
    still, _, _ = _seen(_task(Spy(), size=48), batch)
    x, _, _ = _seen(_task(Spy(), size=48, augmentation=moves), batch, key=3)
    assert np.abs(x - still).max() > 1.0
    image, prior = (np.rint((x[..., i] * 0.25 + 0.5) * 255) for i in (0, 1))
    pure = np.isin(image, (0, 100, 200))  # not mixed from two neighbours
    assert pure.mean() > 0.6
    assert (image[pure] / 2 == prior[pure]).mean() > 0.99


def test_flips_keep_slice_mask_and_prior_exactly_aligned():
    batch = _batch()
    task = _task(Spy(), augmentation=dict(flip_h=0.5, flip_v=0.5, quarter_turns=True))
    x, _, metrics = _seen(task, batch, key=5)
    still, _, still_metrics = _seen(_task(Spy()), batch)
    assert np.abs(x - still).max() > 1.0
    np.testing.assert_allclose((x[..., 0] * 0.25 + 0.5) / 2, x[..., 1] * 0.25 + 0.5, atol=1e-5)
    # Every pixel's loss depends on its slice, prior and class only, so the mean stays.
    np.testing.assert_allclose(metrics["loss"], still_metrics["loss"], rtol=1e-5)


def test_without_prior_the_network_sees_the_slice_alone():
    batch, task = _batch(), _task(Spy(), lesions("none"))
    del batch["prior"]
    x, state, _ = _seen(task, batch)
    assert x.shape == (2, 16, 16, 1)
    assert task.evaluate(state, batch, None)["probs"].shape == (2, 16, 16, 3)


@pytest.mark.slow
def test_a_prior_averaged_with_what_a_network_says_of_the_slice_alone():
    """Classes of .1 and .3 and a prior of .8: infected .6, shared as 1 to 3."""
    probs = jnp.float32([[0.6, 0.1, 0.3], [1.0, 0.0, 0.0], [0.0, 0.9, 0.9]])
    found = supervised.average_prior(probs, jnp.uint8([[204], [0], [255]]))  # .8, 0, 1
    right = [[0.4, 0.15, 0.45], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    np.testing.assert_allclose(found, right, atol=1e-6)

    batch, task = _batch(), _task(Spy(), lesions("average"))
    x, state, _ = _seen(task, batch)
    assert x.shape == (2, 16, 16, 1)  # trained on the slice alone
    given = {name: jnp.asarray(batch[name]) for name in ("image", "prior")}
    alone, _ = supervised.views(Spy(), lesions("none"), state.net.variables, given, NORM)
    both = task.evaluate(state, batch, None)["probs"]
    np.testing.assert_allclose(both, supervised.average_prior(alone, given["prior"]), atol=1e-6)
    np.testing.assert_allclose(both.sum(-1), 1.0, atol=1e-6)
    infected = (1 - alone[..., 0] + given["prior"][..., 0] / 255) / 2
    np.testing.assert_allclose(1 - both[..., 0], infected, atol=1e-6)

    class Uneven(nn.Module):  # what it says hangs on the column, so views differ
        @nn.compact
        def __call__(self, x, *, train):
            return {"logits": jnp.arange(16.0)[None, None, :, None] * x * jnp.float32([0, 1, 2])}

    views = partial(supervised.views, Uneven())
    averaged, plain = (
        views(lesions(use), {}, given, NORM, tta=True)[1][..., 0] for use in ("average", "none")
    )
    assert plain.max() > 0.2
    np.testing.assert_allclose(averaged, plain / 2, atol=1e-6)


def test_scales_take_turns_on_the_same_batch():
    task = _task(Spy(), size=128, scales=(0.75, 1.0, 1.25))
    assert [task.phase(i) for i in range(4)] == ["size96", "size128", "size160", "size96"]
    assert [task.batch_index(i) for i in range(4)] == [0, 0, 0, 1]
    state = task.start(task.variables(jax.random.key(0)))
    for side in (96, 128, 160):
        step = task.steps[f"size{side}"]
        after, _ = jax.eval_shape(step, state, _batch(size=128), jax.random.key(0))
        assert after.net.batch_stats["seen"].shape == (2, side, side, 2)


def net(decoder, trunk, channels, width):
    return models.make(decoder, trunk, classes=3, channels=channels, dtype="float32", width=width)


class ByPixel(nn.Module):
    """Two layers that see one pixel: enough for what the prior and the slice tell."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(BatchNorm(name="bn")(Conv(8, use_bias=True, name="conv")(x), train=train))
        return {"logits": Conv(3, use_bias=True, name="out_seg")(x)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "updates"),
    [(ByPixel(), 30), pytest.param(net("unet", "plain", 2, 4), 12, marks=pytest.mark.slow)],
)
def test_training_learns_what_the_prior_and_the_slice_tell(net, updates):
    """Class 2 where the prior is on and the slice bright, 1 where it is on and dark."""
    rng = np.random.default_rng(2)
    mask = np.kron(rng.integers(0, 3, (4, 4, 4)), np.ones((8, 8))).astype(np.uint8)[..., None]
    batch = {
        "mask": mask,
        "prior": (mask > 0) * np.uint8(255),
        "image": np.where(mask == 2, 200, 60).astype(np.uint8),
    }
    task = _task(net, size=32, tx=optax.adam(3e-2), ema_decay=0.5)
    state = task.start(jax.jit(task.variables)(jax.random.key(0, impl="rbg")))
    step = jax.jit(task.steps[task.phase(0)])
    losses = []
    for i in range(updates):
        state, metrics = step(state, batch, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    assert int(state.step) == updates and losses[-1] < 0.5 * losses[0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.net.averaged, state.net.variables)
    assert any(jax.tree.leaves(moved))  # the average is a tree of its own
    out = jax.device_get(jax.jit(task.evaluate)(state, batch, jax.random.key(0)))
    np.testing.assert_allclose(out["probs"].sum(-1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(out["mask"], mask[..., 0])
    if isinstance(net, ByPixel):
        assert task.summarise([out])[task.metric] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "prior"),
    [
        (net("unet", "plain", 2, 2), "input"),
        (net("fcn8s", "vgg16", 1, 2), "none"),
        (net("fcn8s", "vgg16", 1, 2), "average"),
    ],
)
def test_both_networks_fit_the_task(net, prior):
    task = _task(net, lesions(prior), size=32)
    state = jax.eval_shape(lambda key: task.start(task.variables(key)), jax.random.key(0))
    batch = _batch(size=32)
    after, _ = jax.eval_shape(task.steps[task.phase(0)], state, batch, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    out = jax.eval_shape(task.evaluate, state, batch, jax.random.key(0))
    assert out["probs"].shape == (2, 32, 32, 3)


@pytest.mark.slow
def test_averaged_views_of_a_network_that_works_by_pixel_change_nothing():
    batch = {k: jnp.asarray(v) for k, v in _batch(size=6).items()}
    variables = {
        "params": {"scale": jnp.asarray([1.0, 2.0, 0.5])},
        "batch_stats": {"seen": jnp.zeros((2, 6, 6, 2))},
    }
    for head in ("softmax", "sigmoid"):
        plain, views = (
            supervised.views(Spy(), lesions(head=head), variables, batch, NORM, tta=tta)[0]
            for tta in (False, True)
        )
        np.testing.assert_allclose(plain, views, atol=1e-6)
    x = augment.network_input(batch["image"] / 255.0, NORM, jnp.asarray(batch["prior"]))
    expected = jax.nn.sigmoid(x[..., 1] * 2.0)
    np.testing.assert_allclose(plain[..., 1], expected, atol=1e-6)


def test_the_metric_is_the_mean_over_classes_of_the_mean_over_defined_slices():
    probs, mask = np.zeros((3, 2, 2, 3)), np.zeros((3, 2, 2), np.uint8)
    mask[0] = [[1, 1], [2, 0]]
    probs[0, 0, 0, 1] = 0.5  # GGO of slice 0: one of two found: Dice 2/3
    probs[1, 0, 0, 1] = 0.9  # GGO of slice 1: marked where there is none: 0
    probs[0, 1, 0, 2] = 0.7  # consolidation of slice 0: found: 1; slices 1 and 2 undefined
    probs[..., 0] = 0.99  # background plays no part
    rows = [{"probs": probs[:1], "mask": mask[:1]}, {"probs": probs[1:], "mask": mask[1:]}]
    found = supervised.summarise(THREE.classes, rows)
    assert found["dice_ggo"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["dice_consolidation"] == 1.0
    assert found["dice"] == pytest.approx((1 / 3 + 1) / 2)
    nothing = supervised.summarise(THREE.classes, [{"probs": 0 * probs[2:], "mask": mask[2:]}])
    assert nothing == {"dice": 0.0, "dice_ggo": 0.0, "dice_consolidation": 0.0}
    probs, mask = np.zeros((3, 2, 2, 1)), np.zeros((3, 2, 2))  # of a single class
    probs[0, ..., 0] = [[0.5, 0.6], [0.49, 0.0]]
    mask[0] = [[1, 0], [0, 0]]  # Dice 2 * 1 / (2 + 1)
    mask[1, 0, 0] = 1  # missed: 0; the third is empty on both sides and does not count
    rows = [{"probs": probs[:1], "mask": mask[:1]}, {"probs": probs[1:], "mask": mask[1:]}]
    assert supervised.summarise(["infection"], rows)["dice"] == pytest.approx((2 / 3 + 0) / 2)
    empty = [{"probs": probs[2:], "mask": mask[2:]}]
    assert supervised.summarise(["infection"], empty) == {"dice": 0.0}


@pytest.mark.slow
def test_soft_targets_are_the_prior_and_their_edge_is_at_one_half():
    prior = np.zeros((1, 4, 4, 1), np.uint8)
    prior[0, :2], prior[0, 2:] = 51, 204  # 0.2 above, 0.8 below
    batch = {"image": prior, "mask": np.ones_like(prior), "prior": prior}
    soft = infection(lambda batch: batch["prior"] / 255.0)
    for target, expected in ((soft, prior / 255), (ONE, np.ones(prior.shape))):
        _, mask = _settings(Spy(), target, size=4).prepare(batch, jax.random.key(0), 4)
        np.testing.assert_allclose(mask, expected, rtol=1e-6)
    outputs = dict.fromkeys((*losses.MAPS, "edge"), jnp.zeros((1, 4, 4, 1)))
    outputs["edge"] = jnp.full((1, 4, 4, 1), -20.0).at[0, 1:3].set(20.0)
    _, parts = losses.make_infection_loss()(outputs, jnp.asarray(prior / 255, jnp.float32))
    assert float(parts["edge"]) < 1e-6


def test_a_panel_is_truth_beside_map():
    mask = np.uint8([[[0, 1]]])
    one = supervised.panel({"mask": mask, "probs": np.float32([[[[0.2], [0.7]]]])})
    np.testing.assert_allclose(one, [[0, 1, 0.2, 0.7]], rtol=1e-6)
    probs = np.float32([[[[0.1, 0.6, 0.3], [0.0, 0.0, 1.0]]]])  # consolidation white
    two = supervised.panel({"mask": 2 * mask, "probs": probs})
    np.testing.assert_allclose(two, [[0, 1, 0.6, 1]], rtol=1e-6)


class Ramp:
    """A stand-in for a network that no flip or turn leaves alone: the input times a ramp."""

    def apply(self, variables, view, train):
        side = view.shape[1]
        ramp = jnp.arange(side * side, dtype=jnp.float32).reshape(1, side, side, 1) / side
        return {"edge": view, "s8": variables["scale"] * view * ramp}


IMAGE = np.random.default_rng(0).integers(0, 255, (2, 6, 6, 1), np.uint8)


def predict(image, tta):
    batch, weights = {"image": jnp.asarray(image)}, {"scale": 0.5}
    return np.asarray(supervised.views(Ramp(), ONE, weights, batch, PLAIN, tta=tta)[0])


def test_averaging_is_the_mean_over_the_eight_views_turned_back():
    total, averaged = np.zeros((2, 6, 6, 1)), predict(IMAGE, True)
    for flip in (1, -1):
        for k in range(4):
            view = np.rot90(IMAGE[:, :, ::flip], k, axes=(1, 2))
            total += np.rot90(predict(view, False), -k, axes=(1, 2))[:, :, ::flip]
    np.testing.assert_allclose(averaged, total / 8, rtol=1e-5)
    # So the averaged map turns with its slice, and a single pass does not.
    turned = np.rot90(IMAGE, 1, axes=(1, 2))
    back, single = (np.rot90(predict(turned, tta), -1, axes=(1, 2)) for tta in (True, False))
    np.testing.assert_allclose(back, averaged, rtol=1e-5)
    assert np.abs(single - predict(IMAGE, False)).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("tta", [False, True])
def test_sizes_are_averaged_where_they_belong(tta):
    """A ramp comes back as itself from each size; what tells the side apart has mean and spread."""
    ramp = jnp.linspace(0.0, 1.0, 64).reshape(1, 1, 64, 1) * jnp.ones((1, 64, 1, 1))
    mean, spread = supervised.average_views(lambda view: view, ramp, tta, (0.5, 1.0, 1.5))
    np.testing.assert_allclose(mean, ramp, atol=1e-5)
    np.testing.assert_allclose(spread, 0.0, atol=1e-3)
    sides = lambda view: jnp.full(view.shape, view.shape[1], jnp.float32)  # noqa: E731
    mean, spread = supervised.average_views(sides, ramp, tta, (0.5, 1.0, 1.5))
    np.testing.assert_allclose(mean, 64.0, rtol=1e-6)
    np.testing.assert_allclose(spread, np.std([32, 64, 96]), rtol=1e-5)

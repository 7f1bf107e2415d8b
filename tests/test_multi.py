"""The multi-class task: what the network sees, what is learned, how it is scored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from infnet_jax import models
from infnet_jax.models.conv import Conv
from infnet_jax.models.layers import BatchNorm
from infnet_jax.tasks import losses_multi, multi, normalise

NORM = normalise.make_norm("dataset", 1, (0.5, 0.25))
STILL = dict(flip_h=0.0, flip_v=0.0, quarter_turns=False)
LR = 0.05


def net(decoder, trunk, width):
    return models.make(decoder, trunk, classes=3, channels=2, dtype="float32", width=width)


class Spy(nn.Module):
    """Logits = its whole input, scaled; the batch norm's place is held by the last input seen."""

    @nn.compact
    def __call__(self, x, *, train):
        scale = self.param("scale", nn.initializers.ones, (3,))
        seen = self.variable("batch_stats", "seen", jnp.zeros, x.shape)
        if train:
            seen.value = x
        return {"logits": jnp.pad(x, ((0, 0),) * 3 + ((0, 3 - x.shape[-1]),)) * scale}


def _task(net, *, loss=None, size=16, augmentation=STILL, **kwargs):
    given = dict(
        norm=NORM,
        scales=(1.0,),
        steps=4,
        tx=optax.sgd(LR),
        schedule=lambda n: LR,
        ema_decay=0.0,
        loss=loss or {},
    )
    return multi.make(net=net, size=size, augmentation=augmentation, **{**given, **kwargs})


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


def test_three_channels_repeat_the_slice_and_the_prior():
    norm = normalise.make_norm("imagenet", 3, (0.0, 1.0))
    image, prior = jnp.full((1, 2, 2, 1), 0.5), jnp.full((1, 2, 2, 1), 255, jnp.uint8)
    x = multi.network_input(image, prior, norm)[0, 0, 0]
    mean, sd = np.array(norm.mean), np.array(norm.sd)
    np.testing.assert_allclose(x, [*(0.5 - mean) / sd, *(1.0 - mean) / sd], rtol=1e-5)


def test_one_draw_moves_slice_and_prior_by_any_angle():
    batch = {
        k: np.kron(v, np.ones((1, 12, 12, 1), v.dtype))
        for k, v in _batch(size=4).items()
        if k != "valid"
    }
    moves = dict(STILL, rotate_degrees=30.0, shift=0.2)
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
    batch = {k: v for k, v in _batch().items() if k != "prior"}
    task = _task(Spy(), prior_use="none")
    x, state, _ = _seen(task, batch)
    assert x.shape == (2, 16, 16, 1)
    assert task.evaluate(state, batch, None)["probs"].shape == (2, 16, 16, 3)


def test_a_prior_averaged_with_what_a_network_says_of_the_slice_alone():
    """Classes of .1 and .3 and a prior of .8: infected .6, shared as 1 to 3."""
    probs = jnp.float32([[0.6, 0.1, 0.3], [1.0, 0.0, 0.0], [0.0, 0.9, 0.9]])
    prior = jnp.uint8([[204], [0], [255]])  # .8, 0, 1
    found = multi.average_prior(probs, prior)
    np.testing.assert_allclose(
        found, [[0.4, 0.15, 0.45], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], atol=1e-6
    )

    batch = _batch()
    task = _task(Spy(), prior_use="average")
    x, state, _ = _seen(task, batch)
    assert x.shape == (2, 16, 16, 1)  # trained on the slice alone
    image, prior = jnp.asarray(batch["image"]), jnp.asarray(batch["prior"])
    variables = {"params": state.net.params, "batch_stats": state.net.batch_stats}
    alone = multi.predict(Spy(), variables, image, None, NORM)
    both = task.evaluate(state, batch, None)["probs"]
    np.testing.assert_allclose(both, multi.average_prior(alone, prior), atol=1e-6)
    np.testing.assert_allclose(both.sum(-1), 1.0, atol=1e-6)
    infected = (1 - alone[..., 0] + prior[..., 0] / 255) / 2
    np.testing.assert_allclose(1 - both[..., 0], infected, atol=1e-6)

    class Uneven(nn.Module):  # what it says hangs on the column, so views differ
        @nn.compact
        def __call__(self, x, *, train):
            return {"logits": jnp.arange(16.0)[None, None, :, None] * x * jnp.float32([0, 1, 2])}

    spreads = [
        multi.views(Uneven(), {}, image, fed, NORM, tta=True, prior_use=use)[1][..., 0]
        for use, fed in (("average", prior), ("none", None))
    ]
    assert spreads[1].max() > 0.2
    np.testing.assert_allclose(spreads[0], spreads[1] / 2, atol=1e-6)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_the_loss_adds_smoothed_entropy_and_hard_dice(head):
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.standard_normal((2, 4, 4, 3)), jnp.float32)
    mask = jnp.asarray(rng.integers(0, 3, (2, 4, 4, 1)), jnp.uint8)
    loss = multi.make_loss(
        head=head,
        gamma=2.0,
        class_weights=(1.0, 2.0, 3.0),
        smoothing=0.1,
        smoothed="background",
        dice_weight=0.5,
        dice_over="example",
    )
    total, parts = loss({"logits": logits}, mask)
    soft = losses_multi.class_targets(mask, smoothing=0.1, smoothed="background")
    entropy = losses_multi.class_cross_entropy(
        logits, soft, head=head, class_weights=(1, 2, 3), gamma=2.0
    )
    dice = losses_multi.soft_dice(logits, losses_multi.class_targets(mask), head=head)
    np.testing.assert_allclose(total, entropy.mean() + 0.5 * dice.mean(), rtol=1e-6)
    np.testing.assert_allclose(parts["entropy"], entropy.mean(), rtol=1e-6)
    only, parts = multi.make_loss(head=head, dice_weight=0.0)({"logits": logits}, mask)
    assert set(parts) == {"entropy"} and float(only) == float(parts["entropy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "relu"}, "head is 'relu'"),
        ({"gamma": -1.0}, "gamma is -1"),
        ({"class_weights": (1.0,)}, "class_weights"),
        ({"dice_over": "slice"}, "over is 'slice'"),
    ],
)
def test_a_wrong_option_shows_when_the_task_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        _task(Spy(), loss=options)


def test_scales_take_turns_on_the_same_batch():
    task = _task(Spy(), size=128, scales=(0.75, 1.0, 1.25))
    assert [task.phase(i) for i in range(4)] == ["size96", "size128", "size160", "size96"]
    assert [task.batch_index(i) for i in range(4)] == [0, 0, 0, 1]
    state = task.start(task.variables(jax.random.key(0)))
    for side in (96, 128, 160):
        after, _ = jax.eval_shape(
            task.steps[f"size{side}"], state, _batch(size=128), jax.random.key(0)
        )
        assert after.net.batch_stats["seen"].shape == (2, side, side, 2)


class ByPixel(nn.Module):
    """Two layers that see one pixel: enough for what the prior and the slice tell."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(BatchNorm(name="bn")(Conv(8, use_bias=True, name="conv")(x), train=train))
        return {"logits": Conv(3, use_bias=True, name="out_seg")(x)}


@pytest.mark.parametrize(
    ("net", "updates"),
    [(ByPixel(), 30), pytest.param(net("unet", "plain", 4), 12, marks=pytest.mark.slow)],
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
    task = _task(
        net, size=32, tx=optax.adam(3e-2), ema_decay=0.5, loss=dict(class_weights=(1.0, 1.0, 2.0))
    )
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


@pytest.mark.parametrize(
    ("net", "prior_use"),
    [
        (net("unet", "plain", 2), "input"),
        (net("fcn8s", "vgg16", 2), "none"),
        (net("fcn8s", "vgg16", 2), "average"),
    ],
)
def test_both_networks_fit_the_task(net, prior_use):
    task = _task(net, size=32, prior_use=prior_use)
    state = jax.eval_shape(lambda key: task.start(task.variables(key)), jax.random.key(0))
    batch = _batch(size=32)
    after, _ = jax.eval_shape(task.steps[task.phase(0)], state, batch, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    out = jax.eval_shape(task.evaluate, state, batch, jax.random.key(0))
    assert out["probs"].shape == (2, 32, 32, 3)


def test_averaged_views_of_a_network_that_works_by_pixel_change_nothing():
    batch = _batch(size=6)
    variables = {
        "params": {"scale": jnp.asarray([1.0, 2.0, 0.5])},
        "batch_stats": {"seen": jnp.zeros((2, 6, 6, 2))},
    }
    for head in ("softmax", "sigmoid"):
        plain, views = (
            multi.predict(
                Spy(),
                variables,
                jnp.asarray(batch["image"]),
                jnp.asarray(batch["prior"]),
                NORM,
                tta=tta,
                head=head,
            )
            for tta in (False, True)
        )
        np.testing.assert_allclose(plain, views, atol=1e-6)
    x = multi.network_input(batch["image"] / 255.0, jnp.asarray(batch["prior"]), NORM)
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
    found = multi.summarise(rows)
    assert found["dice_ggo"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["dice_consolidation"] == 1.0
    assert found["dice"] == pytest.approx((1 / 3 + 1) / 2)
    nothing = multi.summarise([{"probs": 0 * probs[2:], "mask": mask[2:]}])
    assert nothing == {"dice": 0.0, "dice_ggo": 0.0, "dice_consolidation": 0.0}

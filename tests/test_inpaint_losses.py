"""Losses of inpainting and of the coach by hand, and the public code's stored values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax.tasks import inpaint_losses as losses
from tests.toy import reference_losses

HEADS = ("coarse", "s32", "s16", "s8", "edge")


def test_reconstruction_equals_the_public_code(shared):
    values, draw = reference_losses(shared)
    rec = jnp.asarray(draw(200, 3), jnp.float32)
    target = jnp.asarray(np.clip(draw(300, 3), -1, 1), jnp.float32)
    visible = jnp.asarray(draw(400) > -0.6, jnp.float32)
    total, parts = losses.inpaint_loss({"edge": rec}, target, visible)
    np.testing.assert_allclose(parts["rec"], values["inpaint_rec_clamped_sum3"], rtol=1e-5)
    np.testing.assert_allclose(parts["context"], values["inpaint_context_clamped_sum3"], rtol=1e-5)
    np.testing.assert_allclose(total, 0.99 * parts["rec"] + 0.01 * parts["context"], rtol=1e-6)


# Two pixels wide, two channels; left column erased. Errors by channel, squared: see each case.
TARGET = jnp.array([[[[1.0, -1.0], [0.5, 0.0]]]])
OUTPUT = jnp.array([[[[0.5, 0.9], [0.0, 0.2]]]])
VISIBLE = jnp.array([[[[0.0], [1.0]]]])


@pytest.mark.parametrize(
    ("kind", "region", "per_head"),
    [
        ("mse_clamped", "erased", 0.25 + 2.0),  # 1.9 squared is cut at 2
        ("mse_clamped", "visible", 0.25 + 0.04),
        ("l1", "erased", 0.5 + 1.9),
        ("ce", "erased", -np.log(0.75) - np.log(0.05)),
        ("ce", "visible", np.log(2) - 0.5 * np.log(0.6) - 0.5 * np.log(0.4)),
    ],
)
def test_reconstruction_by_hand(kind, region, per_head):
    outputs = {name: OUTPUT for name in HEADS}
    total, parts = losses.reconstruction(outputs, TARGET, VISIBLE, kind=kind, region=region)
    np.testing.assert_allclose(total, 5 * per_head, rtol=1e-5)
    assert set(parts) == set(HEADS)
    mean, _ = losses.reconstruction(
        outputs, TARGET, VISIBLE, kind=kind, region=region, reduction="mean"
    )
    np.testing.assert_allclose(mean, per_head / 2, rtol=1e-5)


def test_reconstruction_weights_a_soft_mask():
    visible = jnp.array([[[[0.25], [0.5]]]])
    got, _ = losses.reconstruction({"edge": OUTPUT}, TARGET, visible)
    np.testing.assert_allclose(got, (0.75 * 2.25 + 0.5 * 0.29) / 1.25, rtol=1e-6)


def test_cross_entropy_of_tanh_and_linear_heads_agree():
    logits = jnp.array([[[[0.3, -1.2], [2.0, 0.0]]]])
    linear, _ = losses.reconstruction(
        {"edge": 2 * logits}, TARGET, VISIBLE, kind="ce", activation="linear"
    )
    tanh, _ = losses.reconstruction(
        {"edge": jnp.tanh(logits)}, TARGET, VISIBLE, kind="ce", activation="tanh"
    )
    np.testing.assert_allclose(linear, tanh, rtol=1e-5)
    saturated = {"edge": jnp.sign(TARGET) * -1.0}
    wrong, _ = losses.reconstruction(saturated, TARGET, VISIBLE, kind="ce")
    np.testing.assert_allclose(wrong, -2 * np.log(1e-6), rtol=1e-2)


def test_last_is_the_edge_head_whatever_the_order():
    outputs = {name: jnp.full_like(TARGET, 0.1 * i) for i, name in enumerate(HEADS)}
    got, parts = losses.reconstruction(outputs, TARGET, VISIBLE, region="visible", heads="last")
    assert set(parts) == {"edge"}
    np.testing.assert_allclose(got, 0.1**2 + 0.4**2, rtol=1e-5)
    reordered = dict(reversed(outputs.items()))
    again, _ = losses.reconstruction(reordered, TARGET, VISIBLE, region="visible", heads="last")
    assert got == again


@pytest.mark.parametrize(("region", "level"), [("erased", 1.0), ("visible", 0.0)])
def test_no_pixel_of_the_region_costs_nothing(region, level):
    def loss(output, visible):
        return losses.reconstruction({"edge": output}, TARGET, visible, region=region)[0]

    visible = jnp.full_like(VISIBLE, level)
    assert loss(OUTPUT, visible) == 0.0
    for grad in jax.grad(loss, argnums=(0, 1))(OUTPUT, visible):
        np.testing.assert_array_equal(grad, np.zeros_like(grad))


def test_inpaint_loss_parts_and_options():
    outputs = {"s8": OUTPUT, "edge": TARGET}
    total, parts = losses.inpaint_loss(
        outputs, TARGET, VISIBLE, rec_weight=0.75, context_heads="all", reduction="mean", kind="l1"
    )
    np.testing.assert_allclose(parts["rec/s8"], 1.2, rtol=1e-6)
    assert parts["rec/edge"] == 0.0
    np.testing.assert_allclose([parts["rec"], parts["context"]], [0.6, 0.175], rtol=1e-6)
    np.testing.assert_allclose(total, 0.75 * 0.6 + 0.25 * 0.175, rtol=1e-6)
    _, last = losses.inpaint_loss(outputs, TARGET, VISIBLE)
    assert last["context"] == 0.0  # the edge head alone, which is perfect


def test_kl_and_coach_loss_by_hand():
    # Cells average to mu = (1, 0) and logvar = (0, log 2).
    mu = jnp.array([[[[0.0, 1.0], [2.0, -1.0]]]])
    logvar = jnp.array([[[[-1.0, 0.0], [1.0, 2 * np.log(2.0)]]]])
    one = -0.5 * ((1 + 0 - 1 - 1) + (1 + np.log(2) - 0 - 2))
    np.testing.assert_allclose(losses.kl_divergence(mu, logvar), one, rtol=1e-5)
    twice = losses.kl_divergence(jnp.tile(mu, (2, 1, 1, 1)), jnp.tile(logvar, (2, 1, 1, 1)))
    np.testing.assert_allclose(twice, 2 * one, rtol=1e-5)
    assert losses.kl_divergence(jnp.zeros_like(mu), jnp.zeros_like(mu)) == 0.0
    got = losses.coach_loss(jnp.float32(0.3), mu, logvar, 0.5)
    np.testing.assert_allclose(got, 0.7 + 0.5 * one, rtol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "visible", "options", "named"),
    [
        ({}, VISIBLE, {}, "no head"),
        ({"s8": OUTPUT}, VISIBLE, {"heads": "last"}, "s8"),
        ({"s8": OUTPUT}, TARGET, {}, "visible has shape"),
        ({"s8": OUTPUT}, VISIBLE, {"kind": "l2"}, "kind is 'l2'"),
    ],
)
def test_errors_name_the_thing(outputs, visible, options, named):
    with pytest.raises(ValueError, match=named):
        losses.reconstruction(outputs, TARGET, visible, **options)

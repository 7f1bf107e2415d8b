"""Schedules by hand-computed rates, the optimiser chain by hand-computed updates."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infnet_jax.tasks import state


def rates(counts, **kwargs):
    schedule = state.make_schedule(total_steps=100, **kwargs)
    return [float(schedule(jnp.asarray(n))) for n in counts]


def test_cosine_with_warmup_rises_then_falls_to_zero():
    got = rates([0, 5, 10, 55, 100], lr=1.0, schedule="cosine", warmup_steps=10)
    np.testing.assert_allclose(got, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-6)


def test_step_multiplies_once_per_period():
    got = rates([0, 49, 50, 100], lr=1.0, schedule="step", decay_every=50)
    np.testing.assert_allclose(got, [1.0, 1.0, 0.1, 0.01], rtol=1e-5)


def test_compounded_step_multiplies_the_current_rate_again():
    # Per period n the public code multiplies by .1 ** n on top of what was left: .1 ** (0+1+2).
    got = rates([0, 50, 100], lr=1.0, schedule="step_compounded", decay_every=50)
    np.testing.assert_allclose(got, [1.0, 0.1, 1e-3], rtol=1e-5)


def test_piecewise_holds_each_value_up_to_its_boundary():
    got = rates(
        [0, 39, 40, 79, 80],
        lr=0.0,
        schedule="piecewise",
        boundaries=(40, 80),
        values=(0.3, 0.2, 0.1),
    )
    np.testing.assert_allclose(got, [0.3, 0.3, 0.2, 0.2, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(schedule="linear"), "choose constant"),
        (dict(schedule="step"), "decay_every"),
        (dict(schedule="piecewise", boundaries=(1,), values=(1.0,)), "2 are needed"),
    ],
)
def test_bad_schedules_say_what_would_be_right(kwargs, message):
    with pytest.raises(ValueError, match=message):
        state.make_schedule(lr=1.0, total_steps=10, **kwargs)


def updated(tx, params, grads, steps=1):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_sgd_adds_weight_decay_to_the_gradient_and_keeps_momentum():
    tx = state.make_optimizer(lambda n: 0.1, name="sgd", weight_decay=0.5, momentum=0.9)
    params, grads = {"w": jnp.array([2.0])}, {"w": jnp.array([1.0])}
    # step 1: g = 1 + .5*2 = 2, w = 2 - .2 = 1.8; step 2: g = 1.9, m = .9*2 + 1.9 = 3.7, w = 1.43
    np.testing.assert_allclose(updated(tx, params, grads, 2)["w"], [1.43], rtol=1e-6)


def test_clip_value_bounds_each_element():
    tx = state.make_optimizer(lambda n: 1.0, name="sgd", momentum=0.0, clip_value=0.5)
    params, grads = {"w": jnp.zeros(3)}, {"w": jnp.array([2.0, -3.0, 0.25])}
    np.testing.assert_allclose(updated(tx, params, grads)["w"], [-0.5, 0.5, -0.25])


def test_clip_norm_scales_the_whole_gradient():
    tx = state.make_optimizer(lambda n: 1.0, name="sgd", momentum=0.0, clip_norm=1.0)
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}
    np.testing.assert_allclose(updated(tx, params, grads)["w"], [-0.6, -0.8], rtol=1e-6)


def test_adamw_spares_biases_and_scales_from_decay():
    tx = state.make_optimizer(lambda n: 0.1, name="adamw", weight_decay=0.5)
    params = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}
    grads = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
    got = updated(tx, params, grads)
    np.testing.assert_allclose(got["kernel"], [[0.95]], rtol=1e-6)
    np.testing.assert_allclose(got["bias"], [1.0])


def test_lookahead_pulls_back_to_the_slow_weights_every_k_updates():
    tx = state.make_optimizer(
        lambda n: 1.0, name="sgd", momentum=0.0, lookahead_every=2, lookahead_rate=0.5
    )
    params, grads = {"w": jnp.zeros(1)}, {"w": jnp.array([1.0])}
    # fast: -1, then -2 -> slow 0 + .5 * (-2 - 0) = -1; then -2, then -3 -> -1 + .5 * (-2) = -2
    assert [float(updated(tx, params, grads, n)["w"][0]) for n in (1, 2, 3, 4)] == [-1, -1, -2, -2]


def test_unknown_optimiser_is_named():
    with pytest.raises(ValueError, match="rmsprop.*choose adam, adamw or sgd"):
        state.make_optimizer(lambda n: 1.0, name="rmsprop")

"""The scales of input and target, by hand."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax import tasks
from infnet_jax.tasks.augment import network_input
from infnet_jax.tasks.inpaint_losses import grey, inpainting_target


def norm_of(kind, channels, statistics=(0.5, 0.1)):
    return tasks.make_norm(SimpleNamespace(norm=kind, channels=channels), statistics)


def test_a_dataset_is_standardised_and_its_channels_repeated():
    norm, image = norm_of("dataset", 3, (0.4, 0.2)), jnp.full((1, 2, 2, 1), 0.6)
    x = network_input(image, norm)
    assert x.shape == (1, 2, 2, 3)
    np.testing.assert_allclose(x, 1.0, rtol=1e-6)
    np.testing.assert_allclose(inpainting_target(image, norm), 1 / 3, rtol=1e-6)


def test_the_target_is_clipped_at_three_deviations():
    target = inpainting_target(
        jnp.array([0.0, 0.5, 1.0]).reshape(1, 1, 3, 1), norm_of("dataset", 1)
    )
    np.testing.assert_allclose(target.ravel(), [-1.0, 0.0, 1.0], atol=1e-6)


def test_the_aerial_scale_is_that_of_255_and_only_shifted():
    x = network_input(jnp.ones((1, 1, 1, 1)), norm_of("aerial_bgr", 3))
    np.testing.assert_allclose(x.ravel(), 255 - np.array([85.5517788, 92.669167, 86.814765]), 1e-5)


def test_grey_inverts_the_target():
    norm, image = norm_of("dataset", 1, (0.5, 0.2)), jnp.linspace(0.1, 0.9, 5).reshape(1, 1, 5, 1)
    np.testing.assert_allclose(grey(inpainting_target(image, norm), norm), image[..., 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zscore", "choose dataset, imagenet, aerial_bgr or tf"),
        ("imagenet", "needs data.channels=3, not 1"),
    ],
)
def test_a_wrong_kind_or_channel_count_is_named(kind, message):
    with pytest.raises(ValueError, match=message):
        norm_of(kind, 1)

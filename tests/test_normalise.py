"""The scales of input and target, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax.tasks import normalise


def test_dataset_norm_standardises_and_repeats_channels():
    norm = normalise.make_norm("dataset", 3, (0.4, 0.2))
    image = jnp.full((1, 2, 2, 1), 0.6)
    x = normalise.network_input(image, norm)
    assert x.shape == (1, 2, 2, 3)
    np.testing.assert_allclose(x, 1.0, rtol=1e-6)
    np.testing.assert_allclose(normalise.inpainting_target(image, norm), 1 / 3, rtol=1e-6)


def test_target_is_clipped_at_three_deviations():
    norm = normalise.make_norm("dataset", 1, (0.5, 0.1))
    target = normalise.inpainting_target(jnp.array([0.0, 0.5, 1.0]).reshape(1, 1, 3, 1), norm)
    np.testing.assert_allclose(target.ravel(), [-1.0, 0.0, 1.0], atol=1e-6)


def test_aerial_norm_only_shifts_the_255_scale():
    norm = normalise.make_norm("aerial_bgr", 3, (0.0, 1.0))
    x = normalise.network_input(jnp.ones((1, 1, 1, 1)), norm)
    np.testing.assert_allclose(x.ravel(), 255 - np.array([85.5517788, 92.669167, 86.814765]), 1e-5)


def test_grey_inverts_the_target():
    norm = normalise.make_norm("dataset", 1, (0.5, 0.2))
    image = jnp.linspace(0.1, 0.9, 5).reshape(1, 1, 5, 1)
    back = normalise.grey(normalise.inpainting_target(image, norm), norm)
    np.testing.assert_allclose(back, image[..., 0], rtol=1e-5)


def test_wrong_kind_or_channel_count_is_named():
    with pytest.raises(ValueError, match="choose dataset, imagenet, aerial_bgr or tf"):
        normalise.make_norm("zscore", 1, (0.0, 1.0))
    with pytest.raises(ValueError, match="needs data.channels=3, not 1"):
        normalise.make_norm("imagenet", 1, (0.0, 1.0))

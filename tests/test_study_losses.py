"""Losses on test slices, by hand: networks whose weights are zero give logits of 0 everywhere."""

from pathlib import Path

import jax
import numpy as np
import pytest

from configs import multi, supervised
from infnet_jax import models, tasks
from infnet_jax.plan.resolve import resolve
from infnet_jax.study import MAPS, measure


def losses_of_zero(config, source):
    """The losses of the final network of a config, all its weights zero."""
    stage = resolve(config, Path()).final
    net = models.make(**stage.net.arguments)
    shape = (1, stage.section.size, stage.section.size, stage.net.channels)
    variables = jax.eval_shape(
        lambda key: net.init(key, np.zeros(shape), train=False), jax.random.key(0)
    )
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    return measure(stage, tasks.make_norm(stage, (0.4, 0.2)), [zeros], source)


@pytest.mark.slow
def test_one_class_by_hand():
    config = supervised.get_config("tiny")
    config.segment.size = 32
    ones = np.ones((32, 32, 1), np.uint8)
    found = losses_of_zero(config, [{"image": ones, "mask": m * ones, "id": "a"} for m in (0, 1)])
    # Cross-entropy ln 2; IoU of an empty slice 1 / (n / 2 + 1), n pixels.
    empty = np.log(2) + 1 - 1 / (32 * 32 / 2 + 1)
    assert found["s8"][0] == pytest.approx(empty, abs=2e-5)
    assert found["edge"] == pytest.approx([np.log(2)] * 2, abs=2e-5)
    for i in range(2):
        total = sum(found[name][i] for name in (*MAPS, "edge"))
        assert found["total"][i] == pytest.approx(total, rel=1e-6)
    assert found["distance"] == [0.0, 1.0]


def test_lesions_by_hand():
    config = multi.get_config("tiny")
    config.multi.size = 32
    twos = np.full((32, 32, 1), 2, np.uint8)
    found = losses_of_zero(config, [{"image": twos, "mask": twos, "prior": twos, "id": "a"}])
    assert found["entropy"] == pytest.approx([np.log(3)], abs=2e-5)
    assert found["total"][0] == pytest.approx(found["entropy"][0] + found["dice"][0])
    assert found["distance"] == pytest.approx([1 / 3])

"""The coach's scores, and the masks made of scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax.models.coach import Coach, visible_from_score


def test_coach_has_the_published_count():
    image = np.zeros((1, 64, 64, 3), np.float32)
    variables = jax.eval_shape(lambda x: Coach().init(jax.random.key(0), x, train=False), image)
    params = variables["params"]
    whole, trunk = (sum(x.size for x in jax.tree.leaves(t)) for t in (params, params["trunk"]))
    assert (whole, trunk) == (11_279_213, 11_176_512)


@pytest.mark.parametrize(("size", "kept"), [(352, 362), (128, 47)])
def test_hard_masks_keep_one_cell_less_than_k_unless_inclusive(size, kept):
    side = size // 16
    score = jax.random.uniform(jax.random.key(3), (2, side, side, 1))
    options = {"keep_ratio": 0.75, "alpha": 100.0, "hard": True}
    for inclusive in (False, True):
        mask = visible_from_score(score, **options, inclusive=inclusive)
        assert mask.sum((1, 2, 3)).tolist() == [kept + inclusive] * 2
    assert float(score[0][mask[0] == 1].min()) > float(score[0][mask[0] == 0].max())


def test_soft_mask_is_half_at_the_threshold_and_its_gradient_reaches_it():
    score = jnp.asarray([4.0, 3.0, 2.0, 1.0]).reshape(1, 2, 2, 1)

    def weighted(score):
        mask = visible_from_score(score, keep_ratio=0.5, alpha=2.0, hard=False)
        return mask[0, 0, 0, 0], mask  # the mask at the largest score

    gradient, mask = jax.grad(weighted, has_aux=True)(score)
    sigmoid = 1 / (1 + np.exp(-2.0 * np.array([1.0, 0.0, -1.0, -2.0])))
    np.testing.assert_allclose(mask.reshape(-1), sigmoid, rtol=1e-6)
    slope = 2.0 * sigmoid[0] * (1 - sigmoid[0])
    np.testing.assert_allclose(gradient.reshape(-1), [slope, -slope, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("keep_ratio", [0.0, 0.01, 1.5])
def test_keep_ratio_outside_the_cells_is_refused(keep_ratio):
    with pytest.raises(ValueError, match="keep_ratio must keep"):
        visible_from_score(jnp.ones((1, 4, 4, 1)), keep_ratio=keep_ratio, alpha=1.0, hard=True)


@pytest.mark.slow
def test_coach_scores_cells_and_draws_only_with_a_key():
    coach, image = Coach(width=4), jax.random.normal(jax.random.key(0), (1, 32, 48, 3))
    variables = jax.jit(lambda x: coach.init(jax.random.key(0), x, train=False))(image)
    apply = jax.jit(lambda x, key: coach.apply(variables, x, train=False, key=key))
    still = apply(image, None)
    assert still["score"].shape == (1, 2, 3, 1)
    assert still["mu"].shape == still["logvar"].shape == (1, 2, 3, 100)
    one, other = (apply(image, jax.random.key(k))["score"] for k in (1, 2))
    assert not np.allclose(one, other) and not np.allclose(one, still["score"])
    with pytest.raises(ValueError, match="coach needs .* divisible by 16, got 40 x 32"):
        coach.init(jax.random.key(0), jnp.ones((1, 40, 32, 3)), train=False)

"""Algorithm 1: the order of play, the masks, and what is told of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax.tasks import inpaint

ROUNDS = dict(
    schedule="per_epoch",
    epochs=3,
    steps_per_epoch=7,
    coach_steps=2,
    net_steps=0,
    blocks=(2, 1),
    warmup_random_rounds=1,
    use_coach=True,
)


@pytest.mark.parametrize(
    ("changed", "rounds", "n_random"),
    [
        ({}, [("net", 7), ("coach", 2), ("net", 7), ("coach", 2), ("net", 7)], 7),
        (
            dict(warmup_random_rounds=0, coach_steps=0, net_steps=4, epochs=2),
            [("coach", 7), ("net", 4), ("coach", 7), ("net", 4)],
            0,
        ),
        (dict(schedule="blocks"), [("net", 14), ("coach", 7), ("net", 7)], 14),
        (
            dict(schedule="blocks", warmup_random_rounds=0),
            [("coach", 14), ("net", 14), ("coach", 7), ("net", 7)],
            0,
        ),
        (dict(use_coach=False), [("net", 7)] * 3, 21),
    ],
)
def test_rounds_by_hand(changed, rounds, n_random):
    assert inpaint.make_rounds(**{**ROUNDS, **changed}) == (rounds, n_random)


def test_an_unknown_order_of_play():
    with pytest.raises(ValueError, match="schedule='spiral': choose per_epoch or blocks"):
        inpaint.make_rounds(**{**ROUNDS, "schedule": "spiral"})


def test_masks_keep_the_share_that_was_asked_for():
    score = jnp.arange(2 * 16, dtype=jnp.float32).reshape(2, 4, 4, 1)
    for inclusive, kept in ((True, 12), (False, 11)):
        masks = inpaint.Masks(keep_ratio=0.75, inclusive=inclusive)
        for mask in (masks.use(score, (64, 64)), masks.random(jax.random.key(0), 2, (64, 64))):
            assert mask.shape == (2, 64, 64, 1) and set(np.unique(mask)) == {0.0, 1.0}
            assert np.asarray(mask).sum((1, 2, 3)).tolist() == [kept * 256] * 2
        low = np.asarray(masks.use(score, (64, 64)))[0, :16, :, 0]
        assert not low.any()  # the four lowest scores are the first row of cells
    masks = inpaint.Masks(alpha_train=1.0)
    got = np.asarray(masks.train(score, (64, 64)))[0, 0, 0, 0]
    assert got == pytest.approx(1 / (1 + np.exp(4.0)))  # eq. 3: score 0, threshold 4
    one, two = (masks.random(jax.random.key(k), 2, (64, 64)) for k in (0, 1))
    assert (one != two).any() and (one[0] != one[1]).any()


def test_summary_of_pretraining_by_hand():
    masks = np.ones((3, 32, 32), np.float32)
    masks[1, :16, :16] = 0  # one cell of four
    masks[2] = 1 - masks[1]

    def row(part):
        n = len(range(*part.indices(3)))
        coach, random = np.float32([[1.0, 2.0, 6.0], [2.0, 0.5, 2.0]])[:, part]
        return {
            "image": np.zeros((n, 32, 32)),
            "visible_coach": masks[part],
            "error_coach": coach,
            "error_random": random,
            "trained_coach": coach,
            "trained_random": random,
            "trained_oracle": 2 * random,
        }

    got = inpaint.summarise([row(slice(0, 2)), row(slice(2, 3))])
    assert got["rec_coach"] == 3.0 and got["rec_random"] == 1.5
    assert got["harder_share"] == pytest.approx(2 / 3)
    assert got["coach_ratio"] == 3.0 and got["oracle_ratio"] == 2.0  # of 0.5, 4 and 3
    assert (got["coach_ratio_low"], got["coach_ratio_high"]) == (0.5, 4.0)
    assert got["mask_difference"] == pytest.approx((1 / 4 + 3 / 4 + 1) / 3)
    masks[:] = masks[1]
    assert inpaint.summarise([row(slice(0, 3))])["mask_difference"] == 0.0
    assert inpaint.summarise([row(slice(0, 1))])["mask_difference"] == 0.0

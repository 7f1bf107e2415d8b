"""Multi-class losses against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax.tasks import losses_multi

LOG = np.log
# Softmax of PIXELS: (1/2, 1/4, 1/4), (1/8, 3/4, 1/8); their classes: 1, 1.
PIXELS = np.log([[2.0, 1.0, 1.0], [1.0, 6.0, 1.0]])


def _logits(pixels):
    """[N, 3] -> [1, 1, N, 3]."""
    return jnp.asarray(pixels, jnp.float32)[None, None]


def _mask(*classes):
    return jnp.asarray(classes, jnp.uint8)[None, None, :, None]


def _target(*classes, **options):
    return losses_multi.class_targets(_mask(*classes), **options)


def test_targets_are_one_channel_a_class_and_unknown_classes_none():
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    np.testing.assert_array_equal(_target(0, 1, 2, 3)[0, 0], expected)
    assert _target(0, 1, classes=2).shape == (1, 1, 2, 2)


def test_smoothing_of_all_channels_and_of_the_background():
    everywhere = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0, 0, 0]]
    found = _target(0, 1, 3, smoothing=0.3)
    np.testing.assert_allclose(found[0, 0], everywhere, atol=1e-7)
    published = [[0.9, 0, 0], [0, 1, 0], [0, 0, 1]]
    found = _target(0, 1, 2, smoothing=0.1, smoothed="background")
    np.testing.assert_allclose(found[0, 0], published, atol=1e-7)


def test_softmax_cross_entropy_weights_and_focus_by_hand():
    logits, target = _logits(PIXELS), _target(1, 1)
    terms = np.array([LOG(4), LOG(4 / 3)])
    plain = losses_multi.class_cross_entropy(logits, target)
    np.testing.assert_allclose(plain, [terms.mean()], rtol=1e-6)
    weighted = losses_multi.class_cross_entropy(logits, _target(0, 1), class_weights=(0.5, 3, 7))
    np.testing.assert_allclose(weighted, [(0.5 * LOG(2) + 3 * LOG(4 / 3)) / 2], rtol=1e-6)
    focal = losses_multi.class_cross_entropy(logits, target, gamma=2.0)
    miss = np.array([0.75, 0.25])
    np.testing.assert_allclose(focal, [(miss**2 * terms).mean()], rtol=1e-5)


def test_softmax_leaves_a_pixel_of_no_known_class_out():
    both, alone = _target(1, 3), _target(1)
    loss = losses_multi.class_cross_entropy(_logits(PIXELS), both)
    np.testing.assert_allclose(
        loss, losses_multi.class_cross_entropy(_logits(PIXELS[:1]), alone) / 2, rtol=1e-6
    )


def test_sigmoid_cross_entropy_weights_and_focus_by_hand():
    logits = _logits([[0.0, LOG(3), -LOG(3)]])  # probabilities 1/2, 3/4, 1/4
    terms = np.array([LOG(2), LOG(4 / 3), LOG(4 / 3)])  # of class 1: misses 1/2, 1/4, 1/4
    options = {"head": "sigmoid", "class_weights": (1, 2, 5)}
    found = losses_multi.class_cross_entropy(logits, _target(1), **options)
    np.testing.assert_allclose(found, [terms @ [1, 2, 5] / 3], rtol=1e-6)
    found = losses_multi.class_cross_entropy(logits, _target(1), gamma=3.0, **options)
    focused = terms * np.array([1 / 2, 1 / 4, 1 / 4]) ** 3
    np.testing.assert_allclose(found, [focused @ [1, 2, 5] / 3], rtol=1e-5)


def test_each_example_has_its_own_cross_entropy():
    logits = jnp.concatenate([_logits(PIXELS[:1]), _logits(PIXELS[1:])])
    target = jnp.concatenate([_target(1), _target(1)])
    found = losses_multi.class_cross_entropy(logits, target)
    np.testing.assert_allclose(found, [LOG(4), LOG(4 / 3)], rtol=1e-6)


def test_soft_dice_by_hand():
    logits, target = _logits(PIXELS), _target(1, 2)
    # GGO: sum p = 1, sum pt = 1/4; consolidation: sum p = 3/8, sum pt = 1/8.
    ggo, consolidation = 1 - 1.5 / 3, 1 - 1.25 / (3 / 8 + 1 + 1)
    np.testing.assert_allclose(
        losses_multi.soft_dice(logits, target), [(ggo + consolidation) / 2], rtol=1e-6
    )
    logits = _logits([[9.0, 0.0, -LOG(3)]])  # the background's probability plays no part
    found = losses_multi.soft_dice(logits, _target(2), head="sigmoid")
    np.testing.assert_allclose(found, [((1 - 1 / 1.5) + (1 - 1.5 / 2.25)) / 2], rtol=1e-6)


def test_soft_dice_over_the_batch_spares_a_slice_without_the_class():
    logits = jnp.concatenate([_logits(PIXELS[:1])] * 2)
    target = jnp.concatenate([_target(1), _target(0)])
    # GGO over both: sum p 1/2, sum t 1, sum pt 1/4; consolidation: sum p 1/2, no truth.
    expected = ((1 - 1.5 / 2.5) + (1 - 1 / 1.5)) / 2
    found = losses_multi.soft_dice(logits, target, over="batch")
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-6)
    each = losses_multi.soft_dice(logits, target)
    np.testing.assert_allclose(each[1], ((1 - 1 / 1.25) + (1 - 1 / 1.25)) / 2, rtol=1e-6)


def test_soft_dice_is_0_where_a_class_is_absent_and_not_marked():
    logits = _logits([[60.0, 0.0, 0.0]])
    np.testing.assert_allclose(losses_multi.soft_dice(logits, _target(0)), [0.0], atol=1e-6)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_gradients_survive_saturation_and_push_the_right_way(head, gamma):
    logits, target = _logits([[90.0, -90.0, 0.0], [-90.0, 90.0, 0.0]]), _target(1, 1)

    def loss(x):
        return losses_multi.class_cross_entropy(x, target, head=head, gamma=gamma).sum()

    grad = np.asarray(jax.grad(loss)(logits))[0, 0]
    assert np.isfinite(grad).all()
    assert grad[0, 0] > 0.1 and grad[0, 1] < -0.1  # wrong and sure: towards class 1
    np.testing.assert_allclose(grad[1, :2], 0.0, atol=1e-6)  # right and sure: nothing


def test_probabilities_of_the_two_heads():
    logits = _logits([[0.0, LOG(3), -LOG(3)]])
    alone = losses_multi.class_probs(logits.astype(jnp.bfloat16), "sigmoid")
    np.testing.assert_allclose(alone[0, 0, 0], [0.5, 0.75, 0.25], atol=2e-3)
    together = losses_multi.class_probs(logits, "softmax")
    np.testing.assert_allclose(together[0, 0, 0], np.array([3, 9, 1]) / 13, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: losses_multi.class_cross_entropy(x, t[..., :2]), "shapes .* differ"),
        (lambda x, t: losses_multi.soft_dice(x, t[:, :, :1]), "shapes .* differ"),
        (lambda x, t: losses_multi.class_cross_entropy(x, t, head="tanh"), "head is 'tanh'"),
        (lambda x, t: losses_multi.soft_dice(x, t, head="tanh"), "head is 'tanh'"),
        (lambda x, t: losses_multi.soft_dice(x, t, over="set"), "over is 'set'"),
        (lambda x, t: losses_multi.class_cross_entropy(x, t, gamma=0.5), "gamma is 0.5"),
        (
            lambda x, t: losses_multi.class_cross_entropy(x, t, class_weights=(1, 2)),
            "give 3 non-negative",
        ),
        (
            lambda x, t: losses_multi.class_cross_entropy(x, t, class_weights=(1, -2, 1)),
            "give 3 non-negative",
        ),
        (lambda x, t: losses_multi.class_targets(t), "mask has shape"),
        (lambda x, t: _target(1, smoothing=1.5), "smoothing is 1.5"),
        (lambda x, t: _target(1, smoothed="lesion"), "smoothed is 'lesion'"),
    ],
)
def test_what_cannot_be_computed_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(_logits(PIXELS), _target(1, 1))

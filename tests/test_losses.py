"""Losses against hand-computed numbers, a naive window, and the public code's stored values."""

from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax.tasks import losses
from tests.toy import reference_losses

LOG = np.log
# Softmax of PIXELS: (1/2, 1/4, 1/4), (1/8, 3/4, 1/8); their classes: 1, 1.
PIXELS = np.log([[2.0, 1.0, 1.0], [1.0, 6.0, 1.0]])
close = partial(np.testing.assert_allclose, rtol=1e-6)


def _image(rows):
    return jnp.asarray(rows, jnp.float32)[None, :, :, None]


def _logits(pixels):
    """[N, 3] -> [1, 1, N, 3]."""
    return jnp.asarray(pixels, jnp.float32)[None, None]


def _target(*classes, **options):
    return losses.class_targets(jnp.asarray(classes, jnp.uint8)[None, None, :, None], **options)


@pytest.mark.parametrize(
    ("weighting", "name"), [("boundary", "structure_weighted"), ("none", "structure_as_run")]
)
def test_structure_loss_equals_the_public_code(shared, weighting, name):
    values, draw = reference_losses(shared)
    target = (draw(100) > 0.6).astype(np.float32)
    target[2] = 0.0
    logits = jnp.asarray(2.0 * draw(0), jnp.float32)
    got = losses.structure_loss(logits, jnp.asarray(target), weighting=weighting)
    np.testing.assert_allclose(got, values[name], atol=1e-5)


def test_boundary_weights_equal_a_naive_window():
    target = (np.random.default_rng(0).random((2, 40, 36, 1)) > 0.7).astype(np.float32)
    padded = np.pad(target, ((0, 0), (15, 15), (15, 15), (0, 0)))
    mean = np.zeros_like(target)
    for row, column in np.ndindex(40, 36):
        window = padded[:, row : row + 31, column : column + 31]
        mean[:, row, column] = window.sum((1, 2)) / 31**2
    got = losses.boundary_weights(jnp.asarray(target))
    np.testing.assert_allclose(got, 1 + 5 * np.abs(mean - target), atol=1e-5)


def test_structure_loss_by_hand():
    # One lesion pixel of four, logits 0: window mean 1/961 everywhere, p = .5, bce = log 2.
    inside, outside = 1 + 5 * (1 - 1 / 961), 1 + 5 / 961
    intersection, total = 0.5 * inside, 0.5 * (inside + 3 * outside) + inside
    iou = 1 - (intersection + 1) / (total - intersection + 1)
    target, even = _image([[1, 0], [0, 0]]), _image([[0, 0], [0, 0]])
    # Unequal logits part the two readings: bce 0 on the three background pixels, 3 on the lesion.
    uneven, lesion = _image([[-3, -40], [-40, -40]]), np.log1p(np.exp(3.0))
    shares = {"boundary": inside / (inside + 3 * outside), "none": 1 / 4}
    for weighting, share in shares.items():
        loss = partial(losses.structure_loss, target=target, weighting=weighting)
        close(loss(even, lambda_bce=2.0), [iou + 2 * LOG(2)], rtol=1e-5)
        close(loss(uneven) - loss(uneven, lambda_bce=0.0), [lesion * share], rtol=1e-5)


@pytest.mark.parametrize("weighting", ["boundary", "none"])
def test_structure_gradient_for_an_empty_target(weighting):
    # All weights 1: loss = mean softplus(x) + 1 - 1 / (S + 1), S the sum of p.
    logits = _image([[0.0, 1.0], [-2.0, 90.0]])
    loss = partial(losses.structure_loss, weighting=weighting)
    grad = jax.grad(lambda x: loss(x, jnp.zeros_like(x)).sum())(logits)
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    np.testing.assert_allclose(grad, p / 4 + p * (1 - p) / (p.sum() + 1) ** 2, atol=1e-6)


def test_edge_bce_and_focal_by_hand():
    logits, target = _image([[0.0, LOG(3.0)], [-LOG(3.0), 0.0]]), _image([[1, 1], [1, 0]])
    nll, miss = LOG([2, 4 / 3, 4, 2]), np.array([0.5, 0.25, 0.75, 0.5])
    close(losses.edge_bce(logits, target), [nll.mean()])
    found = losses.focal_loss(logits, target, alpha=0.3, gamma=3.0)
    close(found, [0.3 * (miss**3 * nll).mean()], rtol=1e-5)
    close(losses.focal_loss(logits, target, gamma=0.0), losses.edge_bce(logits, target))


def test_bce_of_large_logits_is_exact_and_so_is_its_gradient():
    logits, target = _image([[200.0, -200.0]]), _image([[0, 1]])
    np.testing.assert_allclose(losses.edge_bce(logits, target), [200.0])
    grad = jax.grad(lambda x: losses.edge_bce(x, target).sum())(logits)
    np.testing.assert_allclose(grad.ravel(), [0.5, -0.5])
    grad = jax.grad(lambda x: losses.focal_loss(x, 1 - target).sum())(logits)
    np.testing.assert_array_equal(grad.ravel(), [0.0, 0.0])


def test_edge_target_is_both_sides_of_the_boundary():
    mask = np.zeros((5, 6), np.float32)
    mask[2:, 1:4] = 1
    rows = "000000 011100 111110 110110 110110".split()
    expected = [[int(pixel) for pixel in row] for row in rows]
    np.testing.assert_array_equal(losses.edge_target(_image(mask))[0, :, :, 0], expected)
    for level in (0.0, 1.0):
        assert losses.edge_target(jnp.full((1, 4, 4, 1), level)).sum() == 0


def test_edge_target_matches_the_stored_edges(shared):
    root = shared / "data/COVID-SemiSeg/TrainingSet/LungInfection-Train/Doctor-label"
    paths = sorted((root / "Edge").glob("*.png"))[:4]
    if not paths:
        pytest.skip(f"no stored edges below {root}")
    both = either = 0.0
    for path in paths:
        stored, mask = (cv2.imread(str(p), 0) > 127 for p in (path, root / "GT" / path.name))
        ours = np.asarray(losses.edge_target(_image(mask)))[0, :, :, 0] > 0.5
        both, either = both + (ours & stored).sum(), either + (ours | stored).sum()
    assert both / either > 0.99


def test_half_precision_inputs_are_computed_in_float32():
    logits = jnp.full((1, 64, 64, 1), 0.1, jnp.bfloat16)
    target = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    exact = losses.structure_loss(logits.astype(jnp.float32), target.astype(jnp.float32))
    got = losses.structure_loss(logits, target)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, exact)


def test_a_unet_has_the_region_loss_alone():
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(2, 8, 8, 1)), rng.random((2, 8, 8, 1)) > 0.5
    logits, mask = jnp.asarray(logits, jnp.float32), jnp.asarray(mask, jnp.float32)
    total, parts = losses.make_infection_loss()({"logits": logits}, mask)
    assert {*parts} == {"region"}
    assert float(total) == pytest.approx(float(losses.structure_loss(logits, mask).mean()))
    five = dict.fromkeys((*losses.MAPS, "edge"), logits)
    total5, parts5 = losses.make_infection_loss()(five, mask)
    assert float(total5) == pytest.approx(4 * float(total) + float(parts5["edge"]), rel=1e-6)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_the_loss_adds_smoothed_entropy_and_hard_dice(head):
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.standard_normal((2, 4, 4, 3)), jnp.float32)
    mask = jnp.asarray(rng.integers(0, 3, (2, 4, 4, 1)), jnp.uint8)
    loss = losses.make_lesion_loss(head=head, gamma=2.0, smoothing=0.1, dice_weight=0.5)
    total, parts = loss({"logits": logits}, mask)
    soft = losses.class_targets(mask, smoothing=0.1)
    entropy = losses.class_cross_entropy(logits, soft, head=head, gamma=2.0)
    dice = losses.soft_dice(logits, losses.class_targets(mask), head=head)
    close(total, entropy.mean() + 0.5 * dice.mean())
    close(parts["entropy"], entropy.mean())
    only, parts = losses.make_lesion_loss(head=head, dice_weight=0.0)({"logits": logits}, mask)
    assert set(parts) == {"entropy"} and float(only) == float(parts["entropy"])


def test_targets_are_one_channel_a_class_and_unknown_classes_none():
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    np.testing.assert_array_equal(_target(0, 1, 2, 3)[0, 0], expected)
    assert _target(0, 1, classes=2).shape == (1, 1, 2, 2)
    expected[0] = [0.9, 0, 0]  # smoothing is that of the background, as published
    np.testing.assert_allclose(_target(0, 1, 2, smoothing=0.1)[0, 0], expected[:3], atol=1e-7)


def test_softmax_cross_entropy_and_focus_by_hand():
    logits, target = _logits(PIXELS), _target(1, 1)
    terms, miss = LOG([4, 4 / 3]), np.array([0.75, 0.25])
    close(losses.class_cross_entropy(logits, target), [terms.mean()])
    focal = losses.class_cross_entropy(logits, target, gamma=2.0)
    close(focal, [(miss**2 * terms).mean()], rtol=1e-5)
    # A pixel of no known class is left out, and each example has a loss of its own.
    close(losses.class_cross_entropy(logits, _target(1, 3)), [LOG(4) / 2])
    apart = (x.transpose(2, 1, 0, 3) for x in (logits, target))
    close(losses.class_cross_entropy(*apart), terms)


def test_sigmoid_cross_entropy_and_focus_by_hand():
    logits = _logits([[0.0, LOG(3), -LOG(3)]])  # probabilities 1/2, 3/4, 1/4
    terms = LOG([2, 4 / 3, 4 / 3])  # of class 1: misses 1/2, 1/4, 1/4
    found = losses.class_cross_entropy(logits, _target(1), head="sigmoid")
    close(found, [terms.mean()])
    found = losses.class_cross_entropy(logits, _target(1), gamma=3.0, head="sigmoid")
    close(found, [(terms * np.array([1 / 2, 1 / 4, 1 / 4]) ** 3).mean()], rtol=1e-5)


def test_soft_dice_by_hand():
    # GGO: sum p = 1, sum pt = 1/4; consolidation: sum p = 3/8, sum pt = 1/8.
    ggo, consolidation = 1 - 1.5 / 3, 1 - 1.25 / (3 / 8 + 1 + 1)
    found = losses.soft_dice(_logits(PIXELS), _target(1, 2))
    close(found, [(ggo + consolidation) / 2])
    logits = _logits([[9.0, 0.0, -LOG(3)]])  # the background's probability plays no part
    found = losses.soft_dice(logits, _target(2), head="sigmoid")
    close(found, [((1 - 1 / 1.5) + (1 - 1.5 / 2.25)) / 2])
    # Over the batch, GGO: sum p 1/2, sum t 1, sum pt 1/4; consolidation: sum p 1/2, no truth.
    target = jnp.concatenate([_target(1), _target(0)])
    found = losses.soft_dice(jnp.concatenate([_logits(PIXELS[:1])] * 2), target)
    close(found, [((1 - 1.5 / 2.5) + (1 - 1 / 1.5)) / 2] * 2)
    nothing = losses.soft_dice(_logits([[60.0, 0.0, 0.0]]), _target(0))
    np.testing.assert_allclose(nothing, [0.0], atol=1e-6)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_gradients_survive_saturation_and_push_the_right_way(head, gamma):
    logits, target = _logits([[90.0, -90.0, 0.0], [-90.0, 90.0, 0.0]]), _target(1, 1)
    loss = partial(losses.class_cross_entropy, target=target, head=head, gamma=gamma)
    grad = np.asarray(jax.grad(lambda x: loss(x).sum())(logits))[0, 0]
    assert np.isfinite(grad).all()
    assert grad[0, 0] > 0.1 and grad[0, 1] < -0.1  # wrong and sure: towards class 1
    np.testing.assert_allclose(grad[1, :2], 0.0, atol=1e-6)  # right and sure: nothing


def test_probabilities_of_the_two_heads():
    logits = _logits([[0.0, LOG(3), -LOG(3)]])
    alone = losses.class_probs(logits.astype(jnp.bfloat16), "sigmoid")
    np.testing.assert_allclose(alone[0, 0, 0], [0.5, 0.75, 0.25], atol=2e-3)
    together = losses.class_probs(logits, "softmax")
    close(together[0, 0, 0], np.array([3, 9, 1]) / 13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: losses.structure_loss(t, t, weighting="x"), "weighting is 'x'"),
        (lambda x, t: losses.edge_bce(t, t[..., 0]), r"\(1, 1, 2\)"),
        (lambda x, t: losses.focal_loss(t, t, gamma=0.5), "gamma is 0.5"),
        (lambda x, t: losses.class_cross_entropy(x, t[..., :2]), "shapes .* differ"),
        (lambda x, t: losses.soft_dice(x, t[:, :, :1]), "shapes .* differ"),
        (lambda x, t: losses.class_cross_entropy(x, t, head="tanh"), "head is 'tanh'"),
        (lambda x, t: losses.soft_dice(x, t, head="tanh"), "head is 'tanh'"),
        (lambda x, t: losses.class_cross_entropy(x, t, gamma=0.5), "gamma is 0.5"),
        (lambda x, t: losses.class_targets(t), "mask has shape"),
        (lambda x, t: _target(1, smoothing=1.5), "smoothing is 1.5"),
        (lambda x, t: losses.make_lesion_loss(head="relu"), "head is 'relu'"),
        (lambda x, t: losses.make_lesion_loss(gamma=-1.0), "gamma is -1"),
        (lambda x, t: losses.make_lesion_loss(smoothing=2.0), "smoothing is 2"),
    ],
)
def test_what_cannot_be_computed_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(_logits(PIXELS), _target(1, 1))

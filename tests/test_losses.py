"""Losses against hand-computed numbers, a naive window, and the public code's stored values."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax.tasks import losses

HEADS = ("coarse", "s32", "s16", "s8", "edge")


def _image(rows):
    return jnp.asarray(rows, jnp.float32)[None, :, :, None]


def _reference(shared):
    rule = json.loads((shared / "reference/losses.json").read_text())
    values = np.load(shared / "reference/losses.npz")

    def draw(offset, channels=1):
        shape = (len(values["structure_as_run"]), rule["size"], rule["size"], channels)
        return np.random.default_rng(rule["seed"] + offset).standard_normal(shape)

    return values, draw


@pytest.mark.parametrize(
    ("weighting", "name"), [("boundary", "structure_weighted"), ("none", "structure_as_run")]
)
def test_structure_loss_equals_the_public_code(shared, weighting, name):
    values, draw = _reference(shared)
    target = (draw(100) > 0.6).astype(np.float32)
    target[2] = 0.0
    logits = jnp.asarray(2.0 * draw(0), jnp.float32)
    got = losses.structure_loss(logits, jnp.asarray(target), weighting=weighting)
    np.testing.assert_allclose(got, values[name], atol=1e-5)


def test_reconstruction_equals_the_public_code(shared):
    values, draw = _reference(shared)
    rec = jnp.asarray(draw(200, 3), jnp.float32)
    target = jnp.asarray(np.clip(draw(300, 3), -1, 1), jnp.float32)
    visible = jnp.asarray(draw(400) > -0.6, jnp.float32)
    total, parts = losses.inpaint_loss({"edge": rec}, target, visible)
    np.testing.assert_allclose(parts["rec"], values["inpaint_rec_clamped_sum3"], rtol=1e-5)
    np.testing.assert_allclose(parts["context"], values["inpaint_context_clamped_sum3"], rtol=1e-5)
    np.testing.assert_allclose(total, 0.99 * parts["rec"] + 0.01 * parts["context"], rtol=1e-6)


def test_boundary_weights_equal_a_naive_window():
    target = (np.random.default_rng(0).random((2, 40, 36, 1)) > 0.7).astype(np.float32)
    padded = np.pad(target, ((0, 0), (15, 15), (15, 15), (0, 0)))
    mean = np.zeros_like(target)
    for row in range(40):
        for column in range(36):
            window = padded[:, row : row + 31, column : column + 31]
            mean[:, row, column] = window.sum((1, 2)) / 31**2
    got = losses.boundary_weights(jnp.asarray(target))
    np.testing.assert_allclose(got, 1 + 5 * np.abs(mean - target), atol=1e-5)


def test_structure_loss_by_hand():
    # One lesion pixel of four, logits 0: window mean 1/961 everywhere, p = .5, bce = log 2.
    inside, outside = 1 + 5 * (1 - 1 / 961), 1 + 5 / 961
    intersection, total = 0.5 * inside, 0.5 * (inside + 3 * outside) + inside
    iou = 1 - (intersection + 1) / (total - intersection + 1)
    target = _image([[1, 0], [0, 0]])
    logits = jnp.zeros_like(target)
    for weighting in ("boundary", "none"):
        got = losses.structure_loss(logits, target, weighting=weighting, lambda_bce=2.0)
        np.testing.assert_allclose(got, [iou + 2 * np.log(2)], rtol=1e-5)
    # Unequal logits part the two readings: bce 0 on the three background pixels, 3 on the lesion.
    logits = _image([[-3, -40], [-40, -40]])
    lesion = np.log1p(np.exp(3.0))
    for weighting, bce in (
        ("boundary", inside * lesion / (inside + 3 * outside)),
        ("none", lesion / 4),
    ):
        weighted = losses.structure_loss(logits, target, weighting=weighting)
        iou_only = losses.structure_loss(logits, target, weighting=weighting, lambda_bce=0.0)
        np.testing.assert_allclose(weighted - iou_only, [bce], rtol=1e-5)


def test_as_run_leaves_padding_out_of_the_batch_mean():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.standard_normal((3, 8, 8, 1)), jnp.float32)
    target = jnp.asarray(rng.random((3, 8, 8, 1)) > 0.5, jnp.float32)
    valid = jnp.array([True, True, False])
    padded = losses.structure_loss(logits, target, weighting="none", valid=valid)
    alone = losses.structure_loss(logits[:2], target[:2], weighting="none")
    np.testing.assert_allclose(padded[:2], alone, rtol=1e-6)
    none_valid = losses.structure_loss(logits, target, weighting="none", valid=jnp.zeros(3, bool))
    iou = losses.structure_loss(logits, target, weighting="none", lambda_bce=0.0)
    np.testing.assert_allclose(none_valid, iou, rtol=1e-6)


@pytest.mark.parametrize("weighting", ["boundary", "none"])
def test_structure_gradient_for_an_empty_target(weighting):
    # All weights 1: loss = mean softplus(x) + 1 - 1 / (S + 1), S the sum of p.
    logits = _image([[0.0, 1.0], [-2.0, 90.0]])
    grad = jax.grad(
        lambda x: losses.structure_loss(x, jnp.zeros_like(x), weighting=weighting).sum()
    )(logits)
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    np.testing.assert_allclose(grad, p / 4 + p * (1 - p) / (p.sum() + 1) ** 2, atol=1e-6)


def test_edge_bce_and_focal_by_hand():
    logits, target = _image([[0.0, np.log(3.0)], [-np.log(3.0), 0.0]]), _image([[1, 1], [1, 0]])
    nll = np.array([np.log(2), np.log(4 / 3), np.log(4), np.log(2)])
    np.testing.assert_allclose(losses.edge_bce(logits, target), [nll.mean()], rtol=1e-6)
    miss = np.array([0.5, 0.25, 0.75, 0.5])
    np.testing.assert_allclose(
        losses.focal_loss(logits, target, alpha=0.3, gamma=3.0),
        [0.3 * (miss**3 * nll).mean()],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        losses.focal_loss(logits, target, gamma=0.0), losses.edge_bce(logits, target), rtol=1e-6
    )


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
    expected = np.array(
        [
            [0, 0, 0, 0, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 1, 0],
            [1, 1, 0, 1, 1, 0],
            [1, 1, 0, 1, 1, 0],
        ]
    )
    np.testing.assert_array_equal(losses.edge_target(_image(mask))[0, :, :, 0], expected)
    for level in (0.0, 1.0):
        assert losses.edge_target(jnp.full((1, 4, 4, 1), level)).sum() == 0


def test_edge_target_matches_the_stored_edges(shared):
    cv2 = pytest.importorskip("cv2")
    root = shared / "data/COVID-SemiSeg/TrainingSet/LungInfection-Train/Doctor-label"
    paths = sorted((root / "Edge").glob("*.png"))[:4]
    if not paths:
        pytest.skip(f"no stored edges below {root}")
    both = either = 0.0
    for path in paths:
        stored = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127
        mask = cv2.imread(str(root / "GT" / path.name), cv2.IMREAD_GRAYSCALE) > 127
        ours = np.asarray(losses.edge_target(_image(mask)))[0, :, :, 0] > 0.5
        both, either = both + (ours & stored).sum(), either + (ours | stored).sum()
    assert both / either > 0.99


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


def test_half_precision_inputs_are_computed_in_float32():
    logits = jnp.full((1, 64, 64, 1), 0.1, jnp.bfloat16)
    target = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    exact = losses.structure_loss(logits.astype(jnp.float32), target.astype(jnp.float32))
    got = losses.structure_loss(logits, target)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: losses.structure_loss(OUTPUT, OUTPUT, weighting="x"), "weighting is 'x'"),
        (lambda: losses.edge_bce(OUTPUT, OUTPUT[..., 0]), r"\(1, 1, 2\)"),
        (lambda: losses.focal_loss(OUTPUT, OUTPUT, gamma=0.5), "gamma is 0.5"),
        (lambda: losses.reconstruction({}, TARGET, VISIBLE), "no head"),
        (lambda: losses.reconstruction({"s8": OUTPUT}, TARGET, VISIBLE, heads="last"), "s8"),
        (lambda: losses.reconstruction({"s8": OUTPUT}, TARGET, TARGET), "visible has shape"),
        (lambda: losses.reconstruction({"s8": OUTPUT}, TARGET, VISIBLE, kind="l2"), "kind is 'l2'"),
    ],
)
def test_errors_name_the_thing(call, named):
    with pytest.raises(ValueError, match=named):
        call()

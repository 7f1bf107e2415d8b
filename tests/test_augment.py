"""Augmentation: alignment of every field, exact flips and turns, cutout areas, determinism."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax.tasks.augment import augment
from infnet_jax.tasks.supervised import resize_batch
from tests.toy import STILL

SIZE = 33
IMAGE = jnp.zeros((1, 4, 4, 1))
AFFINE = {"rotate_degrees": 25.0, "scale": (0.8, 1.3), "crop": (0.5, 0.8)}


def _run(fields, seed=0, **settings):
    return jax.device_get(jax.jit(partial(augment, **settings))(jax.random.key(seed), fields))


def _noise(batch=8, size=SIZE):
    rng = np.random.default_rng(3)
    image = rng.random((batch, size, size, 1)).astype(np.float32)
    return {"image": jnp.asarray(image), "mask": jnp.asarray((image > 0.5).astype(np.float32))}


@pytest.mark.parametrize(
    "settings",
    [
        {**STILL, "flip_h": 1.0},
        {**STILL, "flip_v": 1.0},
        {**STILL, "quarter_turns": True},
        {**STILL, "rotate_degrees": 40.0},
        {**STILL, "scale": (0.7, 1.4)},
        {**STILL, "crop": (1.0, 0.8)},
        AFFINE,
        {**AFFINE, "gamma": 0.3, "contrast": 0.2},
    ],
)
def test_a_marker_stays_aligned(settings):
    # A 3 x 3 marker off the centre and off both diagonals: every transform moves it.
    marker = np.zeros((16, SIZE, SIZE, 1), np.float32)
    marker[:, 8:11, 18:21] = 1.0
    fields = {"image": jnp.asarray(marker), "mask": jnp.asarray(2 * marker, jnp.uint8)}
    fields["lung"] = fields["mask"] > 0
    out = {name: np.asarray(x) for name, x in _run(fields, **settings).items()}
    assert not np.array_equal(out["image"], marker)
    np.testing.assert_array_equal(out["mask"] > 0, out["lung"])
    grid = np.arange(SIZE)
    for image, mask in zip(out["image"][..., 0], out["mask"][..., 0], strict=True):
        image = np.where(image > 0.05, image, 0.0)  # a change of contrast lifts the background
        assert mask.any()
        for axis in (0, 1):
            centres = [(x.sum(axis) * grid).sum() / x.sum() for x in (image, mask / 2.0)]
            assert abs(centres[0] - centres[1]) < 0.5


def test_the_affine_goes_the_right_way():
    # Zoom 2 about the centre (16, 16): a pixel 4 to the right ends 8 to the right, twice as wide.
    image = np.zeros((1, SIZE, SIZE, 1), np.float32)
    image[0, 16, 20] = 1.0
    out = _run({"image": image}, **STILL, scale=(2.0, 2.0))["image"][0, :, :, 0]
    assert np.unravel_index(out.argmax(), out.shape) == (16, 24)
    np.testing.assert_allclose(out[15:18, 24], [0.5, 1.0, 0.5], atol=1e-5)
    np.testing.assert_allclose(out.sum(), 4.0, atol=1e-4)


def test_draws_fill_their_ranges():
    # A pixel 12 to the right of the centre shows angle and zoom of its example.
    image = np.zeros((256, SIZE, SIZE, 1), np.float32)
    image[:, 16, 28] = 1.0
    grid = np.arange(SIZE) - 16

    def centres(**settings):
        out = _run({"image": image}, **STILL, **settings)["image"][..., 0]
        total = out.sum((1, 2))
        y, x = (out.sum(2) * grid).sum(1) / total, (out.sum(1) * grid).sum(1) / total
        return y, x

    y, x = centres(rotate_degrees=30.0)
    angles = np.degrees(np.arctan2(y, x))
    assert 27 < angles.max() < 31 and -31 < angles.min() < -27 and abs(angles.mean()) < 4
    y, x = centres(scale=(0.5, 1.25))
    zoom = np.log(x / 12)
    assert np.abs(y).max() < 0.1
    assert np.log(0.5) - 0.1 < zoom.min() < np.log(0.5) + 0.1
    assert abs(zoom.mean() - np.log(0.5 * 1.25) / 2) < 0.06


def test_crop_is_a_square_window_resized_back():
    # On a ramp the crop is a ramp of .5 the slope, lying within the image's range.
    ramp = np.tile(np.arange(40, dtype=np.float32)[:, None] / 40, (64, 1, 40))[..., None]
    out = np.asarray(_run({"image": ramp}, **STILL, crop=(1.0, 0.5))["image"])
    inner = np.diff(out[:, 1:-1, :, 0], axis=1)[:, :, 1:-1]
    np.testing.assert_allclose(inner, 0.5 / 40, atol=1e-5)
    start = out[:, 1, 1, 0] * 40  # first row + (1.5 / 2 - .5)
    assert 0.0 < start.min() < 2.0 and 18.0 < start.max() < 20.3
    some = np.asarray(_run({"image": ramp}, **STILL, crop=(0.5, 0.5))["image"])
    untouched = [np.array_equal(a, b) for a, b in zip(some, ramp, strict=True)]
    assert 16 < sum(untouched) < 48


def test_flips_are_exact():
    fields = _noise()
    for flip, axis in (("flip_h", 2), ("flip_v", 1)):
        out = _run(fields, **{**STILL, flip: 1.0})
        for name in fields:
            np.testing.assert_array_equal(out[name], np.flip(fields[name], axis))


def test_quarter_turns_are_exact_and_all_occur():
    fields = jax.device_get(_noise(batch=64))
    out = _run(fields, **{**STILL, "quarter_turns": True})
    counts = np.zeros(4, int)
    for i, (image, mask) in enumerate(zip(*fields.values(), strict=True)):
        [turn] = [k for k in range(4) if np.array_equal(np.rot90(image, k), out["image"][i])]
        np.testing.assert_array_equal(np.rot90(mask, turn), out["mask"][i])
        counts[turn] += 1
    assert counts.min() >= 6


def test_all_eight_symmetries_occur_equally():
    fields = _noise(batch=256, size=5)
    out = np.asarray(_run(fields)["image"])
    counts = np.zeros(8, int)
    for image, new in zip(np.asarray(fields["image"]), out, strict=True):
        forms = [np.rot90(x, k) for x in (image, image[:, ::-1]) for k in range(4)]
        counts[[np.array_equal(form, new) for form in forms].index(True)] += 1
    assert counts.min() >= 16 and counts.max() <= 52


def test_an_affine_that_does_nothing_and_nothing_asked_are_exact():
    fields = _noise()
    out = _run(fields, **STILL, crop=(1.0, 1.0))
    for name in fields:
        np.testing.assert_array_equal(out[name], fields[name])
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 9, 3)), jnp.float32)
    np.testing.assert_array_equal(_run({"image": image}, **STILL)["image"], image)  # not in 0..1


@pytest.mark.parametrize("share", [0.1, 0.4, 0.5, 0.8])
def test_cutout_by_area_covers_that_share(share):
    fields = {"image": jnp.full((128, 64, 64, 2), -1.0), "mask": jnp.ones((128, 64, 64, 1))}
    out = _run(fields, **STILL, cutout=share)
    image = np.asarray(out["image"])
    cut = image >= 0.0
    areas = cut[..., 0].mean((1, 2))
    assert np.abs(areas - share).max() < 0.01
    np.testing.assert_array_equal(out["mask"], fields["mask"])
    np.testing.assert_array_equal(image[..., 0], image[..., 1])
    levels = [np.unique(x[c]) for x, c in zip(image, cut, strict=True)]
    assert all(len(level) == 1 for level in levels)
    levels = np.concatenate(levels)
    assert levels.min() < 0.1 and levels.max() > 0.9
    rows, columns = cut[..., 0].any(2).sum(1), cut[..., 0].any(1).sum(1)
    np.testing.assert_allclose(rows * columns / 64**2, areas, atol=1e-6)  # a rectangle
    aspect = rows / columns
    limit = min(2.0, 1 / share)
    assert aspect.max() <= limit * 1.06 and aspect.min() >= 1 / limit / 1.06
    assert aspect.max() > 1.1 > 1 / 1.1 > aspect.min()
    # Every position inside is possible: each border is reached, and not always.
    for border in (cut[:, 0], cut[:, -1], cut[:, :, 0], cut[:, :, -1]):
        assert 0 < border.any((1, 2)).mean() < 0.9


def test_cutout_by_side_covers_a_quarter_of_the_square_and_not_every_slice():
    fields = {"image": jnp.full((2048, 32, 48, 1), -1.0)}
    out = _run(fields, **STILL, cutout=0.5, cutout_mode="max_side")
    cut = np.asarray(out["image"])[..., 0] >= 0.0
    rows, columns = cut.any(2).sum(1), cut.any(1).sum(1)
    assert set(rows) == set(range(17)) == set(columns)
    # Sides uniform in 0..16 and independent: expected area 8 * 8.
    assert abs(cut.sum((1, 2)).mean() - 64) < 5
    assert cut[:, 0].any() and cut[:, -1].any() and cut[:, :, 0].any() and cut[:, :, -1].any()
    out = _run({"image": jnp.full((512, 8, 8, 1), -1.0)}, **STILL, cutout=0.5, cutout_prob=0.25)
    assert abs((np.asarray(out["image"]).max((1, 2, 3)) >= 0).mean() - 0.25) < 0.07


def test_dense_lesions_lie_in_the_mask_and_on_its_rim():
    mask = np.zeros((64, 40, 40, 1), np.uint8)
    mask[:, 6:34, 5:18] = 1
    image = np.where(mask, 0.1, 0.8).astype(np.float32)
    fields = {"image": jnp.asarray(image), "mask": jnp.asarray(mask)}
    out = _run(fields, **STILL, dense=0.7)
    np.testing.assert_array_equal(out["mask"], mask)
    changed = np.asarray(out["image"]) != image
    assert not (changed & (mask == 0)).any()
    # Nearly as bright as the wall: .85 of .8 times the wall's grey, and a little of the lung's.
    painted = np.asarray(out["image"])[changed]
    assert 0.85 * 0.8 * 0.8 < painted.min() < 0.62 and 0.75 < painted.max() <= 0.8
    each = changed[..., 0].sum((1, 2))
    assert 0.82 < (each > 0).mean() < 1  # two of .7: .91
    rim = changed[:, [6, 33], 5:18].any((1, 2, 3)) | changed[:, 6:34, [5, 17]].any((1, 2, 3))
    assert rim[each > 0].mean() > 0.9 and (changed[:, 6:34, 5:18].mean((1, 2, 3)) < 0.95).all()
    assert len(np.unique(each)) > 20
    still = _run({**fields, "mask": 0 * fields["mask"]}, **STILL, dense=1.0)
    np.testing.assert_array_equal(still["image"], image)  # an empty mask has no rim


def test_same_key_same_batch_and_examples_differ():
    one = jnp.asarray(np.random.default_rng(0).random((1, SIZE, SIZE, 1)), jnp.float32)
    fields = {"image": jnp.tile(one, (8, 1, 1, 1))}
    settings = {**AFFINE, "cutout": 0.3, "gamma": 0.2, "noise": 0.05}
    first, again = _run(fields, **settings)["image"], _run(fields, **settings)["image"]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, _run(fields, seed=1, **settings)["image"])
    for i in range(8):
        for j in range(i):
            assert np.abs(first[i] - first[j]).max() > 0.05


def test_masks_hold_no_new_value_and_keep_their_dtype():
    rng = np.random.default_rng(5)
    mask = rng.choice([1, 5, 38, 75], (8, SIZE, SIZE, 1)).astype(np.uint8)
    valid = jnp.arange(8) < 6
    fields = {**_noise(), "mask": jnp.asarray(mask), "valid": valid}
    out = _run(fields, **AFFINE)
    assert out["mask"].dtype == jnp.uint8
    assert set(np.unique(out["mask"])) == {0, 1, 5, 38, 75}
    np.testing.assert_array_equal(out["valid"], valid)
    inside = _run(fields, **STILL, rotate_degrees=0.0, crop=(1.0, 0.6))
    assert set(np.unique(inside["mask"])) <= {0, 1, 5, 38, 75}


def test_outside_is_0():
    fields = {"image": jnp.full((16, 32, 32, 1), 0.75), "mask": jnp.ones((16, 32, 32, 1))}
    out = _run(fields, **STILL, scale=(0.5, 0.5))
    image, mask = np.asarray(out["image"]), np.asarray(out["mask"])
    np.testing.assert_allclose(image[:, [0, 0, -1], [0, -1, 0]], 0.0)
    np.testing.assert_allclose(image[:, 10:22, 10:22], 0.75)
    assert mask[:, 0].sum() == 0 and abs(mask.mean() - 0.25) < 0.02


@pytest.mark.parametrize("setting", ["gamma", "contrast", "brightness", "noise"])
def test_grey_changes_leave_the_mask_and_the_range(setting):
    fields = _noise(batch=256, size=16)
    out = _run(fields, **STILL, **{setting: 0.2})
    image, before = np.asarray(out["image"]), np.asarray(fields["image"])
    np.testing.assert_array_equal(out["mask"], fields["mask"])
    assert image.min() >= 0.0 and image.max() <= 1.0
    inner = (before > 0.3) & (before < 0.7) & (image > 0) & (image < 1)  # where nothing is clipped
    if setting == "gamma":
        drawn = np.log(np.log(image[inner]) / np.log(before[inner]))
    elif setting == "contrast":
        mean = before.mean((1, 2, 3), keepdims=True)
        far = inner & (np.abs(before - mean) > 0.1)
        drawn = ((image - mean) / (before - mean))[far] - 1
    elif setting == "brightness":
        drawn = (image - before)[inner]
    else:
        spread = [(a - b)[c].std() for a, b, c in zip(image, before, inner, strict=True)]
        assert 0.17 < max(spread) < 0.24 and min(spread) < 0.03
        return
    assert 0.17 < drawn.max() < 0.201 and -0.201 < drawn.min() < -0.17


def test_resize_batch_keeps_corners_and_labels():
    rng = np.random.default_rng(2)
    mask = rng.integers(0, 3, (2, 8, 8, 1)).astype(np.uint8)
    image, valid = jnp.asarray(mask, jnp.float32), jnp.ones(2, bool)
    fields = {"image": image, "mask": jnp.asarray(mask), "valid": valid}
    out = resize_batch(fields, 15)
    assert out["image"].shape == out["mask"].shape == (2, 15, 15, 1)
    assert out["mask"].dtype == jnp.uint8
    # 15 = 2 * 7 + 1: old pixels sit at every second row and column.
    np.testing.assert_array_equal(out["mask"][:, ::2, ::2], mask)
    np.testing.assert_allclose(out["image"][:, ::2, ::2], mask, atol=1e-5)
    np.testing.assert_allclose(out["image"][:, 1, 0], mask[:, :2, 0].mean(1), atol=1e-5)
    assert resize_batch(fields, 8)["image"] is fields["image"]


@pytest.mark.parametrize(
    ("fields", "settings", "named"),
    [
        ({"mask": IMAGE}, {}, "image is missing"),
        ({"image": jnp.uint8(IMAGE)}, {}, "image is uint8"),
        ({"image": jnp.zeros((1, 4, 5, 1))}, {}, "quarter_turns"),
        ({"image": IMAGE, "lung": jnp.zeros((1, 4, 5, 1))}, {}, r"lung is \(1, 4, 5\)"),
        ({"image": IMAGE}, {"scale": (1.2, 0.8)}, "scale is"),
        ({"image": IMAGE}, {"crop": (0.5, 1.5)}, "crop is"),
        ({"image": IMAGE}, {"cutout": 40}, "cutout is 40"),
        ({"image": IMAGE}, {"cutout_mode": "side"}, "cutout_mode is 'side'"),
    ],
)
def test_errors_name_the_thing(fields, settings, named):
    with pytest.raises(ValueError, match=named):
        augment(jax.random.key(0), fields, **settings)

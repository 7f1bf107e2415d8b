"""Left and right, regions and zones: fixed cuts, mirrored alike, nothing lost."""

import numpy as np
import pytest

from infnet_jax.clinic import regions, severity, sides as sides_lib
from tfds_builders.phantom.phantom_dataset_builder import make_patient


def _lungs(depth=12):
    """Two ellipsoids of different size, bool [depth, 60, 80]."""
    z, y, x = np.mgrid[:depth, :60, :80]
    return np.stack(
        [
            ((x - cx) / rx) ** 2 + ((y - 30) / ry) ** 2 + ((z - depth / 2) / (0.6 * depth)) ** 2 < 1
            for cx, rx, ry in ((20, 16, 24), (58, 17, 20))
        ]
    ).any(0)


def test_split_finds_the_patients_right_lung_on_the_left_of_the_picture():
    lung = _lungs()
    right = np.where(np.arange(80) < 39, 1, 2)
    np.testing.assert_array_equal(sides_lib.split(lung), np.where(lung, right, 0))


def test_touching_lungs_are_cut_at_the_bridge():
    lung = _lungs(1)[0]
    lung[29:31, 25:50] = True
    sides = sides_lib.split(lung)
    cut = np.flatnonzero(np.diff(sides[29, 25:50].astype(int)))
    assert ((sides > 0) == lung).all() and len(cut) == 1 and 5 < cut[0] < 20


def test_a_slice_with_one_lung_uses_the_middle_of_the_volume():
    lung = _lungs()
    lung[3, :, 40:] = False
    assert set(np.unique(sides_lib.split(lung)[3])) == {0, 1}


def test_transposed_slices_are_recognised_and_split_along_rows():
    lung = _lungs(1)[0]
    assert not sides_lib.lies_on_side(lung) and sides_lib.lies_on_side(lung.T)
    assert not sides_lib.lies_on_side(lung[:, :40])
    np.testing.assert_array_equal(sides_lib.split(lung.T, upright=False), sides_lib.split(lung).T)


@pytest.mark.parametrize("cut", [regions.slice_regions, regions.volume_regions])
def test_the_cuts_cover_each_lung_with_its_ten_regions(cut):
    sides = sides_lib.split(_lungs(1)[0] if cut is regions.slice_regions else _lungs())
    found = cut(sides)
    assert ((found > 0) == (sides > 0)).all()
    assert set(np.unique(found[sides == 1])) == set(range(1, 11))
    assert set(np.unique(found[sides == 2])) == set(range(11, 21))


def test_slice_regions_are_those_of_the_phantom():
    for e in make_patient(0, 0, n_slices=3, size=128):
        found = regions.slice_regions(sides_lib.split(e["lung"]))
        assert (found == e["region"])[e["lung"] > 0].mean() > 0.98


@pytest.mark.parametrize("cut", [regions.slice_regions, regions.volume_regions])
def test_a_mirrored_patient_has_the_same_total(cut):
    rng = np.random.default_rng(1)
    lung = _lungs(1)[0] if cut is regions.slice_regions else _lungs()
    mask = (lung & (rng.random(lung.shape) < np.linspace(0, 1, 80))).astype(np.uint8)
    sides = sides_lib.split(lung)
    turned = cut(sides_lib.split(lung[..., ::-1]))
    straight, mirrored = (
        severity.grade(severity.count(m, n, regions=r))
        for m, n, r in ((mask, lung, cut(sides)), (mask[..., ::-1], lung[..., ::-1], turned))
    )
    assert straight.ct_ss == mirrored.ct_ss > 0
    a, b = straight.region_shares, mirrored.region_shares
    np.testing.assert_allclose(a[:10] + a[10:], b[10:] + b[:10])


def test_bands_go_from_front_to_back_and_thirds_from_the_top():
    sides = np.zeros((6, 20, 20), np.uint8)
    sides[:, :, :8] = 1
    flat = regions.slice_regions(sides[0])
    assert flat[0, 7] == 1 and flat[0, 0] == 2 and flat[19, 7] == 9 and flat[19, 0] == 10
    solid, zones = regions.volume_regions(sides), regions.zones(sides)
    assert set(np.unique(solid[4:])) == {0, 1, 2, 3} and set(np.unique(solid[:2, :, :8])) >= {6}
    assert solid[2, 0, 0] == 4 and solid[2, 0, 7] == 5  # lateral, medial
    # Of the lowest third, below its top quarter: medial, front, lateral, back.
    quarters = [solid[0, y, x] for y, x in ((10, 7), (0, 4), (10, 0), (19, 4))]
    assert quarters == [7, 8, 9, 10]
    assert zones[5, 0, 0] == 1 and zones[3, 0, 0] == 2 and zones[0, 0, 0] == 3


def test_lobes_give_20_regions():
    sides = sides_lib.split(_lungs(16))
    half = np.arange(16)[:, None, None] >= 8
    lobes = np.where(sides == 2, np.where(half, 1, 2), 0)
    third = np.where(half, 3, np.where(np.arange(60)[None, :, None] < 30, 4, 5))
    lobes = np.where(sides == 1, third, lobes)
    found = regions.lobe_regions(lobes)
    assert set(np.unique(found)) == set(range(21)) and ((found > 0) == (lobes > 0)).all()
    ranges = {1: (11, 15), 2: (16, 20), 3: (1, 3), 4: (4, 5), 5: (6, 10)}
    for lobe, (low, high) in ranges.items():
        inside = found[lobes == lobe]
        assert inside.min() == low and inside.max() == high


def test_infection_beyond_the_lung_gets_the_nearest_label():
    labels, mask = np.array([[0, 0, 1, 0, 0, 2]]), np.array([[1, 0, 0, 1, 1, 0]])
    assert sides_lib.unite(labels, mask).tolist() == [[1, 0, 1, 1, 2, 2]]
    assert labels[0, 0] == 0  # the caller's array is left alone
    with pytest.raises(ValueError, match="shape"):
        sides_lib.unite(labels, mask[0])


def test_in_a_volume_the_same_slice_counts_first_and_then_the_nearest_one():
    labels = np.zeros((4, 1, 4), np.uint8)
    labels[0, 0], labels[1, 0, 3] = 7, 9
    mask = np.zeros(labels.shape, np.uint8)
    mask[1, 0, 0] = mask[3, 0, 1] = 1
    found = sides_lib.unite(labels, mask)
    assert found[:, 0].tolist() == [[7, 7, 7, 7], [9, 0, 0, 9], [0, 0, 0, 0], [0, 9, 0, 0]]
    assert not sides_lib.unite(np.zeros_like(labels), mask).any()

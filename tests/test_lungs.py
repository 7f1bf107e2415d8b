"""Lungs by morphology and by a network: drawn, phantom and real slices, and what is no lung."""

import cv2
import numpy as np
import pytest

from infnet_jax.clinic import lungs
from infnet_jax.dice import dice
from tfds_builders.phantom.phantom_dataset_builder import make_patient


def _body(size=200):
    """A bright body with two dark lungs in darker air, uint8, and its lungs."""
    picture, truth = np.full((size, size), 20, np.uint8), np.zeros((size, size), np.uint8)
    cv2.ellipse(picture, (100, 100), (92, 70), 0, 0, 360, 220, -1)
    for x in (60, 140):
        cv2.ellipse(truth, (x, 100), (26, 46), 0, 0, 360, 1, -1)
    picture[truth > 0] = 60
    return picture, truth > 0


@pytest.mark.parametrize("turn", [np.transpose, np.fliplr, np.flipud, lambda a: np.rot90(a)])
def test_a_turned_picture_has_turned_lungs(turn):
    picture, truth = _body()
    picture[90:110, 45:50] = 200  # a vessel
    found, straight = lungs.segment(np.ascontiguousarray(turn(picture))), lungs.segment(picture)
    assert dice(found, turn(straight)) > 0.99 and dice(straight, truth) > 0.97


def test_lungs_may_touch_the_edge_of_a_cropped_picture():
    picture, truth = _body()
    cut = np.s_[54:146, 34:166]
    assert dice(lungs.segment(np.ascontiguousarray(picture[cut])), truth[cut]) > 0.95


def test_vessels_and_a_bright_lesion_at_the_wall_stay_inside():
    picture, truth = _body()
    cv2.circle(picture, (62, 90), 4, 220, -1)
    bite = np.zeros_like(picture)
    cv2.circle(bite, (34, 100), 12, 1, -1)
    picture[(bite > 0) & truth] = 215
    found = lungs.segment(picture)
    assert found[90, 62] and found[(bite > 0) & truth].mean() > 0.9


def test_the_windpipe_a_table_and_bowel_gas_are_left_out():
    picture, truth = _body()
    cv2.circle(picture, (100, 80), 5, 20, -1)
    for y in (180, 190):
        cv2.line(picture, (20, y), (180, y), 200, 2)
    found = lungs.segment(picture)
    assert not found[80, 100] and not found[175:].any() and dice(found, truth) > 0.95


def test_a_dome_of_the_diaphragm_inside_a_lung_is_no_hole_to_fill():
    picture, truth = _body()
    cv2.circle(picture, (140, 100), 19, 220, -1)
    assert not lungs.segment(picture)[100, 140]


def test_a_volume_drops_what_hangs_together_with_no_lung():
    picture, truth = _body()
    plain = np.where(truth, 220, picture).astype(np.uint8)
    gas = cv2.circle(plain.copy(), (100, 100), 8, 60, -1)
    found = lungs.segment(np.stack([picture] * 5 + [plain, gas]))
    assert found.shape == (7, 200, 200) and not found[5:].any()
    assert all(dice(f, truth) > 0.97 for f in found[:5])


def test_a_part_under_no_lung_is_dropped_and_a_narrowing_lung_is_not():
    found = np.zeros((5, 60, 60), bool)
    for i, half in enumerate((8, 12, 20, 14, 6)):  # the lung, largest in the middle
        found[i, 30 - half : 30 + half, 10:30] = True
    found[3, 30:36, 30:46] = True  # hangs together with the lung: part of it
    found[4, 30:33, 34:44] = True  # a second strip under the lung: kept
    right = found.copy()
    found[4, 40:50, 12:40] = True  # under the lung of slice 3 with less than 0.4 of it
    found[0, 20:22, 40:50] = True  # above the apex, under nothing
    np.testing.assert_array_equal(lungs.without_newcomers(found), right)
    # Much gas below makes its slice the largest, and not the one to start from.
    found, right = np.zeros((2, 3, 60, 60), bool)
    found[:, 10:40, 5:20] = found[:2, 10:40, 25:40] = found[2, 15:35, 25:40] = True
    right[:] = found
    found[2, 42:52, 5:25] = found[2, 42:52, 30:40] = True
    np.testing.assert_array_equal(lungs.without_newcomers(found), right)


def test_no_lung_is_an_empty_mask():
    for picture in (np.zeros((40, 50), np.uint8), np.full((40, 50), 200, np.uint8)):
        assert not lungs.segment(picture).any()
    assert lungs.segment(np.zeros((0, 8, 8), np.uint8)).shape == (0, 8, 8)


@pytest.mark.parametrize("grey", [np.zeros((4, 4)), np.zeros(4, np.uint8)])
def test_other_arrays_are_refused(grey):
    with pytest.raises(ValueError, match="uint8 \\[H, W\\]"):
        lungs.segment(grey)


def test_phantoms():
    found = [
        dice(lungs.segment(e["image"]), e["lung"] > 0)
        for patient in (0, 1, 2)
        for e in make_patient(0, patient, n_slices=2, size=192)
    ]
    assert np.mean(found) > 0.91


@pytest.mark.parametrize(
    "folder, least_dice, least_kept",
    [("COVID-SemiSeg-lungs", 0.91, 0.85), ("medseg-volumes", 0.91, 0.8)],
)
def test_real_slices(shared, folder, least_dice, least_kept):
    """A spread of the real slices; all of them give .94 and .94, kept .91 and .85."""
    files = sorted((shared / "data" / folder / "img").glob("*.png"))[::8]
    fits, kept, infected = [], 0, 0
    for path in files:
        folders = [path.parents[1] / name / path.name for name in ("lung", "label")]
        truth, label = (cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in folders)
        if not truth.any():
            continue
        found = lungs.segment(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
        fits.append(dice(found, truth > 0))
        sick = np.isin(label, (1, 2))
        kept, infected = kept + (found & sick).sum(), infected + sick.sum()
    assert np.mean(fits) >= least_dice and kept / infected >= least_kept


def test_each_lung_is_closed_by_itself():
    y, x = np.mgrid[:120, :200]
    both = [((y - 60) / 40) ** 2 + ((x - c) / 30) ** 2 < 1 for c in (50, 130)]
    whole = both[0] | both[1]
    notch = (np.abs(y - 60) < 3) & (x < 32)  # a dense lesion at the outer wall of one lung
    closed = lungs.close_each(whole & ~notch)
    lost = whole & notch & ~closed
    assert lost.sum() < 0.15 * (whole & notch).sum() and (whole & ~notch <= closed).all()
    assert (closed & ~whole).sum() < 0.01 * whole.sum()  # 20 pixels between them stay free
    dome = (np.abs(y - 60) < 6) & (x < 40)  # 8 % of the lung
    assert not (lungs.close_each(whole & ~dome) & dome)[60].any()
    assert not lungs.close_each(np.zeros((9, 9), bool)).any()
    one = np.zeros((9, 9), bool)
    one[4, 4] = True
    np.testing.assert_array_equal(lungs.close_each(one), one)


def test_a_second_pass_sees_the_lungs_larger():
    """The first pass marks a square; in its crop the network then marks the left half only."""
    shapes = []

    def run(pictures):
        for picture in pictures:
            shapes.append(picture.shape)
            prob = np.zeros(picture.shape, np.float32)
            if picture.shape == (100, 80):
                prob[40:61, 20:61] = 1
            else:
                assert picture.max() == 9 and picture[1, 2] == 9  # the crop is where the lung is
                prob[:, : prob.shape[1] // 2] = 1
            yield prob

    picture = np.zeros((100, 80), np.uint8)
    picture[40:61, 20:61] = 9
    found = lungs.find(run, [picture, picture], 0.5)
    assert shapes == [(100, 80)] * 2 + [(23, 45)] * 2  # 5 % of 20 and of 40 on either side
    where = np.argwhere(found)
    assert where.min(0).tolist() == [0, 39, 18] and where.max(0).tolist() == [1, 61, 39]
    nothing = lungs.find(lambda ps: [np.float32(0 * p) for p in ps], [picture], 0.5)
    assert nothing.shape == (1, 100, 80) and not nothing.any()


def test_tidy_drops_specks_fills_holes_and_drops_islands():
    found = np.zeros((3, 80, 80), bool)
    found[:, 10:60, 10:30] = found[:, 10:60, 45:65] = True
    right = found.copy()
    found[:, 30:33, 20:23] = False  # a vessel
    found[1, 70:72, 70:72] = True  # a speck
    found[2, 68:78, 5:15] = True  # large in its slice, nothing beside a lung: bowel
    np.testing.assert_array_equal(lungs.tidy(found), right)
    assert not lungs.tidy(np.zeros((2, 8, 8), bool)).any()

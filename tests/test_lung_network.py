"""What becomes of a network's lungs: two passes, tidied, each lung closed by itself."""

import numpy as np

from infnet_jax.clinic import lung_network


def test_each_lung_is_closed_by_itself():
    y, x = np.mgrid[:120, :200]
    both = [((y - 60) / 40) ** 2 + ((x - c) / 30) ** 2 < 1 for c in (50, 130)]
    whole = both[0] | both[1]
    notch = (np.abs(y - 60) < 3) & (x < 32)  # a dense lesion at the outer wall of one lung
    closed = lung_network.close_each(whole & ~notch)
    lost = whole & notch & ~closed
    assert lost.sum() < 0.15 * (whole & notch).sum() and (whole & ~notch <= closed).all()
    assert (closed & ~whole).sum() < 0.01 * whole.sum()  # 20 pixels between them stay free
    dome = (np.abs(y - 60) < 6) & (x < 40)  # 8 % of the lung
    assert not (lung_network.close_each(whole & ~dome) & dome)[60].any()
    assert not lung_network.close_each(np.zeros((9, 9), bool)).any()
    one = np.zeros((9, 9), bool)
    one[4, 4] = True
    np.testing.assert_array_equal(lung_network.close_each(one), one)


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
    found = lung_network.find(run, [picture, picture], 0.5)
    assert shapes == [(100, 80)] * 2 + [(23, 45)] * 2  # 5 % of 20 and of 40 on either side
    where = np.argwhere(found)
    assert where.min(0).tolist() == [0, 39, 18] and where.max(0).tolist() == [1, 61, 39]
    nothing = lung_network.find(lambda ps: [np.float32(0 * p) for p in ps], [picture], 0.5)
    assert nothing.shape == (1, 100, 80) and not nothing.any()


def test_tidy_drops_specks_fills_holes_and_drops_islands():
    found = np.zeros((3, 80, 80), bool)
    found[:, 10:60, 10:30] = found[:, 10:60, 45:65] = True
    right = found.copy()
    found[:, 30:33, 20:23] = False  # a vessel
    found[1, 70:72, 70:72] = True  # a speck
    found[2, 68:78, 5:15] = True  # large in its slice, nothing beside a lung: bowel
    np.testing.assert_array_equal(lung_network.tidy(found), right)
    assert not lung_network.tidy(np.zeros((2, 8, 8), bool)).any()

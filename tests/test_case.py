"""Cases: label systems, what touches no lung, and which maps fit a scan."""

import numpy as np
import pytest

from infnet_jax.clinic import case, imaging
from tfds_builders.phantom.phantom_dataset_builder import make_patient


def test_patches_that_touch_no_lung_are_dropped():
    lung, mask = np.zeros((2, 8, 8), bool), np.zeros((2, 8, 8), np.uint8)
    lung[:, 2:5, 2:5] = True
    mask[0, 5:7, 5] = 1  # touches the lung's corner only
    mask[0, 0, 7] = 2  # far away
    mask[1, 3, 4:8] = 2  # begins inside
    assert case.drop_detached(mask, lung) == 1
    assert mask[0].sum() == 2 and mask[0, 0, 7] == 0 and mask[1].sum() == 8


def test_transposed_slices_score_as_upright_ones():
    e = list(make_patient(1, 0, n_slices=3, size=96))[1]
    cases = []
    for turn in (lambda a: a, np.transpose):
        scan = imaging.scan_of_picture("s", turn(e["image"]))
        cases.append(case.assess(scan, turn(e["mask"])[None], turn(e["lung"])[None]))
    np.testing.assert_array_equal(cases[0].regions[0].T, cases[1].regions[0])
    assert not cases[0].warnings and "transposed" in cases[1].warnings[0]


def test_missing_lungs():
    scan = imaging.scan_of_picture("s", np.zeros((9, 9), np.uint8))
    mask = np.zeros((1, 9, 9), np.uint8)
    with pytest.raises(ValueError, match="s: no lung found"):
        case.assess(scan, mask)
    with pytest.raises(ValueError, match="s: lung of shape"):
        case.assess(scan, mask, np.ones((1, 3, 3)))


def test_a_patient_without_a_scan_is_refused():
    with pytest.raises(ValueError, match="patient p has no scan"):
        case.pool("p", [])

"""The phantom: exact truth, no patient in two splits, equal bytes, and no easy threshold."""

import collections

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.builders import assert_equal_bytes, build
from tfds_builders.phantom import anatomy, lesions
from tfds_builders.phantom.phantom_dataset_builder import Builder, make_patient

SPLITS = {"train": (5, 10), "unlabeled": (4, 8), "test": (3, 6)}  # tiny: patients, slices


@pytest.fixture(scope="module")
def tiny(phantom):
    source = tfds.builder_from_directory(phantom).as_data_source()
    return {split: list(source[split]) for split in SPLITS}


@pytest.fixture(scope="module")
def train():
    """All training slices of phantom/default, as (patient, slice dict)."""
    config = next(c for c in Builder.BUILDER_CONFIGS if c.name == "default")
    split, n_patients, n_slices = config.split_patients[0]
    assert split == "train"
    return [
        (patient, example)
        for patient in range(n_patients)
        for example in make_patient(config.seed, patient, n_slices=n_slices, size=config.size)
    ]


def test_default_has_the_promised_numbers():
    config = Builder.BUILDER_CONFIGS[0]
    counts = {split: patients * slices for split, patients, slices in config.split_patients}
    assert (config.name, config.size) == ("default", 256)
    assert counts == {"train": 60, "unlabeled": 100, "test": 80}


def test_splits_share_no_patient_and_only_the_unlabeled_one_has_no_truth(tiny):
    patients = {split: {e["patient"] for e in examples} for split, examples in tiny.items()}
    for split, examples in tiny.items():
        assert (len(patients[split]), len(examples)) == SPLITS[split]
        assert all(e["group"] == e["patient"] for e in examples)
        assert {bool(e["labelled"]) for e in examples} == {split != "unlabeled"}
    assert len(set.union(*patients.values())) == 12
    assert len({e["id"] for examples in tiny.values() for e in examples}) == 24


def test_stored_examples_hold_what_was_made(tiny):
    made = list(make_patient(0, 1, n_slices=2, size=64))
    for i, want in enumerate(made):
        got = next(e for e in tiny["train"] if e["id"] == f"patient001_slice{i:02d}".encode())
        for name in ("image", "mask", "lung", "region"):
            assert got[name].shape == (64, 64, 1) and got[name].dtype == np.uint8
            np.testing.assert_array_equal(got[name][..., 0], want[name])
        np.testing.assert_array_equal(got["region_share"], want["region_share"])


def test_equal_seeds_give_equal_bytes(phantom, tmp_path):
    assert_equal_bytes(phantom, build("phantom/tiny", None, tmp_path))


def test_another_seed_or_patient_gives_another_picture():
    a, b, c = (next(make_patient(*key, n_slices=1, size=64)) for key in ((0, 0), (1, 0), (0, 1)))
    assert (a["image"] != b["image"]).mean() > 0.3 and (a["image"] != c["image"]).mean() > 0.3


def test_no_grey_band_finds_the_lesions(train):
    inside = np.concatenate([e["image"][e["lung"] > 0] for _, e in train])
    lesion = np.concatenate([e["mask"][e["lung"] > 0] > 0 for _, e in train])
    dice = best_band_dice(inside, lesion)
    assert 0.3 < dice < 0.6  # below: too hard to be of use; above: too easy


def best_band_dice(grey, lesion):
    """Best Dice over all bands low <= grey < high; `grey >= t` is the band that ends at 256."""
    true = np.append(0, np.cumsum(np.bincount(grey[lesion], minlength=256)))
    found = np.append(0, np.cumsum(np.bincount(grey, minlength=256)))
    true, found = (c[None, :] - c[:, None] for c in (true, found))
    return np.max(2 * true / (np.maximum(found, 0) + lesion.sum()))


def test_best_band_dice_by_hand():
    # The band 5..6 holds both lesion pixels and one other: 2 * 2 / (3 + 2).
    assert best_band_dice(np.array([0, 5, 5, 6, 200]), np.array([0, 1, 0, 1, 0]) > 0) == 0.8


def test_lesions_are_of_a_lifelike_size(train):
    shares = [(e["mask"] > 0).sum() / e["lung"].sum() for _, e in train if e["mask"].any()]
    assert 0.08 < np.mean(shares) < 0.18
    of_image = np.mean([(e["mask"] > 0).mean() for _, e in train if e["mask"].any()])
    assert 0.02 < of_image < 0.10
    for label in (1, 2):
        assert sum((e["mask"] == label).any() for _, e in train) > 20


def test_every_fifth_patient_is_healthy(train):
    infected = collections.defaultdict(bool)
    for patient, example in train:
        infected[patient] |= example["mask"].any()
    assert [p for p in sorted(infected) if not infected[p]] == [4, 9, 14, 19]


def test_masks_stay_in_the_lungs_and_regions_fill_them(train):
    for _, e in train:
        assert not e["mask"][e["lung"] == 0].any() and set(np.unique(e["mask"])) <= {0, 1, 2}
        np.testing.assert_array_equal(e["region"] > 0, e["lung"] > 0)
        assert set(np.unique(e["lung"])) == {0, 1}


def test_region_share_agrees_with_mask_and_region(train):
    for _, e in train:
        for region in range(1, 21):
            here = e["region"] == region
            want = (e["mask"][here] > 0).mean() if here.any() else 0
            assert e["region_share"][region - 1] == pytest.approx(want, abs=1e-6)
    assert max(e["region_share"].max() for _, e in train) > 0.5


def test_regions_by_hand():
    # Each lung has ten rows of four pixels: bands of two rows, halves of two columns.
    lung = np.zeros((12, 10), np.uint8)
    lung[1:11, 0:4] = lung[1:11, 6:10] = 1
    x = np.broadcast_to(np.arange(10) - 4.5, lung.shape)
    region = lesions.regions(lung, x)
    assert region[1].tolist() == [2, 2, 1, 1, 0, 0, 11, 11, 12, 12]  # front; lateral outside
    assert region[10].tolist() == [10, 10, 9, 9, 0, 0, 19, 19, 20, 20]  # back
    assert np.bincount(region.ravel())[1:].tolist() == [4] * 20
    shares = lesions.region_shares((region == 3) * 2 + (region == 12) * (x > 4), region)
    assert shares.dtype == np.float32
    assert np.flatnonzero(shares).tolist() == [2, 11] and shares[[2, 11]].tolist() == [1.0, 0.5]


def test_pictures_are_upright_in_radiological_display(train):
    for _, e in train:
        right, left = (np.isin(e["region"], range(a, a + 10)) for a in (1, 11))
        rows = [np.average(np.nonzero(e["region"] == r)[0]) for r in (1, 9)]
        assert rows[0] < rows[1]  # front above back
        columns = [np.nonzero(side)[1].mean() for side in (right, left)]
        assert columns[0] < columns[1]  # the patient's right at image left
        assert e["image"].shape == (256, 256) and e["image"].dtype == np.uint8
    # The heart lies to the patient's left: less lung there in the lower half of the chest.
    low = [e for i, (_, e) in enumerate(train) if i % 6 == 1]
    lungs = [np.bincount(np.int64(e["region"].ravel() > 10), e["lung"].ravel()) for e in low]
    assert np.diff(np.sum(lungs, 0)) < 0


def test_lungs_are_two_pieces_that_never_touch(train):
    for _, e in train:
        right = ((e["region"] > 0) & (e["region"] < 11)).astype(np.uint8)
        grown = cv2.dilate(right, np.ones((3, 3), np.uint8))
        assert not (grown & (e["region"] > 10)).any()


def test_cover_is_a_share_of_the_pixel():
    share = anatomy.cover(np.array([-1.0, -0.25, 0.0, 0.25, 1.0]), pixel=1.0)
    assert share.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]

"""The covid_chestxray builder on made-up files."""

import gzip

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests import builders
from tests.builders import encoded, read, skipped, the_skip
from tfds_builders.covid_chestxray import dummy_data, metadata, volumes

WEBP = "b.webp-day5.png"


@pytest.fixture
def source(tmp_path):
    return dummy_data.make(tmp_path / "covid-chestxray-dataset")


def build(source, tmp_path, config="xray"):
    return builders.build(f"covid_chestxray/{config}", source, tmp_path)


def test_xrays_with_labels_scores_metadata_and_lungs(source, tmp_path):
    folder = build(source.parent / source.name, tmp_path)
    found = read(folder)
    labels = [(key, metadata.LABELS[e["label"]]) for key, e in sorted(found.items())]
    assert labels[:3] == [("a-1.jpeg", "covid"), ("a-2.jpeg", "covid"), (WEBP, "non_covid")]
    assert labels[3:] == [("c.jpg", "unknown"), ("d.jpg", "non_covid"), ("e.png", "non_covid")]
    one = found["a-1.jpeg"]
    assert (one["geographic_extent"], one["opacity"], one["age"], one["offset"]) == (6, 4, 60, 3)
    assert np.isnan(found["a-2.jpeg"]["opacity"])
    assert one["finding"] == b"Pneumonia/Viral/COVID-19" and one["license"] == b"CC BY-NC-SA"
    assert found["a-2.jpeg"]["view"] == b"AP Supine"
    picture = np.array(Image.open(source / "images" / WEBP))
    np.testing.assert_array_equal(found[WEBP]["image"][..., 0], picture)
    assert not skipped(folder)
    lung = np.zeros((30, 40), np.uint8)
    lung[5:15, 4:14] = 1
    assert one["lung_known"] and not found["a-2.jpeg"]["lung_known"]
    np.testing.assert_array_equal(one["lung"][..., 0], lung)
    assert not found["a-2.jpeg"]["lung"].any()
    assert all(example["lung"].shape == example["image"].shape for example in found.values())


def test_a_lung_mask_of_half_the_size_is_enlarged_and_another_shape_refused(source, tmp_path):
    masks = source / "annotations/lungVAE-masks"
    half, whole = np.zeros((15, 20), np.uint8), np.zeros((30, 40), np.uint8)
    half[3, 7], whole[6:8, 14:16] = 255, 1
    (masks / "a-1_mask.png").write_bytes(encoded(half))
    (masks / "b.webp-day5_mask.png").write_bytes(encoded(half.T))
    found = read(folder := build(source, tmp_path))
    np.testing.assert_array_equal(found["a-1.jpeg"]["lung"][..., 0], whole)
    assert not found[WEBP]["lung_known"]
    file, reason = the_skip(folder)
    assert file == "annotations/lungVAE-masks/b.webp-day5_mask.png" and "(20, 15)" in reason


def test_a_patient_is_on_one_side_in_every_config(source, tmp_path):
    sides = {}
    for config in ("xray", "ct_picture", "ct_volume"):
        for example in read(build(source, tmp_path, config)).values():
            sides.setdefault(example["group"], set()).add(example["split"])
    assert set(sides) == {b"2", b"3", b"4", b"5", b"6", b"7"}
    assert all(len(found) == 1 for found in sides.values())


def test_the_early_header_gives_the_same_records(source, tmp_path):
    early = read(build(dummy_data.make(tmp_path / "early", early=True), tmp_path / "early"))
    late = read(build(source, tmp_path))
    assert set(early) == set(late)
    for key, example in early.items():
        np.testing.assert_array_equal(example["image"], late[key]["image"])
        for name in ("label", "patient", "view", "modality", "opacity"):
            np.testing.assert_array_equal(example[name], late[key][name])
    pictures = build(tmp_path / "early", tmp_path / "early", "ct_picture")
    assert list(read(pictures)) == ["f.png"]


def test_volumes_are_upright_slices_in_the_lung_window(source, tmp_path):
    found = read(build(source, tmp_path, "ct_volume"))
    assert sorted(found) == [f"coronacases_org_001.nii.gz/{z}" for z in range(3)]
    top = found["coronacases_org_001.nii.gz/2"]["image"][..., 0]
    assert top.shape == (10, 12)
    # 12 voxels left to right, 10 back to front; the bright one is right, in front: top left.
    assert np.argwhere(top == 255).tolist() == [[0, 0]]
    low, high = volumes.WINDOW
    assert set(np.unique(top)) == {round(255 * (-1000 - low) / (high - low)), 255}
    assert not (found["coronacases_org_001.nii.gz/0"]["image"] == 255).any()


def test_grey_levels_are_no_hu():
    np.testing.assert_array_equal(volumes.windowed(np.float32([0, 17, 255])), [0, 17, 255])
    levels = volumes.windowed(np.float32([-1250, -500, 250, 900]))
    np.testing.assert_array_equal(levels, [0, 128, 255, 255])


def test_labels_of_findings():
    covid = ["Pneumonia/Viral/COVID-19", "COVID-19", "COVID-19, ARDS", "covid-19"]
    other, unknown = ["Pneumonia/Viral/SARS", "No Finding", "Pneumonia"], ["", "todo", "Unknown"]
    for label, findings in (("covid", covid), ("non_covid", other), ("unknown", unknown)):
        assert {metadata.label(finding) for finding in findings} == {label}


def cut(path, length=100):
    path.write_bytes(path.read_bytes()[:length])


def repeat_row(source):
    with open(source / "metadata.csv", "r+") as file:
        file.write(file.readlines()[1])


LUNG = "annotations/lungVAE-masks/a-1_mask.png"
SKIPS = [  # what to do, file, words of the reason
    (lambda s: (s / "images/e.png").unlink(), "images/e.png", "not there"),
    (lambda s: cut(s / "images/e.png"), "e.png", "not a readable picture"),
    (lambda s: cut(s / LUNG, 30), LUNG, "not a readable picture"),
    (repeat_row, "metadata.csv row 10", "has a row before"),
]


@pytest.mark.parametrize(("damage", "file", "words"), SKIPS, ids=range(len(SKIPS)))
def test_unfit_files_are_skipped_with_a_reason(damage, file, words, source, tmp_path):
    damage(source)
    name, reason = the_skip(folder := build(source, tmp_path))
    assert name == file and words in reason
    assert len(read(folder)) == (5 if "e.png" in file else 6)


def test_a_damaged_volume_is_skipped(source, tmp_path):
    path = source / "volumes/coronacases_org_001.nii.gz"
    path.with_name("second.nii.gz").write_bytes(gzip.decompress(path.read_bytes())[:400])
    with open(source / "metadata.csv", "r+") as table:  # the same patient: the split is not empty
        table.write(table.readlines()[-1].replace("coronacases_org_001", "second"))
    folder = build(source, tmp_path, "ct_volume")
    file, reason = the_skip(folder)
    assert file == "second.nii.gz" and "not a readable NIfTI" in reason and len(read(folder)) == 3


def test_voxels_that_are_no_numbers_are_refused(tmp_path):
    voxels = np.zeros((4, 4, 4), np.float32)
    voxels[0, 0, 0] = np.nan
    data = nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes()
    with pytest.raises(ValueError, match="v.nii: has voxels that are no numbers"):
        volumes.slices(data, "v.nii")


def scores(text):
    def write(source):
        path = source / "annotations/covid-severity-scores.csv"
        path.write_text(f"## c\nfilename,geographic_mean,opacity_mean\n{text}\n")

    return write


STOPS = [
    (lambda s: (s / "metadata.csv").write_text("a,b\n1,2\n"), "no column patientid"),
    (lambda s: (s / "metadata.csv").unlink(), "expected metadata.csv"),
    (lambda s: (s / "images").rename(s / "pictures"), "no images/"),
    (scores("a.png,9.0,1.0"), "a.png has the scores '9.0'"),
    (scores("a.png,,1.0"), "a.png has the scores ''"),
]


@pytest.mark.parametrize(("damage", "words"), STOPS, ids=range(len(STOPS)))
def test_what_stops_the_build(damage, words, source, tmp_path):
    damage(source)
    builders.assert_stops(words, "covid_chestxray/xray", source, tmp_path)

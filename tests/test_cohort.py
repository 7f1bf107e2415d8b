"""Slices of a cohort: read from datasets, folders and scans, with truth, units and lungs."""

import itertools
import json

import cv2
import numpy as np
import pytest

import tfds_builders
from infnet_jax.clinic import imaging
from infnet_jax.data import sources
from infnet_jax.verbs import cohort, scans
from tfds_builders.covid_chestxray import dummy_data


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("tfds"))
    return sources.open_split(folder, "test")


def folder_of(source, root, labels=lambda mask: mask):
    """A folder with img/, label/, lung/ and index.csv, as people keep their own slices."""
    lines = ["name,volume"]
    for kind in ("img", "label", "lung"):
        (root / kind).mkdir(parents=True)
    for i, e in enumerate(sources.examples(source)):
        cv2.imwrite(str(root / "img" / f"s{i}.png"), e["image"])
        cv2.imwrite(str(root / "label" / f"s{i}.png"), labels(e["mask"]))
        cv2.imwrite(str(root / "lung" / f"s{i}.png"), 255 * e["lung"])
        lines.append(f"s{i}.png,{i // 3}")
    (root / "index.csv").write_text("\n".join(lines))
    return root


def test_a_folder_is_read_like_the_dataset(source, tmp_path):
    folder = folder_of(source, tmp_path / "own")
    found = list(cohort.read(folder, "test"))
    assert [s.unit for s in found] == list("000111")
    for mine, e in zip(found, sources.examples(source), strict=True):
        np.testing.assert_array_equal(mine.image, e["image"][..., 0])
        np.testing.assert_array_equal(mine.mask, e["mask"][..., 0] > 0)
        np.testing.assert_array_equal(mine.lung, e["lung"][..., 0] > 0)
        assert mine.regions is None


def test_effusion_is_no_infection_and_a_missing_label_is_named(source, tmp_path):
    folder = folder_of(source, tmp_path / "own", lambda mask: np.where(mask > 0, 3, 0))
    assert not any(s.mask.any() for s in cohort.read(folder, "test"))
    (folder / "label" / "s2.png").unlink()
    with pytest.raises(ValueError, match="s2: no file of that name under --label"):
        list(cohort.read(folder, "test"))


def test_expert_scores_and_lungs_of_prepared_xrays(tmp_path):
    folder = tfds_builders.prepare(
        "covid_chestxray/xray",
        data_dir=tmp_path / "data",
        manual_dir=dummy_data.make(tmp_path / "covid-chestxray-dataset"),
    )
    splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
    found = {one.name: one for split in splits for one in cohort.read(folder, split["name"])}
    assert found["a-1.jpeg"].experts == {"geographic_extent": 6.0, "opacity": 4.0}
    assert found["e.png"].experts["geographic_extent"] == pytest.approx(0.3)
    assert found["a-2.jpeg"].experts == {} and found["a-2.jpeg"].lung is None
    assert found["a-1.jpeg"].lung.sum() == 100 and found["a-1.jpeg"].mask is None


@pytest.mark.parametrize(
    "name, units",
    [
        ("medseg-volumes", ["1"] * 9),
        ("COVID-SemiSeg-lungs", ["0", "1", "10", "11", "12", "13", "14", "15", "16"]),
    ],
)
def test_the_real_folders(shared, name, units):
    found = list(itertools.islice(cohort.read(shared / "data" / name, "test"), 9))
    assert [s.unit for s in found] == units
    assert all(s.mask.shape == s.lung.shape == s.image.shape for s in found)
    infected = sum(int(s.mask.sum()) for s in found)
    assert sum(int((s.mask & s.lung).sum()) for s in found) > 0.9 * infected > 0


def test_own_lungs_are_looked_up_by_name(source, tmp_path):
    folder = folder_of(source, tmp_path / "own")
    finder, name = scans.choose_lungs(str(folder / "lung"))
    scan = imaging.read(imaging.find([folder / "img" / "s3.png"])[0])
    right = list(sources.examples(source))[3]["lung"][..., 0]
    np.testing.assert_array_equal(finder(scan)[0] > 0, right > 0)
    assert name == "given masks" and scans.choose_lungs("morphology")[1] == "morphology"


@pytest.mark.parametrize(
    "name, number",
    [
        ("Patient 12/CT/IMG-0001-00003.jpg", 12),
        ("Patient 7_4.jpg", 7),
        ("patient0042", 42),
        ("a/Patient 3/Patient 3_1", 3),
        ("Patient 3/Patient 4.jpg", None),
        ("scan7", None),
    ],
)
def test_numbers_in_names(name, number):
    assert cohort.patient_number(name) == number

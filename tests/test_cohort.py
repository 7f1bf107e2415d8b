"""Slices of a cohort: read from datasets, folders and scans, with truth, units and lungs."""

import itertools
import json

import cv2
import numpy as np
import pytest

from infnet_jax import verbs
from infnet_jax.clinic import imaging
from infnet_jax.data import sources
from infnet_jax.verbs import cohort
from tests.builders import build, dummy


@pytest.fixture
def examples(phantom):
    return list(sources.examples(sources.open_split(phantom, "test")))


def folder_of(examples, root, labels=lambda mask: mask):
    """A folder with img/, label/, lung/ and index.csv, as people keep their own slices."""
    lines = ["name,volume"]
    for i, e in enumerate(examples):
        maps = {"img": e["image"], "label": labels(e["mask"]), "lung": 255 * e["lung"]}
        for kind, array in maps.items():
            (root / kind).mkdir(exist_ok=True)
            cv2.imwrite(str(root / kind / f"s{i}.png"), array)
        lines.append(f"s{i}.png,{i // 3}")
    (root / "index.csv").write_text("\n".join(lines))
    return root


def test_a_folder_is_read_like_the_dataset(examples, tmp_path):
    found = list(cohort.read(folder_of(examples, tmp_path), "test"))
    assert [s.unit for s in found] == list("000111")
    for mine, e in zip(found, examples, strict=True):
        np.testing.assert_array_equal(mine.image, e["image"][..., 0])
        np.testing.assert_array_equal(mine.mask, e["mask"][..., 0] > 0)
        np.testing.assert_array_equal(mine.lung, e["lung"][..., 0] > 0)
        assert mine.regions is None


def test_effusion_is_no_infection_and_a_missing_label_is_named(examples, tmp_path):
    folder = folder_of(examples, tmp_path, lambda mask: np.where(mask > 0, 3, 0))
    assert not any(s.mask.any() for s in cohort.read(folder, "test"))
    (folder / "label" / "s2.png").unlink()
    with pytest.raises(ValueError, match="s2: no file of that name under --label"):
        list(cohort.read(folder, "test"))


def test_expert_scores_and_lungs_of_prepared_xrays(tmp_path):
    name = "covid_chestxray/xray"
    folder = build(name, dummy(name, tmp_path / "covid-chestxray-dataset"), tmp_path)
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


def test_own_lungs_are_looked_up_by_name(examples, tmp_path):
    folder = folder_of(examples, tmp_path)
    finder, name = verbs.choose_lungs(str(folder / "lung"))
    scan = imaging.read(imaging.find([folder / "img" / "s3.png"])[0])
    np.testing.assert_array_equal(finder(scan)[0] > 0, examples[3]["lung"][..., 0] > 0)
    assert name == "given masks"


NUMBERS = {
    "Patient 12/CT/IMG-0001-00003.jpg": 12,
    "Patient 7_4.jpg": 7,
    "patient0042": 42,
    "a/Patient 3/Patient 3_1": 3,
    "Patient 3/Patient 4.jpg": None,
    "scan7": None,
}


def test_numbers_in_names():
    assert {name: cohort.patient_number(name) for name in NUMBERS} == NUMBERS

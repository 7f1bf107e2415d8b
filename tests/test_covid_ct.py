"""The covid_ct builder on made-up files."""

import zipfile
from functools import partial

import cv2
import numpy as np
import pytest
from PIL import Image

from tests import builders
from tests.builders import read, report, skipped, the_skip
from tfds_builders.covid_ct import covid_ct_dataset_builder as covid_ct, dummy_data

PICTURES, SPLITS = "Images-processed", ("train", "validation", "test")


@pytest.fixture
def source(tmp_path):
    return dummy_data.make(tmp_path / "COVID-CT")


@pytest.fixture
def unpacked(tmp_path):
    return dummy_data.make(tmp_path / "unpacked", zipped=False)


build = partial(builders.build, "covid_ct")


def test_official_splits_labels_and_pixels(source, unpacked, tmp_path):
    found = read(folder := build(source.parent / "COVID-CT", tmp_path))
    keys = {split: {k for k, e in found.items() if e["split"] == split} for split in SPLITS}
    paper = "covid/2020.01.24.919183-p27-13"
    train = {f"{paper}2.png", f"{paper}3.png", "non_covid/21%0.jpg", "non_covid/21%1.jpg"}
    assert keys["train"] == train
    assert keys["validation"] == {"covid/2020.02.10.20021584-p6-52%0.png", "non_covid/7.png"}
    assert keys["test"] == {"covid/kjr-21-e24-g1.jpg", "non_covid/103.png"}
    assert all(example["label"] == key.startswith("covid/") for key, example in found.items())
    # The original is RGB with equal channels: its luminance is the grey it was made from.
    path = unpacked / PICTURES / "CT_COVID/2020.01.24.919183-p27-133.png"
    grey = np.array(Image.open(path))
    assert grey.shape == (31, 40, 3)
    np.testing.assert_array_equal(found[f"{paper}3.png"]["image"][..., 0], grey[..., 0])
    assert not skipped(folder)


def test_groups_are_patients_or_what_the_picture_was_cut_from(source, tmp_path):
    train = read(build(source, tmp_path), "train")
    groups = {key: example["group"].decode() for key, example in train.items()}
    patients = {key: example["patient"].decode() for key, example in train.items()}
    assert groups["covid/2020.01.24.919183-p27-132.png"] == "covid/1"
    assert patients["covid/2020.01.24.919183-p27-133.png"] == "2"
    assert groups["non_covid/21%0.jpg"] == groups["non_covid/21%1.jpg"] == "non_covid/21"
    assert patients["non_covid/21%0.jpg"] == ""


def test_without_the_meta_table_groups_are_papers(tmp_path):
    source = dummy_data.make(tmp_path / "COVID-CT", table=False)
    train = read(build(source, tmp_path), "train")
    groups = [e["group"].decode() for e in train.values() if e["label"] == 1]
    assert groups == ["covid/2020.01.24.919183"] * 2


def test_origins():
    assert covid_ct.origin("2020.01.24.919183-p27-132.png") == "2020.01.24.919183"
    assert covid_ct.origin("2020.02.10.20021584-p6-52%10.png") == "2020.02.10.20021584"
    assert (covid_ct.origin("21%0.jpg"), covid_ct.origin("103.png")) == ("21", "103")
    assert covid_ct.origin("PIIS0140673620301549%0.png") == "piis0140673620301549"


def test_folders_give_the_records_of_archives(source, unpacked, tmp_path):
    first, second = build(source, tmp_path), build(unpacked, tmp_path / "other")
    for path in first.glob("*array_record*"):
        assert sorted(read(first, "train")) == sorted(read(second, "train"))
        assert path.stat().st_size == (second / path.name).stat().st_size


def test_the_xlsx_is_read_like_the_csv(source, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book, table = openpyxl.Workbook(), source / "COVID-CT-MetaInfo.csv"
    for line in table.read_text().splitlines():
        book.active.append(line.split(","))
    table.unlink()
    book.save(table.with_suffix(".xlsx"))
    train = read(build(source, tmp_path), "train")
    assert train["covid/2020.01.24.919183-p27-132.png"]["patient"] == b"1"


def test_names_may_differ_in_case_and_unicode_form(unpacked, tmp_path):
    below = unpacked / PICTURES / "CT_NonCOVID"
    (below / "7.png").rename(below / "Bru\u0308cke.PNG")  # decomposed, as macOS writes it
    (unpacked / "Data-split/NonCOVID/valCT_NonCOVID.txt").write_text("br\u00fccke.png\r\n")
    folder = build(unpacked, tmp_path)
    assert "non_covid/br\u00fccke.png" in read(folder, "validation") and not skipped(folder)


def spoil(path, data):
    return lambda root: (root / PICTURES / path).write_bytes(data)


KJR = "CT_COVID/kjr-21-e24-g1.jpg"
SKIPS = [  # what to do, file, words of the reason
    (spoil("CT_NonCOVID/103.png", b"no picture"), "CT_NonCOVID/103.png", "not a readable picture"),
    (spoil(KJR, b""), KJR, "empty"),
    (spoil("CT_NonCOVID/more.png", b"x"), "CT_NonCOVID/more.png", "in no split file"),
    (lambda root: (root / PICTURES / KJR).unlink(), KJR, "listed in a split file"),
]


@pytest.mark.parametrize(("damage", "file", "words"), SKIPS, ids=range(len(SKIPS)))
def test_unfit_files_are_skipped_with_a_reason(damage, file, words, unpacked, tmp_path):
    damage(unpacked)
    name, reason = the_skip(folder := build(unpacked, tmp_path))
    assert name.endswith(file) and words in reason
    assert len(read(folder)) == (8 if "more" in file else 7)
    builders.assert_stops("strict", "covid_ct", unpacked, tmp_path / "strict", strict=True)


def test_webp_called_png_is_read(unpacked, tmp_path):
    path = unpacked / PICTURES / "CT_NonCOVID/7.png"
    grey = np.full((20, 20), 90, np.uint8)
    path.write_bytes(cv2.imencode(".webp", grey, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes())
    assert (read(build(unpacked, tmp_path), "validation")["non_covid/7.png"]["image"] == 90).all()


def test_members_that_leave_the_archive_are_refused(source, tmp_path):
    with zipfile.ZipFile(source / PICTURES / "CT_COVID.zip", "a") as archive:
        archive.writestr("../../kjr-21-e24-g1.jpg", b"x")
    folder = build(source, tmp_path)
    assert any("leaves the archive" in reason for reason in skipped(folder).values())
    assert len(read(folder, "test")) == 2
    assert not list(tmp_path.rglob("kjr*"))


LISTS, ZIP = "Data-split/COVID", f"{PICTURES}/CT_COVID.zip"
TWICE = "2020.01.24.919183-p27-132.png"
STOPS = [  # what to do, words of the error
    (lambda s: (s / LISTS / "valCT_COVID.txt").unlink(), "valCT_COVID.txt: split"),
    (lambda s: (s / LISTS / "testCT_COVID.txt").write_text(TWICE), f"{TWICE} is in test and in tr"),
    (lambda s: (s / "COVID-CT-MetaInfo.csv").write_text("a,b\n1,2\n"), "csv: no row has a file na"),
    (lambda s: (s / ZIP).unlink(), "no Images-processed/CT_COVID.zip"),
    (lambda s: (s / ZIP).write_bytes(b"PK"), "CT_COVID.zip: not a whole"),
]


@pytest.mark.parametrize(("damage", "words"), STOPS, ids=range(len(STOPS)))
def test_what_stops_the_build(damage, words, source, tmp_path):
    damage(source)
    builders.assert_stops(words, "covid_ct", source, tmp_path)


@pytest.mark.parametrize(("made", "words"), [("x", "covid_ct is empty"), ("x/y", "Data-split/")])
def test_another_folder_is_told_apart(made, words, tmp_path):
    (tmp_path / made).mkdir(parents=True)
    builders.assert_stops(f"x: .*{words}", "covid_ct", tmp_path / "x", tmp_path)


def test_the_official_counts_are_expected(source, tmp_path):
    expected = report(build(source, tmp_path))["expected"]
    assert [c["expected"] for c in expected.values()] == [425, 118, 203]
    assert [c["found"] for c in expected.values()] == [4, 2, 2]

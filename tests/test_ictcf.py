"""The iCTCF builder: zips and folders, the clinical table, the slice-level set, messy files."""

import collections
import io
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.builders import add, assert_stops, build_and_read, encoded
from tfds_builders.ictcf import clinical, dummy_data
from tfds_builders.ictcf.ictcf_dataset_builder import Picture

pytest.importorskip("openpyxl")


@pytest.fixture
def source(tmp_path):
    return dummy_data.make(tmp_path / "ictcf")


def word(example, name, tmp_path, config="patients"):
    """The text of one of its classes."""
    info = tfds.builder_from_directory(tmp_path / f"data/ictcf/{config}/1.0.0").info
    return info.features[name].int2str(int(example[name]))


def test_patients_packed_and_unpacked(source, tmp_path):
    found, report = build_and_read("ictcf/patients", source, tmp_path)
    everything = found["train"] | found["test"]
    assert len(everything) == 36 and not report["skipped"]
    patients = {s: {e["patient"] for e in found[s].values()} for s in found}
    assert not patients["train"] & patients["test"] and len(patients["test"]) == 6
    example = everything["patient0006/CT/IMG-0001-00002"]
    decoded = np.asarray(Image.open(io.BytesIO(dummy_data.picture(6001))))
    np.testing.assert_array_equal(example["image"][..., 0], decoded)
    words = {"severity": "critically ill", "outcome": "deceased", "ct": "unknown"}
    assert {name: word(example, name, tmp_path) for name in words} == words
    assert (example["age"], example["group"]) == (45, b"patient0006")
    assert example["slice"] == b"CT/IMG-0001-00002"
    assert "mask" not in example  # nobody drew one
    assert report["values"]["severity"] == dict.fromkeys(sorted(clinical.SEVERITIES), 6)
    assert report["expected"]["patients in the table"] == {"expected": 1521, "found": 18}


def test_a_partial_download_is_split_like_the_whole(source, tmp_path):
    whole, _ = build_and_read("ictcf/patients", source, tmp_path)
    for number in (1, 5, 7, 9):
        (source / f"Patient {number}.zip").unlink()
    part, _ = build_and_read("ictcf/patients", source, tmp_path / "again")
    assert all(set(part[split]) <= set(whole[split]) for split in part)
    assert len(part["train"]) + len(part["test"]) == 28


def test_pictures_of_any_form_are_read_and_those_packed_and_unpacked_once(source, tmp_path):
    dummy_data.write_patient(source, 3, packed=False)
    grey = Image.open(io.BytesIO(dummy_data.picture(1)))
    modes = {"rgb.jpg": "RGB", "palette.png": "P", "bits.png": "1", "肺 ünïcode.jpg": "L"}
    files = {name: encoded(grey, mode=mode) for name, mode in modes.items()}
    files["webp.png"] = encoded(grey, "webp", lossless=True)
    for name, data in files.items():
        (source / "Patient 2/CT" / name).write_bytes(data)
    found, report = build_and_read("ictcf/patients", source, tmp_path)
    everything = found["train"] | found["test"]
    for name in files:
        assert f"patient0002/CT/{name.rsplit('.', 1)[0]}" in everything
    np.testing.assert_array_equal(everything["patient0002/CT/webp"]["image"][..., 0], grey)
    assert set(everything["patient0002/CT/bits"]["image"].ravel()) == {0, 255}
    assert len(everything) == 36 + len(files) and len(report["skipped"]) == 2
    assert all("in its place" in reason for reason in report["skipped"].values())


def test_messy_files_are_skipped_with_the_reason(source, tmp_path):
    bad = {
        "cut.jpg": dummy_data.picture(1)[:200],
        "empty.jpg": b"",
        "text.jpg": b"hello" * 99,
        "deep.png": cv2.imencode(".png", np.zeros((4, 4), np.uint16))[1].tobytes(),
        "movie.avi": b"RIFF",
    }
    for name, data in bad.items():
        (source / "Patient 2/CT" / name).write_bytes(data)
    (source / "Patient 99").mkdir()
    (source / "Patient 99/a.jpg").write_bytes(dummy_data.picture(2))
    whole = (source / "Patient 5.zip").read_bytes()
    (source / "Patient 5.zip").write_bytes(whole[: len(whole) // 2])
    add(source / "Patient 7.zip", "../../escaped Patient 7/x.jpg", dummy_data.picture(3))
    spoiled = bytearray((source / "Patient 9.zip").read_bytes())
    spoiled[200] ^= 255  # inside the first picture: its checksum fails
    (source / "Patient 9.zip").write_bytes(spoiled)
    _, report = build_and_read("ictcf/patients", source, tmp_path)
    words = {f"Patient 2/CT/{name}": "" for name in bad} | {
        "Patient 99/a.jpg": "no patient of Patients.xlsx",
        "Patient 5.zip": "download it again",
        "Patient 7.zip/../../escaped Patient 7/x.jpg": "leaves the archive",
        "Patient 9.zip/Patient 9/CT/IMG-0001-00001.jpg": "",
    }
    assert report["skipped"].keys() == words.keys()
    assert all(words[file] in reason for file, reason in report["skipped"].items())
    assert_stops("--strict", "ictcf/patients", source, tmp_path / "strict", strict=True)


def test_bad_rows_are_skipped_and_a_bad_table_is_refused(source, tmp_path):
    rows = dummy_data.rows(18)
    rows[1] = rows[1][:6] + ("Dreadful",) + rows[1][7:]
    rows[3] = rows[2]
    rows[5] = (rows[5][0], None, *rows[5][2:])
    dummy_data.write_table(source / "Patients.xlsx", rows)
    found, report = build_and_read("ictcf/patients", source, tmp_path)
    for row, words in ((3, "morbidity 'Dreadful'"), (5, "has a row already"), (7, "")):
        assert words in report["skipped"][f"Patients.xlsx row {row}"]
    assert len(found["train"] | found["test"]) == 30  # those three have no row now
    (source / "Patients.xlsx").write_bytes(b"PK\3\4 no table")
    assert_stops("Patients.xlsx: not a readable", "ictcf/patients", source, tmp_path / "b")
    (source / "Patients.xlsx").unlink()
    assert_stops("no Patients.xlsx", "ictcf/patients", source, tmp_path / "c")


def test_slices_without_patients_are_one_group(source, tmp_path):
    found, report = build_and_read("ictcf/slices", source.parent / "slices", tmp_path)
    assert set(found) == {"train"} and len(found["train"]) == 6
    assert {e["group"] for e in found["train"].values()} == {b"unknown"}
    example = found["train"]["positive/IMG-00001"]
    assert word(example, "label", tmp_path, "slices") == "positive"
    assert report["values"]["label"] == {"negative": 2, "non_informative": 2, "positive": 2}


def test_slices_with_patients_are_split_by_them(tmp_path):
    below = tmp_path / "s/pCT"
    below.mkdir(parents=True)
    for number in range(1, 21):
        for i in range(2):
            (below / f"Patient {number} ({i}).jpg").write_bytes(dummy_data.picture(number + i))
    found, _ = build_and_read("ictcf/slices", tmp_path / "s", tmp_path)
    patients = {s: {e["patient"] for e in found[s].values()} for s in found}
    assert set(found) == {"train", "test"} and not patients["train"] & patients["test"]


def test_what_a_path_tells():
    def picture(name):
        return Picture(SimpleNamespace(name=name))

    packed = picture("x/Patient 12.zip/Patient 12/CT/IMG-0001-00003.jpg")
    assert packed.patient == 12 and packed.key == "patient0012/CT/IMG-0001-00003"
    assert picture("Patient%2012/CT/IMG-0001-00003.JPG").key == packed.key
    assert picture("Patient 1.zip/Patient 2/CT/a.jpg").patient is None
    assert picture("NiCT.zip/NiCT/a.jpg").kind == "non_informative"
    assert picture("pct/b/nCT/a.jpg").kind == "negative" and picture("a.jpg").kind is None


ILL = {"control": 328, "mild": 24, "regular": 596, "severe": 202, "critically ill": 72}
REAL = {  # column -> the number of patients with each value
    "severity": ILL | {"suspected": 299},
    "sex": {"female": 765, "male": 756},
    "ct": {"positive": 1006, "negative": 336, "unknown": 179},
    "outcome": {"unknown": 802, "cured": 662, "deceased": 57},
}


def test_the_real_table(shared, tmp_path):
    table = shared / "data/iCTCF/Patients.xlsx"
    if not table.is_file():
        pytest.skip("no iCTCF table")
    skipped = []
    rows = clinical.read(table, "Patients.xlsx", lambda *what: skipped.append(what))
    assert len(rows) == 1521 == clinical.PATIENTS and not skipped and sorted(rows)[-1] == 1521
    for column, counts in REAL.items():
        assert collections.Counter(getattr(row, column) for row in rows.values()) == counts
    split_of = clinical.split_patients(rows)
    for severity in clinical.SEVERITIES:
        ours = [split_of[n] for n, row in rows.items() if row.severity == severity]
        assert ours.count("test") == len(ours) - round(0.8 * len(ours))
    source = tmp_path / "s"
    for number in (1, 300, 1000, 1521, 77, 900):
        dummy_data.write_patient(source, number, packed=number % 2 == 1)
    (source / "Patients.xlsx").write_bytes(table.read_bytes())
    found, report = build_and_read("ictcf/patients", source, tmp_path, strict=True)
    for example in [e for split in found.values() for e in split.values()]:
        row = rows[int(example["patient"][-4:])]
        assert word(example, "severity", tmp_path) == row.severity
        assert example["age"] == row.age

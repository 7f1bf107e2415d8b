"""The quality report: counts by hand, skips, strictness, look-alikes, merging, and the sheet."""

import json

import cv2
import numpy as np
import pytest

import tfds_builders
from tfds_builders import __main__ as command, base, contact_sheet, hashing, report
from tfds_builders.ictcf import dummy_data
from tfds_builders.report import Report


def png(array):
    return base.encode_png(np.asarray(array, np.uint8))


def chequered(seed, side=64):
    noise = np.random.default_rng(seed).integers(0, 256, (24, 24), dtype=np.uint8)
    return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)


def test_figures_by_hand():
    made = Report("x", counted=("label",))
    sick = {"image": png([[0, 100], [100, 200]]), "mask": png([[0, 1], [2, 2]]), "label": "sick"}
    well = {"image": png([[100, 100]]), "mask": png([[0, 0]])}
    made.add("a", {**sick, "group": "p"})
    made.add("b", {**well, "label": "well", "group": "p"})
    made.add("c", {**well, "labelled": False})
    got = made.as_dict()
    assert (got["read"], got["groups"], got["skipped_count"]) == (3, 2, 0)
    assert got["intensity"] == {"min": 0, "max": 200, "mean": 100.0, "sd": 50.0}
    classes = {label: (c["pixels"], c["examples"]) for label, c in got["mask_classes"].items()}
    assert classes == {"0": (3, 2), "1": (1, 1), "2": (2, 1)}
    assert got["values"] == {"label": {"sick": 1, "well": 1}}
    assert got["sizes"] == {"1x2": 2, "2x2": 1}
    text = report.summary(got)
    assert "3 examples in 2 groups" in text and "mask class 1: 16.67% of pixels, in 1" in text


def test_skips_and_strictness():
    made = Report("x")

    def bad(value):
        raise ValueError(f"f.png: holds {value}")

    assert made.attempt("f.png", bad, 7) is None and made.skipped == {"f.png": "holds 7"}
    assert made.attempt("g.png", lambda: 5) == 5 and "g.png" not in made.skipped
    with pytest.raises(KeyError):  # a fault of ours is no fault of the file
        made.attempt("g.png", {}.__getitem__, "no")
    for i in range(12):
        made.skip(f"h{i}", "odd")
    made.expect("slices", 829, 800)
    text = report.summary(made.as_dict())
    assert "and 3 more" in text and "COUNT: 800 slices, the whole dataset has 829" in text
    strict = Report("x", strict=True)
    with pytest.raises(ValueError, match="^f.png: holds 7 .*--strict"):
        strict.attempt("f.png", bad, 7)
    with pytest.raises(ValueError, match="800 slices, the whole dataset has 829"):
        strict.expect("slices", 829, 800)
    strict.expect("slices", 829, 829)


def test_look_alikes():
    made, one = Report("x"), chequered(0)
    coded, poor = (
        cv2.imdecode(cv2.imencode(".jpg", one, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)
        for quality in (60, 15)
    )
    assert (hashing.perceptual_hash(coded) != hashing.perceptual_hash(poor)).any()
    made.add("a", {"image": png(one), "group": "p"})
    made.add("b", {"image": png(one), "group": "p"})
    for key, picture in (("c", coded), ("e", poor), ("d", chequered(1))):
        made.add(key, {"image": png(picture), "group": "q"})
    for key in ("flat", "flat too"):
        made.add(key, {"image": png(one * 0), "group": key})
    found = {a + b: same for a, b, same in made.duplicates()}
    # Not c and e: neighbours of one patient may look alike.
    assert found == {"ab": True, "ac": False, "bc": False, "ae": False, "be": False}
    summary = report.summary(made.as_dict())
    assert "look-alikes: 5 pairs, of those listed 4 between groups" in summary


def test_many_pictures_are_compared_by_equal_hashes(monkeypatch):
    monkeypatch.setattr(report, "MAX_COMPARED", 2)
    made = Report("x")
    for key, seed in (("a", 0), ("b", 1), ("c", 0), ("d", 0)):
        made.add(key, {"image": png(chequered(seed))})
    assert [pair[:2] for pair in made.duplicates()] == [("a", "c"), ("a", "d")]


def test_merged_reports_equal_one(monkeypatch):
    monkeypatch.setattr(report, "MAX_TILES", 4)
    whole = Report("x", counted=("label",))
    parts = [Report("x", counted=("label",)) for _ in range(3)]
    for i in range(9):
        example = {"image": png(chequered(i)), "mask": png(np.full((64, 64), i % 3))}
        for made in (whole, parts[i % 3]):
            made.add(f"k{i}", {**example, "label": f"l{i % 2}", "group": f"g{i % 4}"})
            made.skip(f"s{i}", "odd")
    merged = Report("x", counted=("label",))
    for part in reversed(parts):
        merged.merge(json.loads(json.dumps(part.state())))
    assert merged.as_dict() == whole.as_dict()
    assert len(merged.as_dict()["contact_sheet"]) == 4


def test_tiles_by_hand():
    tile = contact_sheet.tile(np.full((50, 100), 200, np.uint8), None)
    assert tile.shape == (96, 96, 3) and (tile[24:72] == 200).all()
    assert not tile[:24].any() and not tile[72:].any()
    mask = np.zeros((96, 96), np.uint8)
    mask[:48] = 1
    tinted = contact_sheet.tile(np.full((96, 96), 100, np.uint8), mask)
    assert (tinted[60] == 100).all()
    assert (tinted[10] == np.round(0.55 * 100 + 0.45 * np.array([255, 170, 0]))).all()
    framed = contact_sheet.tile(np.zeros((96, 96), np.uint8), mask[:50])
    assert (framed[0] == (255, 0, 0)).all()  # mask and picture out of step
    assert contact_sheet.sheet([tile] * 9).shape == (2 * 96, 8 * 96, 3)


def test_a_build_writes_report_and_sheet(tmp_path, capsys):
    pytest.importorskip("openpyxl")
    source = dummy_data.make(tmp_path / "ictcf", patients=12)
    (source / "Patient 2/CT/cut.jpg").write_bytes(dummy_data.picture(0)[:99])
    arguments = ["build", "ictcf", f"--manual_dir={source}", f"--data_dir={tmp_path / 'data'}"]
    assert command.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "ictcf: 24 examples in 12 groups; 1 files skipped" in err
    assert "skipped Patient 2/CT/cut.jpg: not a readable picture" in err
    folder = tmp_path / "data/ictcf/patients/1.0.0"
    assert out == f"{folder}\n"
    text = (folder / "report.json").read_text()
    assert str(tmp_path) not in text
    assert list(json.loads(text)["skipped"]) == ["Patient 2/CT/cut.jpg"]
    page = cv2.imread(str(folder / "contact_sheet.png"))
    assert page.shape == (3 * 96, 8 * 96, 3) and page.std() > 20
    assert command.main([*arguments, "--strict"]) == 1  # what is there has skips
    assert "built with skips or short counts" in capsys.readouterr().err
    fresh = [*arguments[:-1], f"--data_dir={tmp_path / 'fresh'}", "--strict"]
    assert command.main(fresh) == 1
    assert "--strict" in capsys.readouterr().err
    assert not list((tmp_path / "fresh").rglob("1.0.0"))
    assert tfds_builders.report_of(tmp_path) == {}

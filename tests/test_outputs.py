"""What `predict` takes as input and leaves in a folder: never stale, never half, never silent."""

import csv
import json
import os
import shutil
import subprocess
import sys

import cv2
import jax
import nibabel as nib
import numpy as np
import pytest

from infnet_jax import cli, verbs
from infnet_jax.clinic import imaging
from infnet_jax.verbs import inputs, kept, predict
from tests.scans import Rule, chest


@pytest.fixture
def run(tmp_path):
    """run(*words, rule=...) -> (exit code, slices that the rule was given); output in OUT."""

    def call(*words, rule=None):
        rule = rule or Rule()
        words = [*words, "--checkpoint", tmp_path]
        words += [] if "--out" in words else ["--out", tmp_path / "out"]
        code = predict.run(cli.parse(["predict", *map(str, words)]), rule)
        return code, rule.n_slices

    return call


def save(path, picture=None, lesion=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), chest(lesion=lesion) if picture is None else picture)
    return path


def volume(path, lesion=9, depth=2, dtype=np.int16, values=None, side=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.stack([chest(lesion=lesion)] * depth).transpose(2, 1, 0)
    values = np.round(grey / 255 * 1500 - 1350) if values is None else values(grey)
    nib.save(nib.Nifti1Image(values.astype(dtype), np.diag([-side, -side, 2, 1])), path)
    return path


def document(out):
    return json.loads((out / "severity.json").read_text())


def patients(out):
    """The patients of the JSON file, after a look whether table, page and masks have the same."""
    found = [p["patient"] for p in document(out)["patients"]]
    with (out / "severity.csv").open() as file:
        assert [row["patient"] for row in csv.DictReader(file)] == found
    page = (out / "report.html").read_text()
    assert page.count('<section class="patient"') == page.count('<th scope="row"><a ') == len(found)
    assert all(f">{name}</h2>" in page for name in found)
    return found


def masks(out):
    return {path.name: path.read_bytes() for path in (out / "masks").iterdir()}


def test_own_outputs_are_no_inputs(run, tmp_path, capsys):
    data = tmp_path / "data"
    volume(data / "ct.nii.gz")
    for _ in range(3):
        assert run(data, "--out", data / "out", "--save-probabilities") == (0, 2)
        assert patients(data / "out") == ["ct"]
    assert f"{data / 'out' / 'masks'}: written by infnet-jax" in capsys.readouterr().err
    assert run(data) == (0, 2)  # those of another run neither
    with pytest.raises(ValueError, match="masks: written by infnet-jax"):
        run(data / "out" / "masks")


@pytest.mark.parametrize("kind", ["notes.txt", "empty"])
def test_an_input_of_no_use_stops_no_other(run, tmp_path, capsys, kind):
    path, good = tmp_path / kind, save(tmp_path / "good.png")
    path.mkdir() if kind == "empty" else path.write_text("plain words" * 99)
    assert run(path, good)[0] == 1 and patients(tmp_path / "out") == ["good"]
    assert f"passed over: {path}: no" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"{path}: no"):
        run(path)
    assert run(tmp_path / "out" / "masks", path, good)[0] == 1
    assert "no input given" not in capsys.readouterr().err
    words = ["severity", path, tmp_path / "out" / "masks", "--images", good]
    assert cli.main([*map(str, words), "--out", str(tmp_path / "scores")]) == 1
    assert f"passed over: {path}: no" in capsys.readouterr().err
    assert patients(tmp_path / "scores") == ["good"]


def test_pictures_of_a_training_run_are_no_inputs(run, tmp_path, capsys):
    save(tmp_path / "data" / "a.png"), save(tmp_path / "data" / "work" / "figures" / "b.png")
    for name in inputs.RUN:
        (tmp_path / "data" / "work" / name).touch()
    assert run(tmp_path / "data") == (0, 1)
    assert f"{tmp_path / 'data' / 'work'}: written by infnet-jax" in capsys.readouterr().err


def test_a_folder_of_an_earlier_version_is_done_anew(run, tmp_path):
    path, marker = save(tmp_path / "a.png"), tmp_path / "out" / ".finished" / "a.json"
    run(path)
    old = {k: v for k, v in json.loads(marker.read_text()).items() if k in ("model", "thresholds")}
    marker.write_text(json.dumps(old | {"file": "a.png"}))
    assert run(path, "--continue") == (0, 1) and run(path, "--continue") == (0, 0)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_a_file_that_may_not_be_read_is_said(run, tmp_path, capsys):
    save(tmp_path / "data" / "a.png")
    secret = tmp_path / "data" / "secret"
    secret.touch(0)
    assert run(tmp_path / "data")[0] == 1 and patients(tmp_path / "out") == ["a"]
    assert f"{secret}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["mask.png", "two.png", "grey.png", "mask.nii.gz", "lobes.nii"])
def test_label_maps_are_no_scans(run, tmp_path, capsys, kind):
    path, scan = tmp_path / "data" / kind, volume(tmp_path / "data" / "ct.nii.gz")
    if kind.endswith("png"):
        low, high = {"mask": (1, 2), "two": (255, 255), "grey": (127, 255)}[path.stem]
        lesion = (chest() > 90) & (chest() < 150)
        save(path, np.where(lesion, low, (chest() == 30) * high * np.eye(96)).astype(np.uint8))
    else:
        volume(path, dtype=np.uint8, values=lambda grey: (grey == 30) * (3 + (grey > 5)))
    assert run(tmp_path / "data") == (0, 2) and patients(tmp_path / "out") == ["ct"]
    assert f"passed over: {path}: a label map, no scan" in capsys.readouterr().err
    assert run(scan, path)[0] == 1  # by its name
    assert f"{path}: a label map, no scan" in capsys.readouterr().err


def test_blank_masks_are_no_failures_but_blank_scans_are(run, tmp_path, capsys):
    blank = np.zeros((96, 96), np.uint8)
    save(tmp_path / "data" / "scans" / "a.png")
    paths = [save(tmp_path / "data" / "masks" / f"{name}.png", blank) for name in "abc"]
    save(paths[1], np.eye(96, dtype=np.uint8))
    assert run(tmp_path / "data")[0] == 0
    said = capsys.readouterr().err
    assert f"passed over: {paths[0]} and 1 more there: blank" in said
    assert f"passed over: {paths[1]}: a label map" in said
    paths[1].unlink()
    assert run(tmp_path / "data")[0] == 1 and run(tmp_path / "data" / "scans", paths[0])[0] == 1
    assert f"predict: {paths[0]} and 1 more there: blank, no scan" in capsys.readouterr().err


def test_label_maps_alone_are_a_failure(run, tmp_path):
    save(tmp_path / "data" / "a.png", np.eye(96, dtype=np.uint8))
    assert run(tmp_path / "data") == (1, 0)


def test_masks_of_another_hand_are_not_overwritten(run, tmp_path):
    scan, mask = save(tmp_path / "data" / "a.png"), save(tmp_path / "data" / "masks" / "a.png")
    before = mask.read_bytes()
    with pytest.raises(ValueError, match="masks has files that predict did not write"):
        run(scan, "--out", tmp_path / "data")
    assert mask.read_bytes() == before


def test_a_second_run_adds_its_scans(run, tmp_path, capsys):
    out = tmp_path / "out"
    a, b, c = (
        save(tmp_path / f"{name}.png", lesion=n) for name, n in (("a", 9), ("b", 5), ("c", 7))
    )
    run(a, b)
    before = document(out)["patients"]
    capsys.readouterr()
    assert run(c) == (0, 1) and patients(out) == ["a", "b", "c"]
    assert document(out)["patients"][:2] == before
    assert "1 scored, 0 failed; 2 patients of earlier runs kept" in capsys.readouterr().out
    assert run(b) == (0, 1) and sorted(patients(out)) == ["a", "b", "c"]
    at_once = tmp_path / "at_once"
    run(a, c, b, "--out", at_once)
    for file in ("severity.csv", "severity.json", "report.html"):
        assert (out / file).read_text() == (at_once / file).read_text()


def test_models_are_not_mixed(run, tmp_path):
    a, b = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    run(a)
    before = document(tmp_path / "out"), masks(tmp_path / "out")
    with pytest.raises(ValueError, match="a and others there come from another model"):
        run(b, rule=Rule(weights="def"))
    assert before == (document(tmp_path / "out"), masks(tmp_path / "out"))
    assert run(a, b, rule=Rule(weights="def"))[0] == 0  # all anew


def test_a_patient_is_scored_whole(run, tmp_path):
    a, b = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    run(a, "--one-patient")
    for words in ([b, "--one-patient"], [b]):
        if len(words) == 2:
            with pytest.raises(
                ValueError, match="patient out has other scans too .a.; give them all"
            ):
                run(*words)
    assert run(a, b, "--one-patient", "--continue") == (0, 1)
    with pytest.raises(ValueError, match="patient out has other scans too .b."):
        run(a)
    assert run(a, b)[0] == 0 and patients(tmp_path / "out") == ["a", "b"]


def test_a_patient_of_whom_a_scan_failed_says_so(run, tmp_path):
    (tmp_path / "b.png").write_bytes(b"")
    assert run(save(tmp_path / "a.png"), tmp_path / "b.png", "--one-patient")[0] == 1
    (one,) = document(tmp_path / "out")["patients"]
    assert "out: 1 scans failed and are missing" in one["warnings"]


@pytest.mark.parametrize(("spacing", "names"), [(0.8000001, ["out"]), (0.9, ["a", "b"])])
def test_spacings_that_differ(run, tmp_path, capsys, spacing, names):
    for name, side in (("a", 0.8), ("b", spacing)):
        volume(tmp_path / f"{name}.nii", side=side)
    code, _ = run(tmp_path / "a.nii", tmp_path / "b.nii", "--one-patient")
    assert patients(tmp_path / "out") == names and code == len(names) - 1
    assert ("several spacings" in capsys.readouterr().err) == bool(code)


def rewrite(folder):
    volume(folder / "ct.nii.gz", lesion=3)


def spoil_marker(folder):
    (folder / "out" / ".finished" / "ct.json").write_text('{"mo')


def spoil_mask(folder):
    path = folder / "out" / "masks" / "ct.nii.gz"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rewrite, []),
        (spoil_marker, []),
        (spoil_mask, []),
        (lambda folder: (folder / "out" / "masks" / "ct.nii.gz").unlink(), []),
        (lambda folder: None, ["--save-probabilities"]),
        (lambda folder: None, ["--keep-identifiers"]),
    ],
)
def test_going_on_runs_again_what_is_not_as_it_was(run, tmp_path, change, words):
    scan, out = volume(tmp_path / "ct.nii.gz"), tmp_path / "out"
    assert run(scan) == (0, 2)
    assert run(scan, "--continue") == (0, 0)
    change(tmp_path)
    assert run(scan, *words, "--continue") == (0, 2)
    found = document(out)["patients"], masks(out)
    shutil.rmtree(out)
    run(scan)
    assert found == (document(out)["patients"], masks(out))


def test_a_mask_that_was_corrected_by_hand_is_kept_and_said(run, tmp_path, capsys):
    scan = save(tmp_path / "a.png")
    run(scan)
    mask = save(tmp_path / "out" / "masks" / "a.png", np.eye(96, dtype=np.uint8))
    before = mask.read_bytes()
    for more in (["--continue"], ["--continue"], []):
        assert run(scan, *more) == (1, 0)
        assert "a.png was changed since it was written" in capsys.readouterr().err
        assert mask.read_bytes() == before


def test_warnings_are_read_back(run, tmp_path):
    lung = np.zeros((96, 96), np.uint8)
    lung[30:66, 60:80] = 1
    words = [save(tmp_path / "a.png"), "--lungs", save(tmp_path / "lung" / "a.png", lung)]
    run(*words)
    before = document(tmp_path / "out")["patients"][0]["warnings"]
    assert "a: 100 % of the marked pixels touched no lung and were dropped" in before
    assert run(*words, "--continue") == (0, 0)
    assert document(tmp_path / "out")["patients"][0]["warnings"] == before


def test_another_scan_of_the_same_name_is_refused(run, tmp_path, capsys):
    one, other = save(tmp_path / "p1" / "ct.png"), save(tmp_path / "p2" / "ct.png", lesion=3)
    run(one)
    before = masks(tmp_path / "out"), document(tmp_path / "out")
    assert run(other) == (1, 0)
    assert f"{other}: {tmp_path / 'out'} has another scan named ct" in capsys.readouterr().err
    assert before == (masks(tmp_path / "out"), document(tmp_path / "out"))
    moved = shutil.copytree(tmp_path / "p1", tmp_path / "moved")
    assert run(moved, "--continue") == (0, 0)


def test_a_scan_that_can_no_longer_be_read_leaves_nothing_behind(run, tmp_path):
    a, b = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    run(a, b)
    a.write_bytes(b"spoilt")
    assert run(a, b)[0] == 1
    assert patients(tmp_path / "out") == ["b"] and list(masks(tmp_path / "out")) == ["b.png"]


def test_two_runs_at_once_do_not_mix(run, tmp_path):
    pytest.importorskip("fcntl")
    path = save(tmp_path / "a.png")
    with kept.held(tmp_path / "out"), pytest.raises(ValueError, match="another run is writing"):
        run(path)
    assert run(path) == (0, 1)


def test_a_run_that_broke_off_is_said(run, tmp_path, capsys):
    a, b = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    run(a)
    (tmp_path / "out" / "severity.json").unlink()
    run(b)
    assert "masks without scores of a run that broke off: a" in capsys.readouterr().err
    assert run(a, b, "--continue") == (0, 0) and patients(tmp_path / "out") == ["a", "b"]


def test_every_warning_is_said_with_the_scan_s_name(run, tmp_path, capsys):
    lung = np.zeros((96, 96), np.uint8)
    lung[30:66, 60:80] = 1  # the lesion lies in the other one
    path = save(tmp_path / "odd.png")
    run(path, "--lungs", save(tmp_path / "lung" / "odd.png", lung))
    said = capsys.readouterr().err
    (one,) = document(tmp_path / "out")["patients"]
    assert one["warnings"]
    for note in one["warnings"]:
        assert note.removeprefix("odd: ") in said and "warning: odd: " in said


@pytest.mark.parametrize(
    ("data", "word"),
    [("phantom/tiny", "drawings"), ("covid_chestxray/xray", "X-rays"), ("medseg", ""), ("", "")],
)
def test_a_network_that_never_saw_ct(run, tmp_path, capsys, data, word):
    rule = Rule()
    rule.identity |= {"trained on": f"{data}, train"}
    assert run(save(tmp_path / "a.png"), rule=rule)[0] == 0
    said, page = capsys.readouterr().err, (tmp_path / "out" / "report.html").read_text()
    warnings = document(tmp_path / "out")["patients"][0]["warnings"]
    for place in (said, page, " ".join(warnings)):
        assert ("the network was trained on" in place) == bool(word) and word in place
    assert ('<p class="caution"' in page) == bool(word)


@pytest.mark.parametrize("error", [KeyError("Rows"), MemoryError(), RecursionError("deep")])
def test_no_exception_of_a_reader_stops_the_others(run, tmp_path, monkeypatch, capsys, error):
    def fail(*_):
        raise error

    broken = imaging.FORMATS["nifti"]._replace(read=fail)
    monkeypatch.setitem(imaging.FORMATS, "nifti", broken)
    bad = volume(tmp_path / "in" / "bad.nii")
    save(tmp_path / "in" / "good.png")
    assert run(tmp_path / "in")[0] == 1 and patients(tmp_path / "out") == ["good"]
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "bad" in line)
    assert str(bad) in line and type(error).__name__ in line


def test_no_exception_of_a_reader_of_masks_either(tmp_path, monkeypatch):
    def fail(path):
        raise ZeroDivisionError

    broken = imaging.FORMATS["nifti"]._replace(read_labels=fail)
    monkeypatch.setitem(imaging.FORMATS, "nifti", broken)
    for debug in (False, True):
        if debug:
            monkeypatch.setenv("INFNET_DEBUG", "1")
        with pytest.raises(ValueError, match="a.nii: ZeroDivisionError") as caught:
            imaging.read_labels(tmp_path / "a.nii")
        assert isinstance(caught.value.__cause__, ZeroDivisionError) == debug


def test_a_bug_of_ours_is_one_line_too(run, tmp_path, capsys):
    class Odd(Rule):
        def __call__(self, slices):
            raise IndexError("off by one")

    assert run(save(tmp_path / "a.png"), rule=Odd())[0] == 1
    assert "a.png: IndexError: off by one (INFNET_DEBUG=1 shows where)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_a_device_that_is_not_there(kind):
    if jax.default_backend() == kind:
        pytest.skip(f"there is a {kind}")
    with pytest.raises(ValueError, match=f"--device {kind}: jax finds cpu only"):
        verbs.use_device(kind)
    verbs.use_device("cpu")


@pytest.mark.slow
def test_a_platform_that_jax_lacks_is_not_blamed_on_the_checkpoint():
    code = "from infnet_jax import verbs; verbs.load('nowhere')"
    env = os.environ | {"JAX_PLATFORMS": "cuda"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if jax.default_backend() == "cpu":
        assert "ValueError: JAX_PLATFORMS=cuda: jax finds cpu only" in run.stderr


@pytest.mark.parametrize("words", [[], ["--checkpoint", "."]])
def test_checkpoint_and_out_are_needed_but_for_lists(words, tmp_path, capsys):
    path = save(tmp_path / "a.png")
    assert cli.main(["predict", str(path), *words]) == 2
    assert "is required" in capsys.readouterr().err
    assert cli.main(["predict", str(path), *words, "--list"]) == 0
    assert capsys.readouterr().out == f"a  picture  {path}\n"


class TestSeries:
    """Two CT series, and what a PACS puts beside them."""

    @pytest.fixture
    def folder(self, tmp_path):
        """Series 2 and 7 with three slices each, a report, and a file that is cut off."""
        pytest.importorskip("pydicom")
        from tests.test_dicom import _save as save_slice

        folder = tmp_path / "pacs"
        for i in range(3):
            save_slice(folder / f"a{i}", i, series="1.2", SeriesNumber=2, SeriesDescription="Lung")
            save_slice(folder / f"b{i}", i, series="1.3", SeriesNumber=7)
        save_slice(folder / "report.dcm", 2, series="1.4", Modality="SR", PixelData=None)
        return folder

    def test_a_list(self, folder, capsys):
        assert cli.main(["predict", str(folder), "--list"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0] == "pacs_series2  dicom  2 Lung  3 slices"
        assert said[1] == "pacs_series7  dicom  7  3 slices"
        assert said[2] == f"passed over: {folder / 'report.dcm'}: modality SR; CT expected"
        assert cli.main(["predict", str(folder), "--list", "--series", "9"]) == 1
        assert "no series of number 9; there are: 2, 7" in capsys.readouterr().err

    def test_one_series_and_a_damaged_file(self, folder, run, capsys):
        lungs = folder.parent / "lungs"
        hu = imaging.read(imaging.find([folder], number="7")[0])
        array = hu.grid.source((hu.values < -700).astype(np.uint8) * (hu.values > -900))
        lungs.mkdir()
        nib.save(nib.Nifti1Image(array, hu.affine), lungs / "pacs_series7.nii.gz")
        words = [folder, "--series", "7", "--lungs", lungs]
        assert run(*words)[0] == 0 and patients(folder.parent / "out") == ["pacs_series7"]
        report = f"passed over: {folder / 'report.dcm'}: modality SR; CT expected"
        assert capsys.readouterr().err.count(report) == 1
        (folder / "c.dcm").write_bytes((folder / "a0").read_bytes()[:200])
        assert run(*words)[0] == 1
        assert "c.dcm: " in capsys.readouterr().err

    def test_masks_of_predict_are_scored_beside_their_segs(self, folder, capsys, monkeypatch):
        scan = imaging.read(imaging.find([folder], number="7")[0])
        scan.name = "pacs"
        out = folder.parent / "out" / "masks"
        imaging.write_mask(scan, scan.values > 30, out)
        assert {path.suffix for path in out.iterdir()} == {".gz", ".dcm"}
        words = ["--images", str(folder), "--series", "7", "--out", str(folder.parent / "scores")]
        monkeypatch.setattr(
            "infnet_jax.clinic.lungs.segment", lambda pictures: (pictures > 20) & (pictures < 150)
        )
        assert cli.main(["severity", str(out), *words]) == 0, capsys.readouterr().err
        assert patients(folder.parent / "scores") == ["pacs"]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_disc_with_a_damaged_series(packed, run, tmp_path, capsys):
    """Two good series, a scout, a report, a SEG, and a series of which one slice is cut off."""
    pytest.importorskip("highdicom")
    from tests.test_ways import dicom

    disc = tmp_path / "disc"
    for number in (2, 5, 7):

        def change(d, path, number=number):
            d.SeriesInstanceUID, d.SeriesNumber = f"1.2.{number}", number
            d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = (
                f"1.2.{number}.{d.InstanceNumber}"
            )

        part = tmp_path / str(number)
        part.mkdir()
        dicom(change=change, given="pacs" if number == 2 else "folder")(part)
        shutil.copytree(part / "series", disc / str(number))
    scan = imaging.read(imaging.find([disc], number="7")[0])
    imaging.write_mask(scan, (scan.values > 30).astype(np.uint8), tmp_path / "seg")
    shutil.copy(next((tmp_path / "seg").glob("*.dcm")), disc / "mask.dcm")
    bad = sorted((disc / "5").iterdir())[4]
    bad.write_bytes(bad.read_bytes()[:-2000])
    capsys.readouterr()
    given = shutil.make_archive(str(tmp_path / "sent"), "zip", disc) if packed else disc
    assert run(given)[0] == 1
    found = ["sent_series2", "sent_series7"] if packed else ["2", "7"]  # by folder, if there is one
    assert patients(tmp_path / "out") == found
    assert len(masks(tmp_path / "out")) == 4  # NIfTI and SEG of each
    said = capsys.readouterr().err
    for words in ("scout: a localizer", "report: modality SR", "mask.dcm: modality SEG"):
        assert any("passed over" in line and words in line for line in said.splitlines())
    assert f"{bad.name}: truncated" in said

"""The verb `severity` and what it shares with `predict`: files in, tables and a page out."""

import csv
import json

import cv2
import nibabel as nib
import numpy as np
import pytest

from infnet_jax import cli
from infnet_jax.clinic import imaging
from infnet_jax.clinic.imaging import pictures
from tfds_builders.phantom.phantom_dataset_builder import make_patient

AFFINE = np.diag([-1.0, -1.0, 5.0, 1.0])


@pytest.fixture(scope="module")
def slices():
    return list(make_patient(1, 0, n_slices=3, size=96))


@pytest.fixture
def folders(slices, tmp_path):
    """Pictures, palette masks, grey lungs and region maps of a phantom, by name."""
    for kind in ("image", "mask", "lung", "region"):
        (tmp_path / kind).mkdir()
        for i, e in enumerate(slices):
            path = tmp_path / kind / f"s{i}.png"
            if kind != "mask":
                cv2.imwrite(str(path), e[kind])
            else:
                path.write_bytes(pictures.encode_mask(e[kind]))
    return tmp_path


def severity(*words):
    """Runs the verb, by whose last word the output is; returns the exit code and the patients."""
    code = cli.main(["severity", *(str(word) for word in words[:-1]), "--out", str(words[-1])])
    return code, json.loads((words[-1] / "severity.json").read_text())["patients"]


def test_slices_of_one_patient_are_pooled_and_ct_ss_is_the_truth(folders, slices, capsys):
    out = folders / "out"
    maps = ["--lung", folders / "lung", "--images", folders / "image"]
    maps += ["--regions", folders / "region"]
    code, (patient,) = severity(folders / "mask", *maps, "--one-patient", out)
    assert code == 0
    truth = 0
    for r in range(1, 21):
        whole = sum((e["region"] == r).sum() for e in slices)
        sick = sum(((e["region"] == r) & (e["mask"] > 0)).sum() for e in slices)
        truth += int(sick > 0) + int(2 * sick >= whole)
    assert patient["patient"] == "mask" and patient["scans"] == ["s0", "s1", "s2"]
    assert patient["scores"]["ct_ss"] == truth > 0
    (row,) = csv.DictReader((out / "severity.csv").read_text().splitlines())
    assert float(row["ct_ss"]) == truth and "region_shares" not in row
    assert (out / "report.html").read_text().count('data-slice="') == 3
    assert "3 scored, 0 failed" in capsys.readouterr().out


def test_each_mask_is_a_patient_of_its_own_and_one_failure_stops_nothing(folders, capsys):
    (folders / "lung" / "s1.png").unlink()
    cv2.imwrite(str(folders / "lung" / "s2.png"), np.ones((5, 5), np.uint8))
    out = folders / "out"
    code, patients = severity(folders / "mask", "--lung", folders / "lung", out)
    assert code == 1 and [p["patient"] for p in patients] == ["s0"]
    warned, *errors = capsys.readouterr().err.splitlines()
    assert "warning: s0: no image given" in warned
    assert len(errors) == 2 and "s1: no file of that name under --lung" in errors[0]
    assert "s2.png: shape (1, 5, 5)" in errors[1]
    assert not list(out.glob(".part*"))


def _volume(depth=8):
    """HU, mask, lung on the canonical grid: a chest whose right base is ill."""
    z, y, x = np.mgrid[:depth, :64, :64]
    hu = np.full((depth, 64, 64), -1000, np.int16)
    hu[((x - 32) / 30) ** 2 + ((y - 32) / 24) ** 2 < 1] = 40
    right, left = (((x - c) / 11) ** 2 + ((y - 32) / 16) ** 2 < 1 for c in (18, 46))
    hu[right | left] = -850
    mask = (right & (z < 3) & (y > 36)).astype(np.uint8)
    mask[(mask > 0) & (y > 42)] = 2
    hu[mask == 1], hu[mask == 2] = -500, 0
    return hu, mask, right | left


def _save(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine), path)
    return path


def test_nnunet_names_lungs_by_morphology_and_hu(tmp_path):
    hu, mask, lung = _volume()
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    _save(tmp_path / "images" / "case_0000.nii.gz", hu)
    _save(tmp_path / "masks" / "case.nii.gz", mask)
    words = [tmp_path / "masks", "--images", tmp_path / "images", tmp_path / "out"]
    code, (patient,) = severity(*words)
    scores = patient["scores"]
    assert code == 0
    assert scores["infected_share"] == pytest.approx((mask > 0).sum() / lung.sum(), abs=0.03)
    assert scores["pho_percent"] == pytest.approx(100 * (mask == 2).sum() / lung.sum(), abs=2)
    assert scores["lung_ml"] == pytest.approx(lung.sum() * 0.005, rel=0.1)
    assert scores["ct_ss"] > 0 and scores["six_zone"] > 0 and scores["lobar_25"] is None
    assert all(p == 0 for p in scores["ct_ss_regions"][10:])  # the left lung is well


def test_a_flipped_volume_has_the_same_scores(tmp_path):
    hu, mask, _ = _volume()
    flip = AFFINE @ np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = AFFINE[0, 0] * (hu.shape[2] - 1)
    results = []
    for name, affine, turn in (("a", AFFINE, 1), ("b", flip, -1)):
        image = _save(tmp_path / f"{name}_image.nii", hu[..., ::turn], affine)
        path = _save(tmp_path / f"{name}.nii", mask[..., ::turn], affine)
        code, (patient,) = severity(path, "--images", image, tmp_path / name)
        assert code == 0
        results.append(patient["scores"])
    assert results[0] == results[1] and results[0]["ct_ss"] > 0


def test_lobes_give_the_lobar_scores(tmp_path):
    hu, mask, lung = _volume()
    z = np.arange(8)[:, None, None]
    x = np.arange(64)[None, None, :]
    lobes = np.where(x > 32, np.where(z > 3, 1, 2), np.where(z > 5, 3, np.where(z > 3, 4, 5)))
    lobes = (lobes * lung).astype(np.uint8)
    paths = _save(tmp_path / "m.nii", mask), _save(tmp_path / "l.nii", lobes)
    code, (patient,) = severity(paths[0], "--lobes", paths[1], tmp_path / "out")
    scores = patient["scores"]
    assert code == 0
    share = (mask[lobes == 5] > 0).mean()
    assert scores["lobe_shares"] == pytest.approx([0, 0, 0, 0, share])
    assert 0.05 < share <= 0.25 and (scores["lobar_25"], scores["tss"]) == (2, 1)


def test_one_class_has_no_share_per_class(folders):
    out = folders / "out"
    for i in range(3):
        path = folders / "mask" / f"s{i}.png"
        cv2.imwrite(str(path), (imaging.read_labels(path)[0] > 0).astype(np.uint8))
    code, patients = severity(folders / "mask", "--lung", folders / "lung", "--one-class", out)
    scores = patients[1]["scores"]
    assert code == 0
    assert scores["infected_share"] > 0
    assert scores["ggo_share"] is scores["consolidation_share"] is None
    row = list(csv.DictReader((out / "severity.csv").read_text().splitlines()))[1]
    assert row["ggo_share"] == row["consolidation_share"] == ""
    page = (out / "report.html").read_text()
    assert "Infection (I)" in page and "Ground glass" not in page


def test_wrong_calls_are_one_line(folders, capsys):
    (folders / "out").write_text("a file")
    words = ["severity", str(folders / "mask"), "--out", str(folders / "out")]
    for more in ([], ["--lung", str(folders / "lung")]):
        assert cli.main([*words, *more]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert ("out" if more else "give --images (lungs are found in them)") in line

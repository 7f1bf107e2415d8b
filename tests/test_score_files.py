"""The verb `severity` and what it shares with `predict`: files in, tables and a page out."""

import csv
import json

import cv2
import nibabel as nib
import numpy as np
import pytest

from infnet_jax import cli
from infnet_jax.clinic import case as scoring, imaging
from infnet_jax.clinic.imaging import pictures
from infnet_jax.verbs import severity as score_files
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


def _patients(out):
    return json.loads((out / "severity.json").read_text())["patients"]


def test_slices_of_one_patient_are_pooled_and_ct_ss_is_the_truth(folders, slices, capsys):
    out = folders / "out"
    words = [
        "severity",
        folders / "mask",
        "--lung",
        folders / "lung",
        "--images",
        folders / "image",
        "--regions",
        folders / "region",
        "--one-patient",
        "--out",
        out,
    ]
    assert cli.main([str(w) for w in words]) == 0
    truth = 0
    for r in range(1, 21):
        whole = sum((e["region"] == r).sum() for e in slices)
        sick = sum(((e["region"] == r) & (e["mask"] > 0)).sum() for e in slices)
        truth += int(sick > 0) + int(2 * sick >= whole)
    (patient,) = _patients(out)
    assert patient["patient"] == "mask" and patient["scans"] == ["s0", "s1", "s2"]
    assert patient["scores"]["ct_ss"] == truth > 0
    (row,) = csv.DictReader((out / "severity.csv").read_text().splitlines())
    assert float(row["ct_ss"]) == truth and "region_shares" not in row
    assert (out / "report.html").stat().st_size > 5000 and "3 scored" in capsys.readouterr().out


def test_each_mask_is_a_patient_of_its_own_and_one_failure_stops_nothing(folders, capsys):
    (folders / "lung" / "s1.png").unlink()
    cv2.imwrite(str(folders / "lung" / "s2.png"), np.ones((5, 5), np.uint8))
    out = folders / "out"
    assert score_files.run([folders / "mask"], out=out, lung=folders / "lung") == 1
    assert [p["patient"] for p in _patients(out)] == ["s0"]
    errors = capsys.readouterr().err.splitlines()
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
    assert (
        score_files.run([tmp_path / "masks"], out=tmp_path / "out", images=tmp_path / "images") == 0
    )
    scores = _patients(tmp_path / "out")[0]["scores"]
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
        assert score_files.run([path], out=tmp_path / name, images=image) == 0
        results.append(_patients(tmp_path / name)[0]["scores"])
    assert results[0] == results[1] and results[0]["ct_ss"] > 0


def test_lobes_give_the_lobar_scores(tmp_path):
    hu, mask, lung = _volume()
    z = np.arange(8)[:, None, None]
    x = np.arange(64)[None, None, :]
    lobes = np.where(x > 32, np.where(z > 3, 1, 2), np.where(z > 5, 3, np.where(z > 3, 4, 5)))
    lobes = (lobes * lung).astype(np.uint8)
    assert (
        score_files.run(
            [_save(tmp_path / "m.nii", mask)],
            out=tmp_path / "out",
            lobes=_save(tmp_path / "l.nii", lobes),
        )
        == 0
    )
    scores = _patients(tmp_path / "out")[0]["scores"]
    share = (mask[lobes == 5] > 0).mean()
    assert scores["lobe_shares"] == pytest.approx([0, 0, 0, 0, share])
    assert 0.05 < share <= 0.25 and (scores["lobar_25"], scores["tss"]) == (2, 1)


def test_transposed_slices_score_as_upright_ones(slices):
    e = slices[1]
    cases = []
    for turn in (lambda a: a, np.transpose):
        grid = imaging.Grid((1, 96, 96), (1, 96, 96), (0, 1, 2), (False,) * 3)
        scan = imaging.Scan("s", "picture", turn(e["image"])[None], False, False, None, grid, None)
        cases.append(scoring.assess(scan, turn(e["mask"])[None], turn(e["lung"])[None]))
    np.testing.assert_array_equal(cases[0].regions[0].T, cases[1].regions[0])
    assert not cases[0].warnings and "transposed" in cases[1].warnings[0]


@pytest.mark.parametrize(
    "values, mask, one_class, single",
    [
        ([0, 255], [0, 1], False, True),
        ([0, 1, 2, 3], [0, 1, 2, 0], False, False),
        ([0, 1], [0, 1], True, True),
        ([0, 1], [0, 1], False, False),
        ([0], [0], False, False),
    ],
)
def test_known_label_systems(values, mask, one_class, single):
    found, classes, notes = score_files.infection(np.array(values), "a.png", one_class=one_class)
    assert found.tolist() == mask and bool(notes) == (3 in values)
    assert classes == (("infection",) if single else ("ggo", "consolidation"))


def test_one_class_has_no_share_per_class(folders):
    out = folders / "out"
    for i in range(3):
        path = folders / "mask" / f"s{i}.png"
        cv2.imwrite(str(path), (imaging.read_labels(path)[0] > 0).astype(np.uint8))
    words = ["severity", folders / "mask", "--lung", folders / "lung", "--out", out, "--one-class"]
    assert cli.main([str(w) for w in words]) == 0
    scores = _patients(out)[1]["scores"]
    assert scores["infected_share"] > 0
    assert scores["ggo_share"] is scores["consolidation_share"] is None
    row = list(csv.DictReader((out / "severity.csv").read_text().splitlines()))[1]
    assert row["ggo_share"] == row["consolidation_share"] == ""
    page = (out / "report.html").read_text()
    assert "Infection (I)" in page and "Ground glass" not in page


def test_unknown_labels_and_missing_lungs(tmp_path):
    with pytest.raises(ValueError, match="a.png: labels \\[0, 38\\]"):
        score_files.infection(np.array([0, 38]), "a.png")
    with pytest.raises(ValueError, match="--one-class allows 0 and 1"):
        score_files.infection(np.array([0, 2]), "a.png", one_class=True)
    with pytest.raises(ValueError, match="--images"):
        score_files.run([tmp_path], out=tmp_path / "o")
    grid = imaging.Grid((1, 9, 9), (1, 9, 9), (0, 1, 2), (False,) * 3)
    scan = imaging.Scan(
        "s", "picture", np.zeros((1, 9, 9), np.uint8), False, False, None, grid, None
    )
    mask = np.zeros((1, 9, 9), np.uint8)
    with pytest.raises(ValueError, match="s: no lung found"):
        scoring.assess(scan, mask)
    with pytest.raises(ValueError, match="s: lung of shape"):
        scoring.assess(scan, mask, np.ones((1, 3, 3)))


def test_an_unwritable_folder_is_one_line(folders, capsys):
    (folders / "out").write_text("a file")
    words = ["severity", folders / "mask", "--lung", folders / "lung", "--out", folders / "out"]
    assert cli.main([str(w) for w in words]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1

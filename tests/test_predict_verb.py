"""The predict verb with a network that is a rule: grids, scores, failures, going on."""

import json
import tracemalloc

import cv2
import nibabel as nib
import numpy as np
import pytest

from infnet_jax import cli
from infnet_jax.clinic import imaging
from infnet_jax.evaluation.predictor import Prediction, Predictor
from infnet_jax.verbs import predict
from tests.scans import Rule, chest


@pytest.fixture
def run(tmp_path):
    """run(*words, rule=...) -> (exit code, the rule); output in tmp_path / "out"."""

    def call(*words, rule=None):
        words = [*words, "--checkpoint", tmp_path, "--out", tmp_path / "out"]
        options, rule = cli.parse(["predict", *map(str, words)]), rule or Rule()
        return predict.run(options, rule), rule

    return call


def scores_of(out):
    document = json.loads((out / "severity.json").read_text())
    return {p["patient"]: p["scores"] for p in document["patients"]}


def save(path, picture):
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), picture)
    return path


def test_pictures_of_several_sizes_get_masks_of_their_own_size(run, tmp_path):
    sizes = {96: 9, 130: 13}
    for side, lesion in sizes.items():
        save(tmp_path / "in" / f"s{side}.png", chest(side, lesion))
    code, rule = run(tmp_path / "in", "--save-probabilities", rule=Rule(tta=True))
    assert code == 0 and rule.n_slices == 2
    for side, lesion in sizes.items():
        picture = chest(side, lesion)
        mask = cv2.imread(str(tmp_path / "out" / "masks" / f"s{side}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape[:2] == (side, side)
        with np.load(tmp_path / "out" / "probabilities" / f"s{side}.npz") as z:
            right = (picture > 90) & (picture < 150)
            np.testing.assert_allclose(z["ggo"], 0.05 + 0.8 * right, atol=1e-3)
    shares = [s["infected_share"] for s in scores_of(tmp_path / "out").values()]
    assert 0.02 < shares[0] < 0.2 and shares[1] == pytest.approx(shares[0], rel=0.2)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "abc" in page and '"unsure": "data:image' in page


def test_a_volume_keeps_its_affine_and_a_flipped_copy_its_scores(run, tmp_path):
    volume = np.stack([chest(lesion=9 * (i > 2)) for i in range(6)]).transpose(2, 1, 0)  # x, y, z
    hu = np.round(volume / 255 * 1500 - 1350).astype(np.int16)  # the lung window, undone
    turn = np.array([[-0.8, 0.1, 0, 0], [0.1, 0.8, 0.05, 0], [0, 0, 5, 0], [7, -3, 2, 1]]).T
    turn = np.vstack([turn[:3, :], [0, 0, 0, 1]])
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 95
    for name, array, affine in (("a", hu, turn), ("b", hu[::-1], turn @ flip)):
        nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), tmp_path / f"{name}.nii.gz")
    code, _ = run(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert code == 0
    masks = {n: nib.load(tmp_path / "out" / "masks" / f"{n}.nii.gz") for n in "ab"}
    for name in "ab":
        scan = nib.load(tmp_path / f"{name}.nii.gz")
        assert masks[name].shape == scan.shape
        np.testing.assert_array_equal(masks[name].affine, scan.affine)
    found = np.asarray(masks["a"].dataobj)
    right = (volume > 90) & (volume < 150)
    np.testing.assert_array_equal(found == 1, right)
    np.testing.assert_array_equal(found, np.asarray(masks["b"].dataobj)[::-1])
    scores = scores_of(tmp_path / "out")
    assert scores["a"] == scores["b"] and scores["a"]["infected_share"] > 0.01


@pytest.mark.slow
def test_a_longer_volume_costs_little_more_than_itself(run, tmp_path):
    """The peak grows by a few maps of one byte a voxel, not by lists of floats."""
    peaks = []
    for depth in (24, 72):
        picture = np.round(chest(192).T / 255 * 1500 - 1350).astype(np.int16)
        volume = nib.Nifti1Image(np.repeat(picture[..., None], depth, -1), np.diag([-1, -1, 2, 1]))
        nib.save(volume, tmp_path / f"d{depth}.nii.gz")
        del volume
        tracemalloc.start()
        assert run(tmp_path / f"d{depth}.nii.gz")[0] == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (48 * 192 * 192) < 16


def test_one_bad_input_is_named_and_the_others_are_done(run, tmp_path, capsys):
    save(tmp_path / "good.png", chest())
    (tmp_path / "bad.png").write_bytes(b"")
    save(tmp_path / "flat.png", np.full((64, 64), 7, np.uint8))
    code, _ = run(*(tmp_path / f"{n}.png" for n in ("bad", "good", "flat")))
    err = capsys.readouterr().err.splitlines()
    assert code == 1 and len(err) == 2 and "bad.png" in err[0] and "flat.png" in err[1]
    assert list(scores_of(tmp_path / "out")) == ["good"]
    assert [p.name for p in (tmp_path / "out" / "masks").iterdir()] == ["good.png"]


def test_going_on_runs_nothing_twice_and_refuses_another_model(run, tmp_path):
    for name in ("one", "two"):
        save(tmp_path / f"{name}.png", chest())
    inputs = [tmp_path / "one.png", tmp_path / "two.png"]
    assert run(inputs[0])[0] == 0
    before = scores_of(tmp_path / "out")["one"]
    code, rule = run(*inputs, "--continue")
    assert code == 0 and rule.n_slices == 1
    assert scores_of(tmp_path / "out") == {"one": before, "two": before}
    with pytest.raises(ValueError, match="another model"):
        run(*inputs, "--continue", rule=Rule(weights="def"))
    assert scores_of(tmp_path / "out") == {"one": before, "two": before}


def test_a_single_class_network_marks_infection(run, tmp_path):
    path = save(tmp_path / "one.png", chest())
    for more in ([], ["--continue"]):
        assert run(path, *more, rule=Rule(("infection",)))[0] == 0
        scores = scores_of(tmp_path / "out")["one"]
        assert scores["infected_share"] > 0.01 and scores["ggo_share"] is None
        page = (tmp_path / "out" / "report.html").read_text()
        assert "Infection (I)" in page and "Ground glass" not in page


def test_slices_of_one_patient_are_pooled(run, tmp_path):
    for name, lesion in (("one", 9), ("two", 0)):
        save(tmp_path / f"{name}.png", chest(lesion=lesion))
    inputs = [tmp_path / "one.png", tmp_path / "two.png"]
    run(*inputs)
    alone = scores_of(tmp_path / "out")
    run(*inputs, "--one-patient")
    (pooled,) = scores_of(tmp_path / "out").values()
    assert alone["two"]["infected_share"] == 0
    assert pooled["infected_share"] == pytest.approx(alone["one"]["infected_share"] / 2, rel=0.02)


def test_slices_beyond_the_lung_are_not_run():
    scan = imaging.scan_of_picture("a", np.zeros((8, 8), np.uint8))
    scan.values = np.zeros((5, 8, 8), np.uint8)
    lung = np.zeros((5, 8, 8), bool)
    lung[1, 4, 4] = lung[3, 4, 4] = True
    rule = Rule()
    mask, uncertainty, probs = predict.segment(rule, scan, lung, keep_probs=True)
    assert rule.n_slices == 3 and uncertainty is None
    assert mask.shape == (5, 8, 8) and probs.shape == (5, 8, 8, 2) and not probs[[0, 4]].any()


class LungNetwork:
    """Knows the grey level of lung in the drawn chests."""

    thresholds, identity = {"lung": 0.5}, {"run": "a", "weights": "b"}

    def __call__(self, slices):
        for picture in slices:
            lung = picture == 30
            yield Prediction(np.uint8(lung), np.float32(lung)[..., None], None)


def test_lungs_in_three_ways(run, tmp_path, monkeypatch):
    left = np.zeros((96, 96), np.uint8)
    left[30:66, 60:80] = 1
    for name in "ab":
        save(tmp_path / "scans" / f"{name}.png", chest())
        save(tmp_path / "own" / f"{name}.png", left)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    monkeypatch.setattr(Predictor, "load", lambda workdir, lungs: LungNetwork())
    sizes = {}
    for way in ("morphology", tmp_path / "own", tmp_path / "run"):
        assert run(tmp_path / "scans", "--lungs", way)[0] == 0
        document = json.loads((tmp_path / "out" / "severity.json").read_text())
        share = document["patients"][0]["scores"]["infected_share"]
        sizes[document["model"]["lungs"]] = share
    lesion = (chest() > 90) & (chest() < 150)
    near = pytest.approx(lesion.sum() / ((chest() == 30) | lesion).sum(), rel=0.1)
    # The lesion lies in the other lung than one's own mask, and is dropped.
    learned = "network, run a, weights b"
    assert sizes == {"morphology": near, learned: near, "given masks": 0}
    with pytest.raises(ValueError, match="other lungs"):
        run(tmp_path / "scans", "--continue")
    (tmp_path / "own" / "b.png").unlink()
    assert run(tmp_path / "scans", "--lungs", tmp_path / "own")[0] == 1  # no b
    with pytest.raises(ValueError, match="--lungs nowhere: give morphology"):
        run(tmp_path / "scans", "--lungs", "nowhere")


def test_lobes_of_one_s_own_go_before_morphology(run, tmp_path):
    lobes = np.zeros((96, 96), np.uint8)
    lobes[30:66, 15:40], lobes[30:66, 60:80] = 5, 2
    save(tmp_path / "lobes" / "a.png", lobes)
    path = save(tmp_path / "a.png", chest())
    assert run(path, "--lobes", tmp_path / "lobes")[0] == 0
    document = json.loads((tmp_path / "out" / "severity.json").read_text())
    assert document["model"]["lungs"] == "given lobes"
    scores = document["patients"][0]["scores"]
    assert scores["lobe_shares"] == [None, 0, None, None, 81 / (36 * 25)]

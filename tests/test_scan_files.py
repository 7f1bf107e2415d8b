"""The predict verb with a network that is a rule: grids, scores, failures, going on."""

import json
import tracemalloc

import cv2
import nibabel as nib
import numpy as np
import pytest

from infnet_jax.evaluation.predictor import Found
from infnet_jax.verbs import predict as scan_files


def chest(side: int = 96, lesion: bool = True) -> np.ndarray:
    """A body with two lungs; the lesion is a bright square in one of them."""
    y, x = np.mgrid[:side, :side] / side
    picture = np.where(((x - 0.5) / 0.46) ** 2 + ((y - 0.5) / 0.4) ** 2 < 1, 200, 0)
    for centre in (0.28, 0.72):
        picture[((x - centre) / 0.16) ** 2 + ((y - 0.5) / 0.28) ** 2 < 1] = 30
    if lesion:
        picture[int(0.5 * side) : int(0.6 * side), int(0.25 * side) : int(0.35 * side)] = 120
    return picture.astype(np.uint8)


class Rule:
    """Marks grey levels of 90..150 as ground glass; counts the slices it is given."""

    classes, thresholds = ("ggo", "consolidation"), {"ggo": 0.5, "consolidation": 0.5}

    def __init__(self, tta=True):
        self.identity, self.tta, self.n_slices = {"weights": "abc"}, tta, 0

    def __call__(self, slices):
        for picture in slices:
            self.n_slices += 1
            ggo = ((picture > 90) & (picture < 150)).astype(np.float32)
            probs = np.stack([0.9 - 0.8 * ggo, 0.05 + 0.8 * ggo, 0.05 + 0 * ggo], -1)
            yield Found(np.uint8(ggo), probs, 0.25 * ggo if self.tta else None)


@pytest.fixture
def predict(monkeypatch, tmp_path):
    """predict(*inputs, **options) -> (exit code, the rule); the output is in tmp_path / "out"."""

    def run(*inputs, rule=None, **options):
        rule = rule or Rule()
        monkeypatch.setattr(scan_files, "Segmenter", lambda *args, **kwargs: rule)
        code = scan_files.run(inputs, checkpoint=tmp_path, out=tmp_path / "out", **options)
        return code, rule

    return run


def scores_of(out):
    document = json.loads((out / "severity.json").read_text())
    return {p["patient"]: p["scores"] for p in document["patients"]}


def save(path, picture):
    cv2.imwrite(str(path), picture)
    return path


def test_pictures_of_several_sizes_get_masks_of_their_own_size(predict, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for side in (96, 130):
        save(folder / f"s{side}.png", chest(side))
    code, rule = predict(folder, save_probabilities=True)
    assert code == 0 and rule.n_slices == 2
    for side in (96, 130):
        mask = cv2.imread(str(tmp_path / "out" / "masks" / f"s{side}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape[:2] == (side, side)
        with np.load(tmp_path / "out" / "probabilities" / f"s{side}.npz") as z:
            right = (chest(side) > 90) & (chest(side) < 150)
            np.testing.assert_allclose(z["ggo"], 0.05 + 0.8 * right, atol=1e-3)
    shares = [s["infected_share"] for s in scores_of(tmp_path / "out").values()]
    assert 0.02 < shares[0] < 0.2 and shares[1] == pytest.approx(shares[0], rel=0.2)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "abc" in page and '"unsure": "data:image' in page


def test_a_volume_keeps_its_affine_and_a_flipped_copy_its_scores(predict, tmp_path):
    volume = np.stack([chest(lesion=i > 2) for i in range(6)]).transpose(2, 1, 0)  # x, y, z
    hu = np.round(volume / 255 * 1500 - 1350).astype(np.int16)  # the lung window, undone
    turn = np.array([[-0.8, 0.1, 0, 0], [0.1, 0.8, 0.05, 0], [0, 0, 5, 0], [7, -3, 2, 1]]).T
    turn = np.vstack([turn[:3, :], [0, 0, 0, 1]])
    for name, array, affine in (
        ("a", hu, turn),
        (
            "b",
            hu[::-1],
            turn @ np.array([[-1, 0, 0, 95], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        ),
    ):
        nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), tmp_path / f"{name}.nii.gz")
    code, _ = predict(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
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


def test_a_longer_volume_costs_little_more_than_itself(predict, tmp_path):
    """The peak grows by a few maps of one byte a voxel, not by lists of floats."""
    peaks = []
    for depth in (24, 72):
        picture = np.round(chest(192).T / 255 * 1500 - 1350).astype(np.int16)
        volume = nib.Nifti1Image(np.repeat(picture[..., None], depth, -1), np.diag([-1, -1, 2, 1]))
        nib.save(volume, tmp_path / f"d{depth}.nii.gz")
        del volume
        tracemalloc.start()
        assert predict(tmp_path / f"d{depth}.nii.gz", rule=Rule(tta=False))[0] == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (48 * 192 * 192) < 16


def test_one_bad_input_is_named_and_the_others_are_done(predict, tmp_path, capsys):
    save(tmp_path / "good.png", chest())
    (tmp_path / "bad.png").write_bytes(b"")
    save(tmp_path / "flat.png", np.full((64, 64), 7, np.uint8))
    code, _ = predict(*(tmp_path / f"{n}.png" for n in ("bad", "good", "flat")))
    err = capsys.readouterr().err.splitlines()
    assert code == 1 and len(err) == 2 and "bad.png" in err[0] and "flat.png" in err[1]
    assert list(scores_of(tmp_path / "out")) == ["good"]
    assert [p.name for p in (tmp_path / "out" / "masks").iterdir()] == ["good.png"]


def test_going_on_runs_nothing_twice_and_refuses_another_model(predict, tmp_path, capsys):
    for name in ("one", "two"):
        save(tmp_path / f"{name}.png", chest())
    inputs = [tmp_path / "one.png", tmp_path / "two.png"]
    assert predict(inputs[0])[0] == 0
    before = scores_of(tmp_path / "out")["one"]
    code, rule = predict(*inputs, go_on=True)
    assert code == 0 and rule.n_slices == 1
    assert scores_of(tmp_path / "out") == {"one": before, "two": before}
    other = Rule()
    other.identity = {"weights": "def"}
    code, _ = predict(*inputs, rule=other, go_on=True)
    assert code == 1 and "another model" in capsys.readouterr().err


def test_a_single_class_network_marks_infection(predict, tmp_path):
    class Single(Rule):
        classes = ("infection",)

        def __call__(self, slices):
            for found in super().__call__(slices):
                yield Found(found.mask, found.probs[..., 1], None)

    save(tmp_path / "one.png", chest())
    for go_on in (False, True):
        assert predict(tmp_path / "one.png", rule=Single(), go_on=go_on)[0] == 0
        scores = scores_of(tmp_path / "out")["one"]
        assert scores["infected_share"] > 0.01 and scores["ggo_share"] is None
        page = (tmp_path / "out" / "report.html").read_text()
        assert "Infection (I)" in page and "Ground glass" not in page


def test_slices_of_one_patient_are_pooled(predict, tmp_path):
    for name, sick in (("one", True), ("two", False)):
        save(tmp_path / f"{name}.png", chest(lesion=sick))
    inputs = [tmp_path / "one.png", tmp_path / "two.png"]
    predict(*inputs)
    alone = scores_of(tmp_path / "out")
    predict(*inputs, one_patient=True)
    (pooled,) = scores_of(tmp_path / "out").values()
    assert alone["two"]["infected_share"] == 0
    assert pooled["infected_share"] == pytest.approx(alone["one"]["infected_share"] / 2, rel=0.02)


def test_slices_beyond_the_lung_are_not_run():
    scan = type("S", (), {"values": np.zeros((5, 8, 8)), "picture": lambda self, i: chest(8)})()
    lung = np.zeros((5, 8, 8), bool)
    lung[1, 4, 4] = lung[3, 4, 4] = True
    rule = Rule(tta=False)
    mask, uncertainty, probs = scan_files.segment(rule, scan, lung)
    assert rule.n_slices == 3 and uncertainty is None
    assert mask.shape == (5, 8, 8) and probs.shape == (5, 8, 8, 2) and not probs[[0, 4]].any()


def test_patches_that_touch_no_lung_are_dropped():
    lung, mask = np.zeros((2, 8, 8), bool), np.zeros((2, 8, 8), np.uint8)
    lung[:, 2:5, 2:5] = True
    mask[0, 5:7, 5] = 1  # touches the lung's corner only
    mask[0, 0, 7] = 2  # far away
    mask[1, 3, 4:8] = 2  # begins inside
    assert scan_files.drop_detached(mask, lung) == 1
    assert mask[0].sum() == 2 and mask[0, 0, 7] == 0 and mask[1].sum() == 8

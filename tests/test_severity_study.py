"""The severity study: truth that is known, errors put in by hand, folders, volumes, patients."""

import csv
import itertools
import json

import cv2
import numpy as np
import openpyxl
import pytest

import tfds_builders
from infnet_jax import cli
from infnet_jax.clinic import imaging
from infnet_jax.data.sources import examples, open_split
from infnet_jax.verbs import find_lungs, severity_rows, severity_study, truth
from tests.test_scan_files import Rule, chest
from tfds_builders.covid_chestxray import dummy_data


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def source(phantom):
    return open_split(phantom, "test")


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def masks_of(source, folder, change=lambda mask: mask):
    folder.mkdir()
    for example in examples(source):
        mask = change(example["mask"][..., 0])
        cv2.imwrite(str(folder / f"{example['id']}.png"), 255 * (mask > 0).astype(np.uint8))
    return folder


def study(out, *words):
    assert cli.main(["severity-study", *map(str, words), "--out", str(out)]) == 0
    agreed = {
        row["level"]: {
            k: float(v) if v.replace(".", "").replace("-", "").isdigit() else v
            for k, v in row.items()
        }
        for row in rows_of(out / "agreement.csv")
    }
    return agreed, rows_of(out / "scores.csv")


def test_true_masks_agree_and_the_truth_is_the_phantoms(phantom, source, tmp_path, capsys):
    masks = masks_of(source, tmp_path / "masks")
    agreed, rows = study(tmp_path / "out", phantom, "--masks", masks, "--lungs", "true")
    assert {(level, a["n"]) for level, a in agreed.items()} == {("slice", 6), ("patient", 3)}
    for found in agreed.values():
        assert found["share_mae"] == found["ct_ss_mae"] == found["share_bias"] == 0
        assert found["share_spearman"] == found["ct_ss_spearman"] == pytest.approx(1)
        assert found["grade_accuracy"] == found["grade_kappa"] == 1
    slices = [r for r in rows if r["level"] == "slice"]
    for i, row in enumerate(slices):  # the dataset's own shares per region, graded by hand
        shares = np.asarray(source[i]["region_share"])
        assert float(row["true_ct_ss"]) == (shares > 0).sum() + (shares >= 0.5).sum()
    assert max(float(r["true_ct_ss"]) for r in slices) > 5
    page = (tmp_path / "out" / "summary.md").read_text()
    assert capsys.readouterr().out == page and "true masks" in page and "Left out" not in page
    assert (tmp_path / "out" / "bland_altman_phantom_tiny.png").stat().st_size > 5000


def test_patients_are_pooled_before_they_are_graded(phantom, source, tmp_path):
    masks = masks_of(source, tmp_path / "masks")
    _, rows = study(tmp_path / "out", phantom, "--masks", masks, "--lungs", "true")
    for row in rows[6:]:
        own = [e for e in examples(source) if e["patient"] == row["unit"]]
        sick, whole = (sum(int((e[k] > 0).sum()) for e in own) for k in ("mask", "lung"))
        assert row["level"] == "patient" and row["slices"] == "2"
        assert float(row["true_share"]) == pytest.approx(sick / whole)


def test_what_is_missed_is_the_bias(phantom, source, tmp_path):
    nothing = masks_of(source, tmp_path / "masks", lambda mask: 0 * mask)
    agreed, rows = study(tmp_path / "out", phantom, "--masks", nothing, "--lungs", "true")
    for level, found in agreed.items():
        shares = [100 * float(r["true_share"]) for r in rows if r["level"] == level]
        assert found["share_bias"] == pytest.approx(-np.mean(shares)) and found["share_mae"] > 1
        assert found["share_low"] == pytest.approx(-np.mean(shares) - 1.96 * np.std(shares, ddof=1))
        assert found["share_spearman"] == "nan" and found["grade_kappa"] == 0
        assert found["ct_ss_predicted"] == 0 < found["ct_ss_true"]


def folder_of(source, root, labels=lambda mask: mask):
    """A folder with img/, label/, lung/ and index.csv, as people keep their own slices."""
    lines = ["name,volume"]
    for kind in ("img", "label", "lung"):
        (root / kind).mkdir(parents=True)
    for i, e in enumerate(examples(source)):
        cv2.imwrite(str(root / "img" / f"s{i}.png"), e["image"])
        cv2.imwrite(str(root / "label" / f"s{i}.png"), labels(e["mask"]))
        cv2.imwrite(str(root / "lung" / f"s{i}.png"), 255 * e["lung"])
        lines.append(f"s{i}.png,{i // 3}")
    (root / "index.csv").write_text("\n".join(lines))
    return root


def test_a_folder_is_read_like_the_dataset(source, tmp_path):
    folder = folder_of(source, tmp_path / "own")
    found = list(truth.read(folder, "test"))
    assert [s.unit for s in found] == list("000111")
    for mine, e in zip(found, examples(source), strict=True):
        np.testing.assert_array_equal(mine.image, e["image"][..., 0])
        np.testing.assert_array_equal(mine.mask, e["mask"][..., 0] > 0)
        np.testing.assert_array_equal(mine.lung, e["lung"][..., 0] > 0)
        assert mine.regions is None


def test_effusion_is_no_infection_and_a_missing_label_is_named(source, tmp_path):
    folder = folder_of(source, tmp_path / "own", lambda mask: np.where(mask > 0, 3, 0))
    assert not any(s.mask.any() for s in truth.read(folder, "test"))
    (folder / "label" / "s2.png").unlink()
    with pytest.raises(ValueError, match="s2: no file of that name under --label"):
        list(truth.read(folder, "test"))


class Network(Rule):
    """The rule on probabilities of one class."""

    classes = ("infection",)

    def __call__(self, slices):
        for found in super().__call__(slices):
            yield found._replace(probs=found.probs[..., 1])


def test_scans_beside_a_clinical_table(monkeypatch, tmp_path):
    """Patients without true masks: a network, lungs by morphology, scores joined by number."""
    book = openpyxl.Workbook()
    for row in (("Patient", "Morbidity"), ("Patient 1", "Severe"), ("Patient 2", "Control")):
        book.active.append(list(row))
    book.save(tmp_path / "Patients.xlsx")
    for name, sick in (("Patient 1/CT/a", True), ("Patient 1/CT/b", True), ("Patient 2/CT/a", 0)):
        path = tmp_path / "scans" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), chest(lesion=bool(sick)))
    monkeypatch.setattr(severity_study, "Segmenter", lambda *a, **k: Network())
    words = [
        "severity-study",
        tmp_path / "scans",
        "--checkpoint",
        tmp_path,
        "--out",
        tmp_path / "out",
    ]
    assert cli.main([str(w) for w in words]) == 1  # nothing to hold the scores against
    words += ["--clinical", tmp_path / "Patients.xlsx"]
    assert cli.main([str(w) for w in words]) == 0
    one, two = rows_of(tmp_path / "out" / "clinical.csv")
    assert (one["patient"], one["class"], one["grade"]) == ("1", "1", "1")
    assert (two["patient"], two["class"], float(two["share"])) == ("2", "0", 0)
    rows = rows_of(tmp_path / "out" / "scores.csv")
    assert [r["slices"] for r in rows] == ["1", "1", "1", "2", "1"]
    assert float(rows[3]["predicted_share"]) == pytest.approx(float(one["share"])) != 0
    page = (tmp_path / "out" / "summary.md").read_text()
    assert "| 2 | 1.000 | 0.500 | 1.000 |" in page and "Agreement" not in page


def test_scores_of_experts_stand_in_for_true_masks(monkeypatch, tmp_path):
    """X-rays without true masks; two of three have a score, one of them two."""
    lung = np.ones((20, 20), np.uint8)
    scores = ({"opacity": 1.0}, {"opacity": 6.0, "geographic_extent": 8.0}, {}, {"opacity": 2.5})
    slices = [
        truth.Slice(str(i), str(i), 255 * lung, lung=lung > 0, experts=one)
        for i, one in enumerate(scores)
    ]
    masks = tmp_path / "masks"
    masks.mkdir()
    for i, rows_infected in enumerate((2, 10, 20, 1)):
        mask = np.zeros((20, 20), np.uint8)
        mask[:rows_infected] = 255
        cv2.imwrite(str(masks / f"{i}.png"), mask)
    monkeypatch.setattr(truth, "read", lambda source, split: iter(slices))
    words = [
        "severity-study",
        tmp_path,
        "--masks",
        masks,
        "--lungs",
        "true",
        "--out",
        tmp_path / "out",
    ]
    assert cli.main([str(w) for w in words]) == 0
    opacity, extent = rows_of(tmp_path / "out" / "experts.csv")
    assert (opacity["score"], opacity["n"], extent["score"], extent["n"]) == (
        "opacity",
        "3",
        "geographic_extent",
        "1",
    )
    assert float(opacity["mean_score"]) == pytest.approx(9.5 / 3)
    assert float(opacity["mean_share"]) == pytest.approx((10 + 50 + 5) / 3)
    assert float(opacity["spearman"]) == pytest.approx(0.5)  # ranks 1 3 2 against 2 3 1
    assert not (tmp_path / "out" / "agreement.csv").exists()
    page = (tmp_path / "out" / "summary.md").read_text()
    assert "Beside the scores of experts" in page and "| opacity | 3 |" in page


def test_expert_scores_and_lungs_of_prepared_xrays(tmp_path):
    folder = tfds_builders.prepare(
        "covid_chestxray/xray",
        data_dir=tmp_path / "data",
        manual_dir=dummy_data.make(tmp_path / "covid-chestxray-dataset"),
    )
    splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
    found = {one.name: one for split in splits for one in truth.read(folder, split["name"])}
    assert found["a-1.jpeg"].experts == {"geographic_extent": 6.0, "opacity": 4.0}
    assert found["e.png"].experts["geographic_extent"] == pytest.approx(0.3)
    assert found["a-2.jpeg"].experts == {} and found["a-2.jpeg"].lung is None
    assert found["a-1.jpeg"].lung.sum() == 100 and found["a-1.jpeg"].mask is None


def test_slices_where_no_lung_is_found_are_left_out_and_counted(source, tmp_path):
    folder = folder_of(source, tmp_path / "own")
    cv2.imwrite(str(folder / "lung" / "s0.png"), np.zeros((64, 64), np.uint8))
    left_out = []
    pairs = ((s, s.mask) for s in truth.read(folder, "test"))
    rows = severity_rows.score("own", pairs, None, left_out)
    assert len(left_out) == 2 and all("s0: no lung found" in line for line in left_out)
    assert rows[0]["true_share"] is rows[0]["predicted_share"] is None
    alone = [s for s in truth.read(folder, "test") if s.unit == "0"][1:]
    whole = sum(int((s.lung | s.mask).sum()) for s in alone)
    assert rows[6]["true_share"] == sum(int(s.mask.sum()) for s in alone) / whole


def test_wrong_calls_are_one_line(phantom, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert cli.main(["severity-study", str(phantom), *out]) == 1
    assert "--checkpoint or --masks" in capsys.readouterr().err
    assert (
        cli.main(
            ["severity-study", str(phantom), *out, "--masks", str(phantom), "--lungs", "lunges"]
        )
        == 1
    )
    err = capsys.readouterr().err
    assert "lunges: give morphology" in err and err.count("\n") == 1


def test_own_lungs_are_looked_up_by_name(source, tmp_path):
    folder = folder_of(source, tmp_path / "own")
    finder, name = find_lungs.choose(str(folder / "lung"))
    scan = imaging.read(imaging.find([folder / "img" / "s3.png"])[0])
    right = list(examples(source))[3]["lung"][..., 0]
    np.testing.assert_array_equal(finder(scan)[0] > 0, right > 0)
    assert name == "given masks" and find_lungs.choose("morphology")[1] == "morphology"


@pytest.mark.parametrize(
    "name, units",
    [
        ("medseg-volumes", ["1"] * 9),
        ("COVID-SemiSeg-lungs", ["0", "1", "10", "11", "12", "13", "14", "15", "16"]),
    ],
)
def test_the_real_folders(shared, name, units):
    found = list(itertools.islice(truth.read(shared / "data" / name, "test"), 9))
    assert [s.unit for s in found] == units
    assert all(s.mask.shape == s.lung.shape == s.image.shape for s in found)
    infected = sum(int(s.mask.sum()) for s in found)
    assert sum(int((s.mask & s.lung).sum()) for s in found) > 0.9 * infected > 0

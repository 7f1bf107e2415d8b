"""The severity study: truth that is known, errors put in by hand, folders, volumes, patients."""

import csv

import cv2
import numpy as np
import openpyxl
import pytest

from infnet_jax import cli
from infnet_jax.data import sources
from infnet_jax.evaluation import figures
from infnet_jax.verbs import cohort, severity_study
from tests.scans import Rule, chest


@pytest.fixture
def source(phantom):
    return sources.open_split(phantom, "test")


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def masks_of(source, folder, change=lambda mask: mask):
    folder.mkdir()
    for example in sources.examples(source):
        mask = change(example["mask"][..., 0])
        cv2.imwrite(str(folder / f"{example['id']}.png"), 255 * (mask > 0).astype(np.uint8))
    return folder


def study(out, *words):
    assert cli.main(["severity-study", *map(str, words), "--out", str(out)]) == 0
    agreed = {}
    for row in rows_of(out / "agreement.csv"):
        words = {k: row.pop(k) for k in ("dataset", "level")}
        agreed[words["level"]] = words | {k: float(v) for k, v in row.items()}
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
    figure = cv2.imread(str(tmp_path / "out" / "bland_altman_phantom_tiny.png"))
    orange = [int(figures.ORANGE[i : i + 2], 16) for i in (5, 3, 1)]
    assert (figure == orange).all(-1).sum() > 1000  # the limits of agreement


def test_patients_are_pooled_before_they_are_graded(phantom, source, tmp_path):
    masks = masks_of(source, tmp_path / "masks")
    _, rows = study(tmp_path / "out", phantom, "--masks", masks, "--lungs", "true")
    for row in rows[6:]:
        own = [e for e in sources.examples(source) if e["patient"] == row["unit"]]
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
        assert np.isnan(found["share_spearman"]) and found["grade_kappa"] == 0
        assert found["ct_ss_predicted"] == 0 < found["ct_ss_true"]


def test_scans_beside_a_clinical_table(tmp_path):
    """Patients without true masks: a network, lungs by morphology, scores joined by number."""
    book = openpyxl.Workbook()
    for row in (("Patient", "Morbidity"), ("Patient 1", "Severe"), ("Patient 2", "Control")):
        book.active.append(list(row))
    book.save(tmp_path / "Patients.xlsx")
    for name, lesion in (("Patient 1/CT/a", 9), ("Patient 1/CT/b", 9), ("Patient 2/CT/a", 0)):
        path = tmp_path / "scans" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), chest(lesion=lesion))
    out, network = tmp_path / "out", Rule(("infection",))
    words = ["severity-study", tmp_path / "scans", "--checkpoint", tmp_path, "--out", out]
    with pytest.raises(ValueError, match="no slice has a true mask and a true lung"):
        severity_study.run(cli.parse([*map(str, words)]), network)
    words += ["--clinical", tmp_path / "Patients.xlsx"]
    assert severity_study.run(cli.parse([*map(str, words)]), network) == 0
    one, two = rows_of(out / "clinical.csv")
    assert (one["patient"], one["class"], one["grade"]) == ("1", "1", "1")
    assert (two["patient"], two["class"], float(two["share"])) == ("2", "0", 0)
    rows = rows_of(out / "scores.csv")
    assert [r["slices"] for r in rows] == ["1", "1", "1", "2", "1"]
    assert float(rows[3]["predicted_share"]) == pytest.approx(float(one["share"])) != 0
    page = (out / "summary.md").read_text()
    assert "| 2 | 1.000 | 0.500 | 1.000 |" in page and "Agreement" not in page


def test_slices_where_no_lung_is_found_are_left_out_and_counted():
    """The first of a patient's slices has no lung: it counts on neither side."""
    lung, mask = np.zeros((2, 3, 20, 20), bool)
    lung[1:, 5:15, 2:8] = lung[1:, 5:15, 12:18] = True
    mask[:, 6:8, 3:5] = True
    image = np.zeros((20, 20), np.uint8)
    slices = [cohort.Slice(f"s{i}", "p", image, mask[i], lung[i]) for i in range(3)]
    left_out = []
    rows = severity_study.score("own", [(s, s.mask) for s in slices], None, left_out)
    assert [line.split(":")[0] for line in left_out] == ["own, truth", "own, predicted"]
    assert all("s0: no lung found" in line for line in left_out)
    assert rows[0]["true_share"] is rows[0]["predicted_share"] is None
    assert rows[3]["slices"] == 3 and rows[3]["true_share"] == rows[3]["predicted_share"] == 4 / 120
    slices[0].lung, left_out = None, []
    severity_study.score("own", [(s, s.mask) for s in slices], None, left_out)
    assert left_out == ["own, predicted: s0: no true lung"]


def test_wrong_calls_are_one_line(phantom, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert cli.main(["severity-study", str(phantom), *out]) == 1
    assert "--checkpoint or --masks" in capsys.readouterr().err
    masks = ["--masks", str(phantom), "--lungs", "lunges"]
    assert cli.main(["severity-study", str(phantom), *out, *masks]) == 1
    err = capsys.readouterr().err
    assert "lunges: give morphology" in err and err.count("\n") == 1

"""Predicted severity beside a clinical table (the real one too) and the scores of experts."""

import numpy as np
import openpyxl
import pytest

from infnet_jax.verbs import cohort, severity_study, severity_tables
from infnet_jax.verbs.severity_tables import read_morbidity


def table(path, *rows, header=("Hospital", "Patient", "Morbidity")):
    book = openpyxl.Workbook()
    for row in (header, *rows):
        book.active.append(list(row))
    book.save(path)
    return path


def scored(*patients):
    """Rows of patients from (unit, share, grade, CT-SS)."""
    keys = ("unit", "predicted_share", "predicted_grade", "predicted_ct_ss")
    where = {"level": "patient", "dataset": "d"}
    return [where | dict(zip(keys, one, strict=True)) for one in patients]


def test_join_and_metrics_by_hand(tmp_path):
    words = ("Regular", "Control", "Mild", "Severe", "Critically ill", "Suspected")
    path = table(tmp_path / "p.xlsx", *(("U", f"Patient {i}", w) for i, w in enumerate(words, 1)))
    found = read_morbidity(path)
    assert found[5] == "critically ill"
    shares = {1: 0.02, 2: 0, 3: 0.005, 4: 0.3, 5: 0.6, 6: 0.9}
    grades = {1: 1, 2: 0, 3: 0, 4: 1, 5: 2, 6: 2}
    rows = scored(*((f"patient{n:04d}", s, grades[n], 40 * s) for n, s in shares.items()))
    rows += scored(("scan", 0, 0, 0), ("Patient 99", 1, 2, 3), ("Patient 1", None, None, None))
    sliced = rows[0] | {"level": "slice"}
    joined, suspected, unknown = severity_tables.join(found, [*rows, sliced])
    assert [row["patient"] for row in joined] == [1, 2, 3, 4, 5]
    assert [row["class"] for row in joined] == [0, 0, 0, 1, 2]
    scores = {"share": 0.3, "grade": 1, "ct_ss": 12.0}
    assert joined[3] == {"patient": 4, "morbidity": "severe", "class": 1} | scores
    assert suspected == 1 and unknown == ["d/scan", "d/Patient 99"]
    metrics = severity_tables.compare_classes(joined)
    assert metrics["accuracy"] == 0.8 and metrics["majority"] == 0.6
    # F1: class 0 2*2/(3+2), class 1 2*1/(1+2), class 2 1
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3 + 1) / 3)
    assert metrics["auc_share"] == metrics["auc_ct_ss"] == 1


def test_patients_that_cannot_be_joined():
    rows = scored(("Patient 1_1", 0, 0, 0), ("Patient 1_2", 0, 0, 0))
    with pytest.raises(ValueError, match="d/Patient 1_2 are both patient 1: score them together"):
        severity_tables.join({1: "severe"}, rows)
    nobody, _, _ = severity_tables.join({1: "suspected"}, rows[:1])
    with pytest.raises(ValueError, match="no scored patient"):
        severity_tables.compare_classes(nobody)


@pytest.mark.parametrize(
    "rows, header, words",
    [
        ([("U", "Patient 1", "Regular"), ("U", "Patient 1", "Mild")], None, "'Patient 1', 'Mild'"),
        ([("U", "Patient 1", "Fine")], None, "critically ill, suspected expected"),
        ([("U", 1)], ("Hospital", "Patient"), "columns hospital, patient"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(rows, header, words, tmp_path):
    path = table(tmp_path / "p.xlsx", *rows, **({"header": header} if header else {}))
    with pytest.raises(ValueError, match="p.xlsx") as caught:
        read_morbidity(path)
    assert words in str(caught.value)
    (tmp_path / "p.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match="not a readable xlsx"):
        read_morbidity(tmp_path / "p.xlsx")


def test_the_real_table(shared):
    found = read_morbidity(shared / "data" / "iCTCF" / "Patients.xlsx")
    assert len(found) == 1521 and sorted(found) == list(range(1, 1522))
    # Everybody is called 0: what the floor is, and that the metrics see through it.
    rows = scored(*((f"Patient {n}", 0.0, 0, 0.0) for n in found))
    lazy, suspected, unknown = severity_tables.join(found, rows)
    assert (len(lazy), suspected, unknown) == (1222, 299, [])
    counts = np.bincount([row["class"] for row in lazy]).tolist()
    assert counts == [948, 202, 72]  # 948: 596 + 328 + 24
    metrics = severity_tables.compare_classes(lazy)
    assert metrics["accuracy"] == metrics["majority"] == pytest.approx(948 / 1222)
    assert metrics["macro_f1"] == pytest.approx(2 * 948 / (1222 + 948) / 3)
    assert metrics["kappa"] == 0 and metrics["auc_share"] == 0.5
    # Right but for each tenth severe patient, who is called critically ill.
    severe = [row["patient"] for row in lazy if row["class"] == 1][::10]
    truth = {row["patient"]: row["class"] for row in lazy}
    right = ((f"patient{n:04d}", 0.3 * c, c + (n in severe), 10.0 * c) for n, c in truth.items())
    metrics = severity_tables.compare_classes(severity_tables.join(found, scored(*right))[0])
    assert len(severe) == 21 and metrics["accuracy"] == pytest.approx(1 - 21 / 1222)
    assert 0.9 < metrics["kappa"] < 1 and metrics["auc_ct_ss"] == 1


def test_scores_of_experts_stand_in_for_true_masks(tmp_path):
    """X-rays without true masks; two of three have a score, one of them two."""
    lung = np.ones((20, 20), bool)
    scores = ({"opacity": 1.0}, {"opacity": 6.0, "geographic_extent": 8.0}, {}, {"opacity": 2.5})
    pairs = []
    for i, (one, infected) in enumerate(zip(scores, (2, 10, 20, 1), strict=True)):
        image = np.full((20, 20), 255, np.uint8)
        pairs.append((cohort.Slice(str(i), str(i), image, lung=lung, experts=one), 0 * lung > 0))
        pairs[-1][1][:infected] = True
    rows = severity_study.score("xrays", pairs, None, [])
    assert not severity_tables.group(rows)
    opacity, extent = severity_tables.experts(rows)
    assert (opacity["score"], opacity["n"]) == ("opacity", 3)
    assert (extent["score"], extent["n"]) == ("geographic_extent", 1)
    assert opacity["mean_score"] == pytest.approx(9.5 / 3)
    assert opacity["mean_share"] == pytest.approx((10 + 50 + 5) / 3)
    assert opacity["spearman"] == pytest.approx(0.5)  # ranks 1 3 2 against 2 3 1
    page = "".join(severity_tables.experts_section(tmp_path, [opacity, extent]))
    assert "Beside the scores of experts" in page and "| xrays | opacity | 3 |" in page


def test_what_is_left_out_is_counted_and_the_first_are_named():
    head, items = severity_tables.left_out_section([f"s{i}" for i in range(23)])
    assert head == "## Left out (23)" and len(items.splitlines()) == 21
    assert items.endswith("- s19\n- and 3 more")

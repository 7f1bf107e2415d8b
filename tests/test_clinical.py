"""The clinical table of iCTCF: reading, joining with scores, and metrics; on the real one too."""

import numpy as np
import openpyxl
import pytest

from infnet_jax.verbs import clinical
from infnet_jax.verbs.clinical import Scores


def table(path, *rows, header=("Hospital", "Patient", "Morbidity")):
    book = openpyxl.Workbook()
    for row in (header, *rows):
        book.active.append(list(row))
    book.save(path)
    return path


@pytest.mark.parametrize(
    "name, number",
    [
        ("Patient 12/CT/IMG-0001-00003.jpg", 12),
        ("Patient 7_4.jpg", 7),
        ("patient0042", 42),
        ("a/Patient 3/Patient 3_1", 3),
        ("Patient 3/Patient 4.jpg", None),
        ("scan7", None),
    ],
)
def test_numbers_in_names(name, number):
    assert clinical.number(name) == number


def test_join_and_metrics_by_hand(tmp_path):
    words = ("Regular", "Control", "Mild", "Severe", "Critically ill", "Suspected")
    path = table(tmp_path / "p.xlsx", *(("U", f"Patient {i}", w) for i, w in enumerate(words, 1)))
    found = clinical.read(path)
    assert found[5] == "critically ill"
    shares = {1: 0.02, 2: 0, 3: 0.005, 4: 0.3, 5: 0.6, 6: 0.9}
    grades = {1: 1, 2: 0, 3: 0, 4: 1, 5: 2, 6: 2}
    scores = {f"patient{n:04d}": Scores(s, grades[n], 40 * s) for n, s in shares.items()}
    joined = clinical.join(found, scores | {"scan": Scores(0, 0, 0), "Patient 99": Scores(1, 2, 3)})
    assert joined.numbers == [1, 2, 3, 4, 5] and joined.classes == [0, 0, 0, 1, 2]
    assert joined.suspected == 1 and joined.unknown == ["scan", "Patient 99"]
    metrics = clinical.compare(joined)
    assert metrics["accuracy"] == 0.8 and metrics["majority"] == 0.6
    # F1: class 0 2*2/(3+2), class 1 2*1/(1+2), class 2 1
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3 + 1) / 3)
    assert metrics["auc_share"] == metrics["auc_ct_ss"] == 1
    with pytest.raises(ValueError, match="both patient 1: score them together"):
        clinical.join(found, {"Patient 1_1": Scores(0, 0, 0), "Patient 1_2": Scores(0, 0, 0)})
    with pytest.raises(ValueError, match="no scored patient"):
        clinical.compare(clinical.join(found, {"Patient 6": Scores(0, 0, 0)}))


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
        clinical.read(path)
    assert words in str(caught.value)
    (tmp_path / "p.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match="not a readable xlsx"):
        clinical.read(tmp_path / "p.xlsx")


def test_the_real_table(shared):
    found = clinical.read(shared / "data" / "iCTCF" / "Patients.xlsx")
    assert len(found) == 1521 and sorted(found) == list(range(1, 1522))
    # Everybody is called 0: what the floor is, and that the metrics see through it.
    lazy = clinical.join(found, {f"Patient {n}": Scores(0.0, 0, 0.0) for n in found})
    assert (len(lazy.numbers), lazy.suspected, lazy.unknown) == (1222, 299, [])
    assert np.bincount(lazy.classes).tolist() == [948, 202, 72]  # 596 + 328 + 24
    metrics = clinical.compare(lazy)
    assert metrics["accuracy"] == metrics["majority"] == pytest.approx(948 / 1222)
    assert metrics["macro_f1"] == pytest.approx(2 * 948 / (1222 + 948) / 3)
    assert metrics["kappa"] == 0 and metrics["auc_share"] == 0.5
    # Right but for each tenth severe patient, who is called critically ill.
    severe = [n for n in lazy.numbers if found[n] == "severe"][::10]
    right = {
        f"patient{n:04d}": Scores(
            0.3 * clinical.GRADES[found[n]],
            clinical.GRADES[found[n]] + (n in severe),
            10.0 * clinical.GRADES[found[n]],
        )
        for n in lazy.numbers
    }
    metrics = clinical.compare(clinical.join(found, right))
    assert len(severe) == 21 and metrics["accuracy"] == pytest.approx(1 - 21 / 1222)
    assert 0.9 < metrics["kappa"] < 1 and metrics["auc_ct_ss"] == 1

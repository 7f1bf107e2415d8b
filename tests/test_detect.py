"""The detect verb with a network that is a rule, on a prepared covid_ct of drawn chests."""

import cv2
import numpy as np
import pytest

import tfds_builders
from infnet_jax import cli
from infnet_jax.clinic import lungs
from infnet_jax.data import sources
from infnet_jax.verbs import detect
from tests.builders import add
from tests.scans import Rule, chest


def picture(lesion):
    """A chest with a corner outside the body marked; a body alone where the lesion is None."""
    found = chest(lesion=lesion or 0)
    found[found == 30] = 200 if lesion is None else 30
    found[:4, :4] = 120 * (lesion is not None)
    return found


# Label -> patient (a number of a `21%0.png` name, or none) -> side of the lesion in hundredths.
TEST = {
    "COVID": {"1%0": 9, "1%1": 0, "2": 14, "3": 3},
    "NonCOVID": {"4": 0, "5%0": 5, "5%1": 0, "6": 0, "7": None},  # None: no lung in it
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("screening")
    for label, slices in TEST.items():
        split = root / f"m/Data-split/{label}"
        split.mkdir(parents=True)
        (split / f"testCT_{label}.txt").write_text("\n".join(f"{name}.png" for name in slices))
        (split / f"trainCT_{label}.txt").write_text("other.png")
        (split / f"valCT_{label}.txt").write_text("")
        for name, lesion in [*slices.items(), ("other", 2)]:
            data = cv2.imencode(".png", picture(lesion))[1].tobytes()
            add(root / f"m/CT_{label}.zip", f"{name}.png", data)
    return tfds_builders.prepare("covid_ct", data_dir=root / "d", manual_dir=root / "m")


def patients(dataset, split, finder):
    """Rows by name, of covid (1) against non_covid (0)."""
    source = sources.open_split(dataset, split)
    return detect.patients(Rule(("infection",)), finder, source, {1: True, 0: False})


def morphology(scan):
    return lungs.segment(scan.pictures())


def test_the_table_by_hand(dataset):
    """Infected shares: patients 3 < 5 < 1 < 2, of which 5 alone is healthy; 4 and 6 have none."""
    found = patients(dataset, "test", morphology)
    lines = detect.report("test", found, ["covid"], ["non_covid"]).splitlines()
    assert lines[0] == (
        "test: 8 slices of 6 patients, 3 infected (covid), 3 not (non_covid); "
        "1 left out, as no lung was found"
    )
    # Of 9 pairs 8 are in order: only 3 against 5 is not.
    assert lines[1].split() == ["ROC-AUC", "0.889"]
    assert lines[2].startswith("sensitivity at 95 % specificity  0.667  (share of 0.0")
    rows = {row["patient"]: row for row in found}
    one, drawn = rows["covid/1"], [picture(n) for n in (9, 0)]
    lung = sum(int((lungs.segment(p) | (p == 120) & (np.arange(96) > 9)).sum()) for p in drawn)
    assert (one["slices"], one["infected_pixels"], one["lung_pixels"]) == (2, 81, lung)
    assert one["infected"] and one["share"] == 81 / lung
    assert np.isnan(rows["non_covid/7"]["share"]) and len(rows) == 7


def test_lungs_can_be_found_another_way(dataset):
    """With every pixel a lung, the corner outside the body counts too: 4 x 4 in each slice."""
    found = patients(dataset, "test", lambda scan: np.ones(scan.values.shape, bool))
    one = next(row for row in found if row["patient"] == "covid/1")
    assert one["lung_pixels"] == 2 * 96 * 96 and one["infected_pixels"] == 81 + 2 * 16
    assert "0 left out" in detect.report("test", found, ["covid"], ["non_covid"])


def test_patients_of_one_kind_have_no_curve(dataset):
    rows = patients(dataset, "train[:1]", morphology)
    with pytest.raises(ValueError, match="all 1 patients are alike"):
        detect.report("train", rows, ["covid"], ["non_covid"])


def test_labels_are_chosen_by_name():
    names = ["Normal", "CP", "NCP"]
    assert detect.choose(names, [], []) == (["NCP"], ["Normal", "CP"])
    assert detect.choose(["non_covid", "covid", "unknown"], [], []) == (["covid"], ["non_covid"])
    assert detect.choose(names, ["NCP", "CP"], ["Normal"]) == (["NCP", "CP"], ["Normal"])


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--positive", "flu"], "the dataset has non_covid, covid; name some of them with"),
        (["--positive", "covid", "--negative", "covid"], "covid as infected and covid as not"),
        (["--split", "dev"], "no split 'dev'"),
        (["--lungs", "lunges"], "lunges: give morphology"),
        ([], "no trained run there"),
    ],
)
def test_errors_are_one_line(extra, words, dataset, tmp_path, capsys):
    call = ["detect", "--checkpoint", str(tmp_path), "--dataset", str(dataset), *extra]
    assert cli.main(call) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_dataset_without_labels_is_told(phantom, tmp_path, capsys):
    assert cli.main(["detect", "--checkpoint", str(tmp_path), "--dataset", str(phantom)]) == 1
    assert "no feature `label` with names; it has group, id, image" in capsys.readouterr().err

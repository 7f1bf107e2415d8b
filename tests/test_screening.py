"""The detect verb with a network that is a rule, on a prepared covid_ct of drawn chests."""

import csv
import zipfile

import cv2
import numpy as np
import pytest

import tfds_builders
from infnet_jax import cli
from infnet_jax.clinic import lungs
from infnet_jax.evaluation.predictor import Found
from infnet_jax.verbs import detect as screening, find_lungs
from tfds_builders.covid_semiseg import dummy_data

# Patient (a number of a `21%0.png` name, or none), label, side of the lesion in hundredths.
TEST = [
    ("1%0", "COVID", 9),
    ("1%1", "COVID", 0),
    ("2", "COVID", 14),
    ("3", "COVID", 3),
    ("4", "NonCOVID", 0),
    ("5%0", "NonCOVID", 5),
    ("5%1", "NonCOVID", 0),
    ("6", "NonCOVID", 0),
    ("7", "NonCOVID", None),
]  # None: no lung in it


def chest(lesion, side=96):
    """A body with two lungs; the lesion is a square of grey 120 in one of them."""
    y, x = np.mgrid[:side, :side] / side
    picture = np.where(((x - 0.5) / 0.46) ** 2 + ((y - 0.5) / 0.4) ** 2 < 1, 200, 0)
    if lesion is None:
        return picture.astype(np.uint8)
    for centre in (0.28, 0.72):
        picture[((x - centre) / 0.16) ** 2 + ((y - 0.5) / 0.28) ** 2 < 1] = 30
    picture[48 : 48 + lesion, 25 : 25 + lesion] = 120
    picture[0:4, 0:4] = 120  # outside the body: touches no lung, and is not counted
    return picture.astype(np.uint8)


class Rule:
    """Marks grey levels of 90..150."""

    def __init__(self, checkpoint):
        self.classes = ("infection",)

    def __call__(self, slices):
        for picture in slices:
            lesion = (picture > 90) & (picture < 150)
            yield Found(np.uint8(lesion), np.float32(lesion), None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("screening")
    for label in ("COVID", "NonCOVID"):
        split = root / f"m/Data-split/{label}"
        split.mkdir(parents=True)
        names = [f"{name}.png" for name, of, _ in TEST if of == label]
        (split / f"testCT_{label}.txt").write_text("\n".join(names))
        (split / f"trainCT_{label}.txt").write_text("other.png")
        (split / f"valCT_{label}.txt").write_text("")
        with zipfile.ZipFile(root / f"m/CT_{label}.zip", "w") as archive:
            for name, of, lesion in [*TEST, ("other", label, 2)]:
                if of == label:
                    data = cv2.imencode(".png", chest(lesion))[1].tobytes()
                    archive.writestr(f"{name}.png", data)
    return tfds_builders.prepare("covid_ct", data_dir=root / "d", manual_dir=root / "m")


@pytest.fixture(autouse=True)
def rule(monkeypatch):
    monkeypatch.setattr(screening, "Segmenter", Rule)


def test_the_table_by_hand(dataset, tmp_path, capsys):
    """Infected shares: patients 3 < 5 < 1 < 2, of which 5 alone is healthy; 4 and 6 have none."""
    table = tmp_path / "out.csv"
    call = ["detect", "--checkpoint", str(tmp_path), "--dataset", str(dataset), "--csv", str(table)]
    assert cli.main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "test: 8 slices of 6 patients, 3 infected (covid), 3 not (non_covid); "
        "1 left out, as no lung was found"
    )
    # Of 9 pairs 8 are in order: only 3 against 5 is not.
    assert lines[1].split() == ["ROC-AUC", "0.889"]
    assert lines[2].startswith("sensitivity at 95 % specificity  0.667  (share of 0.0")
    rows = {row["patient"]: row for row in csv.DictReader(table.read_text().splitlines())}
    one = rows["covid/1"]
    lung = sum(
        int((lungs.segment(chest(n)) | (chest(n)[:] == 120) & (np.arange(96) > 9)).sum())
        for n in (9, 0)
    )
    assert (one["slices"], one["infected_pixels"]) == ("2", "81")
    assert int(one["lung_pixels"]) == lung
    assert float(one["share"]) == pytest.approx(81 / lung)
    assert rows["non_covid/7"]["share"] == "nan" and len(rows) == 7


def test_lungs_can_be_found_another_way(monkeypatch, dataset, tmp_path, capsys):
    """With every pixel a lung, the corner outside the body counts too: 4 x 4 in each slice."""
    ways = []
    monkeypatch.setattr(
        find_lungs,
        "choose",
        lambda way: (ways.append(way) or (lambda scan: np.ones(scan.values.shape, bool)), way),
    )
    table = tmp_path / "out.csv"
    call = ["detect", "--checkpoint", str(tmp_path), "--dataset", str(dataset), "--csv", str(table)]
    assert cli.main([*call, "--lungs", "mine"]) == 0 and ways == ["mine"]
    rows = {row["patient"]: row for row in csv.DictReader(table.read_text().splitlines())}
    one = rows["covid/1"]
    assert int(one["lung_pixels"]) == 2 * chest(0).size
    assert one["infected_pixels"] == str(81 + 2 * 16)
    assert "0 left out" in capsys.readouterr().out


def test_labels_are_chosen_by_name():
    ours = screening.choose(["Normal", "CP", "NCP"], [], [])
    assert ours == (["NCP"], ["Normal", "CP"])
    assert screening.choose(["non_covid", "covid", "unknown"], [], []) == (["covid"], ["non_covid"])
    only = screening.choose(["Normal", "CP", "NCP"], ["NCP", "CP"], ["Normal"])
    assert only == (["NCP", "CP"], ["Normal"])


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            ["--positive", "flu"],
            "the dataset has non_covid, covid; name some of them with --positive",
        ),
        (
            ["--positive", "covid", "--negative", "covid"],
            "labels covid as infected and covid as not",
        ),
        (["--split", "dev"], "no split 'dev'"),
        (["--lungs", "lunges"], "lunges: give morphology"),
        (["--split", "train[:1]"], "all 1 patients are alike"),
    ],
)
def test_errors_are_one_line(extra, words, dataset, tmp_path, capsys):
    call = ["detect", "--checkpoint", str(tmp_path), "--dataset", str(dataset), *extra]
    assert cli.main(call) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_dataset_without_labels_is_told(tmp_path, capsys):
    source = dummy_data.make(tmp_path / "source")
    folder = tfds_builders.prepare("covid_semiseg", data_dir=tmp_path, manual_dir=source)
    assert cli.main(["detect", "--checkpoint", str(tmp_path), "--dataset", str(folder)]) == 1
    assert "no feature `label` with names; it has group, id, image" in capsys.readouterr().err

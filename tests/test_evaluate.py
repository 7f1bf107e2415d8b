"""Folders of maps: published rows reproduced, mask formats read rightly, faults named."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infnet_jax import cli
from infnet_jax.evaluation import metrics
from infnet_jax.verbs import evaluate

DATA = "data/COVID-SemiSeg"
TESTING, TRAINING = f"{DATA}/TestingSet", f"{DATA}/TrainingSet"
BINARY, MULTI = "LungInfection-Test/GT", "MultiClassInfection-Test/GT"
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]


def save(path: Path, array, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array, np.uint8))
    if palette:
        picture.putpalette(PALETTE)
    picture.save(path)
    return path


def classes() -> np.ndarray:
    out = np.zeros((8, 8), np.uint8)
    out[:2], out[2:3] = 1, 2
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("maps", "truth", "label", "row"),
    [
        ("binary/Inf-Net", BINARY, None, (0.682, 0.692, 0.943, 0.781, 0.838, 0.082)),
        ("binary/U-Net", BINARY, None, (0.439, 0.534, 0.858, 0.622, 0.625, 0.186)),
        ("ggo/FCN8s", MULTI, "ggo", (0.471, 0.537, 0.905, 0.582, 0.774, 0.101)),
        ("consolidation/FCN8s", MULTI, "consolidation", (0.221, 0.212, 0.567, 0.652, 0.651, 0.039)),
    ],
)
def test_published_rows(shared, maps, truth, label, row):
    rows, summary = evaluate.evaluate_maps(
        shared / "data/reference_maps" / maps, shared / TESTING / truth, label
    )
    toolbox, aware = summary["toolbox"], summary["empty_aware"]
    mean = toolbox["mean"]
    found = (mean["dice"], mean["sensitivity"], mean["specificity"], toolbox["s_measure"])
    assert (*found, mean["e_measure"], toolbox["mae"]) == pytest.approx(row, abs=1e-3)
    assert len(rows) == toolbox["images"] == 48
    assert np.mean([r["mean_dice"] for r in rows]) == pytest.approx(mean["dice"])
    extra = {"binary/Inf-Net": (0.738, 0.746, 0.727), "binary/U-Net": (0.541, 0.558, None)}
    fixed, highest, adaptive = extra.get(maps, (None, None, None))
    if fixed:
        assert toolbox["minmax"]["dice"] == pytest.approx(fixed, abs=1e-3)
        assert toolbox["max"]["dice"] == pytest.approx(highest, abs=1e-3)
    if adaptive:
        assert toolbox["adaptive"]["dice"] == pytest.approx(adaptive, abs=1e-3)
    empty = 10 if label == "consolidation" else 0
    assert toolbox["empty_truths"] == aware["empty_truths"] == empty
    assert aware["undefined"]["none"]["sensitivity"] == empty


@pytest.mark.slow
def test_floors_of_the_real_set(shared):
    folder = shared / TRAINING / "LungInfection-Train/Doctor-label/GT"
    train, test = (
        [evaluate.read_truth(path) for path in evaluate.list_pictures(where).values()]
        for where in (folder, shared / TESTING / BINARY)
    )
    found = metrics.floors(train, test)
    assert found["all_positive"]["toolbox"]["mean"]["dice"] == pytest.approx(0.258, abs=1e-3)
    assert found["mean_training_mask"]["toolbox"]["mean"]["dice"] == pytest.approx(0.416, abs=1e-3)


def test_multi_class_masks_agree_with_the_binary_ones(shared):
    for stem in ("18", "77", "99"):
        palette = shared / TESTING / MULTI / f"{stem}.png"
        binary = evaluate.read_truth(shared / TESTING / BINARY / f"{stem}.png")
        np.testing.assert_array_equal(evaluate.read_truth(palette), binary)
        one_bit = evaluate.read_truth(shared / TESTING / f"{MULTI}-2" / f"{stem}.png")
        np.testing.assert_array_equal(evaluate.read_truth(palette, "consolidation"), one_bit)


def test_class_masks_in_every_form(tmp_path):
    truth = classes()
    colours = np.array(PALETTE, np.uint8).reshape(3, 3)[truth]
    forms = {
        "palette": save(tmp_path / "palette.png", truth, palette=True),
        "indices": save(tmp_path / "indices.png", truth),
        "grey": save(tmp_path / "grey.png", np.array([0, 38, 75])[truth]),
        "colour": save(tmp_path / "colour.png", colours),
    }
    deep = tmp_path / "deep.png"
    Image.fromarray(truth.astype(np.uint16)).save(deep)
    for path in (*forms.values(), deep):
        np.testing.assert_array_equal(evaluate.read_truth(path), truth > 0, err_msg=path.name)
        np.testing.assert_array_equal(evaluate.read_truth(path, "ggo"), truth == 1)
        np.testing.assert_array_equal(evaluate.read_truth(path, "consolidation"), truth == 2)


def test_binary_masks_in_every_form(tmp_path):
    lesion = classes() > 0
    one_bit = tmp_path / "bit.png"
    Image.fromarray(lesion).save(one_bit)
    for path in (
        one_bit,
        save(tmp_path / "grey.png", lesion * 255),
        save(tmp_path / "grey.jpg", lesion * 255),
        save(tmp_path / "above.png", np.where(lesion, 129, 128)),
        save(tmp_path / "effusion.png", np.where(lesion, 1, 3)),
    ):
        np.testing.assert_array_equal(evaluate.read_truth(path), lesion, err_msg=path.name)
    with pytest.raises(ValueError, match=r"grey\.png.*'ggo'"):
        evaluate.read_truth(tmp_path / "grey.png", "ggo")


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two slices: a found lesion and an empty truth with a blank map."""
    truth = classes()
    save(tmp_path / "truth/a.png", (truth > 0) * 255)
    save(tmp_path / "truth/b.png", truth * 0)
    save(tmp_path / "maps/a.png", (truth == 1) * 102)  # .4: below .5 unless stretched
    save(tmp_path / "maps/b.png", truth * 0)
    return tmp_path / "maps", tmp_path / "truth"


def test_both_readings_of_a_small_folder(tmp_path):
    rows, summary = evaluate.evaluate_maps(*folders(tmp_path))
    # Slice a: 16 of 24 lesion pixels found, none false: Dice 32 / 40.
    assert [row["stem"] for row in rows] == ["a", "b"]
    assert [row["minmax_dice"] for row in rows] == pytest.approx([0.8, 0.0])
    assert [row["raw_dice"] for row in rows] == [0.0, 0.0]
    assert summary["toolbox"]["minmax"]["dice"] == pytest.approx(0.4)
    assert summary["empty_aware"]["minmax"]["dice"] == pytest.approx(0.8)
    low, high = summary["interval"]["minmax"]
    assert (low, high) == pytest.approx((0.0, 0.8))
    table = evaluate.format_table(summary)
    assert "2 slices, 1 of them with an empty truth" in table
    assert "(1 undefined)" in table and "0.800" in table and "0.400" in table


def test_maps_may_differ_in_size_depth_and_kind(tmp_path):
    truth = classes()
    save(tmp_path / "truth/a.png", truth, palette=True)
    save(tmp_path / "maps/a.png", truth, palette=True)
    for label in (None, "ggo", "consolidation"):
        rows, _ = evaluate.evaluate_maps(tmp_path / "maps", tmp_path / "truth", label)
        assert rows[0]["raw_dice"] == 1.0
    big = np.kron((truth > 0).astype(np.uint16) * 65535, np.ones((3, 3), np.uint16))
    Image.fromarray(big).save(tmp_path / "maps/a.png")
    rows, _ = evaluate.evaluate_maps(tmp_path / "maps", tmp_path / "truth")
    assert rows[0]["raw_dice"] == 1.0 and rows[0]["lesion_pixels"] == 24


def test_run_prints_and_writes(tmp_path, capsys):
    target = tmp_path / "new/rows.csv"
    maps, truth = map(str, folders(tmp_path))
    words = ["evaluate", "--predictions", maps, "--truth", truth, "--csv", str(target)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    for word in ("toolbox", "empty_aware", "adaptive", "weighted F", "ROC-AUC", "max of 256"):
        assert word in printed
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stem"] for row in rows] == ["a", "b"]
    assert float(rows[0]["minmax_dice"]) == pytest.approx(0.8)


def on_its_side(maps, truth):
    save(truth / "a.png", classes()[:3])
    save(maps / "a.png", np.full((8, 3), 90))


def cut_short(maps, truth):
    (truth / "a.png").write_bytes((truth / "a.png").read_bytes()[:40])


def colour(maps, truth):
    save(maps / "a.png", classes()[..., None] * [90, 0, 0])


FAULTS = {  # what is said -> what was done to the folders
    r"a\.png: 8 x 3, and its truth 3 x 8: one of the two lies": on_its_side,
    r"maps: no prediction for b\.png": lambda maps, truth: (maps / "b.png").unlink(),
    r"truth: no truth for a\.png": lambda maps, truth: (truth / "a.png").unlink(),
    r"maps/a\.png: not a readable": lambda maps, truth: (maps / "a.png").write_bytes(b"no picture"),
    r"truth/a\.png: not a readable picture": cut_short,
    "maps: holds no PNG": lambda maps, truth: [path.unlink() for path in maps.iterdir()],
    "truth: no such folder": lambda maps, truth: truth.rename(truth.with_name("elsewhere")),
    r"a\.png: a\.jpg has the same stem": lambda maps, truth: save(maps / "a.jpg", classes()),
    "maps: no map exceeds the value 3": lambda maps, truth: save(maps / "a.png", classes()),
    r"maps/a\.png: a colour picture": colour,
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_named(tmp_path, message):
    maps, truth = folders(tmp_path)
    FAULTS[message](maps, truth)
    missing = "for " in message or "holds no" in message or "no such" in message
    with pytest.raises(FileNotFoundError if missing else ValueError, match=message):
        evaluate.evaluate_maps(maps, truth)

"""The page's links lead to its pictures, and its tables hold what was given."""

import json
import re

import numpy as np
import pytest

from infnet_jax.evaluation import markdown, metrics


def _write(workdir, page, timings=()):
    written = {"name": "selfsup", "command": "python main.py", "timings": timings}
    return markdown.write_summary(workdir, page, **written).read_text()


def test_links_are_relative_and_lead_to_the_figures(tmp_path):
    figure = tmp_path / "segment" / "figures" / "my curves.png"
    figure.parent.mkdir(parents=True)
    figure.touch()
    text = _write(tmp_path, markdown.Page([(figure, "The loss falls.")]))
    (link,) = re.findall(r"\]\(<(.+)>\)", text)
    assert (tmp_path / link).samefile(figure) and not link.startswith("/")
    assert "*The loss falls.*" in text


def test_a_missing_figure_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        _write(tmp_path, markdown.Page([(tmp_path / "gone.png", "")]))


def test_stages_with_different_keys_share_one_table(tmp_path):
    stages = [
        {"name": "pretrain", "seconds": 83.2, "steps": 400, "images_per_second": 33.333},
        {"name": "evaluate", "seconds": 4000.0, "slices": 48},
    ]
    text = _write(tmp_path, markdown.Page(notes=["Dice is the toolbox reading."]), stages)
    assert "| stage | time | steps | images/s | slices |" in text
    assert "| pretrain | 1:23 | 400 | 33.3 |  |" in text
    assert "| evaluate | 1:06:40 |  |  | 48 |" in text
    assert "- Dice is the toolbox reading." in text


def test_markdown_table_shows_undefined_and_escapes():
    table = markdown.markdown_table(
        ["case", "Dice"], [["a|b", 0.12345], ["c", float("nan")], ["d", None]]
    )
    assert table.splitlines() == [
        "| case | Dice |",
        "| --- | ---: |",
        "| a\\|b | 0.123 |",
        "| c | – |",
        "| d | – |",
    ]
    with pytest.raises(ValueError, match="has 1 cells"):
        markdown.markdown_table(["case", "Dice"], [["a"]])


@pytest.fixture
def found():
    """What `evaluation.json` holds of a class: Dice 16 / 17 at 0.5, 1 of the masks."""
    truth = np.zeros((4, 4), bool)
    truth[:2] = True  # 8 of 16 pixels
    prob = np.where(truth, 0.9, 0.1).astype(np.float32)
    prob[3, 3] = 0.8  # one false positive, below the masks' threshold of .85

    def readings(values):
        records = [metrics.toolbox(values, truth)]
        return {reading: metrics.summarise(records, reading) for reading in metrics.READINGS}

    masks = readings((prob >= 0.85).astype(np.float32))
    made = readings(prob) | {"masks": masks, "floors": metrics.floors([truth], [truth])}
    return json.loads(json.dumps(made))


def _cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_result_table_holds_the_model_in_both_readings_and_the_floors(found):
    head, _, *rows = _cells(markdown.result_table({"classes": {"infection": found}}))
    assert head[1:4] == ["Dice (mean over 256 thresholds)", "Dice at 0.5", "IoU at 0.5"]
    assert head[4:] == ["Sen", "Spe", "S", "E", "wF", "MAE", "ROC-AUC"]
    assert [row[0] for row in rows] == [
        "model, toolbox reading",
        "model, empty-aware reading",
        "masks, toolbox reading",
        "masks, empty-aware reading",
        "floor: all positive",
        "floor: mean training mask",
    ]
    assert [rows[i][2] for i in (0, 2, 5)] == [f"{16 / 17:.3f}", "1.000", "1.000"]
    assert rows[4][2] == f"{2 * 8 / 24:.3f}"  # all positive: 2 * 8 / (8 + 16)
    assert rows[0][3] == f"{8 / 9:.3f}" and rows[2][9:] == ["0.000", "1.000"]


def test_result_table_of_two_classes_and_a_map_cut_by_itself(found):
    cut = {"threshold": 0.35, "cross_validated": 0.5, **found["masks"]}
    classes = {"ggo": found | {"cut": cut}, "consolidation": found}
    names = [row[0] for row in _cells(markdown.result_table({"classes": classes}))[2:]]
    assert names[4:6] == [
        "ggo, map cut at 0.35, toolbox reading",
        "ggo, map cut at 0.35, empty-aware reading",
    ]
    assert names[8] == "consolidation, model, toolbox reading" and len(names) == 8 + 6


def test_lung_table():
    row = {"slices": 3, "dice": 0.98, "infected": 0, "kept": None, "kept_slices": None}
    head, _, cells = _cells(markdown.lung_table({"parts": {"all": row}}))
    assert head[2] == "Dice, mean over slices" and cells == ["all", "3", "0.980", "0", "", ""]

"""The page's links lead to its pictures, and its tables hold what was given."""

import re

import pytest

from infnet_jax.evaluation import markdown as summary


def _write(workdir, **kwargs):
    defaults = {"config_name": "selfsup", "command": "python main.py", "stages": []}
    defaults |= {"tables": [], "figures": [], "notes": []}
    return summary.write_summary(workdir, **defaults | kwargs).read_text()


def test_links_are_relative_and_lead_to_the_figures(tmp_path):
    figure = tmp_path / "segment" / "figures" / "my curves.png"
    figure.parent.mkdir(parents=True)
    figure.touch()
    text = _write(tmp_path, figures=[(figure, "The loss falls.")])
    (link,) = re.findall(r"\]\(<(.+)>\)", text)
    assert (tmp_path / link).samefile(figure) and not link.startswith("/")
    assert "*The loss falls.*" in text


def test_a_missing_figure_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        _write(tmp_path, figures=[(tmp_path / "gone.png", "")])


def test_stages_with_different_keys_share_one_table(tmp_path):
    stages = [
        {"name": "pretrain", "seconds": 83.2, "steps": 400, "images_per_second": 33.333},
        {"name": "evaluate", "seconds": 4000.0, "slices": 48},
    ]
    text = _write(tmp_path, stages=stages, notes=["Dice is the toolbox reading."])
    assert "| stage | time | steps | images/s | slices |" in text
    assert "| pretrain | 1:23 | 400 | 33.3 |  |" in text
    assert "| evaluate | 1:06:40 |  |  | 48 |" in text
    assert "- Dice is the toolbox reading." in text


def test_markdown_table_shows_undefined_and_escapes():
    table = summary.markdown_table(
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
        summary.markdown_table(["case", "Dice"], [["a"]])

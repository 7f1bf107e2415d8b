"""What is drawn is what was given: curves, tints, contours, tables, links; in data or in pixels."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from infnet_jax.evaluation import figures
from tests.drawn import pixels_of


def _square(size=40) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[10:30, 10:30] = True
    return mask


def test_series_sorts_drops_none_and_keeps_the_last_of_a_step():
    rows = [{"step": s, "loss": v} for s, v in ((4, 4.0), (2, 9.0), (2, 2.0), (6, None))]
    rows[1]["dice"] = 0.5
    steps, values = figures.series(rows, "loss")
    assert steps.tolist() == [2, 4] and values.tolist() == [2.0, 4.0]


def test_a_key_no_row_has_is_named(tmp_path):
    rows = [{"stage": "segment", "step": 1, "loss": 1.0}]
    with pytest.raises(ValueError, match="'dice'; the rows have loss"):
        figures.learning_curves(rows, tmp_path / "x.png", [("Dice", {"dice": "Dice"})])
    assert not (tmp_path / "x.png").exists()


def test_the_running_mean_neither_lags_nor_sags_at_the_ends():
    ax = Figure().subplots()
    steps, unrest = np.arange(100), np.tile([40.0, -40, 0, 40, -40], 20)  # any five add up to 0
    figures.curve(ax, steps, 3.0 * steps + unrest, label="ramp", colour="k")
    figures.curve(ax, steps, 7.0 + unrest, label="flat", colour="k")
    ramp, flat = (line.get_ydata() for line in ax.lines if not line.get_label().startswith("_"))
    np.testing.assert_allclose(ramp[2:-2], 3.0 * steps[2:-2])
    np.testing.assert_allclose(flat[[0, *range(2, 98), 99]], 7.0)


def test_a_curve_without_unrest_is_drawn_as_it_is():
    ax = Figure().subplots()
    rate = np.abs(np.arange(100) - 20.0)
    figures.curve(ax, np.arange(100), rate, label="rate", colour="k")
    assert len(ax.lines) == 1
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), rate)


def test_learning_curves_draws_each_curve_in_its_own_colour(tmp_path):
    rows = [{"step": i, "a": i, "b": -i} for i in range(10)]
    panels = [("both", {"a": "A", "b": "B"})]
    path = figures.learning_curves(rows, tmp_path / "new" / "c.png", panels)
    assert pixels_of(path, figures.BLUE) > 200 and pixels_of(path, figures.ORANGE) > 200


def test_inpainting_tints_what_is_erased_and_nothing_else(tmp_path):
    images = np.full((1, 40, 40), 255.0)
    images[0, 0, 0] = 0.0
    tint = 0.4 * np.ones(3) + 0.6 * figures.ERASED  # over white
    areas = []
    for name, visible in (("all", 1.0), ("half", 0.0)):
        mask = np.ones((1, 40, 40))
        mask[:, :20] = visible
        rows = [("epoch 1", images, mask, images)]
        path = figures.inpainting_panel(rows, tmp_path / f"{name}.png")
        areas.append(pixels_of(path, tint))
    assert areas[0] == 0
    with Image.open(path) as picture:
        panel = picture.height * 0.75  # a slice's side is most of the single row
    assert areas[1] == pytest.approx(panel**2 / 2, rel=0.4)


def test_overlays_draws_truth_and_prediction_apart(tmp_path):
    image, empty = np.zeros((40, 40)), np.zeros((40, 40))
    truth = _square()

    def counts(truth, prob):
        path = figures.overlays([("case", image, truth, prob > 0.5, prob)], tmp_path / "o.png")
        return np.array([pixels_of(path, figures.SKY), pixels_of(path, figures.ORANGE)])

    legend = counts(empty.astype(bool), empty)  # both empty: only the legend has the colours
    assert np.all(counts(truth, empty) - legend > [200, -1])
    assert np.all(counts(empty.astype(bool), 0.9 * truth) - legend > [-1, 200])
    assert np.all(np.abs(counts(empty.astype(bool), 0.4 * truth) - legend) == 0)  # below threshold


def test_overlays_takes_slices_of_different_sizes(tmp_path):
    cases = [(str(n), np.eye(n), np.eye(n) > 0, np.eye(n) > 1, 0.5 * np.eye(n)) for n in (20, 33)]
    assert pixels_of(figures.overlays(cases, tmp_path / "o.png"), figures.SKY) > 0


def test_overlays_without_probabilities_have_two_columns(tmp_path):
    sizes = []
    for prob in (np.zeros((40, 40)), None):
        case = ("case", np.zeros((40, 40)), _square(), _square(), prob)
        with Image.open(figures.overlays([case], tmp_path / "o.png")) as picture:
            sizes.append(picture.size)
    assert sizes[1][0] == pytest.approx(sizes[0][0] * 2 / 3, abs=2)
    assert sizes[1][1] == sizes[0][1]


def test_overlays_without_truth_name_none(tmp_path):
    case = ("case", np.zeros((40, 40)), None, _square(), np.zeros((40, 40)))
    path = figures.overlays([case], tmp_path / "o.png")
    assert pixels_of(path, figures.SKY) == 0 < pixels_of(path, figures.ORANGE)


def test_augmentation_outlines_both_sides(tmp_path):
    slices, masks = np.zeros((2, 40, 40)), np.stack([_square()] * 2)

    def outline(name, left, right):
        path = tmp_path / name
        figures.augmentation((slices, left), (slices, right), path)
        return pixels_of(path, figures.SKY)

    none = np.zeros_like(masks)
    left, right = outline("l.png", masks, none), outline("r.png", none, masks)
    assert left == pytest.approx(right, rel=0.1) and left > 200
    assert outline("b.png", masks, masks) == pytest.approx(left + right, rel=0.02)


def test_roc_draws_the_curve(tmp_path):
    q = np.linspace(0, 1, 11)
    path = figures.roc(q, np.sqrt(q), 2 / 3, tmp_path / "roc.png")
    assert pixels_of(path, figures.BLUE) > 300


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no cases"):
        figures.overlays([], tmp_path / "o.png")
    with pytest.raises(ValueError, match="no rows"):
        figures.inpainting_panel([], tmp_path / "i.png")


def _write(workdir, page, timings=()):
    written = {"name": "selfsup", "command": "python main.py", "timings": timings}
    return figures.write_summary(workdir, page, **written).read_text()


def test_links_are_relative_and_lead_to_the_figures(tmp_path):
    figure = tmp_path / "segment" / "figures" / "my curves.png"
    figure.parent.mkdir(parents=True)
    figure.touch()
    text = _write(tmp_path, figures.Page([(figure, "The loss falls.")]))
    (link,) = re.findall(r"\]\(<(.+)>\)", text)
    assert (tmp_path / link).samefile(figure) and not link.startswith("/")
    assert "*The loss falls.*" in text


def test_a_missing_figure_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        _write(tmp_path, figures.Page([(tmp_path / "gone.png", "")]))


def test_stages_with_different_keys_share_one_table(tmp_path):
    stages = [
        {"name": "pretrain", "seconds": 83.2, "steps": 400, "images_per_second": 33.333},
        {"name": "evaluate", "seconds": 4000.0, "slices": 48},
    ]
    text = _write(tmp_path, figures.Page(notes=["Dice is the toolbox reading."]), stages)
    assert "| stage | time | steps | images/s | slices |" in text
    assert "| pretrain | 1:23 | 400 | 33.3 |  |" in text
    assert "| evaluate | 1:06:40 |  |  | 48 |" in text
    assert "- Dice is the toolbox reading." in text


def test_markdown_table_shows_undefined_and_escapes():
    rows = [["a|b", 0.12345], ["c", float("nan")], ["d", None]]
    head, line, *cells = figures.markdown_table(["case", "Dice"], rows).splitlines()
    assert (head, line) == ("| case | Dice |", "| --- | ---: |")
    assert cells == ["| a\\|b | 0.123 |", "| c | – |", "| d | – |"]
    with pytest.raises(ValueError, match="has 1 cells"):
        figures.markdown_table(["case", "Dice"], [["a"]])

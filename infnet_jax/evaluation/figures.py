"""What pages are made of: pictures (written to a PNG, whose path is returned), tables, a page."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from infnet_jax.files import write_text
from infnet_jax.runs.logs import clock

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers, and in print.
BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY)
_STYLE: dict[Any, Any] = (
    dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)
    | dict.fromkeys(("axes.grid", "axes.axisbelow"), True)
    | {"grid.color": "#e6e6e6", "grid.linewidth": 0.8, "lines.linewidth": 1.8}
    | {"axes.titlesize": 11, "savefig.dpi": 130}
)
ERASED = np.array([0.90, 0.62, 0.0])  # ORANGE, laid half opaque over what a mask hides

# Key of a stage's timing -> heading; other keys are shown under their own names.
_COLUMNS = {"seconds": "time", "steps": "steps", "steps_per_second": "steps/s"}
_COLUMNS |= {"images_per_second": "images/s", "compile_seconds": "first steps, with compilation"}

Panel = tuple[str, Mapping[str, str]]  # title, {key of a row: label}
Case = tuple[str, np.ndarray, np.ndarray | None, np.ndarray, np.ndarray | None]
Picture = tuple[Path, str]  # a file and its caption


class Page(NamedTuple):
    """What there is to show: pictures, tables (title, Markdown), notes on how to read them."""

    pictures: Sequence[Picture] = ()
    tables: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


def learning_curves(rows: Sequence[Mapping[str, Any]], path: Path, panels: Sequence[Panel]) -> Path:
    """Draws `series` of a metrics.jsonl against the step; ValueError if no row holds a key."""
    with canvas(path, width=4.6 * len(panels), height=3.4) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (title, curves) in zip(axes, panels, strict=True):
            for colour, (key, label) in zip(cycle(COLOURS), curves.items(), strict=False):
                curve(ax, *series(rows, key), label=label, colour=colour)
            ax.set(title=title, xlabel="step")
            if len(curves) > 1:
                ax.legend()
    return path


def inpainting_panel(
    epoch_rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], path: Path
) -> Path:
    """Draws how masks and inpaintings change: a row an epoch (at least one), three columns a slice.

    Each row is a label and three arrays [n, H, W]: images, visible (1 = shown to the network, 0 =
    erased, soft values are allowed) and reconstruction, in the grey scale of the images.
    """
    if not epoch_rows:
        raise ValueError("inpainting_panel: no rows to draw")
    n = len(epoch_rows[0][1])
    titles = ("slice", "erased by the coach", "inpainting") * n
    with canvas(path, width=1.7 * 3 * n + 0.5, height=1.75 * len(epoch_rows) + 0.5) as figure:
        grid = _grid(figure, len(epoch_rows), titles)
        for line, (label, images, visible, reconstruction) in zip(grid, epoch_rows, strict=True):
            low, high = float(np.min(images)), float(np.max(images))
            for i in range(n):
                grey = np.clip((np.asarray(images[i], float) - low) / max(high - low, 1e-12), 0, 1)
                tint = 0.6 * (1 - np.asarray(visible[i], float))[..., None]
                _picture(line[3 * i], images[i], low, high)
                _picture(line[3 * i + 1], grey[..., None] * (1 - tint) + ERASED * tint)
                _picture(line[3 * i + 2], reconstruction[i], low, high)
            line[0].set_ylabel(label)
    return path


def overlays(cases: Sequence[Case], path: Path) -> Path:
    """Draws a row a case: the slice, truth and prediction as contours, and the probability map.

    A case (at least one) is (title, image, truth, found, prob): image [H, W] of any size and grey
    scale, masks bool [H, W], probability [H, W] in 0..1; no truth, or no probability: None in all.
    """
    if not cases:
        raise ValueError("overlays: no cases to draw")
    from matplotlib.lines import Line2D

    columns = ("slice", "contours", "probability")[: 2 if cases[0][-1] is None else 3]
    with canvas(path, width=2.8 * len(columns), height=2.75 * len(cases) + 0.6) as figure:
        grid = _grid(figure, len(cases), columns)
        for line, (title, image, truth, found, prob) in zip(grid, cases, strict=True):
            _picture(line[0], image)
            _picture(line[1], image)
            if truth is not None:
                _contour(line[1], truth, SKY)
            _contour(line[1], found, ORANGE)
            if prob is not None:
                shown = _picture(line[2], prob, 0, 1, cmap="magma")
                figure.colorbar(shown, ax=line[2], fraction=0.046, pad=0.03, ticks=[0, 0.5, 1])
            line[0].set_ylabel(title)
        names = (("truth", SKY), ("prediction", ORANGE))[cases[0][2] is None :]
        handles = [Line2D([], [], color=colour, label=name) for name, colour in names]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return path


def roc(fpr: np.ndarray, tpr: np.ndarray, auc: float, path: Path) -> Path:
    """Draws a ROC (false and true positive rates [n] in 0..1, ascending) and its area."""
    with canvas(path, width=4.2, height=4.0) as figure:
        ax = figure.subplots()
        ax.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1, label="chance")
        ax.plot(fpr, tpr, color=BLUE, label=f"AUC {auc:.3f}")
        ax.fill_between(fpr, tpr, color=BLUE, alpha=0.08, linewidth=0)
        ax.set(xlabel="false positive rate", ylabel="true positive rate")
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        ax.legend(loc="lower right")
    return path


def augmentation(before: Sequence[np.ndarray], after: Sequence[np.ndarray], path: Path) -> Path:
    """Draws slices beside their augmented selves, with lesions outlined (paper, Fig. 5).

    Each side holds slices [n, H, W], all in one grey scale, and masks [n, H, W], not 0 = lesion.
    """
    n, low, high = len(before[0]), float(np.min(before[0])), float(np.max(before[0]))
    with canvas(path, width=5.4, height=2.5 * n + 0.4) as figure:
        grid = _grid(figure, n, ("original", "augmented"))
        for column, side in zip(grid.T, (before, after), strict=True):
            for ax, picture, mask in zip(column, *side, strict=True):
                _picture(ax, picture, low, high)
                _contour(ax, np.asarray(mask) != 0, SKY)
    return path


@contextmanager
def canvas(path: Path, *, width: float, height: float) -> Iterator["Figure"]:
    """A figure in the house style, written to `path` at the end; leaves no global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor="white")


def series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a key, by step; None is left out, the last value of a step counts."""
    points = {row["step"]: row[key] for row in rows if row.get(key) is not None}
    if not points:
        present = sorted({k for row in rows for k in row} - {"step", "stage"})
        raise ValueError(f"no row has a value for {key!r}; the rows have {', '.join(present)}")
    steps = sorted(points)
    return np.array(steps), np.array([points[step] for step in steps], float)


def curve(ax: "Axes", steps: np.ndarray, values: np.ndarray, *, label: str, colour: str) -> None:
    """One curve; a restless one of 40 points or more pale, under its mean over 1/20 of them."""
    window = len(values) // 20
    if window < 2 or np.abs(np.diff(values)).sum() < 3 * np.ptp(values):
        marker = "o" if len(values) < 25 else ""
        ax.plot(steps, values, color=colour, label=label, marker=marker, markersize=4)
        return
    ax.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
    kernel = np.ones(2 * (window // 2) + 1)  # odd and centred: a mean that looks back would lag
    smooth = np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
    ax.plot(steps, smooth, color=colour, label=label)


def _grid(figure: "Figure", rows: int, titles: Sequence[str]) -> np.ndarray:
    """Axes [rows, columns] with a title over each column."""
    grid = figure.subplots(rows, len(titles), squeeze=False)
    for ax, title in zip(grid[0], titles, strict=True):
        ax.set_title(title)
    return grid


def _picture(ax: "Axes", array: np.ndarray, *limits: float, cmap: str = "gray") -> Any:
    """An image, black and white at the limits, without ticks or frame; the y label stays usable."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    low, high = limits or (None, None)
    return ax.imshow(array, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")


def _contour(ax: "Axes", mask: np.ndarray, colour: str) -> None:
    """The outline of a mask, if it has one."""
    if mask.any() and not mask.all():
        ax.contour(np.asarray(mask, float), levels=[0.5], colors=[colour], linewidths=1.5)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table: floats with three decimals, NaN and None `–`; ValueError if ragged."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {list(row)} has {len(row)} cells, the header {len(header)}")

    def cell(value: Any) -> str:
        if value is None or value != value:
            return "–"
        return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")

    align = ["---"] + ["---:"] * (len(header) - 1)
    lines = [list(header), align, *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_summary(
    workdir: Path, page: Page, *, name: str, command: str, timings: Sequence[Mapping[str, Any]]
) -> Path:
    """Writes `workdir/summary.md` and returns its path; FileNotFoundError if a picture is missing.

    `name` is what ran, such as "selfsup:semiseg", `command` the line that repeats it; `timings`
    (see `RunLog.timing`) are one a stage. Links are relative, so the folder may be moved.
    """
    parts = [f"# {name}", f"```\n{command}\n```"]
    for title, table in page.tables:
        parts += [f"## {title}", table]
    parts += ["## Figures"] if page.pictures else []
    for path, caption in page.pictures:
        if not path.is_file():
            raise FileNotFoundError(f"figure {path} of the summary does not exist")
        link = os.path.relpath(path.resolve(), workdir.resolve())
        parts += [f"![{path.stem.replace('_', ' ')}](<{link}>)", f"*{caption}*"]
    if timings:
        parts += ["## Time", _time_table(timings)]
    if page.notes:
        parts += ["## How to read these numbers", "\n".join(f"- {note}" for note in page.notes)]
    parts.append("Research use only; not a medical device.")
    write_text(workdir / "summary.md", "\n\n".join(parts) + "\n")
    return workdir / "summary.md"


def _time_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """Seconds as a clock, speeds with three digits; columns as in `_COLUMNS`, then as met."""
    met = dict.fromkeys(key for stage in stages for key in stage if key != "name")
    keys = [*(key for key in _COLUMNS if key in met), *(key for key in met if key not in _COLUMNS)]

    def cell(stage: Mapping[str, Any], key: str) -> Any:
        if key in stage and key.endswith("_per_second"):
            return f"{stage[key]:.3g}"
        return clock(stage[key]) if key in stage and key.endswith("seconds") else stage.get(key, "")

    rows = [[stage["name"], *(cell(stage, key) for key in keys)] for stage in stages]
    headings = [_COLUMNS.get(key, key.replace("_", " ")) for key in keys]
    return markdown_table(["stage", *headings], rows)

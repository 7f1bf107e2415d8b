"""Tables in Markdown, and the page that a run leaves behind."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from infnet_jax.evaluation.metrics import TABLE
from infnet_jax.files import write_text
from infnet_jax.runs.logs import clock

Picture = tuple[Path, str]  # a file and its caption
_COLUMNS = {  # key of a stage's timing -> heading; other keys are shown under their own names
    "seconds": "time",
    "steps": "steps",
    "steps_per_second": "steps/s",
    "images_per_second": "images/s",
    "compile_seconds": "first steps, with compilation",
}


class Page(NamedTuple):
    """What there is to show.

    Attributes:
      pictures: files below the workdir, with one sentence each on what it means.
      tables: titles and Markdown.
      notes: readings and choices the numbers rest on, one sentence or two each.
    """

    pictures: Sequence[Picture] = ()
    tables: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


def write_summary(
    workdir: Path, page: Page, *, name: str, command: str, timings: Sequence[Mapping[str, Any]]
) -> Path:
    """Writes `workdir/summary.md` and returns its path.

    Args:
      workdir: the run's folder; image links are relative to it, so it may be moved as a whole.
      page: what to show.
      name: what ran, such as "selfsup:semiseg"; command: the line that repeats it.
      timings: one a stage, see `RunLog.timing`: `name`, and `seconds`, `steps` and others; a key
        that a stage lacks is an empty cell.

    Raises:
      FileNotFoundError: if a picture does not exist.
    """
    parts = [f"# {name}", f"```\n{command}\n```"]
    for title, table in page.tables:
        parts += [f"## {title}", table]
    if page.pictures:
        parts.append("## Figures")
    for path, caption in page.pictures:
        if not path.is_file():
            raise FileNotFoundError(f"figure {path} of the summary does not exist")
        link = Path(os.path.relpath(path.resolve(), workdir.resolve())).as_posix()
        parts += [f"![{path.stem.replace('_', ' ')}](<{link}>)", f"*{caption}*"]
    if timings:
        parts += ["## Time", _time_table(timings)]
    if page.notes:
        parts += ["## How to read these numbers", "\n".join(f"- {note}" for note in page.notes)]
    parts.append("Research use only; not a medical device.")
    write_text(workdir / "summary.md", "\n\n".join(parts) + "\n")
    return workdir / "summary.md"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table.

    Args:
      header: the column names.
      rows: one sequence a row. Floats are shown with three decimals, NaN and None as `–`
        (undefined), all else by `str`; a `|` is escaped.

    Raises:
      ValueError: if a row has not as many cells as the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {list(row)} has {len(row)} cells, the header {len(header)}")
    align = ["---"] + ["---:"] * (len(header) - 1)
    lines = [list(header), align, *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """One value as text."""
    if value is None or value != value:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def result_table(result: Mapping[str, Any]) -> str:
    """The test table in Markdown: per class maps and masks in both readings, and the floors.

    Args:
      result: what `evaluation.json` holds.
    """
    threshold = next(iter(result["classes"].values()))["toolbox"]["threshold"]
    header = [""]
    for score in TABLE:
        header += [title for title in (score.mean, score.fixed.format(threshold)) if title]
    rows = []
    for name, found in result["classes"].items():
        of = "" if len(result["classes"]) == 1 else f"{name}, "
        answers = [(f"{of}model", found, "minmax"), (f"{of}masks", found["masks"], "none")]
        if "cut" in found:
            cut = found["cut"]
            answers.append((f"{of}map cut at {cut['threshold']:g}", cut, "none"))
        for label, both, at in answers:
            rows.append(_row(f"{label}, toolbox reading", both["toolbox"], at))
            rows.append(_row(f"{label}, empty-aware reading", both["empty_aware"], "none"))
        for floor, both in found["floors"].items():
            rows.append(_row(f"{of}floor: {floor.replace('_', ' ')}", both["toolbox"], "minmax"))
    return markdown_table(header, rows)


def _row(label: str, summary: Mapping[str, Any], at: str) -> list[Any]:
    """One line of the test table; `at` says which map the scores at a threshold are of."""
    row: list[Any] = [label]
    for score in TABLE:
        if score.mean:
            row.append((summary["mean"] if score.of == "threshold" else summary)[score.key])
        if score.fixed:
            row.append(summary[at][score.key])
    return row


def lung_table(score: Mapping[str, Any]) -> str:
    """What `lung_scores.summarise` returns, a row a part of the dataset."""
    columns = {
        "slices": "slices",
        "dice": "Dice, mean over slices",
        "infected": "infected slices",
        "kept": "infected pixels inside, mean",
        "kept_slices": "slices with 97 % inside",
    }
    rows = [
        [part, *("" if row[key] is None else row[key] for key in columns)]
        for part, row in score["parts"].items()
    ]
    return markdown_table(["lungs", *columns.values()], rows)


def _time_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """Seconds as a clock, speeds with three digits; columns as in `_COLUMNS`, then as met."""
    known = dict.fromkeys([*_COLUMNS, *(key for stage in stages for key in stage)])
    keys = [key for key in known if key != "name" and any(key in stage for stage in stages)]

    def cell(key: str, value: Any) -> Any:
        if value == "" or not key.endswith(("seconds", "_per_second")):
            return value
        return clock(value) if key.endswith("seconds") else f"{value:.3g}"

    rows = [[stage["name"], *(cell(key, stage.get(key, "")) for key in keys)] for stage in stages]
    headings = [_COLUMNS.get(key, key.replace("_", " ")) for key in keys]
    return markdown_table(["stage", *headings], rows)

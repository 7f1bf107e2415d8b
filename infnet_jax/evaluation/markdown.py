"""The page a run leaves behind: summary.md, with its tables, figures, times and reading choices."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infnet_jax.runs.logs import clock

_COLUMNS = {  # key of a stage -> heading; the rest of the keys are shown under their own names
    "seconds": "time",
    "steps": "steps",
    "steps_per_second": "steps/s",
    "images_per_second": "images/s",
    "compile_seconds": "first steps, with compilation",
}


def write_summary(
    workdir: Path,
    *,
    config_name: str,
    command: str,
    stages: Sequence[Mapping[str, Any]],
    tables: Sequence[tuple[str, str]],
    figures: Sequence[tuple[Path, str]],
    notes: Sequence[str],
) -> Path:
    """Writes `workdir/summary.md` and returns its path.

    Args:
      workdir: the run's folder; image links are relative to it, so it may be moved as a whole.
      config_name: what ran, such as "selfsup:semiseg".
      command: the line that repeats the run.
      stages: one dict a stage: `name`, `seconds` (wall clock), and optionally `steps`,
        `steps_per_second`, `images_per_second`, `compile_seconds` and others. A key that a stage
        lacks is an empty cell. `RunLog.timing()` returns such a dict.
      tables: (title, Markdown of the table); `markdown_table` makes one.
      figures: (file below `workdir`, one sentence on what it means).
      notes: readings and choices the numbers rest on, one sentence each.

    Raises:
      FileNotFoundError: if a figure does not exist.
    """
    workdir = Path(workdir)
    parts = [f"# {config_name}", f"```\n{command}\n```"]
    for title, table in tables:
        parts += [f"## {title}", table.strip()]
    if figures:
        parts.append("## Figures")
    for path, caption in figures:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"figure {path} of the summary does not exist")
        link = Path(os.path.relpath(path.resolve(), workdir.resolve())).as_posix()
        parts += [f"![{path.stem.replace('_', ' ')}](<{link}>)", f"*{caption}*"]
    if stages:
        parts += ["## Time", _stage_table(stages)]
    if notes:
        parts += ["## How to read these numbers", "\n".join(f"- {note}" for note in notes)]
    parts.append("Research use only; not a medical device.")
    out = workdir / "summary.md"
    out.write_text("\n\n".join(parts) + "\n")
    return out


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


def _stage_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """The table of times; columns appear in the order of `_COLUMNS`, then as first met."""
    keys = [key for key in _COLUMNS if any(key in stage for stage in stages)]
    keys += [k for k in dict.fromkeys(k for s in stages for k in s) if k not in {*keys, "name"}]
    rows = [
        [stage["name"], *(_stage_cell(key, stage.get(key, "")) for key in keys)] for stage in stages
    ]
    return markdown_table(
        ["stage", *(_COLUMNS.get(key, key.replace("_", " ")) for key in keys)], rows
    )


def _stage_cell(key: str, value: Any) -> Any:
    """Seconds as a clock, speeds with three digits."""
    if value == "":
        return ""
    if key.endswith("seconds"):
        return clock(value)
    return f"{value:.3g}" if key.endswith("_per_second") else value

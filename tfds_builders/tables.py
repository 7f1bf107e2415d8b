"""Tables as people download them: CSV with any header style, or the first sheets of an xlsx."""

import csv
import io
import math
import re
from pathlib import Path


def read(path: Path) -> list[dict[str, str]]:
    """Reads a CSV or xlsx file as one dict per row, with all cells as trimmed text.

    Header names are compared after trimming, folding case, and turning every run of other
    characters into `_`: `Patientid` and ` patientid` are one name. A nameless column and the lines
    at the top that start with `##` are left out; a missing cell is ''. All sheets of an xlsx are
    read, one after the other.

    Raises:
      ValueError: the file is no table or has no header; the message names it.
    """
    sheets = _xlsx(path) if path.suffix.lower() == ".xlsx" else [_csv(path)]
    rows = []
    for lines in sheets:
        filled = [line for line in lines if any(cell.strip() for cell in line)]
        if not filled:
            continue
        header = [column(name) for name in filled[0]]
        for line in filled[1:]:
            cells = [cell.strip() for cell in line] + [""] * (len(header) - len(line))
            rows.append({n: c for n, c in zip(header, cells, strict=False) if n})
    if not rows:
        raise ValueError(f"{path}: no table; expected a header line and rows below it")
    return rows


def column(name: str) -> str:
    """The form in which header names are compared: `Progression (Days)` -> `progression_days`."""
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def require(path: Path, rows: list[dict[str, str]], *names: str) -> None:
    """Raises ValueError that names the file and the columns it lacks."""
    missing = [name for name in names if name not in rows[0]]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(rows[0])[:200]}"
        )


def first(row: dict[str, str], *names: str) -> str:
    """The first cell that is not empty among the columns named; '' when there is none."""
    return next((row[name] for name in names if row.get(name)), "")


def number(text: str) -> float:
    """A finite number, or NaN for anything else (an empty cell, `N/A`, `unknown`, `inf`)."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _csv(path: Path) -> list[list[str]]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # never fails; older tables came out of spreadsheets
    while text.startswith("##"):
        text = text.partition("\n")[2]
    try:
        return list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV table ({error})") from error


def _xlsx(path: Path) -> list[list[list[str]]]:
    import openpyxl  # only this form needs it

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        return [
            [
                ["" if cell is None else str(cell) for cell in row]
                for row in sheet.iter_rows(values_only=True)
            ]
            for sheet in book.worksheets
        ]
    except Exception as error:  # a damaged xlsx raises whatever its zip or XML hits first
        raise ValueError(f"{path}: not a readable xlsx table ({error})") from error

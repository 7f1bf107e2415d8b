"""Rewrites the tables of the Markdown pages from the CSV files in docs/results.

    python tools/tables.py            # rewrites the pages that differ
    python tools/tables.py --check    # changes nothing; exit code 1 if a page differs

A table stands between `<!-- table: NAME -->` and `<!-- end -->` and shows docs/results/NAME.csv.
The columns in `HIDDEN` are for readers of the CSV: they are never shown.
"""

import argparse
import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/results.md", "docs/severity.md")
HIDDEN = ("command", "source")
_BLOCK = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)


def read(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file as column name -> text.

    Raises:
      ValueError: a row has another number of cells than the header.
    """
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path.name}: row {number} has {len(row)} cells, not {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def render(rows: list[dict[str, str]]) -> str:
    """Returns rows as a Markdown table without the columns in `HIDDEN`."""
    columns = [name for name in rows[0] if name not in HIDDEN]
    lines = [columns, ["---"] * len(columns), *([row[c] for c in columns] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def fill(text: str, folder: Path) -> str:
    """Returns a page with each of its tables made anew.

    Args:
      text: the page.
      folder: has the CSV files.

    Raises:
      ValueError: a marker names no file, or lacks its end.
    """

    def table(block: re.Match[str]) -> str:
        path = folder / f"{block[1]}.csv"
        if not path.is_file():
            raise ValueError(f"table {block[1]}: there is no {path.name}")
        return f"<!-- table: {block[1]} -->\n{render(read(path))}<!-- end -->"

    if len(_BLOCK.findall(text)) != text.count("<!-- table: "):
        raise ValueError("a table lacks its <!-- end -->, or its marker is malformed")
    return _BLOCK.sub(table, text)


def main() -> int:
    """Rewrites or checks the pages; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only report pages that differ")
    check = parser.parse_args().check
    differ = []
    for page in PAGES:
        path = ROOT / page
        old = path.read_text(encoding="utf-8")
        new = fill(old, ROOT / "docs" / "results")
        if new != old:
            differ.append(page)
            if not check:
                path.write_text(new, encoding="utf-8")
    for page in differ:
        print(f"{page}: {'differs from its CSV files' if check else 'tables rewritten'}")
    return int(check and bool(differ))


if __name__ == "__main__":
    sys.exit(main())

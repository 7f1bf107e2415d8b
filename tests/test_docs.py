"""The pages: tables are those of the CSV files, numbers those of the notes, links are whole."""

import re
from pathlib import Path

import pytest

from tools import tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LONGEST = {"README.md": 150, "docs/results.md": 150, "docs/architecture.md": 120}


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings(page: Path) -> list[tuple[int, int, str]]:
    """Line, depth and anchor of each heading outside code blocks."""
    found, code = [], False
    for number, line in enumerate(page.read_text().splitlines()):
        code ^= line.startswith("```")
        if not code and (match := re.match(r"(#+) (.+)", line)):
            found.append((number, len(match[1]), slug(match[2])))
    return found


def section(page: Path, anchor: str) -> str:
    """The text below a heading, up to the next one that is as high."""
    all_of_them = headings(page)
    start, depth, _ = next(h for h in all_of_them if h[2] == anchor)
    ends = [number for number, other, _ in all_of_them if number > start and other <= depth]
    return "\n".join(page.read_text().splitlines()[start : min(ends, default=None)])


def numbers(text: str) -> set[str]:
    """The numbers of a text as they are written, such as `.705` or `7e-14`."""
    return set(re.findall(r"\d*\.?\d+(?:e-?\d+)?", text))


def broken_links(page: Path) -> list[str]:
    """The relative links of a page to no file, or to no heading of a page."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in {h[2] for h in headings(target)}):
            found.append(link)
    return found


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_are_those_of_the_csv_files(page):
    text = (ROOT / page).read_text()
    assert "<!-- table: " in text
    assert tables.fill(text, RESULTS) == text, "run python tools/tables.py"


def test_every_csv_file_is_shown():
    text = "".join((ROOT / page).read_text() for page in tables.PAGES)
    assert set(re.findall(r"<!-- table: (\w+)", text)) == {p.stem for p in RESULTS.glob("*.csv")}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.stem)
def test_numbers_of_a_row_are_in_the_section_that_it_names(path):
    for row in tables.read(path):
        page, marker, _ = row["source"].partition("#")
        if not marker:
            assert re.search(r"\bcommit [0-9a-f]{7}\b", page), row
            continue
        anchors = re.findall(r"#([\w-]+)", row["source"])
        text = " ".join(section(ROOT / "docs" / page, anchor) for anchor in anchors)
        shown = " ".join(row[c] for c in row if c not in tables.HIDDEN)
        assert numbers(shown) <= numbers(text), (row, numbers(shown) - numbers(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    assert not broken_links(page)


@pytest.mark.parametrize("page", LONGEST)
def test_a_page_stays_short(page):
    assert len((ROOT / page).read_text().splitlines()) <= LONGEST[page]


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](#three) [c](page.md) [d](none.md) [e](https://x)")
    assert broken_links(page) == ["#three", "none.md"]


def test_a_table_is_made_of_its_csv_file(tmp_path):
    (tmp_path / "dice.csv").write_text("System,Dice,source\nours,.705,a\nyours,.682,b\n")
    page = "a\n<!-- table: dice -->\nold\n<!-- end -->\nb\n"
    table = "| System | Dice |\n| --- | --- |\n| ours | .705 |\n| yours | .682 |\n"
    assert tables.fill(page, tmp_path) == page.replace("old\n", table)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- table: none -->\n<!-- end -->", "there is no none.csv"),
        ("<!-- table: two words -->\n<!-- end -->", "its marker is malformed"),
        ("<!-- table: dice -->\n| a |\n", "lacks its <!-- end -->"),
        ("<!-- table: short -->\n<!-- end -->", "row 2 has 1 cells, not 2"),
    ],
)
def test_a_wrong_marker_or_file_is_refused(tmp_path, page, message):
    (tmp_path / "dice.csv").write_text("System,Dice\nours,.705\n")
    (tmp_path / "short.csv").write_text("System,Dice\nours\n")
    with pytest.raises(ValueError, match=message):
        tables.fill(page, tmp_path)

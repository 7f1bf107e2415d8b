"""Tables as people download them."""

import math

import pytest

from tfds_builders import tables

MESSY = "\ufeff## a licence\nPatientid, doi,Progression (Days),\r\n" + '7,"a, b", 3 ,x\r\n\r\n8\r\n'
MESSY_ROWS = [
    {"patientid": "7", "doi": "a, b", "progression_days": "3"},
    {"patientid": "8", "doi": "", "progression_days": ""},
]
BREAK = 'name,notes\na,"one\n## two"\nb,\n'
BREAK_ROWS = [{"name": "a", "notes": "one\n## two"}, {"name": "b", "notes": ""}]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        pytest.param(MESSY.encode(), MESSY_ROWS, id="headers trimmed, nameless columns left out"),
        pytest.param("name\nJosé\n".encode("latin-1"), [{"name": "José"}], id="latin"),
        pytest.param(BREAK.encode(), BREAK_ROWS, id="a line break inside quotes"),
    ],
)
def test_rows_by_hand(content, rows, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    assert tables.read(tmp_path / "t.csv") == rows


@pytest.mark.parametrize("content", [b"", b"\n\n", b"only,a,header\n"])
def test_no_table(content, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match="t.csv: no table"):
        tables.read(tmp_path / "t.csv")


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(ValueError, match="t.csv: no column b, d; found a, c"):
        tables.require(tmp_path / "t.csv", [{"a": "1", "c": "2"}], "a", "b", "d")


def test_numbers():
    assert [tables.number(text) for text in ("3", " 2.5 ", "-1")] == [3, 2.5, -1]
    assert all(math.isnan(tables.number(text)) for text in ("", "N/A", "inf", "nan", "75+"))


def test_first_that_is_not_empty():
    assert tables.first({"a": "", "b": "2", "c": "3"}, "x", "a", "b", "c") == "2"
    assert tables.first({"a": ""}, "a", "b") == ""


def test_xlsx_sheets_are_read_one_after_the_other(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["File name", "Patient ID"])
    book.active.append(["a.png", 7])
    second = book.create_sheet()
    second.append(["File name", None, "Age"])
    second.append(["b.png", "x", 4.5])
    book.save(tmp_path / "t.xlsx")
    assert tables.read(tmp_path / "t.xlsx") == [
        {"file_name": "a.png", "patient_id": "7"},
        {"file_name": "b.png", "age": "4.5"},
    ]


def test_a_damaged_xlsx_is_named(tmp_path):
    pytest.importorskip("openpyxl")
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(ValueError, match="t.xlsx: not a readable xlsx"):
        tables.read(tmp_path / "t.xlsx")

"""Tables as people download them."""

import math

import pytest

from tfds_builders import tables


def test_headers_are_trimmed_folded_and_nameless_columns_left_out(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"\xef\xbb\xbf## a licence\nPatientid, doi,Progression (Days),\r\n"
        b'7,"a, b", 3 ,x\r\n\r\n8\r\n'
    )
    assert tables.read(path) == [
        {"patientid": "7", "doi": "a, b", "progression_days": "3"},
        {"patientid": "8", "doi": "", "progression_days": ""},
    ]


def test_a_table_that_is_not_unicode_is_read_as_latin(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("name\nJosé\n".encode("latin-1"))
    assert tables.read(path) == [{"name": "José"}]


def test_a_line_break_inside_quotes_stays_in_its_cell(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('name,notes\na,"one\n## two"\nb,\n')
    assert [row["name"] for row in tables.read(path)] == ["a", "b"]
    assert tables.read(path)[0]["notes"] == "one\n## two"


@pytest.mark.parametrize("content", [b"", b"\n\n", b"only,a,header\n"])
def test_no_table(content, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match="t.csv: no table"):
        tables.read(tmp_path / "t.csv")


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(ValueError, match="t.csv: no column b, d; found a, c"):
        tables.require(tmp_path / "t.csv", [{"a": "1", "c": "2"}], "a", "b", "d")


@pytest.mark.parametrize(("text", "value"), [("3", 3), (" 2.5 ", 2.5), ("-1", -1)])
def test_numbers(text, value):
    assert tables.number(text) == value


@pytest.mark.parametrize("text", ["", "N/A", "inf", "nan", "75+"])
def test_what_is_no_number(text):
    assert math.isnan(tables.number(text))


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

"""The clinical table of iCTCF: one row for each patient, as published in Patients.xlsx."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from tfds_builders import splits, tables

PATIENTS = 1521
SEVERITIES = ("control", "suspected", "mild", "regular", "severe", "critically ill")
RESULTS = ("negative", "positive", "unknown")
OUTCOMES = ("cured", "deceased", "unknown")
SEXES = ("female", "male", "unknown")
SHARES = {"train": 0.8, "test": 0.2}
_COLUMNS = (
    "hospital",
    "patient",
    "age",
    "gender",
    "sars_cov_2_nucleic_acids",
    "ct",
    "morbidity",
    "mortality",
)
_UNKNOWN = ("", "n/a", "na", "unknown")


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of a patient, in the words of the constants above; age in years, -1 unknown."""

    hospital: str
    age: int
    sex: str
    nucleic_acid: str
    ct: str
    severity: str
    outcome: str


def find(root: Path) -> Path:
    """Finds the table below root; FileNotFoundError says what it is called."""
    for path in sorted(root.rglob("*")):
        if path.name.lower() in ("patients.xlsx", "patients.csv") and path.is_file():
            return path
    raise FileNotFoundError(
        f"{root}: no Patients.xlsx in it; the clinical table is on the iCTCF "
        "site and gives each patient's severity"
    )


def read(path: Path, name: str, skip: Callable[[str, str], None]) -> dict[int, Row]:
    """Reads the table as patient number to row.

    Args:
      path: .xlsx or .csv.
      name: what the report calls it.
      skip: is told (file, reason) of rows that are of no use: a number missing or repeated, or a
        severity or other value that nobody knows.

    Raises:
      ValueError: no table, or a column is missing; the message names the file.
    """
    lines = tables.read(path)
    tables.require(path, lines, *_COLUMNS)
    found: dict[int, Row] = {}
    for i, line in enumerate(lines, start=2):
        try:
            number = int(line["patient"].lower().removeprefix("patient").strip())
            if number in found:
                raise ValueError(f"Patient {number} has a row already")
            found[number] = _row(line)
        except ValueError as error:
            skip(f"{name} row {i}", f"{line['patient'] or 'no patient'}: {error}")
    return found


def split_patients(rows: dict[int, Row]) -> dict[int, str]:
    """Assigns patients to train and test, each severity by itself, with a seeded rule."""
    found = {}
    for severity in SEVERITIES:
        names = [str(n) for n, row in rows.items() if row.severity == severity]
        assigned = splits.split_groups(names, SHARES)
        found.update({int(name): split for name, split in assigned.items()})
    return found


def _row(line: dict[str, str]) -> Row:
    age = tables.number(line["age"])
    return Row(
        hospital=line["hospital"],
        age=int(age) if age == age else -1,
        sex=_word(line, "gender", SEXES),
        ct=_word(line, "ct", RESULTS),
        nucleic_acid=_word(line, "sars_cov_2_nucleic_acids", RESULTS),
        severity=_word(line, "morbidity", SEVERITIES),
        outcome=_word(line, "mortality", OUTCOMES),
    )


def _word(line: dict[str, str], name: str, words: tuple[str, ...]) -> str:
    word = " ".join(line[name].lower().split())
    if word in _UNKNOWN and "unknown" in words:
        return "unknown"
    if word not in words:
        raise ValueError(f"{name} {line[name]!r} is none of {', '.join(words)}")
    return word

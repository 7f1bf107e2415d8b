"""iCTCF's clinical table beside predicted scores: how ill was the patient, and do scores tell?"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infnet_jax.evaluation import statistics

# The classes of the paper's authors; `suspected` is none of them.
GRADES = {"control": 0, "mild": 0, "regular": 0, "severe": 1, "critically ill": 2}
SUSPECTED = "suspected"
_NUMBER = re.compile(r"patient[ _-]*0*(\d+)", re.IGNORECASE)


class Scores(NamedTuple):
    """A patient's predicted scores: infected share 0..1, its grade 0..2, CT-SS 0..40."""

    share: float
    grade: int
    ct_ss: float


class Joined(NamedTuple):
    """Patients with both a clinical class and predicted scores, in the order of their numbers.

    Attributes:
      numbers, morbidity: of each patient.
      classes: 0 (regular and below), 1 (severe), 2 (critically ill).
      scores: predicted.
      suspected: patients left out, since nobody says whether they are ill.
      unknown: names left out: no patient number in them, or none of the table.
    """

    numbers: list[int]
    morbidity: list[str]
    classes: list[int]
    scores: list[Scores]
    suspected: int
    unknown: list[str]


def number(name: str) -> int | None:
    """The patient's number in a name or path (`Patient 12/CT/IMG-1.jpg`); None if not just one."""
    found = {int(digits) for digits in _NUMBER.findall(name)}
    return found.pop() if len(found) == 1 else None


def read(path: Path) -> dict[int, str]:
    """Morbidity of each patient of Patients.xlsx, in small letters, by number.

    Raises:
      ValueError: no such table, a number twice, or a morbidity that nobody knows.
    """
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        lines = [row for sheet in book.worksheets for row in sheet.iter_rows(values_only=True)]
    except Exception as error:  # a damaged xlsx raises whatever its zip or XML hits first
        raise ValueError(f"{path}: not a readable xlsx table ({error})") from error
    header = [str(cell or "").strip().lower() for cell in lines[0]] if lines else []
    if not {"patient", "morbidity"} <= {*header}:
        raise ValueError(f"{path}: columns {', '.join(header)}; Patient and Morbidity expected")
    who, what = header.index("patient"), header.index("morbidity")
    found: dict[int, str] = {}
    for line in lines[1:]:
        n, word = number(str(line[who])), str(line[what]).strip().lower()
        if n is None or n in found or word not in (*GRADES, SUSPECTED):
            words = ", ".join((*GRADES, SUSPECTED))
            raise ValueError(
                f"{path}: row {line[who]!r}, {line[what]!r}: each patient's number "
                f"once, and one of {words} expected"
            )
        found[n] = word
    return found


def join(table: Mapping[int, str], scores: Mapping[str, Scores]) -> Joined:
    """Brings the table and predicted scores together.

    Args:
      table: as `read` returns it.
      scores: by a name that holds the patient's number.

    Raises:
      ValueError: two names of one patient.
    """
    named: dict[int, str] = {}
    unknown = []
    for name in scores:
        n = number(name)
        if n not in table:
            unknown.append(name)
        elif n in named:
            raise ValueError(f"{named[n]} and {name} are both patient {n}: score them together")
        else:
            named[n] = name
    kept = [n for n in sorted(named) if table[n] in GRADES]
    words = [table[n] for n in kept]
    return Joined(
        kept,
        words,
        [GRADES[w] for w in words],
        [scores[named[n]] for n in kept],
        len(named) - len(kept),
        unknown,
    )


def compare(joined: Joined) -> dict[str, float]:
    """Accuracy, majority, macro-F1 and kappa of the grade against the clinical class, and the AUC
    of infected share and CT-SS for severe or worse (NaN where all are alike).

    Raises:
      ValueError: no patient is left.
    """
    if not joined.numbers:
        raise ValueError("no scored patient has a class in the clinical table")
    found = statistics.classes(joined.classes, [s.grade for s in joined.scores])._asdict()
    severe = np.asarray(joined.classes) > 0
    mixed = severe.any() and not severe.all()
    for key in ("share", "ct_ss"):
        values: Sequence[float] = [getattr(s, key) for s in joined.scores]
        found[f"auc_{key}"] = statistics.roc(values, severe).auc if mixed else float("nan")
    return found

"""iCTCF's clinical table beside predicted scores: how ill was the patient, and do scores tell?"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from infnet_jax.evaluation import agreement, detection
from infnet_jax.verbs.cohort import patient_number

# The classes of the paper's authors; `suspected` is none of them.
GRADES = {"control": 0, "mild": 0, "regular": 0, "severe": 1, "critically ill": 2}
SUSPECTED = "suspected"


class Joined(NamedTuple):
    """Patients with both a clinical class and predicted scores, in the order of their numbers.

    Attributes:
      rows: of each patient `patient` (number), `morbidity`, `class`: 0 (regular and below), 1
        (severe), 2 (critically ill), and predicted `share` 0..1, `grade` 0..2, `ct_ss` 0..40.
      suspected: number of patients left out, since nobody says whether they are ill.
      unknown: names left out: no patient number in them, or none of the table.
    """

    rows: list[dict[str, Any]]
    suspected: int
    unknown: list[str]


def read(path: Path) -> dict[int, str]:
    """Returns the morbidity of each patient of Patients.xlsx, in small letters, by number.

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
        n, word = patient_number(str(line[who])), str(line[what]).strip().lower()
        if n is None or n in found or word not in (*GRADES, SUSPECTED):
            words = ", ".join((*GRADES, SUSPECTED))
            raise ValueError(
                f"{path}: row {line[who]!r}, {line[what]!r}: each patient's number "
                f"once, and one of {words} expected"
            )
        found[n] = word
    return found


def join(table: Mapping[int, str], rows: Iterable[Mapping[str, Any]]) -> Joined:
    """Brings the table and predicted scores together.

    Args:
      table: as `read` returns it.
      rows: of `severity_study.score`; those of slices, or without a prediction, are passed over.

    Raises:
      ValueError: two rows of one patient.
    """
    named: dict[int, str] = {}
    scores: dict[int, dict[str, Any]] = {}
    unknown = []
    for row in rows:
        if row["level"] != "patient" or row["predicted_share"] is None:
            continue
        name = f"{row['dataset']}/{row['unit']}"
        n = patient_number(name)
        if n is None or n not in table:
            unknown.append(name)
        elif n in named:
            raise ValueError(f"{named[n]} and {name} are both patient {n}: score them together")
        else:
            named[n] = name
            scores[n] = {key: row[f"predicted_{key}"] for key in ("share", "grade", "ct_ss")}
    kept = [n for n in sorted(named) if table[n] in GRADES]
    found = [
        {"patient": n, "morbidity": table[n], "class": GRADES[table[n]]} | scores[n] for n in kept
    ]
    return Joined(found, len(named) - len(kept), unknown)


def compare(joined: Joined) -> dict[str, float]:
    """Returns accuracy, majority, macro-F1 and kappa of the grade against the clinical class.

    And the AUC of infected share and CT-SS for severe or worse (NaN where all are alike).

    Raises:
      ValueError: no patient is left.
    """
    if not joined.rows:
        raise ValueError("no scored patient has a class in the clinical table")
    column = {key: [row[key] for row in joined.rows] for key in joined.rows[0]}
    found = agreement.classes(column["class"], column["grade"])._asdict()
    severe = [number > 0 for number in column["class"]]
    mixed = any(severe) and not all(severe)
    for key in ("share", "ct_ss"):
        found[f"auc_{key}"] = detection.roc(column[key], severe).auc if mixed else float("nan")
    return found

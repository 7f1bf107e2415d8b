"""The comparisons of `severity-study`: each writes a CSV and returns a section in Markdown."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax.evaluation import figures, statistics
from infnet_jax.evaluation.figures import markdown_table
from infnet_jax.files import write_csv
from infnet_jax.verbs.cohort import EXPERT_SCORES, patient_number

SCORES = {"share": (100, "infected share of the lung, %"), "ct_ss": (1, "CT-SS, 0 to 40")}
SIDES = ("true", "predicted")
# Columns of agreement.csv, of a score and of the grades -> heading.
STATISTICS = {"true": "mean true", "predicted": "mean predicted", "mae": "mean absolute error"}
STATISTICS |= {"bias": "bias", "low": "lower limit", "high": "upper limit", "spearman": "Spearman"}
OF_GRADES = {"kappa": "quadratic kappa", "accuracy": "accuracy", "majority": "always the majority"}
AGREEMENT = """Lines: the mean of the differences and 1.96 standard deviations to either side. \
Neighbouring slices are near copies, so limits per slice look surer than they are."""
GRADED = "Grades 0, 1, 2 of the infected share (bounds 1 % and 50 %):"
EXPERTS = """Geographic extent 0 to 8 and opacity 0 to 6, mean of three readers of X-rays \
(covid-chestxray). A network of CT slices has seen no X-ray: read this as a test of how far it \
carries, unless it was trained on some."""
CLINICAL = """Classes: 0 control, mild and regular, 1 severe, 2 critically ill; predicted is the \
grade of the infected share (bounds 1 % and 50 %). AUC: severe or worse. Left out: {} suspected, \
{} not in the table."""
# The classes of the paper's authors; `suspected` is none of them.
GRADES = {"control": 0, "mild": 0, "regular": 0, "severe": 1, "critically ill": 2}
MORBIDITIES = (*GRADES, "suspected")

Row = dict[str, Any]


def read_morbidity(path: Path) -> dict[int, str]:
    """Returns the morbidity of each patient of Patients.xlsx, in small letters, by number.

    ValueError for no such table, a number twice, or a morbidity that nobody knows.
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
        if n is None or n in found or word not in MORBIDITIES:
            want = f"each patient's number once, and one of {', '.join(MORBIDITIES)} expected"
            raise ValueError(f"{path}: row {line[who]!r}, {line[what]!r}: {want}")
        found[n] = word
    return found


def group(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """Returns the rows with both sides known, by dataset, then level."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row["true_share"] is not None and row["predicted_share"] is not None:
            found.setdefault(row["dataset"], {}).setdefault(row["level"], []).append(row)
    return found


def _both_sides(rows: Sequence[Row], key: str, factor: float) -> Iterable[np.ndarray]:
    """The true and the predicted values of a score, times `factor`, float64 [N] each."""
    return (factor * np.array([row[f"{side}_{key}"] for row in rows], float) for side in SIDES)


def _compare(rows: Sequence[Row]) -> Row:
    """How predicted scores meet true ones, of one dataset and level: a row of agreement.csv."""
    found: Row = {"dataset": rows[0]["dataset"], "level": rows[0]["level"], "n": len(rows)}
    for key, (factor, _) in SCORES.items():
        t, p = _both_sides(rows, key, factor)
        error, ranks = statistics.mean_absolute_error(t, p), statistics.spearman(t, p)
        values = (float(t.mean()), float(p.mean()), error, *statistics.limits(t, p), ranks)
        found |= {f"{key}_{name}": v for name, v in zip(STATISTICS, values, strict=True)}
    grades = statistics.classes(*([row[f"{side}_grade"] for row in rows] for side in SIDES))
    return found | {f"grade_{name}": getattr(grades, name) for name in OF_GRADES}


def _draw(path: Path, levels: Mapping[str, Sequence[Row]]) -> None:
    """Draws predicted - true against their mean, a row of axes a level, with their limits."""
    with figures.canvas(path, width=8.4, height=3.1 * len(levels) + 0.2) as figure:
        grid = figure.subplots(len(levels), len(SCORES), squeeze=False)
        for axes, (level, rows) in zip(grid, levels.items(), strict=True):
            for ax, (key, (factor, title)) in zip(axes, SCORES.items(), strict=True):
                t, p = _both_sides(rows, key, factor)
                ax.scatter((t + p) / 2, p - t, s=14, color=figures.BLUE, alpha=0.6, linewidths=0)
                for value, style in zip(statistics.limits(t, p), ("-", "--", "--"), strict=True):
                    if np.isfinite(value):
                        ax.axhline(value, color=figures.ORANGE, linestyle=style)
                ax.set_title(f"{title} (per {level}, n = {len(rows)})")
                ax.set(xlabel="mean of predicted and true", ylabel="predicted - true")


def agreement_section(out: Path, groups: Mapping[str, Mapping[str, Sequence[Row]]]) -> list[str]:
    """Writes `agreement.csv` of the rows of `group`, and a figure a dataset."""
    tables = [_compare(rows) for levels in groups.values() for rows in levels.values()]
    write_csv(out / "agreement.csv", tables)
    scores, grades, shown = [], [], []
    for found in tables:
        where = [found["dataset"], found["level"], found["n"]]
        for key, (_, title) in SCORES.items():
            scores.append([*where, title, *(found[f"{key}_{name}"] for name in STATISTICS)])
        grades.append([*where, *(found[f"grade_{name}"] for name in OF_GRADES)])
    for dataset, levels in groups.items():
        name = f"bland_altman_{dataset}.png"
        _draw(out / name, levels)
        shown.append(f"![{dataset}]({name})")
    head = ["dataset", "per", "n"]
    agreed = markdown_table([*head, "score", *STATISTICS.values()], scores)
    graded = markdown_table([*head, *OF_GRADES.values()], grades)
    return ["## Agreement", agreed, GRADED, graded, *shown, AGREEMENT]


def experts(rows: Iterable[Row]) -> list[Row]:
    """Returns how the predicted share ranks beside experts' scores, a row a dataset and score.

    It has `dataset`, `score`, `n`, `mean_score`, `mean_share` (percent) and their `spearman`.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row, name in itertools.product(rows, EXPERT_SCORES):
        if row[name] is not None and row["predicted_share"] is not None:
            pair = row[name], 100 * row["predicted_share"]
            found.setdefault((row["dataset"], name), []).append(pair)
    tables = []
    for (dataset, name), pairs in found.items():
        scores, shares = np.array(pairs, float).T
        row = {"dataset": dataset, "score": name, "n": len(pairs), "mean_score": scores.mean()}
        ranks = statistics.spearman(scores, shares)
        tables.append(row | {"mean_share": shares.mean(), "spearman": ranks})
    return tables


def experts_section(out: Path, tables: Sequence[Row]) -> list[str]:
    """Writes `experts.csv` of the rows of `experts`."""
    write_csv(out / "experts.csv", tables)
    head = ["dataset", "score", "slices", "mean score", "mean predicted share, %", "Spearman"]
    table = markdown_table(head, [list(row.values()) for row in tables])
    return ["## Beside the scores of experts", table, EXPERTS]


def join(morbidity: Mapping[int, str], rows: Iterable[Row]) -> tuple[list[Row], int, list[str]]:
    """Brings the table of `read_morbidity` and the predictions of patients together.

    Returns a row a patient with a clinical class, by number: `patient`, `morbidity`, `class`,
    predicted `share` 0..1, `grade` 0..2, `ct_ss` 0..40; how many are left out as suspected; and the
    names left out: no patient number in them, or none of the table. ValueError for two of a number.
    """
    named: dict[int, tuple[str, Row]] = {}
    unknown = []
    for row in rows:
        if row["level"] != "patient" or row["predicted_share"] is None:
            continue
        name = f"{row['dataset']}/{row['unit']}"
        n = patient_number(name)
        if n is None or n not in morbidity:
            unknown.append(name)
        elif n in named:
            raise ValueError(f"{named[n][0]} and {name} are both patient {n}: score them together")
        else:
            named[n] = name, row
    found = [
        {"patient": n, "morbidity": morbidity[n], "class": GRADES[morbidity[n]]}
        | {key: row[f"predicted_{key}"] for key in ("share", "grade", "ct_ss")}
        for n, (_, row) in sorted(named.items())
        if morbidity[n] in GRADES
    ]
    return found, len(named) - len(found), unknown


def compare_classes(rows: Sequence[Row]) -> dict[str, float]:
    """Returns accuracy, majority, macro-F1 and kappa of the grade against the clinical class.

    And the AUC of infected share and CT-SS for severe or worse (NaN where all are alike); a
    ValueError if no patient is left.
    """
    if not rows:
        raise ValueError("no scored patient has a class in the clinical table")
    column = {key: [row[key] for row in rows] for key in rows[0]}
    found = statistics.classes(column["class"], column["grade"])._asdict()
    severe = [number > 0 for number in column["class"]]
    mixed = any(severe) and not all(severe)
    for key in ("share", "ct_ss"):
        found[f"auc_{key}"] = statistics.roc(column[key], severe).auc if mixed else float("nan")
    return found


def clinical_section(out: Path, morbidity: Mapping[int, str], rows: Iterable[Row]) -> list[str]:
    """Writes `clinical.csv`: the grades beside the clinical classes, by `join`."""
    joined, suspected, unknown = join(morbidity, rows)
    write_csv(out / "clinical.csv", joined)
    head = ["patients", "accuracy", "always the majority", "macro-F1", "quadratic kappa"]
    head += ["AUC of the share", "AUC of CT-SS"]
    table = markdown_table(head, [[len(joined), *compare_classes(joined).values()]])
    return ["## Beside the clinical table", table, CLINICAL.format(suspected, len(unknown))]


def left_out_section(lines: Sequence[str]) -> list[str]:
    """Returns Markdown of what could not be scored, a line each, the first 20."""
    more = [f"and {len(lines) - 20} more"] if len(lines) > 20 else []
    items = "\n".join(f"- {line}" for line in [*lines[:20], *more])
    return [f"## Left out ({len(lines)})", items]

"""What `severity-study` shows: Bland-Altman figures, and the sections of its page in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax.evaluation import agreement, figures as house
from infnet_jax.evaluation.markdown import markdown_table
from infnet_jax.verbs import clinical

SCORES = {"share": (100, "infected share of the lung, %"), "ct_ss": (1, "CT-SS, 0 to 40")}
SIDES = ("true", "predicted")
STATISTICS = {  # of a score, column of agreement.csv -> heading
    "true": "mean true",
    "predicted": "mean predicted",
    "mae": "mean absolute error",
    "bias": "bias",
    "low": "lower limit",
    "high": "upper limit",
    "spearman": "Spearman",
}
AGREEMENT = """Lines: the mean of the differences and 1.96 standard deviations to either side. \
Neighbouring slices are near copies, so limits per slice look surer than they are."""
GRADES = "Grades 0, 1, 2 of the infected share (bounds 1 % and 50 %):"
EXPERTS = """Geographic extent 0 to 8 and opacity 0 to 6, mean of three readers of X-rays \
(covid-chestxray). A network of CT slices has seen no X-ray: read this as a test of how far it \
carries, unless it was trained on some."""
CLINICAL = """Classes: 0 control, mild and regular, 1 severe, 2 critically ill; predicted is the \
grade of the infected share (bounds 1 % and 50 %). AUC: severe or worse. Left out: {} suspected, \
{} not in the table."""

Row = dict[str, Any]


def both_sides(
    rows: Sequence[Mapping[str, Any]], key: str, factor: float = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the true and the predicted values of a score, times `factor`, float64 [N] each."""
    t, p = (factor * np.array([r[f"{side}_{key}"] for r in rows], float) for side in SIDES)
    return t, p


def draw(folder: Path, groups: Mapping[tuple[str, str], Sequence[Row]]) -> dict[str, Path]:
    """Draws predicted - true against their mean, a figure a dataset, with limits of agreement.

    Args:
      folder: of the figures.
      groups: (dataset, level) to rows with both sides known, as in `severity_study.score`.

    Returns:
      Each dataset's figure.
    """
    datasets: dict[str, dict[str, Sequence[Row]]] = {}
    for (dataset, level), rows in groups.items():
        datasets.setdefault(dataset, {})[level] = rows
    paths = {dataset: folder / f"bland_altman_{dataset}.png" for dataset in datasets}
    for dataset, path in paths.items():
        _draw(path, datasets[dataset])
    return paths


def _draw(path: Path, levels: Mapping[str, Sequence[Row]]) -> None:
    """One figure with a row of axes a level."""
    with house.canvas(path, width=8.4, height=3.1 * len(levels) + 0.2) as figure:
        grid = figure.subplots(len(levels), len(SCORES), squeeze=False)
        for axes, (level, rows) in zip(grid, levels.items(), strict=True):
            for ax, (key, (factor, title)) in zip(axes, SCORES.items(), strict=True):
                t, p = both_sides(rows, key, factor)
                found = agreement.limits(t, p)
                ax.scatter((t + p) / 2, p - t, s=14, color=house.BLUE, alpha=0.6, linewidths=0)
                for value, style in zip(found, ("-", "--", "--"), strict=True):
                    if np.isfinite(value):
                        ax.axhline(value, color=house.ORANGE, linestyle=style)
                ax.set_title(f"{title} (per {level}, n = {len(rows)})")
                ax.set(xlabel="mean of predicted and true", ylabel="predicted - true")


def agreement_section(tables: Sequence[Row], figures: Mapping[str, Path]) -> list[str]:
    """Returns Markdown of the rows of `agreement.csv`, with each dataset's figure."""
    rows, grades = [], []
    for found in tables:
        where = [found["dataset"], found["level"], found["n"]]
        for key, (_, title) in SCORES.items():
            rows.append([*where, title, *(found[f"{key}_{name}"] for name in STATISTICS)])
        grades.append([*where, *(found[f"grade_{n}"] for n in ("kappa", "accuracy", "majority"))])
    head = ["dataset", "per", "n"]
    scores = markdown_table([*head, "score", *STATISTICS.values()], rows)
    graded = markdown_table([*head, "quadratic kappa", "accuracy", "always the majority"], grades)
    shown = [f"![{name}]({path.name})" for name, path in figures.items()]
    return ["## Agreement", scores, GRADES, graded, *shown, AGREEMENT]


def experts_section(tables: Sequence[Row]) -> list[str]:
    """Returns Markdown of the rows of `experts.csv`."""
    head = ["dataset", "score", "slices", "mean score", "mean predicted share, %", "Spearman"]
    table = markdown_table(head, [list(row.values()) for row in tables])
    return ["## Beside the scores of experts", table, EXPERTS]


def clinical_section(joined: clinical.Joined) -> list[str]:
    """Returns Markdown of the grades beside the clinical classes."""
    head = ["patients", "accuracy", "always the majority", "macro-F1", "quadratic kappa"]
    head += ["AUC of the share", "AUC of CT-SS"]
    table = markdown_table(head, [[len(joined.rows), *clinical.compare(joined).values()]])
    said = CLINICAL.format(joined.suspected, len(joined.unknown))
    return ["## Beside the clinical table", table, said]


def left_out_section(lines: Sequence[str]) -> list[str]:
    """Returns Markdown of what could not be scored, a line each, the first 20."""
    more = [f"and {len(lines) - 20} more"] if len(lines) > 20 else []
    items = "\n".join(f"- {line}" for line in [*lines[:20], *more])
    return [f"## Left out ({len(lines)})", items]

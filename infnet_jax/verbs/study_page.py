"""What a severity study shows: Bland-Altman figures and a page in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax.evaluation import figures as house, statistics
from infnet_jax.evaluation.markdown import markdown_table
from infnet_jax.verbs import clinical

SCORES = (("share", 100, "infected share of the lung, %"), ("ct_ss", 1, "CT-SS, 0 to 40"))
STATISTICS = ("true", "predicted", "mae", "bias", "low", "high", "spearman")


def draw(folder: Path, dataset: str, levels: Mapping[str, Sequence[Mapping]]) -> Path:
    """Draws predicted - true against their mean, a row a level, with the limits of agreement.

    Args:
      levels: level to rows with both sides known, as in `severity_rows.score`.
    """
    path = folder / f"bland_altman_{dataset}.png"
    with house.canvas(path, width=8.4, height=3.1 * len(levels) + 0.2) as figure:
        grid = figure.subplots(len(levels), len(SCORES), squeeze=False)
        for axes, (level, rows) in zip(grid, levels.items(), strict=True):
            for ax, (key, factor, title) in zip(axes, SCORES, strict=True):
                t, p = (
                    factor * np.array([r[f"{side}_{key}"] for r in rows], float)
                    for side in ("true", "predicted")
                )
                found = statistics.limits(t, p)
                ax.scatter((t + p) / 2, p - t, s=14, color=house.BLUE, alpha=0.6, linewidths=0)
                for value, style in zip(found, ("-", "--", "--"), strict=True):
                    if np.isfinite(value):
                        ax.axhline(value, color=house.ORANGE, linestyle=style)
                ax.set(
                    title=f"{title} (per {level}, n = {len(rows)})",
                    xlabel="mean of predicted and true",
                    ylabel="predicted - true",
                )
    return path


def write(
    folder: Path,
    *,
    model: Mapping[str, str],
    tables: Sequence[Mapping[str, Any]],
    experts: Sequence[Mapping[str, Any]],
    joined: clinical.Joined | None,
    figures: Sequence[tuple[str, Path]],
    left_out: Sequence[str],
) -> Path:
    """Writes `summary.md` and returns its path.

    Args:
      tables: rows of `agreement.csv`; experts: of `experts.csv`.
      joined: patients with a clinical class, if there is such a table.
      figures: (dataset, file in `folder`).
      left_out: a line for each thing that could not be scored.
    """
    parts = [
        "# Severity: predicted against true",
        "\n".join(f"- {name}: {value}" for name, value in model.items()),
    ]
    if tables:
        parts += ["## Agreement", _agreement(tables)]
        parts += [f"![{name}]({path.name})" for name, path in figures]
        parts += [
            "Lines: the mean of the differences and 1.96 standard deviations to either side. "
            "Neighbouring slices are near copies, so limits per slice look surer than they "
            "are."
        ]
    if experts:
        parts += ["## Beside the scores of experts", _experts(experts)]
    if joined is not None:
        parts += ["## Beside the clinical table", _clinical(joined)]
    if left_out:
        shown = [f"- {line}" for line in left_out[:20]]
        more = [f"- and {len(left_out) - 20} more"] if len(left_out) > 20 else []
        parts += [f"## Left out ({len(left_out)})", "\n".join(shown + more)]
    path = folder / "summary.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def _agreement(tables: Sequence[Mapping[str, Any]]) -> str:
    """A row for each score of each dataset and level, and one table of grades."""
    rows, grades = [], []
    for found in tables:
        where = [found["dataset"], found["level"], found["n"]]
        for key, _, title in SCORES:
            rows.append([*where, title, *(found[f"{key}_{name}"] for name in STATISTICS)])
        grades.append([*where, *(found[f"grade_{n}"] for n in ("kappa", "accuracy", "majority"))])
    head = ["dataset", "per", "n"]
    return "\n\n".join(
        [
            markdown_table(
                [
                    *head,
                    "score",
                    "mean true",
                    "mean predicted",
                    "mean absolute error",
                    "bias",
                    "lower limit",
                    "upper limit",
                    "Spearman",
                ],
                rows,
            ),
            "Grades 0, 1, 2 of the infected share (bounds 1 % and 50 %):",
            markdown_table([*head, "quadratic kappa", "accuracy", "always the majority"], grades),
        ]
    )


def _experts(tables: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(
        [
            markdown_table(
                ["dataset", "score", "slices", "mean score", "mean predicted share, %", "Spearman"],
                [list(found.values()) for found in tables],
            ),
            "Geographic extent 0 to 8 and opacity 0 to 6, mean of three readers of X-rays "
            "(covid-chestxray). A network of CT slices has seen no X-ray: read this as a test of "
            "how far it carries, unless it was trained on some.",
        ]
    )


def _clinical(joined: clinical.Joined) -> str:
    found = clinical.compare(joined)
    return "\n\n".join(
        [
            markdown_table(
                [
                    "patients",
                    "accuracy",
                    "always the majority",
                    "macro-F1",
                    "quadratic kappa",
                    "AUC of the share",
                    "AUC of CT-SS",
                ],
                [[len(joined.numbers), *found.values()]],
            ),
            "Classes: 0 control, mild and regular, 1 severe, 2 critically ill; predicted is the "
            "grade of the infected share (bounds 1 % and 50 %). AUC: severe or worse. Left out: "
            f"{joined.suspected} suspected, {len(joined.unknown)} not in the table.",
        ]
    )

"""What a study shows: its two tables, the curve over label budgets and the slices one by one."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from infnet_jax.evaluation import statistics
from infnet_jax.evaluation.markdown import markdown_table
from infnet_jax.files import write_csv
from infnet_jax.runs.workdir import write_text
from infnet_jax.study import figures as study_figures
from infnet_jax.study.results import DICE, Results, collect, select

LOSSES = {
    "total": "training loss in all",
    "coarse": "eq. 4, map 5",
    "s32": "eq. 4, map 4",
    "s16": "eq. 4, map 3",
    "s8": "eq. 4, map 2 (final)",
    "edge": "edge",
    "region": "eq. 4, a U-Net's map",
    "entropy": "cross-entropy",
    "dice": "soft Dice loss",
    "distance": "abs(logit - truth)",
}


def dice_lines(
    config: ConfigDict, results: Sequence[Results], without: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The lines of Table II: a row, budget and class each, and for two classes their mean.

    Each line has for each reading its mean, `_low` and `_high` (95 % over slices and seeds),
    `_gain` over the row it is compared with at the same budget and `_p`, the paired Wilcoxon p,
    Holm-corrected over all lines of its class.

    Args:
      without: ids of slices to leave out.
    """
    lines, of_row = [], {(r.row, r.labels): r for r in results}
    for result in results:
        row = config.rows[result.row]
        classes = list(result.dice["mean"])
        groups = {name: [name] for name in classes}
        if len(classes) > 1:
            groups["mean of classes"] = classes
        other = of_row.get((row.against, result.labels))
        for name, group in groups.items():
            values = {kind: select(result, kind, group, without) for kind in DICE}
            line: dict[str, Any] = {
                "row": row.title,
                "labels": result.labels or "all",
                "learnt_from": result.count,
                "class": name,
                "seeds": len(result.seeds),
                "slices": values["mean"].shape[1],
            }
            for kind, ours in values.items():
                line[kind] = statistics.mean(ours)
                line[f"{kind}_low"], line[f"{kind}_high"] = statistics.interval(ours)
            line["against"] = config.rows[row.against].title if other else ""
            for kind, ours in values.items():
                line[f"{kind}_gain"] = line[f"{kind}_p"] = math.nan
                if other:
                    theirs = select(other, kind, group, without)
                    line[f"{kind}_gain"] = line[kind] - statistics.mean(theirs)
                    line[f"{kind}_p"] = statistics.wilcoxon(
                        *map(statistics.per_slice, (ours, theirs))
                    )
            shown = not result.labels and name in ("infection", "mean of classes")
            line["paper"] = row.paper_dice if shown else math.nan
            lines.append(line)
    for name in {line["class"] for line in lines}:
        family = [line for line in lines if line["class"] == name]
        for kind in DICE:
            corrected = statistics.holm([line[f"{kind}_p"] for line in family])
            for line, p in zip(family, corrected, strict=True):
                line[f"{kind}_p"] = p
    return lines


def loss_lines(config: ConfigDict, results: Sequence[Results]) -> list[dict[str, Any]]:
    """The lines of Table I: a row, budget and definition of the loss each."""
    lines = []
    for result in results:
        row = config.rows[result.row]
        for name, values in result.losses.items():
            low, high = statistics.interval(values[..., None])
            lines.append(
                {
                    "row": row.title,
                    "labels": result.labels or "all",
                    "network": "multi" if "entropy" in result.losses else "single",
                    "loss": name,
                    "seeds": len(result.seeds),
                    "mean": statistics.mean(values[..., None]),
                    "low": low,
                    "high": high,
                    "paper": row.paper_loss if name == "total" and not result.labels else math.nan,
                }
            )
    return lines


def write(
    config: ConfigDict,
    cells: Sequence[Any],
    *,
    workdir: Path,
    failures: Mapping[str, str],
    command: str,
) -> Path:
    """Writes `table1.md`, `table2.md`, their CSV, the figures and `study.md`, and returns the last.

    Args:
      cells: the finished ones; failures: of the others, cell -> message.
    """
    parts = ["# Study", f"```\n{command}\n```"]
    if failures:
        listed = "\n".join(f"- {cell}: {message}" for cell, message in failures.items())
        parts += [f"## {len(failures)} cells failed\n\nThe same command tries them again.", listed]
    results = sorted(
        collect(cells), key=lambda r: (config.run.index(r.row), -(r.labels or 1 << 30))
    )
    if results:
        parts += _table1(config, results, workdir) + _table2(config, results, workdir)
        parts += _figures(config, results, workdir)
    parts.append("Research use only; not a medical device.")
    write_text(workdir / "study.md", "\n\n".join(parts) + "\n")
    return workdir / "study.md"


def _table1(config: ConfigDict, results: Sequence[Results], workdir: Path) -> list[str]:
    lines = loss_lines(config, results)
    write_csv(workdir / "table1.csv", lines)
    parts = ["## Table I: loss on the test slices", LOSS_NOTE]
    for network in dict.fromkeys(line["network"] for line in lines):
        own = [line for line in lines if line["network"] == network]
        names = [name for name in LOSSES if any(line["loss"] == name for line in own)]
        cells = {(line["row"], line["labels"], line["loss"]): line for line in own}
        table = [
            [
                row,
                labels,
                cells[row, labels, names[0]]["seeds"],
                *(_spread(cells.get((row, labels, name)), "mean", "low", "high") for name in names),
                cells[row, labels, "total"]["paper"],
            ]
            for row, labels in dict.fromkeys((line["row"], line["labels"]) for line in own)
        ]
        head = [f"{network} class", "labels", "seeds", *(LOSSES[name] for name in names), "paper"]
        parts.append(markdown_table(head, table))
    write_text(workdir / "table1.md", "\n\n".join(parts) + "\n")
    return parts


def _table2(config: ConfigDict, results: Sequence[Results], workdir: Path) -> list[str]:
    parts, rows = ["## Table II: Dice on the test slices", DICE_NOTE], []
    known = set().union(*(result.ids for result in results))
    for without in ((), *(ids for ids in config.leaking if known & {*ids})):
        name = f"Without slices {', '.join(without)}" if without else "All slices"
        lines = dice_lines(config, results, without)
        rows += [{"without": " ".join(without), **line} for line in lines]
        table = [
            [
                line["row"],
                line["labels"],
                line["class"],
                line["seeds"],
                *(_spread(line, kind, f"{kind}_low", f"{kind}_high") for kind in DICE),
                line["against"],
                *(
                    " / ".join(_number(line[f"{kind}_{what}"], form) for kind in DICE)
                    if line["against"]
                    else ""
                    for what, form in (("gain", "+.3f"), ("p", ".3g"))
                ),
                line["paper"],
            ]
            for line in lines
        ]
        head = [
            "row",
            "labels",
            "class",
            "seeds",
            *(title for _, title in DICE.values()),
            "against",
            "gain",
            "p (Holm)",
            "paper",
        ]
        parts += [f"### {name}", markdown_table(head, table)]
    write_csv(workdir / "table2.csv", rows)
    write_text(workdir / "table2.md", "\n\n".join(parts) + "\n")
    return parts


def _figures(config: ConfigDict, results: Sequence[Results], workdir: Path) -> list[str]:
    """The curve over label budgets where there are several, and the pairs slice by slice."""
    parts, curves, pairs = [], {}, []
    of_row = {(r.row, r.labels): r for r in results}
    for result in results:
        row, classes = config.rows[result.row], list(result.dice["mean"])
        values = select(result, "mean", classes, ())
        point = (result.count, statistics.mean(values), *statistics.interval(values))
        curves.setdefault(row.title, []).append(point)
        other = of_row.get((row.against, result.labels))
        if other and not result.labels:
            theirs = select(other, "mean", classes, ())
            pairs.append(
                (
                    config.rows[row.against].title,
                    row.title,
                    statistics.per_slice(theirs),
                    statistics.per_slice(values),
                )
            )
    curves = {title: sorted(points) for title, points in curves.items() if len(points) > 1}
    if curves:
        study_figures.label_curve(curves, workdir / "figures" / "label_efficiency.png")
        parts += [
            "## Fewer labels",
            "![label efficiency](<figures/label_efficiency.png>)",
            "*Dice (mean of 256 thresholds) against the labelled slices, 95 % intervals.*",
        ]
    if pairs:
        study_figures.scatter(pairs, workdir / "figures" / "slices.png")
        parts += [
            "## Slice by slice",
            "![slices](<figures/slices.png>)",
            "*Dice (mean of 256 thresholds) of each test slice, its seeds averaged.*",
        ]
    return parts


def _spread(line: Mapping[str, Any] | None, *keys: str) -> str:
    """`0.691 [0.648, 0.716]`, or a dash for what a network does not have."""
    if line is None:
        return "–"
    value, low, high = (_number(line[key], ".3f") for key in keys)
    return f"{value} [{low}, {high}]"


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


LOSS_NOTE = (
    "Mean [95 % interval] over slices and seeds, at the network's own size, without test-time "
    "averaging. Single class: the training loss is eq. 5 (four maps and the edge, each as eq. 4 "
    "with boundary weights) and its parts stand beside it; of a U-Net, which has one map and no "
    "edge, it is eq. 4 of that map. Multi-class: cross-entropy plus soft "
    "Dice loss. abs(logit - truth) is the mean over pixels and maps that one evaluator of the "
    "paper's authors takes for the loss. The paper defines none, and its data differ: its figures "
    "are no target, only neighbours."
)
DICE_NOTE = (
    "Mean [95 % bootstrap interval] over slices and seeds. *Mean of 256* and *stretched* follow "
    "the published toolbox: each map is stretched to 0..1, and a slice without lesion scores 0. "
    "*Raw* takes the probabilities as they are and leaves out slices where truth and prediction "
    "are both empty; both are cut at 0.5 unless the row says otherwise. A gain in the first that "
    "the others do not show only sharpens the map. Gain and p are in the order of the three "
    "readings; p is the paired Wilcoxon signed-rank test over "
    "slices, each averaged over its seeds, Holm-corrected over all comparisons of its class. The "
    "paper's figures come from other data and an undefined Dice."
)

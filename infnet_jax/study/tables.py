"""What a study shows: its two tables, the curve over label budgets and the slices one by one."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from infnet_jax.evaluation.figures import BLUE, COLOURS, canvas, markdown_table
from infnet_jax.evaluation.metrics import SLICE_SCORES as DICE
from infnet_jax.evaluation.statistics import interval, mean, per_slice
from infnet_jax.files import write_csv
from infnet_jax.runs import write_text
from infnet_jax.study.cells import Cell, Line, Results, collect, dice_lines, loss_lines

Pair = tuple[str, str, np.ndarray, np.ndarray]  # titles of reference and row, Dice [slices] of each
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
LOSS_NOTE = (
    "Mean [95 % interval] over slices and seeds, at the network's own size, without test-time "
    "averaging. Single class: the training loss is eq. 5 (four maps and the edge, each as eq. 4 "
    "with boundary weights) and its parts stand beside it; of a U-Net, which has one map and no "
    "edge, it is eq. 4 of that map. Multi-class: cross-entropy plus soft Dice loss. abs(logit - "
    "truth) is the mean over pixels and maps that one evaluator of the paper's authors takes for "
    "the loss. The paper defines none, and its data differ: its figures are no target, only "
    "neighbours."
)
DICE_NOTE = (
    "Mean [95 % bootstrap interval] over slices and seeds. *Mean of 256* and *stretched* follow "
    "the published toolbox: each map is stretched to 0..1, and a slice without lesion scores 0. "
    "*Raw* takes the probabilities as they are and leaves out slices where truth and prediction "
    "are both empty; both are cut at 0.5 unless the row says otherwise. A gain in the first that "
    "the others do not show only sharpens the map. Gain and p are in the order of the three "
    "readings; p is the paired Wilcoxon signed-rank test over slices, each averaged over its "
    "seeds, Holm-corrected over all comparisons of its class. The paper's figures come from other "
    "data and an undefined Dice."
)


def write(
    study: ConfigDict, cells: Sequence[Cell], workdir: Path, failed: Mapping[str, str], command: str
) -> Path:
    """Writes tables, CSV and figures of finished cells, and `study.md`, whose path it returns."""
    parts = ["# Study", f"```\n{command}\n```"]
    if failed:
        listed = "\n".join(f"- {cell}: {message}" for cell, message in failed.items())
        parts += [f"## {len(failed)} cells failed\n\nThe same command tries them again.", listed]
    results = sorted(collect(cells), key=lambda r: (study.run.index(r.row), -(r.labels or 1 << 30)))
    if results:
        parts += _table1(study, results, workdir) + _table2(study, results, workdir)
        parts += _figures(study, results, workdir)
    parts.append("Research use only; not a medical device.")
    write_text(workdir / "study.md", "\n\n".join(parts) + "\n")
    return workdir / "study.md"


def _table1(study: ConfigDict, results: Sequence[Results], workdir: Path) -> list[str]:
    """A table a kind of network, a line a row and budget, a column a definition of the loss."""
    lines, parts = loss_lines(study, results), ["## Table I: loss on the test slices", LOSS_NOTE]
    write_csv(workdir / "table1.csv", lines)
    for network in dict.fromkeys(line["network"] for line in lines):
        own = [line for line in lines if line["network"] == network]
        names = [name for name in LOSSES if any(line["loss"] == name for line in own)]
        table: dict[tuple, Line] = {}
        for line in own:
            head = {f"{network} class": line["row"], "labels": line["labels"]}
            head |= {"seeds": line["seeds"], **{LOSSES[name]: "–" for name in names}}
            row = table.setdefault((line["row"], line["labels"]), head | {"paper": math.nan})
            row[LOSSES[line["loss"]]] = _spread(line, "mean", "low", "high")
            row |= {"paper": line["paper"]} if line["loss"] == "total" else {}
        shown = list(table.values())
        parts.append(markdown_table([*shown[0]], [[*row.values()] for row in shown]))
    write_text(workdir / "table1.md", "\n\n".join(parts) + "\n")
    return parts


def _table2(study: ConfigDict, results: Sequence[Results], workdir: Path) -> list[str]:
    """A table of all slices, and one without each leaking set of which a slice was tested."""
    parts, rows = ["## Table II: Dice on the test slices", DICE_NOTE], []
    known = {name for result in results for name in result.ids}
    for without in ((), *(ids for ids in study.leaking if known & {*ids})):
        lines, table = dice_lines(study, results, without), []
        rows += [{"without": " ".join(without), **line} for line in lines]
        for line in lines:
            row = {key: line[key] for key in ("row", "labels", "class", "seeds")}
            for kind, (_, heading) in DICE.items():
                row[heading] = _spread(line, kind, f"{kind}_low", f"{kind}_high")
            row |= {"against": line["against"], "gain": "", "p (Holm)": "", "paper": line["paper"]}
            if line["against"]:
                row["gain"] = " / ".join(_number(line[f"{kind}_gain"], "+.3f") for kind in DICE)
                row["p (Holm)"] = " / ".join(_number(line[f"{kind}_p"], ".3g") for kind in DICE)
            table.append(row)
        name = f"Without slices {', '.join(without)}" if without else "All slices"
        parts += [f"### {name}", markdown_table([*table[0]], [[*row.values()] for row in table])]
    write_csv(workdir / "table2.csv", rows)
    write_text(workdir / "table2.md", "\n\n".join(parts) + "\n")
    return parts


def _spread(line: Line, *keys: str) -> str:
    """`0.691 [0.648, 0.716]`."""
    value, low, high = (_number(line[key], ".3f") for key in keys)
    return f"{value} [{low}, {high}]"


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _figures(study: ConfigDict, results: Sequence[Results], workdir: Path) -> list[str]:
    """The curve over label budgets where there are several, and the pairs slice by slice."""
    parts: list[str] = []
    pairs: list[Pair] = []
    curves: dict[str, list[tuple[float, ...]]] = {}
    of_row = {r.row: r for r in results if not r.labels}
    for result in results:
        row, values = study.rows[result.row], result.dice("mean", result.classes)
        point = (result.learnt_from, mean(values), *interval(values))
        curves.setdefault(row.title, []).append(point)
        if not result.labels and (other := of_row.get(row.against)):
            theirs = per_slice(other.dice("mean", result.classes))
            pairs.append((study.rows[other.row].title, row.title, theirs, per_slice(values)))
    if curves := {title: sorted(points) for title, points in curves.items() if len(points) > 1}:
        label_curve(curves, workdir / "figures" / "label_efficiency.png")
        parts += ["## Fewer labels", "![label efficiency](<figures/label_efficiency.png>)"]
        parts += ["*Dice (mean of 256 thresholds) against the labelled slices, 95 % intervals.*"]
    if pairs:
        scatter(pairs, workdir / "figures" / "slices.png")
        parts += ["## Slice by slice", "![slices](<figures/slices.png>)"]
        parts.append("*Dice (mean of 256 thresholds) of each test slice, its seeds averaged.*")
    return parts


def label_curve(curves: Mapping[str, Sequence[tuple[float, ...]]], path: Path) -> None:
    """Draws a line a title through (labelled slices, mean, low, high), with bars low..high."""
    with canvas(path, width=6.4, height=4.2) as figure:
        ax = figure.subplots()
        style: dict[str, Any] = dict(marker="o", markersize=5, capsize=3)
        for k, (color, title) in enumerate(zip(cycle(COLOURS), curves, strict=False)):
            x, y, low, high = np.array(curves[title], float).T
            x = x * 1.015 ** (k - (len(curves) - 1) / 2)  # or the bars would hide each other
            ax.errorbar(x, y, [y - low, high - y], label=title, color=color, **style)
        counts = sorted({round(point[0]) for points in curves.values() for point in points})
        ax.set_xscale("log")
        ax.set_xticks(counts, [str(n) for n in counts])
        ax.minorticks_off()
        ax.set(xlabel="labelled slices", ylabel="Dice, mean of 256 thresholds")
        ax.legend()


def scatter(pairs: Sequence[Pair], path: Path) -> None:
    """Draws a panel a comparison; above its diagonal are the slices, as points, that gain."""
    columns, lines = min(4, len(pairs)), -(-len(pairs) // 4)
    with canvas(path, width=3.1 * columns, height=3.2 * lines) as figure:
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax in axes[len(pairs) :]:
            ax.remove()
        for ax, (reference, title, theirs, ours) in zip(axes, pairs, strict=False):
            ax.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1)
            ax.scatter(theirs, ours, s=16, color=BLUE, alpha=0.6, linewidths=0)
            ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            better = f"{int((ours > theirs).sum())} of {len(ours)} better"
            ax.set(xlabel=reference, ylabel=title, title=better)

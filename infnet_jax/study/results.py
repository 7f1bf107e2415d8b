"""What the finished cells of a study found: the lines of its two tables."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from infnet_jax.evaluation.metrics import SLICE_SCORES as DICE
from infnet_jax.evaluation.statistics import holm, interval, mean, per_slice, wilcoxon
from infnet_jax.study.cells import Cell

Line = dict[str, Any]  # column of a CSV -> value


class Results(NamedTuple):
    """What the finished cells of one row at one label budget (0 for all) found.

    Attributes:
      learnt_from: slices, the mean over its cells.
      seeds: number of those finished; ids: of the slices, sorted.
      columns: of evaluation.csv, and `loss_` of each definition: [seeds, slices]; NaN where
        undefined.
    """

    row: str
    labels: int
    learnt_from: float
    seeds: int
    ids: tuple[str, ...]
    columns: Mapping[str, np.ndarray]

    @property
    def classes(self) -> list[str]:
        """What the masks tell apart."""
        ends = [name for name in self.columns if name.startswith("dice_") and name[-5:] == "_mean"]
        return [name[5:-5] for name in ends]

    @property
    def losses(self) -> dict[str, np.ndarray]:
        """Definition -> [seeds, slices]."""
        return {k[5:]: values for k, values in self.columns.items() if k.startswith("loss_")}

    def dice(self, kind: str, classes: Sequence[str], without: Sequence[str] = ()) -> np.ndarray:
        """[seeds, slices, classes] of one reading, some slices left out."""
        kept = [i for i, name in enumerate(self.ids) if name not in without]
        columns = [self.columns[DICE[kind][0].format(name)] for name in classes]
        return np.stack([values[:, kept] for values in columns], -1)


def collect(cells: Sequence[Cell]) -> list[Results]:
    """Reads what finished cells left; a seed of which a fold is missing does not count.

    Raises:
      ValueError: two cells of a row were tested on different slices.
    """
    rows: dict[tuple[str, int], dict[int, list[Cell]]] = {}
    for cell in cells:
        rows.setdefault((cell.row, cell.labels), {}).setdefault(cell.seed, []).append(cell)
    found = []
    for (row, labels), of_seeds in rows.items():
        most = max(len(folds) for folds in of_seeds.values())
        seeds = [folds for folds in of_seeds.values() if len(folds) == most]
        tables = [_read(folds) for folds in seeds]
        ids = sorted(tables[0])
        if any(sorted(table) != ids for table in tables):
            raise ValueError(f"row {row}: its cells were tested on different slices")
        columns = {
            name: np.array([[table[i][name] for i in ids] for table in tables])
            for name in tables[0][ids[0]]
        }
        counts = [_read_json(cell.folder / "labelled.json") for folds in seeds for cell in folds]
        count = float(np.mean(counts))
        found.append(Results(row, labels, count, len(seeds), tuple(ids), columns))
    return found


def _read(folds: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Slice -> column -> value, of the folds (or the one test split) of one seed."""
    table: dict[str, dict[str, float]] = {}
    for cell in folds:
        losses = _read_json(cell.folder / "losses.json")
        with (cell.folder / "evaluation.csv").open(newline="") as file:
            for i, line in enumerate(csv.DictReader(file)):
                row = {key: float(value) for key, value in line.items() if key != "id"}
                row |= {f"loss_{name}": values[i] for name, values in losses.items()}
                table[line["id"]] = row
    return table


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def dice_lines(
    study: ConfigDict, results: Sequence[Results], without: Sequence[str] = ()
) -> list[Line]:
    """Returns the lines of Table II: one a row, budget and class, and for two classes their mean.

    Each line has for each reading its mean, `_low` and `_high` (95 % over slices and seeds),
    `_gain` over the row it is compared with at the same budget and `_p`, the paired Wilcoxon p,
    Holm-corrected over all lines of its class. Slices `without` are left out.
    """
    lines: list[Line] = []
    of_row = {(r.row, r.labels): r for r in results}
    for result in results:
        row, labels = study.rows[result.row], result.labels
        other = of_row.get((row.against, labels))
        head = {"row": row.title, "labels": labels or "all", "learnt_from": result.learnt_from}
        groups = {name: [name] for name in result.classes}
        if len(groups) > 1:
            groups["mean of classes"] = result.classes
        for name, group in groups.items():
            ours = {kind: result.dice(kind, group, without) for kind in DICE}
            line = head | {"class": name, "seeds": result.seeds, "slices": ours["mean"].shape[1]}
            for kind, values in ours.items():
                line[kind] = mean(values)
                line[f"{kind}_low"], line[f"{kind}_high"] = interval(values)
            line["against"] = study.rows[other.row].title if other else ""
            for kind, values in ours.items():
                line[f"{kind}_gain"] = line[f"{kind}_p"] = math.nan
                if other:
                    theirs = other.dice(kind, group, without)
                    line[f"{kind}_gain"] = line[kind] - mean(theirs)
                    line[f"{kind}_p"] = wilcoxon(per_slice(values), per_slice(theirs))
            shown = not labels and name in ("infection", "mean of classes")
            lines.append(line | {"paper": row.paper_dice if shown else math.nan})
    for name in {line["class"] for line in lines}:
        family = [line for line in lines if line["class"] == name]
        for kind in DICE:
            corrected = holm([line[f"{kind}_p"] for line in family])
            for line, p in zip(family, corrected, strict=True):
                line[f"{kind}_p"] = p
    return lines


def loss_lines(study: ConfigDict, results: Sequence[Results]) -> list[Line]:
    """Returns the lines of Table I: one a row, budget and definition of the loss."""
    lines = []
    for result in results:
        row = study.rows[result.row]
        network = "multi" if "entropy" in result.losses else "single"
        for name, values in result.losses.items():
            low, high = interval(values[..., None])
            line: Line = {"row": row.title, "labels": result.labels or "all", "network": network}
            line |= {"loss": name, "seeds": result.seeds, "mean": mean(values[..., None])}
            paper = row.paper_loss if name == "total" and not result.labels else math.nan
            lines.append(line | {"low": low, "high": high, "paper": paper})
    return lines

"""The cells of a study: their configs, the first stages that they share, and what they found."""

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from infnet_jax.evaluation.metrics import SLICE_SCORES as DICE
from infnet_jax.evaluation.statistics import holm, interval, mean, per_slice, wilcoxon
from infnet_jax.plan import Plan
from infnet_jax.plan.resolve import resolve

Line = dict[str, Any]  # column of a CSV -> value


class Cell(NamedTuple):
    """One run of a study."""

    row: str  # its key in `study.rows`
    seed: int
    labels: int  # the budget in slices, 0 for all
    fold: int | None  # of the cross-validation; None where the test split is the test
    config: ConfigDict
    folder: Path  # its workdir

    def __str__(self) -> str:
        words = [self.row, f"{self.labels} labels" if self.labels else "all labels"]
        words += [f"seed {self.seed}"] + ([] if self.fold is None else [f"fold {self.fold}"])
        return ", ".join(words)

    @property
    def finished(self) -> bool:
        """Whether its run and its losses are complete."""
        return (self.folder / "cell.json").exists()


def make_cells(study: ConfigDict, workdir: Path) -> list[Cell]:
    """Returns the cells in the order in which they run: seed by seed, for complete early tables.

    A row with an unknown base or key, or with no seed or budget, is a ValueError.
    """
    if not study.run:
        raise ValueError("run: name at least one of the rows")
    for name in study.run:
        if name not in study.rows:
            raise ValueError(f"run: {name!r} is none of the rows {', '.join(study.rows)}")
        row = study.rows[name]
        if row.base not in study.bases:
            known = ", ".join(study.bases)
            raise ValueError(f"rows.{name}.base={row.base!r}: choose one of {known}")
        if not row.seeds or not row.labels:
            raise ValueError(f"rows.{name}: give at least one of seeds and of labels")
        if row.against and row.against not in study.rows:
            raise ValueError(f"rows.{name}.against={row.against!r} is none of the rows")
    # All labels first: what may be handed on to smaller budgets is then there.
    return [
        _make_cell(study, workdir, seed, name, labels, fold)
        for seed in dict.fromkeys(s for name in study.run for s in study.rows[name].seeds)
        for name in study.run
        if seed in study.rows[name].seeds
        for labels in sorted(study.rows[name].labels, key=lambda n: n or 1 << 30, reverse=True)
        for fold in (range(study.folds) if study.folds else (None,))
    ]


def _make_cell(
    study: ConfigDict, workdir: Path, seed: int, name: str, labels: int, fold: int | None
) -> Cell:
    """Derives the config of a cell from the base of its row."""
    row = study.rows[name]
    derived = study.bases[row.base].copy_and_resolve_references().lock()
    data = dict(study.data, labels=tuple(sorted({n for n in row.labels if 0 < n <= labels})))
    place = f"labels{labels or '-all'}-seed{seed}"
    if fold is not None:
        place += f"-fold{fold}"
        data.update(folds=study.folds, fold=fold, test=derived.data.train)
    try:
        derived.update(row.set)
        derived.update(seed=seed, data=data)
    except (KeyError, TypeError) as error:
        raise ValueError(f"rows.{name}.set: {str(error).strip(chr(34))}") from error
    return Cell(name, seed, labels, fold, derived, workdir.absolute() / "cells" / name / place)


def borrow(cell: Cell, cells: Sequence[Cell]) -> None:
    """Links stages of a cell to equal ones that another cell has finished."""
    plan = resolve(cell.config, Path())
    for number, stage in enumerate(plan.stages):
        place = cell.folder / stage.name
        if place.is_symlink() and not place.exists():
            place.unlink()  # the cell that lent it is gone
        if stage.runs == "evaluate":  # it writes outside its folder
            continue
        needs = dependencies(plan, number)
        for other in cells:
            lent = other.folder / stage.name
            if place.exists() or other.folder == cell.folder or not (lent / "done.json").exists():
                continue
            filled_by = json.loads((other.folder / "config.json").read_text())
            current = filled_by == json.loads(other.config.to_json())
            if current and dependencies(resolve(other.config, Path()), number) == needs:
                place.symlink_to(os.path.relpath(lent.resolve(), cell.folder.resolve()))


def dependencies(plan: Plan, number: int) -> tuple[Any, ...]:
    """Returns all that the result of stage `number` depends on; the plan has relative paths."""
    stages, data = plan.stages[: number + 1], plan.data
    if not any(stage.supervised for stage in stages):  # pretexts look at no mask
        data = data._replace(labels=())
    predicts = any(stage.runs != "train" for stage in stages)
    inference = (plan.evaluate, plan.prior_kind, plan.prior_splits) if predicts else ()
    return stages, data, plan.weights, plan.seed, inference


class Results(NamedTuple):
    """What the finished cells of one row at one label budget (0 for all) found."""

    row: str
    labels: int
    learnt_from: float  # slices, the mean over its cells
    seeds: int  # number of those finished
    ids: tuple[str, ...]  # of the slices, sorted
    # Of evaluation.csv, and `loss_` of each definition: [seeds, slices]; NaN where undefined.
    columns: Mapping[str, np.ndarray]

    @property
    def classes(self) -> list[str]:
        """What the masks tell apart."""
        return [k[5:-5] for k in self.columns if k.startswith("dice_") and k.endswith("_mean")]

    def dice(self, kind: str, classes: Sequence[str], without: Sequence[str] = ()) -> np.ndarray:
        """[seeds, slices, classes] of one reading, some slices left out."""
        kept = [i for i, name in enumerate(self.ids) if name not in without]
        columns = [self.columns[DICE[kind][0].format(name)] for name in classes]
        return np.stack([values[:, kept] for values in columns], -1)


def collect(cells: Sequence[Cell]) -> list[Results]:
    """Reads what finished cells left; a seed of which a fold is missing does not count.

    Two cells of a row that were tested on different slices are a ValueError.
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
        counts = [(c.folder / "labelled.json").read_text() for folds in seeds for c in folds]
        learnt_from = float(np.mean([json.loads(count) for count in counts]))
        found.append(Results(row, labels, learnt_from, len(seeds), tuple(ids), columns))
    return found


def _read(folds: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Slice -> column -> value, of the folds (or the one test split) of one seed."""
    table: dict[str, dict[str, float]] = {}
    for cell in folds:
        losses = json.loads((cell.folder / "losses.json").read_text())
        with (cell.folder / "evaluation.csv").open(newline="") as file:
            for i, line in enumerate(csv.DictReader(file)):
                row = {key: float(value) for key, value in line.items() if key != "id"}
                table[line["id"]] = row | {f"loss_{k}": values[i] for k, values in losses.items()}
    return table


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
        for p in (f"{kind}_p" for kind in DICE):
            for line, corrected in zip(family, holm([line[p] for line in family]), strict=True):
                line[p] = corrected
    return lines


def loss_lines(study: ConfigDict, results: Sequence[Results]) -> list[Line]:
    """Returns the lines of Table I: one a row, budget and definition of the loss."""
    lines = []
    for result in results:
        row = study.rows[result.row]
        losses = {k[5:]: values for k, values in result.columns.items() if k.startswith("loss_")}
        network = "multi" if "entropy" in losses else "single"
        for name, values in losses.items():
            low, high = interval(values[..., None])
            line: Line = {"row": row.title, "labels": result.labels or "all", "network": network}
            line |= {"loss": name, "seeds": result.seeds, "mean": mean(values[..., None])}
            paper = row.paper_loss if name == "total" and not result.labels else math.nan
            lines.append(line | {"low": low, "high": high, "paper": paper})
    return lines

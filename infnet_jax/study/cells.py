"""The cells of a study: their configs, and the first stages that they share."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from infnet_jax.plan import Plan
from infnet_jax.plan.resolve import resolve


class Cell(NamedTuple):
    """One run of a study.

    Attributes:
      row: its key in `study.rows`.
      labels: the budget in slices, 0 for all.
      fold: of the cross-validation; None where the test split is the test.
      folder: its workdir.
    """

    row: str
    seed: int
    labels: int
    fold: int | None
    config: ConfigDict
    folder: Path

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

    Raises:
      ValueError: a row with an unknown base or key, or with no seed or budget.
    """
    _check_rows(study)
    # All labels first: what may be handed on to smaller budgets is then there.
    places = [
        (seed, name, labels, fold)
        for seed in dict.fromkeys(s for name in study.run for s in study.rows[name].seeds)
        for name in study.run
        if seed in study.rows[name].seeds
        for labels in sorted(study.rows[name].labels, key=lambda n: n or 1 << 30, reverse=True)
        for fold in (range(study.folds) if study.folds else (None,))
    ]
    return [_make_cell(study, workdir, *place) for place in places]


def _check_rows(study: ConfigDict) -> None:
    """Raises ValueError for a row that cannot be run."""
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


def _make_cell(
    study: ConfigDict, workdir: Path, seed: int, name: str, labels: int, fold: int | None
) -> Cell:
    """Derives the config of a cell from the base of its row."""
    row = study.rows[name]
    derived = study.bases[row.base].copy_and_resolve_references().lock()
    ladder = tuple(sorted({n for n in row.labels if 0 < n <= labels}))
    data = dict(study.data, labels=ladder)
    if fold is not None:
        data.update(folds=study.folds, fold=fold, test=derived.data.train)
    try:
        derived.update(row.set)
        derived.update(seed=seed, data=data)
    except (KeyError, TypeError) as error:
        raise ValueError(f"rows.{name}.set: {str(error).strip(chr(34))}") from error
    place = f"labels{labels or '-all'}-seed{seed}" + ("" if fold is None else f"-fold{fold}")
    folder = workdir.absolute() / "cells" / name / place
    return Cell(name, seed, labels, fold, derived, folder)


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
    """Returns all that the result of stage `number` depends on: equal ones give equal results.

    The plan must be of an empty workdir, so that its paths are relative.
    """
    stages, data = plan.stages[: number + 1], plan.data
    if not any(stage.supervised for stage in stages):  # pretexts look at no mask
        data = data._replace(labels=())
    predicts = any(stage.runs != "train" for stage in stages)
    inference = (plan.evaluate, plan.prior_kind, plan.prior_splits) if predicts else ()
    return stages, data, plan.weights, plan.seed, inference

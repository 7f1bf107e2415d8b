"""The cells of a study: their configs, and the first stages that they share."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

# Stages that may be handed on -> the sections that decide what they make, beside those of the
# stages before them.
_DECIDES = {
    "pretrain": ("pretrain", "coach", "model"),
    "prior": ("segment", "prior", "evaluate", "model"),
    "pretrain_multi": ("pretrain_multi", "coach"),
}


class Cell(NamedTuple):
    """One run of a study.

    Attributes:
      row: its key in `config.rows`.
      seed: of the run; labels: the budget in slices, 0 for all.
      fold: of the cross-validation; None where the test split is the test.
      config: of the run; folder: its workdir.
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


def make_cells(config: ConfigDict, workdir: Path) -> list[Cell]:
    """The cells in the order in which they run: seed by seed, so that early tables are whole.

    Raises:
      ValueError: a row with an unknown base or key, or with no seed or budget.
    """
    if not config.run:
        raise ValueError("run: name at least one of the rows")
    for name in config.run:
        if name not in config.rows:
            raise ValueError(f"run: {name!r} is none of the rows {', '.join(config.rows)}")
        row = config.rows[name]
        if not row.seeds or not row.labels:
            raise ValueError(f"rows.{name}: give at least one of seeds and of labels")
        if row.against and row.against not in config.rows:
            raise ValueError(f"rows.{name}.against={row.against!r} is none of the rows")
    cells = []
    for seed in dict.fromkeys(s for name in config.run for s in config.rows[name].seeds):
        for name in config.run:
            row = config.rows[name]
            # All labels first: what may be handed on to smaller budgets is then there.
            for labels in sorted(row.labels, key=lambda n: n or 1 << 30, reverse=True):
                for fold in range(config.folds) if config.folds else (None,):
                    if seed in row.seeds:
                        cells.append(_make_cell(config, name, seed, labels, fold, workdir))
    return cells


def _make_cell(
    config: ConfigDict, name: str, seed: int, labels: int, fold: int | None, workdir: Path
) -> Cell:
    """Derives the config of a cell from the base of its row."""
    row = config.rows[name]
    if row.base not in config.bases:
        known = ", ".join(config.bases)
        raise ValueError(f"rows.{name}.base={row.base!r}: choose one of {known}")
    derived = config.bases[row.base].copy_and_resolve_references().lock()
    ladder = tuple(sorted({n for n in row.labels if 0 < n <= labels}))
    own = dict(seed=seed, data=dict(config.data, labels=ladder))
    if fold is not None:
        own["data"].update(folds=config.folds, fold=fold, test=derived.data.train)
    try:
        derived.update(row.set)
        derived.update(own)
    except (KeyError, TypeError) as error:
        raise ValueError(f"rows.{name}.set: {str(error).strip(chr(34))}") from error
    place = f"labels{labels or '-all'}-seed{seed}" + ("" if fold is None else f"-fold{fold}")
    folder = workdir.absolute() / "cells" / name / place
    return Cell(name, seed, labels, fold, derived, folder)


def borrow(cell: Cell, cells: Sequence[Cell]) -> None:
    """Links the first stages of a cell to those of a finished one that was set alike."""
    mine = json.loads(cell.config.to_json())
    for stage in cell.config.stages:
        if stage not in _DECIDES:
            return
        place = cell.folder / stage
        if place.is_symlink() and not place.exists():
            place.unlink()  # the cell that lent it is gone
        for other in cells:
            lent = other.folder / stage
            if place.exists() or other.folder == cell.folder or not (lent / "done.json").exists():
                continue
            theirs = json.loads((other.folder / "config.json").read_text())
            if deciding(theirs, stage) == deciding(mine, stage):
                place.symlink_to(os.path.relpath(lent.resolve(), cell.folder.resolve()))


def deciding(config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """All that a stage's result hangs on, of a config as `config.json` holds it."""
    stages = config["stages"][: config["stages"].index(stage) + 1]
    keys = {"seed", "dtype", "weights", "data"}.union(*(_DECIDES[s] for s in stages))
    found = {key: config[key] for key in sorted(keys)} | {"stages": stages}
    if stages == ["pretrain"]:  # it looks at all images and at no mask
        found["data"] = {k: v for k, v in config["data"].items() if k != "labels"}
    if "pretrain_multi" in stages:
        found["multi"] = [config["multi"].get(key) for key in ("net", "with_prior", "prior_use")]
    return found

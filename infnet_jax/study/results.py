"""What the finished cells of a study found, slice by slice."""

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from infnet_jax.evaluation.metrics import SLICE_SCORES as DICE


class Results(NamedTuple):
    """What the finished cells of one row at one label budget found.

    Attributes:
      row: its key; labels: the budget, 0 for all; count: slices really learnt from.
      seeds: those finished; ids: of the slices, sorted.
      dice: reading -> class -> [seeds, slices]; NaN where undefined.
      losses: definition -> [seeds, slices].
    """

    row: str
    labels: int
    count: float
    seeds: tuple[int, ...]
    ids: tuple[str, ...]
    dice: Mapping[str, Mapping[str, np.ndarray]]
    losses: Mapping[str, np.ndarray]


def collect(cells: Sequence[Any]) -> list[Results]:
    """Reads what finished cells left; a seed of which a fold is missing does not count.

    Args:
      cells: finished ones, see `study.Cell`.

    Raises:
      ValueError: two cells of a row were tested on different slices.
    """
    rows: dict[tuple, dict[int, list]] = {}
    for cell in cells:
        rows.setdefault((cell.row, cell.labels), {}).setdefault(cell.seed, []).append(cell)
    found = []
    for (row, labels), of_seeds in rows.items():
        most = max(len(folds) for folds in of_seeds.values())
        whole = {seed: folds for seed, folds in of_seeds.items() if len(folds) == most}
        tables = [_read(folds) for folds in whole.values()]
        ids = sorted(tables[0])
        if any(sorted(table) != ids for table in tables):
            raise ValueError(f"row {row}: its cells were tested on different slices")
        stack = {
            name: np.array([[table[i][name] for i in ids] for table in tables])
            for name in tables[0][ids[0]]
        }
        named = [name[5:] for name in stack if name.startswith("dice_") and name.endswith("_mean")]
        classes = [name.removesuffix("_mean") for name in named]
        counts = [
            json.loads((cell.folder / "labelled.json").read_text())
            for folds in whole.values()
            for cell in folds
        ]
        found.append(
            Results(
                row,
                labels,
                float(np.mean(counts)),
                tuple(whole),
                tuple(ids),
                {
                    kind: {c: stack[column.format(c)] for c in classes}
                    for kind, (column, _) in DICE.items()
                },
                {name[5:]: values for name, values in stack.items() if name.startswith("loss_")},
            )
        )
    return found


def _read(folds: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Slice -> column -> value, of the folds (or the one test split) of one seed."""
    table: dict[str, dict[str, float]] = {}
    for cell in folds:
        losses = json.loads((cell.folder / "losses.json").read_text())
        with (cell.folder / "evaluation.csv").open(newline="") as file:
            for i, line in enumerate(csv.DictReader(file)):
                row = {key: float(value) for key, value in line.items() if key != "id"}
                row |= {f"loss_{name}": values[i] for name, values in losses.items()}
                table[line["id"]] = row
    return table


def select(
    result: Results, kind: str, classes: Sequence[str], without: Sequence[str]
) -> np.ndarray:
    """[seeds, slices, classes] of one reading."""
    kept = [i for i, name in enumerate(result.ids) if name not in without]
    return np.stack([result.dice[kind][name][:, kept] for name in classes], -1)

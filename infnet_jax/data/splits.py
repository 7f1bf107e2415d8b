"""Which slices a run may look at, learn labels from, and is tested on.

`config.data.folds` of 2 or more turns a run into one fold of a cross-validation: whole groups
(slices of one patient, as far as known) of the training split are its test slices, and nothing in
it sees them before. `config.data.labels` is a ladder of label budgets: (10, 25) learns from 25
slices, among them the ten that (10,) learns from.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from infnet_jax import tasks
from infnet_jax.data import batches as data


def open_whole(dataset: Path, split: str, config: ConfigDict) -> data.Source:
    """A whole split, its `mask` what the network is to find; see `tasks.target`."""
    return data.open_split(dataset, split, tasks.target(config))


def test_fold(source: data.Source, config: ConfigDict) -> np.ndarray:
    """Indices, in the training split, of the test slices of a cross-validated run; else none."""
    if not config.data.folds:
        return np.arange(0)
    if not 0 <= config.data.fold < config.data.folds:
        raise ValueError(
            f"data.fold={config.data.fold} must lie in 0 .. {config.data.folds - 1} (data.folds)"
        )
    return data.group_folds(source, config.data.folds, config.seed)[config.data.fold]


def visible(source: data.Source, config: ConfigDict) -> np.ndarray:
    """Indices, in the training split, of the slices whose images a run may look at."""
    return np.setdiff1d(np.arange(len(source)), test_fold(source, config))


def labelled(source: data.Source, config: ConfigDict) -> np.ndarray:
    """Indices, in the training split, of the slices whose masks a run may learn from."""
    seen = visible(source, config)
    if not config.data.labels:
        return seen
    return seen[nested_subset(data.select(source, seen), config.data.labels, config.seed)]


def open_test(dataset: Path, config: ConfigDict) -> data.Source:
    """The test split, or the test fold of the training split.

    Raises:
      ValueError: folds, but `data.test` is not the training split.
    """
    source = open_whole(dataset, config.data.test, config)
    if not config.data.folds:
        return source
    if config.data.test != config.data.train:
        raise ValueError(
            f"data.test={config.data.test!r}: with data.folds it must be data.train, "
            f"{config.data.train!r}"
        )
    return data.select(source, test_fold(source, config))


def open_training(dataset: Path, split: str, config: ConfigDict, *, masks: bool) -> data.Source:
    """A split to train on; of the training split what the run may look at.

    Args:
      masks: whether the masks are learnt from, or the images alone.

    Raises:
      ValueError: a part of the training split, of which labels or folds would be ignored.
    """
    source = open_whole(dataset, split, config)
    if split == config.data.train:
        return data.select(source, (labelled if masks else visible)(source, config))
    if config.data.train in split and (config.data.labels or config.data.folds):
        raise ValueError(
            f"split {split!r}: with data.labels or data.folds name the whole {config.data.train!r}"
        )
    return source


def nested_subset(source: data.Source, budgets: Sequence[int], seed: int) -> np.ndarray:
    """Draws whole groups until each budget in turn is full, so that subsets nest.

    Groups are visited in a seeded order and taken while they fit, first up to the first budget,
    then the rest up to the second, and so on; a budget may stay a few slices short of its number
    but no group is ever cut.

    Args:
      source: the examples; only `group` is looked at.
      budgets: rising numbers of slices.

    Returns:
      Indices of the subset of the last budget, int64, ascending.

    Raises:
      ValueError: budgets that do not rise from 1 or exceed the source, or a first one so small
        that no group fits.
    """
    steps = [0, *budgets]
    if any(a >= b for a, b in zip(steps, steps[1:], strict=False)) or steps[-1] > len(source):
        raise ValueError(f"data.labels={tuple(budgets)}: give rising numbers in 1 .. {len(source)}")
    members = data.by_group(source)
    names = sorted(members)
    waiting = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    taken: list[int] = []
    for budget in budgets:
        passed = []
        for name in waiting:
            if len(taken) + len(members[name]) <= budget:
                taken += members[name]
            else:
                passed.append(name)
        waiting = passed
    if not taken:
        raise ValueError(f"data.labels={tuple(budgets)}: every group has more slices than that")
    return np.sort(np.asarray(taken))

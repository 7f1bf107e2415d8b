"""From which probability a pixel is marked: chosen on out-of-fold training slices."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from infnet_jax.data.batches import resize
from infnet_jax.data.sources import Source, examples
from infnet_jax.dice import defined_mean, dice_of_counts
from infnet_jax.evaluation.predictor import full_size, mark

CANDIDATES = tuple(round(0.05 * i, 2) for i in range(1, 20))


class OutOfFold(NamedTuple):
    """Training slices, each mapped by networks that have not seen it.

    Attributes:
      source: the examples, with masks.
      maps: float32 [S, S, C] each, in the same order.
      classes: names of the labels 1, 2, ...
    """

    source: Source
    maps: Sequence[np.ndarray]
    classes: tuple[str, ...]


def choose(slices: OutOfFold) -> dict[str, float]:
    """The thresholds with the best mean Dice of masks on out-of-fold training slices.

    A threshold below 0.5 is right where a network often knows that there is a lesion but not of
    which class. Dice of the masks of `predictor.mark`, at the network's size, empty-aware, averaged
    over slices and then classes, for all thresholds in `CANDIDATES`; of equal ones the nearest to
    0.5.

    Args:
      slices: at least one.

    Returns:
      A threshold for each class.
    """
    count = len(slices.classes)
    truths = _small_truths(slices)
    totals = [_count(truth, count) for truth in truths]
    # Most pixels are background at every threshold and cannot matter: the others make one row.
    kept = [probs[..., -count:].max(-1) >= CANDIDATES[0] for probs in slices.maps]
    maps = [probs[k][None] for probs, k in zip(slices.maps, kept, strict=True)]
    truths = [truth[k][None] for truth, k in zip(truths, kept, strict=True)]
    best, chosen = (-1.0, 0.0), {}
    for values in itertools.product(CANDIDATES, repeat=count):
        thresholds = dict(zip(slices.classes, values, strict=True))
        dice = _mean(_dice([mark(probs, thresholds) for probs in maps], truths, totals))
        worth = (round(float(np.mean(dice)), 9), -sum(abs(value - 0.5) for value in values))
        if worth > best:
            best, chosen = worth, thresholds
    return chosen


def choose_alone(slices: OutOfFold) -> dict[str, tuple[float, float]]:
    """For each class the threshold with which its map, cut there, has the best Dice.

    Tables score each class's map so: what the other class marks does not matter, a pixel can be
    both; and in their toolbox reading, in which a slice without the class scores 0 whatever is
    marked. `choose`, for masks, where a pixel is one thing and a healthy slice should stay empty,
    is empty-aware.

    Returns:
      For each class the threshold and its empty-aware Dice.
    """
    chosen: dict[str, tuple[float, float]] = {}
    truths, count = _small_truths(slices), len(slices.classes)
    for label, name in enumerate(slices.classes, start=1):
        best = (-1.0, 0.0)
        maps = [probs[..., label - 1 - count] for probs in slices.maps]
        true = [_true(truth, label, count) for truth in truths]
        totals = [[int(np.count_nonzero(each))] for each in true]
        for value in CANDIDATES:
            dice = _dice([probs >= np.float32(value) for probs in maps], true, totals)
            worth = (round(float(np.nan_to_num(dice).mean()), 9), -abs(value - 0.5))
            if worth > best:
                best, chosen[name] = worth, (value, float(_mean(dice)[0]))
    return chosen


def cross_validated(slices: OutOfFold, thresholds: Mapping[str, float]) -> dict[str, float]:
    """Empty-aware Dice of each class's masks of out-of-fold slices, at their own size."""
    truths = [case["mask"][..., 0] for case in examples(slices.source)]
    masks = [
        mark(full_size(probs, truth.shape), thresholds)
        for probs, truth in zip(slices.maps, truths, strict=True)
    ]
    dice = _dice(masks, truths, [_count(truth, len(thresholds)) for truth in truths])
    return dict(zip(thresholds, map(float, _mean(dice)), strict=True))


def _small_truths(slices: OutOfFold) -> list[np.ndarray]:
    """True masks at the network's size, uint8 [S, S] each."""
    side = len(slices.maps[0])
    return [resize(case["mask"], side, labels=True)[..., 0] for case in examples(slices.source)]


def _true(truth: np.ndarray, label: int, classes: int) -> np.ndarray:
    """Where a class is; in masks of one class any label counts."""
    return truth > 0 if classes == 1 else truth == label


def _count(truth: np.ndarray, classes: int) -> list[int]:
    return [int(np.count_nonzero(_true(truth, k + 1, classes))) for k in range(classes)]


def _mean(dice: np.ndarray) -> np.ndarray:
    """Empty-aware mean of each class over slices, [n, classes] -> [classes]; 0 if undefined."""
    return np.nan_to_num(defined_mean(dice))


def _dice(
    masks: Sequence[np.ndarray], truths: Sequence[np.ndarray], totals: Sequence[Sequence[int]]
) -> np.ndarray:
    """Dice of each slice and class [n, classes]; NaN where the class is neither true nor found.

    Args:
      masks, truths: labels; pixels that are background in a mask may be left out of both.
      totals: for each slice how many pixels each class truly has.
    """
    both, total = np.zeros((2, len(masks), len(totals[0])))
    for i, (mask, truth) in enumerate(zip(masks, truths, strict=True)):
        for k, true in enumerate(totals[i]):
            found = mask == k + 1
            total[i, k] = np.count_nonzero(found) + true
            both[i, k] = np.count_nonzero(found & _true(truth, k + 1, len(totals[i])))
    return dice_of_counts(both, total)

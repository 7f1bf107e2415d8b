"""From which probability a pixel is marked: chosen on training slices that no weight has seen."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from infnet_jax.data.batches import resize
from infnet_jax.data.sources import Source, examples
from infnet_jax.evaluation import metrics, networks
from infnet_jax.runs.workdir import write_json

CANDIDATES = tuple(round(0.05 * i, 2) for i in range(1, 20))


class Unseen(NamedTuple):
    """Training slices, each by a network that has not seen it.

    Attributes:
      source: the examples, with masks.
      maps: their probabilities, in the same order, as `networks.make_sweep` returns them.
    """

    source: Source
    maps: Sequence[np.ndarray]


def choose(config: ConfigDict, *, workdir: Path, unseen: Unseen) -> dict[str, float]:
    """The thresholds with the best mean Dice on training slices that no weight has seen.

    A threshold below 0.5 is right where a network often knows that there is a lesion but not of
    which class. Dice of the masks of `networks.mark`, at the networks' size, empty-aware, averaged
    over slices and then classes, for all thresholds in `CANDIDATES`; of equal ones the nearest to
    0.5. Written to `thresholds.json`, which the Segmenter reads.

    Args:
      unseen: at least one slice.

    Returns:
      A threshold for each class.
    """
    channels = networks.classes(config)
    side = len(unseen.maps[0])
    truths = [resize(case["mask"], side, labels=True)[..., 0] for case in examples(unseen.source)]
    totals = [_count(truth, len(channels)) for truth in truths]
    # Most pixels are background at every threshold and cannot matter: the others make one row.
    kept = [_foreground(probs) >= CANDIDATES[0] for probs in unseen.maps]
    maps = [probs[k][None] for probs, k in zip(unseen.maps, kept, strict=True)]
    truths = [truth[k][None] for truth, k in zip(truths, kept, strict=True)]
    best, chosen = (-1.0, 0.0), {}
    for values in itertools.product(CANDIDATES, repeat=len(channels)):
        thresholds = dict(zip(channels, values, strict=True))
        masks = [networks.mark(probs, thresholds) for probs in maps]
        dice = _empty_aware(_dice(masks, truths, totals))
        worth = (round(float(np.mean(dice)), 9), -sum(abs(value - 0.5) for value in values))
        if worth > best:
            best, chosen = worth, thresholds
    write_json(workdir / "thresholds.json", chosen)
    return chosen


def choose_alone(config: ConfigDict, unseen: Unseen) -> dict[str, tuple[float, float]]:
    """For each class by itself the threshold with which its map, cut there, has the best Dice.

    That is how tables score each class's map: what the other class marks does not matter, so a
    pixel can be both; and in their toolbox reading, in which a slice without the class scores 0
    whatever is marked. `choose`, which is for masks, where a pixel is one thing and a healthy
    slice should stay empty, is empty-aware.

    Returns:
      For each class the threshold and its empty-aware Dice, as `cross_validated` has it of masks.
    """
    side, chosen = len(unseen.maps[0]), {}
    truths = [resize(case["mask"], side, labels=True)[..., 0] for case in examples(unseen.source)]
    for name, channel in networks.classes(config).items():
        label, best = channel or 1, (-1.0, 0.0)
        maps = [probs if channel is None else probs[..., channel] for probs in unseen.maps]
        true = [_true(truth, label, 1 if channel is None else 2) for truth in truths]
        totals = [[np.count_nonzero(each)] for each in true]
        for value in CANDIDATES:
            dice = _dice([probs >= np.float32(value) for probs in maps], true, totals)
            worth = (round(float(np.nan_to_num(dice).mean()), 9), -abs(value - 0.5))
            if worth > best:
                best, chosen[name] = worth, (value, float(_empty_aware(dice)[0]))
    return chosen


def cross_validated(unseen: Unseen, thresholds: Mapping[str, float]) -> dict[str, float]:
    """Each class's Dice of the masks of unseen slices, at their own size, empty-aware."""
    truths = [case["mask"][..., 0] for case in examples(unseen.source)]
    masks = [
        networks.mark(networks.full_size(probs, truth.shape), thresholds)
        for probs, truth in zip(unseen.maps, truths, strict=True)
    ]
    dice = _dice(masks, truths, [_count(truth, len(thresholds)) for truth in truths])
    return dict(zip(thresholds, map(float, _empty_aware(dice)), strict=True))


def _foreground(probs: np.ndarray) -> np.ndarray:
    """The largest probability of a class: of [H, W], or of [H, W, 3] with the background first."""
    return probs if probs.ndim == 2 else probs[..., 1:].max(-1)


def _true(truth: np.ndarray, label: int, classes: int) -> np.ndarray:
    """Where a class is; of masks of one class any lesion counts."""
    return truth > 0 if classes == 1 else truth == label


def _count(truth: np.ndarray, classes: int) -> list[int]:
    return [np.count_nonzero(_true(truth, k + 1, classes)) for k in range(classes)]


def _empty_aware(dice: np.ndarray) -> np.ndarray:
    """The mean of each class [classes] over slices [n, classes] of `_dice`; 0 without any."""
    return np.nan_to_num(metrics.defined_mean(dice))


def _dice(
    masks: Sequence[np.ndarray], truths: Sequence[np.ndarray], totals: Sequence[Sequence[int]]
) -> np.ndarray:
    """Dice of each slice and class [n, classes]; NaN where the class is neither true nor found.

    Args:
      masks, truths: labels; pixels that are background in a mask may be left out of both.
      totals: for each slice how many pixels each class truly has.
    """
    classes = len(totals[0])
    dice = np.full((len(masks), classes), np.nan)
    for i, (mask, truth) in enumerate(zip(masks, truths, strict=True)):
        for k in range(classes):
            found = mask == k + 1
            if total := np.count_nonzero(found) + totals[i][k]:
                both = np.count_nonzero(found & _true(truth, k + 1, classes))
                dice[i, k] = 2 * both / total
    return dice

"""Mixes of datasets to pre-train on: how they are written, and the order of their examples."""

import dataclasses
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

_PART = re.compile(
    r"(?:(?P<weight>\d+\.?\d*|\.\d+)\s*\*\s*)?(?P<name>\w+(?:/\w+)?)"
    r"(?::(?P<split>\w+(?:\[[-\d:%]*\])?))?"
)


@dataclasses.dataclass(frozen=True)
class Part:
    """One split of a dataset within a mix.

    Attributes:
      name: of the dataset, `builder` or `builder/config`.
      split: of it, or a slice of one.
      weight: its share of the samples, relative to the other weights; None where none is given.
      folder: of the prepared dataset; None as long as it is only named.
    """

    name: str
    split: str = "train"
    weight: float | None = None
    folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.name}:{self.split}"


@dataclasses.dataclass(frozen=True)
class Mix:
    """Prepared parts; `copies` tells the ids within one that are slices of the test split."""

    parts: tuple[Part, ...]
    copies: Callable[[Part], Collection[str]]

    @property
    def weights(self) -> list[float] | None:
        """Of all parts, 1 where none is given; None where no part has one."""
        if all(part.weight is None for part in self.parts):
            return None
        return [1.0 if part.weight is None else part.weight for part in self.parts]


def parse(text: str) -> list[Part]:
    """Reads a mix such as `covid_semiseg/binary:unlabeled + 2 * ictcf`; empty text has no parts.

    Raises:
      ValueError: what cannot be read, a weight of 0, or a part that comes twice.
    """
    parts: list[Part] = []
    for word in text.split("+") if text.strip() else []:
        match = _PART.fullmatch(word.strip())
        weight = match and match["weight"] and float(match["weight"])
        if match is None or weight == 0:
            raise ValueError(
                f"data.pretrain: {word.strip()!r} in {text!r} is no part of a mix; write them as "
                "NAME, NAME/CONFIG:SPLIT or WEIGHT * NAME (weight above 0), with + between them"
            )
        part = Part(match["name"], match["split"] or "train", weight or None)
        if str(part) in map(str, parts):
            raise ValueError(f"data.pretrain: {part} comes twice; give it a weight instead")
        parts.append(part)
    return parts


def quotas(sizes: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """Draws from each source in an epoch, which has about as many as there are examples.

    Args:
      sizes: examples of each source, all above 0.
      weights: shares of the draws, relative to each other; None: each example once.
    """
    if weights is None:
        return list(sizes)
    total = sum(sizes) / sum(weights)
    return [max(1, round(total * weight)) for weight in weights]


def epoch_order(sizes: Sequence[int], drawn: Sequence[int], seed: int, epoch: int) -> np.ndarray:
    """The examples of one epoch, pure in (seed, epoch).

    A source that is drawn from more or less often than it has examples is gone through in passes,
    which go on from epoch to epoch: no example is ever more than one pass ahead of another.

    Args:
      sizes: examples of each source.
      drawn: draws from each in an epoch, see `quotas`.
      seed, epoch: at least 0.

    Returns:
      int64 [sum(drawn)], indices into the sources laid end to end.
    """
    order = np.random.default_rng((seed, epoch)).permutation(sum(drawn))
    if list(drawn) == list(sizes):
        return order
    starts = np.cumsum([0, *sizes[:-1]])
    found = [
        start + _draws(size, count, epoch, (seed, which))
        for which, (start, size, count) in enumerate(zip(starts, sizes, drawn, strict=True), 1)
    ]
    return np.concatenate(found)[order]


def _draws(size: int, count: int, epoch: int, seed: tuple[int, int]) -> np.ndarray:
    """The `count` examples of one source in an epoch: int64 [count].

    They are what an endless row of passes, each a new permutation, has at this epoch's place.
    """
    first, skipped = divmod(epoch * count, size)
    last = ((epoch + 1) * count - 1) // size
    # Passes count from 1: a seed that ends with 0 draws the same as the seed without it.
    seeds = [(*seed, number + 1) for number in range(first, last + 1)]
    passes = [np.random.default_rng(each).permutation(size) for each in seeds]
    return np.concatenate(passes)[skipped : skipped + count]

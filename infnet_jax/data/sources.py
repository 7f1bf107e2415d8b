"""Prepared TFDS folders as sources: opened, split and mixed, and what is asked of a whole source.

`data.folds` of 2 or more turns a run into one fold of a cross-validation: whole groups (slices of
one patient, as far as known) of the training split are its unseen test slices. `data.labels` is a
ladder of label budgets: (10, 25) learns from 25 slices, ten of them those of (10,).
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from infnet_jax.data import PICTURES, Example, Source, Subset, decode, text
from infnet_jax.plan import Data

TEXTS = ("id", "patient", "slice", "group")
_FORM = "NAME, NAME/CONFIG:SPLIT or WEIGHT * NAME (weight above 0), with + between them"
_PART = re.compile(
    r"(?:(?P<weight>\d+\.?\d*|\.\d+)\s*\*\s*)?(?P<name>\w+(?:/\w+)?)"
    r"(?::(?P<split>\w+(?:\[[-\d:%]*\])?))?"
)


class LungTarget(Subset):
    """The examples whose lung is known, with it as their `mask`; the mask becomes `lesion`.

    Lesions count as lung: masks of lungs leave out dense ones at the wall. `lung` stays as it was.
    """

    def __init__(self, source: Source):
        known: Sequence[int] = range(len(source))
        if len(source) and "lung_known" in source[0]:
            known = [i for i in known if source[i]["lung_known"]]
        if not known or "lung" not in source[known[0]]:
            raise ValueError("data.target=lung: this dataset has no lung masks to learn from")
        super().__init__(source, known)

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        whole = (decode(example, "lung") > 0) | (decode(example, "mask") > 0)
        return {**example, "mask": whole.astype(np.uint8), "lesion": example["mask"]}


def open_split(folder: str | Path, split: str, target: str = "infection") -> Source:
    """Opens one split of a prepared TFDS folder; pictures stay PNG bytes until a batch needs them.

    `folder` is the version folder, with `dataset_info.json`, else a FileNotFoundError; `split` a
    name, or a slice such as `train[:80%]`; `target` what `mask` is to mark: `infection`, or `lung`
    (see `LungTarget`). A ValueError where the dataset has no such split, or not that target.
    """
    if not Path(folder, "dataset_info.json").is_file():
        hint = "(no dataset_info.json); prepare it first and give the version folder"
        raise FileNotFoundError(f"{folder}: not a prepared dataset {hint}")
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    known = sorted(builder.info.splits)
    for name in (re.sub(r"\[.*", "", part).strip() for part in split.split("+")):
        if name not in known:
            raise ValueError(f"{folder}: no split {name!r}; it has {', '.join(known)}")
    pictures = [name for name in PICTURES if name in builder.info.features]
    decoders = {name: tfds.decode.SkipDecoding() for name in pictures}
    source = builder.as_data_source(split, decoders=decoders)
    if target not in ("infection", "lung"):
        raise ValueError(f"data.target={target!r}: choose infection or lung")
    return LungTarget(source) if target == "lung" else source


def label_names(folder: str | Path) -> list[str]:
    """The class names of a prepared dataset's feature `label`; a ValueError where it has none."""
    import tensorflow_datasets as tfds

    features = tfds.builder_from_directory(folder).info.features
    if "label" not in features or not hasattr(features["label"], "names"):
        known = ", ".join(sorted(features))
        raise ValueError(f"{folder}: no feature `label` with names; it has {known}")
    return list(features["label"].names)


def open_whole(split: str, data: Data) -> Source:
    """Opens a whole split; its `mask` is what the network is to find."""
    return open_split(data.folder, split, data.target)


def open_training(split: str, data: Data, *, masks: bool) -> Source:
    """Opens what a run may learn from in a split, by its `masks` or by its images alone.

    A ValueError for a part of the training split, of which labels or folds would be ignored.
    """
    source = open_whole(split, data)
    if split == data.train:
        return Subset(source, (labelled if masks else visible)(source, data))
    if data.train in split and (data.labels or data.folds):
        wanted = f"with data.labels or data.folds name the whole {data.train!r}"
        raise ValueError(f"split {split!r}: {wanted}")
    return source


def open_test(data: Data) -> Source:
    """Opens the test split, or the test fold; ValueError for folds of any but `data.train`."""
    source = open_whole(data.test, data)
    if not data.folds:
        return source
    if data.test != data.train:
        wanted = f"with data.folds it must be data.train, {data.train!r}"
        raise ValueError(f"data.test={data.test!r}: {wanted}")
    return Subset(source, _test_fold(source, data))


def visible(source: Source, data: Data) -> np.ndarray:
    """Indices, int64, in the training split, of the slices whose images a run may look at."""
    return np.setdiff1d(np.arange(len(source)), _test_fold(source, data))


def labelled(source: Source, data: Data) -> np.ndarray:
    """Indices, int64, in the training split, of the slices whose masks a run may learn from."""
    seen = visible(source, data)
    if not data.labels:
        return seen
    return seen[nested_subset(Subset(source, seen), data.labels, data.seed)]


def _test_fold(source: Source, data: Data) -> np.ndarray:
    """Indices, int64, of a cross-validated run's test slices in its training split; else none."""
    if not data.folds:
        return np.arange(0)
    if not 0 <= data.fold < data.folds:
        raise ValueError(f"data.fold={data.fold} must lie in 0 .. {data.folds - 1} (data.folds)")
    return group_folds(source, data.folds, data.seed)[data.fold]


def nested_subset(source: Source, budgets: Sequence[int], seed: int) -> np.ndarray:
    """Draws whole groups until each budget in turn is full: indices, int64, ascending.

    A budget may stay a few slices short of its number, but no group is ever cut, and the subset of
    a shorter ladder lies within that of a longer one. Only `group` is looked at. A ValueError for
    budgets that do not rise from 1 or exceed the source, or a first one that no group fits.
    """
    steps = [0, *budgets]
    if steps != sorted(set(steps)) or steps[-1] > len(source):
        raise ValueError(f"data.labels={tuple(budgets)}: give rising numbers in 1 .. {len(source)}")
    taken = _fill(_shuffled_groups(source, seed), budgets)
    if not taken:
        raise ValueError(f"data.labels={tuple(budgets)}: every group has more slices than that")
    return np.array(taken)


def split_validation(source: Source, *, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns (training, validation) indices, int64, ascending, disjoint, together all of `source`.

    Validation has whole groups (patients), drawn by the seed: at most `count` examples or, if every
    group has more, those of the smallest. Only `group` is looked at. A ValueError for a count out
    of range, or where nothing is left to train on.
    """
    everything = np.arange(len(source))
    if count == 0:
        return everything, everything[:0]
    if not 0 < count < len(source):
        raise ValueError(f"validation count {count} must lie in 0 .. {len(source) - 1}")
    groups = _shuffled_groups(source, seed)
    if len(groups) < 2:
        shared = f"all {len(source)} examples share one group"
        raise ValueError(f"{shared}: no validation set can be drawn")
    validation = np.array(_fill(groups, [count]) or min(groups, key=len))
    return np.setdiff1d(everything, validation), validation


def group_folds(source: Source, count: int, seed: int = 0) -> list[np.ndarray]:
    """Deals whole groups (patients) to `count` folds of about equal size, fixed by the seed.

    The folds are arrays of indices, int64, ascending, disjoint, together all of `source`. Only
    `group` is looked at. A ValueError for fewer than two folds, or fewer groups than folds.
    """
    groups = _shuffled_groups(source, seed)
    if not 2 <= count <= len(groups):
        raise ValueError(f"{count} folds cannot be made of {len(groups)} groups: use 2 or more")
    folds: list[list[int]] = [[] for _ in range(count)]
    for group in groups:  # to the smallest fold so far
        min(folds, key=len).extend(group)
    return [np.sort(np.asarray(fold)) for fold in folds]


def _shuffled_groups(source: Source, seed: int) -> list[list[int]]:
    """Indices of each group, in the seed's order; an example without `group` is one of its own."""
    members: dict[str, list[int]] = {}
    for i in range(len(source)):
        members.setdefault(text(source[i].get("group", f"\0{i}")), []).append(i)
    names = sorted(members)  # the order of the examples does not matter
    return [members[names[i]] for i in np.random.default_rng(seed).permutation(len(names))]


def _fill(groups: Sequence[list[int]], budgets: Iterable[int]) -> list[int]:
    """Takes groups in order while they fit a budget, then the others while they fit the next."""
    taken: set[int] = set()
    for budget in budgets:
        for group in groups:
            if taken.isdisjoint(group) and len(taken) + len(group) <= budget:
                taken.update(group)
    return sorted(taken)


class Part(NamedTuple):
    """One split of a dataset within a mix."""

    name: str  # of the dataset, `builder` or `builder/config`
    split: str = "train"  # of it, or a slice of one
    weight: float | None = None  # its share of the samples relative to the others, if one is given
    folder: Path | None = None  # of the prepared dataset; None as long as it is only named

    def __str__(self) -> str:
        return f"{self.name}:{self.split}"


class Mix(NamedTuple):
    """Prepared parts; `copies` returns the ids within one that are slices of the test split."""

    parts: tuple[Part, ...]
    copies: Callable[[Part], Collection[str]]

    @property
    def weights(self) -> list[float] | None:
        """Of all parts, 1 where none is given; None where no part has one."""
        weights = [part.weight for part in self.parts]  # above 0 where they are given
        return [weight or 1.0 for weight in weights] if any(weights) else None


def parse_mix(mix: str) -> list[Part]:
    """Reads a mix such as `covid_semiseg/binary:unlabeled + 2 * ictcf`; empty text has no parts.

    A ValueError for what cannot be read, a weight of 0, or a part that comes twice.
    """
    parts: list[Part] = []
    for word in mix.split("+") if mix.strip() else []:
        match = _PART.fullmatch(word.strip())
        weight = match and match["weight"] and float(match["weight"])
        if match is None or weight == 0:
            given = f"data.pretrain: {word.strip()!r} in {mix!r} is no part of a mix"
            raise ValueError(f"{given}; write them as {_FORM}")
        part = Part(match["name"], match["split"] or "train", weight or None)
        if str(part) in map(str, parts):
            raise ValueError(f"data.pretrain: {part} comes twice; give it a weight instead")
        parts.append(part)
    return parts


def examples(source: Source) -> Iterator[dict[str, Any]]:
    """Yields every example in order, its pictures uint8 [H, W, 1] (native size), its texts str."""
    for example in (source[index] for index in range(len(source))):
        out = {name: decode(example, name) for name in PICTURES if name in example}
        yield out | {name: text(example[name]) for name in TEXTS if name in example}


def lesion_maps(source: Source) -> dict[str, np.ndarray]:
    """The true masks as priors: uint8 [H, W] by id, 255 where there is a lesion of any class."""
    return {e["id"]: 255 * (e["mask"][..., 0] > 0).astype(np.uint8) for e in examples(source)}


def statistics(source: Source, indices: Iterable[int] | None = None) -> tuple[float, float]:
    """Mean and standard deviation of all image pixels on the [0, 1] scale, at native size.

    Every pixel counts once, so large images weigh more. A ValueError where there are no examples.
    """
    counts = np.zeros(256, np.int64)
    for index in range(len(source)) if indices is None else indices:
        counts += np.bincount(decode(source[int(index)], "image").ravel(), minlength=256)
    if not counts.sum():
        raise ValueError("statistics of an empty set of examples are undefined")
    levels = np.arange(256) / 255
    mean = np.average(levels, weights=counts)
    return float(mean), float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))

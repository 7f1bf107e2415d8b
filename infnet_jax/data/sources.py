"""Random access to the examples of prepared TFDS folders.

A *source* is anything with `__len__` and `__getitem__(int) -> example`, where an example is a
dict with `image` (and, where known, `mask`, `lung` and `prior`) as PNG bytes or uint8
[H, W, 1], and the texts `id`, `patient`, `slice`, `group`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Example = Mapping[str, Any]

PICTURES = ("image", "mask", "lung", "prior")
TEXTS = ("id", "patient", "slice", "group")


class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Subset:
    """The examples of a source at the given indices, in that order."""

    def __init__(self, source: Source, indices: Iterable[int]):
        self._source = source
        self._indices = [int(i) for i in indices]
        wrong = [i for i in self._indices if not 0 <= i < len(source)]
        if wrong:
            raise ValueError(f"index {wrong[0]} is outside the source's 0 .. {len(source) - 1}")

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._indices[index]]


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


class WithPriors(Subset):
    """A source whose examples also have `prior`, a probability map as uint8 [h, w, 1].

    The maps are given by id, uint8 [h, w]; an example without one is a KeyError.
    """

    def __init__(self, source: Source, priors: Mapping[str, np.ndarray]):
        super().__init__(source, range(len(source)))
        self._priors = priors

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        return {**example, "prior": self._priors[text(example["id"])][..., None]}


def open_split(folder: str | Path, split: str, target: str = "infection") -> Source:
    """Opens one split of a prepared TFDS folder; pictures stay PNG bytes until a batch needs them.

    Args:
      folder: the versioned folder that holds `dataset_info.json`.
      split: a split's name, or a slice of it such as `train[:80%]`.
      target: what `mask` is to mark: `infection`, or `lung` (see `LungTarget`).

    Raises:
      FileNotFoundError: there is no prepared dataset in `folder`.
      ValueError: the dataset has no such split, or not that target.
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
    """The names of the classes of a prepared dataset's feature `label`, in their order.

    Raises:
      ValueError: it has no such feature.
    """
    import tensorflow_datasets as tfds

    features = tfds.builder_from_directory(folder).info.features
    if "label" not in features or not hasattr(features["label"], "names"):
        known = ", ".join(sorted(features))
        raise ValueError(f"{folder}: no feature `label` with names; it has {known}")
    return list(features["label"].names)


def select(source: Source, indices: Iterable[int]) -> Subset:
    """The examples of `source` at `indices`, as a source."""
    return Subset(source, indices)


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

    Every pixel counts once, so large images weigh more. Exact: computed from one histogram.

    Raises:
      ValueError: there are no examples.
    """
    counts = np.zeros(256, np.int64)
    for index in range(len(source)) if indices is None else indices:
        counts += np.bincount(decode(source[int(index)], "image").ravel(), minlength=256)
    if not counts.sum():
        raise ValueError("statistics of an empty set of examples are undefined")
    levels = np.arange(256) / 255
    mean = np.average(levels, weights=counts)
    return float(mean), float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))


def decode(example: Example, name: str) -> np.ndarray:
    """The picture `name` of an example, uint8 [H, W, 1], out of PNG bytes or as it is.

    Raises:
      ValueError: it is missing, unreadable or of another kind; names the example.
    """
    where = repr(text(example.get("id", "?")))
    if name not in example:
        raise ValueError(f"example {where} has no {name!r}")
    value = example[name]
    if isinstance(value, bytes | np.bytes_):
        import cv2

        cv2.setNumThreads(0)  # its own thread pool would fight the reading threads
        value = cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_UNCHANGED)
        value = value[..., None] if value is not None and value.ndim == 2 else value
    if value is None or value.dtype != np.uint8 or value.ndim != 3 or value.shape[-1] != 1:
        found = "unreadable" if value is None else f"{value.dtype} {list(value.shape)}"
        raise ValueError(f"{name!r} of example {where} is {found}, expected uint8 [H, W, 1]")
    return value


def text(value: Any) -> str:
    """A text of an example, bytes or not, as str."""
    return value.decode() if isinstance(value, bytes | np.bytes_) else str(value)

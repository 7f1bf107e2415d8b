"""Near-identical slices between two prepared datasets: leaks from training into testing.

A perceptual hash proposes pairs (of frames that are moved and zoomed a little), and a correlation
of fine structure after alignment confirms them. Measured on COVID-SemiSeg's unlabelled slices, 240
copies moved by up to 6 %, zoomed by up to 10 %, rescaled to 50..150 % and saved as JPG of quality
30..95, among other patients' slices: at 0.7, 238 copies are found, and 2 of 505 pairs listed are
neither copies nor slices of one patient.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import alignment, hashing

RADIUS = 72  # of 256 bits: copies differ in up to 56, one in twenty of unrelated slices in fewer
LEAST = 0.7  # correlation from which a pair is listed; the command says it again
MAX_CANDIDATES = 12  # nearest hashes of a slice that are looked at
_WORKING = 256  # pixels of the longer side; more detail than `alignment.SIDE` is of no use


@dataclasses.dataclass(frozen=True, order=True)
class Pair:
    """Two slices that look like one; `correlation` is `alignment.likeness`."""

    correlation: float
    split_a: str
    id_a: str
    split_b: str
    id_b: str
    same_group: bool  # both datasets call the patient (or group) the same

    def line(self) -> str:
        """Returns the pair as tab-separated text."""
        known = "same group" if self.same_group else ""
        return (
            f"{self.correlation:.3f}\t{self.split_a}\t{self.id_a}\t{self.split_b}\t"
            f"{self.id_b}\t{known}"
        )


@dataclasses.dataclass(frozen=True)
class Slice:
    """Where a slice is found again, and what it is called."""

    split: str
    index: int
    id: str
    group: str

    @property
    def place(self) -> tuple[str, int]:
        """Orders the slices of a dataset."""
        return self.split, self.index


class Slices:
    """The pictures of a prepared dataset, read again whenever they are needed."""

    def __init__(self, folder: Path, splits: tuple[str, ...]):
        """Opens the splits; the names are read at once, the pictures later."""
        self.folder = folder
        builder = tfds.builder_from_directory(folder)
        decode = {
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image) and name != "image"
        }
        self._sources = {
            split: builder.as_data_source(split=split, decoders=decode) for split in splits
        }
        self.slices = [
            Slice(split, i, _text(example, "id"), _text(example, "group"))
            for split, source in self._sources.items()
            for i, example in enumerate(source)
        ]
        self.picture = functools.lru_cache(maxsize=512)(self._picture)

    def _picture(self, number: int) -> np.ndarray:
        """Returns uint8 [H, W], the longer side at most _WORKING."""
        where = self.slices[number]
        image = self._sources[where.split][where.index]["image"][..., 0]
        zoom = _WORKING / max(image.shape)
        if zoom >= 1:
            return image
        return cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)


def open_prepared(what: str, data_dir: Path) -> Slices:
    """Opens `name`, `name/config` (the newest version in data_dir) or a folder, all or one split.

    Args:
      what: such as `medseg/volumes`, `covid_semiseg/binary:test`, or a versioned folder.
      data_dir: where prepared datasets are kept.

    Raises:
      FileNotFoundError: nothing prepared there.
      ValueError: no such split, or no `image` and `id` in it.
    """
    name, _, split = what.partition(":")
    found = sorted(
        (
            path.parent
            for below in (data_dir / name, Path(name))
            for pattern in ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json")
            for path in below.glob(pattern)
        ),
        key=lambda path: (path.parent, [int(part) for part in path.name.split(".")]),
    )
    configs = sorted({path.parent.name for path in found if path.parent.name != name})
    if not found:
        raise FileNotFoundError(
            f"{what}: no prepared dataset of that name in {data_dir}; build it "
            "first, or give its folder"
        )
    if len({path.parent for path in found}) > 1:
        raise ValueError(f"{what}: which config? There are: {', '.join(configs)}")
    info = tfds.builder_from_directory(found[-1]).info
    if split and split not in info.splits:
        raise ValueError(f"{what}: no split {split!r}; there are: {', '.join(info.splits)}")
    if not {"image", "id"} <= set(info.features):
        raise ValueError(
            f"{what}: has no features image and id; there are: {', '.join(info.features)}"
        )
    return Slices(found[-1], (split,) if split else tuple(info.splits))


def overlap(first: Slices, second: Slices, *, least: float = LEAST) -> list[Pair]:
    """Lists pairs of slices, one of each dataset, that are near-identical; the likest first.

    A dataset may be compared with itself: then each pair is listed once, and none with itself.
    Memory grows with the number of slices (32 bytes for each of up to 150 frames), not with their
    size; the time is that of hashing, 20 ms a slice, and 10 ms for each candidate pair.
    """
    turned = len(first.slices) > len(second.slices)
    few, many = (second, first) if turned else (first, second)
    found = []
    for i, j, box_i, box_j in _candidates(few, many, first.folder == second.folder):
        score = alignment.likeness(
            alignment.cut(few.picture(i), box_i), alignment.cut(many.picture(j), box_j)
        )
        if score >= least:
            a, b = few.slices[i], many.slices[j]
            a, b = (b, a) if turned else (a, b)
            same = a.group == b.group and first.folder == second.folder
            found.append(Pair(round(score, 3), a.split, a.id, b.split, b.id, same))
    return sorted(found, reverse=True)


def copies(folder: Path, split: str, other: Path, other_split: str) -> list[str]:
    """The ids of slices in one split that are near-identical to one of another split, sorted.

    Of one dataset, slices that both splits hold count too.
    """
    first, second = Slices(folder, (split,)), Slices(other, (other_split,))
    found = {pair.id_a for pair in overlap(first, second)}
    if folder == other:
        found |= {s.id for s in first.slices} & {s.id for s in second.slices}
    return sorted(found)


def _candidates(
    few: Slices, many: Slices, itself: bool
) -> Iterator[tuple[int, int, alignment.Box, alignment.Box]]:
    """Yields (i, j, box of i, box of j) for the nearest hashes within RADIUS of each i."""
    others = [
        (j, box) for j in range(len(many.slices)) for box in alignment.frames(many.picture(j))
    ]
    hashes = np.array([_hash(many.picture(j), box) for j, box in others], np.uint64)
    hashes = hashes.reshape(-1, hashing.WORDS)  # for no slices at all
    twice = set(few.slices) & set(many.slices) if itself else set()
    for i, mine in enumerate(few.slices):
        boxes = [near for box in alignment.frames(few.picture(i)) for near in alignment.nudged(box)]
        probes = np.array([_hash(few.picture(i), box) for box in boxes])
        nearest: dict[int, tuple[int, int, int]] = {}
        for p, q, bits in hashing.near_pairs(probes, hashes, RADIUS):
            j = others[q][0]
            nearest[j] = min(nearest.get(j, (999, 0, 0)), (bits, p, q))
        ranked = sorted((bits, j, p, q) for j, (bits, p, q) in nearest.items())
        for _, j, p, q in ranked[:MAX_CANDIDATES]:
            theirs = many.slices[j]
            if itself and (
                mine == theirs or (theirs in twice and mine in twice and theirs.place < mine.place)
            ):
                continue  # with itself, or a pair that comes up from the other side
            yield i, j, boxes[p], others[q][1]


def _hash(picture: np.ndarray, box: alignment.Box) -> np.ndarray:
    return hashing.perceptual_hash(alignment.cut(picture, box, hashing.SIDE * 4))


def _text(example: dict[str, Any], name: str) -> str:
    value = example.get(name, b"")
    return value.decode() if isinstance(value, bytes) else str(value)

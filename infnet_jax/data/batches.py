"""Numpy batches from sources of examples: deterministic, without iterator state.

Batches are pure functions of (seed, step), so a run resumes exactly with nothing saved but its
step. How sources are opened and split stands in ``sources``; its functions can be had here too.
"""

from __future__ import annotations

import bisect
import functools
import sys
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from infnet_jax.data.mix import epoch_order, quotas
from infnet_jax.data.sources import (
    PICTURES,
    Example,
    LungTarget,
    Source,
    WithPriors,
    by_group,
    decode,
    examples,
    group_folds,
    label_names,
    lesion_maps,
    open_split,
    select,
    split_validation,
    statistics,
    text,
)

__all__ = [
    "Batches",
    "LungTarget",
    "Source",
    "WithPriors",
    "by_group",
    "decode",
    "eval_batches",
    "examples",
    "group_folds",
    "label_names",
    "lesion_maps",
    "open_split",
    "select",
    "split_validation",
    "statistics",
    "text",
]

Batch = dict[str, np.ndarray]


class Batches:
    """Endless shuffled training batches, indexed by step and pure in (seed, step).

    Each epoch is a new permutation of all the examples of all the sources together (with weights,
    of so many draws from each source as is its share); a batch may straddle two epochs, and a set
    smaller than the batch repeats within it. Of the global batch of
    a step, process p of n gets rows p * batch_size / n onward, so any number of processes together
    see the batch that one process would.

    ``batches[step]`` is a dict of uint8 [b, size, size, 1] for each field and ``valid`` bool [b],
    b = batch_size / process_count. A missing mask (unlabelled examples) reads as all background.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        *,
        batch_size: int,
        size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        process_index: int = 0,
        process_count: int = 1,
        fields: Sequence[str] = ("image", "mask"),
        cache_bytes: int = 1 << 30,
    ):
        """Prepares the order; nothing is read yet.

        Args:
          sources: one source, or a list whose examples are mixed.
          weights: shares of the sources, relative to each other; None: in proportion to their
            numbers of examples.
          batch_size: rows of the global batch.
          size: side of the square pictures, in pixels (images by area or bilinear, masks nearest).
          seed: of the order of examples.
          process_index: which share to read, 0 <= process_index < process_count.
          process_count: number of processes; must divide batch_size.
          fields: pictures to read, out of image, mask, lung, prior.
          cache_bytes: resized examples are kept in memory until this many bytes are used.

        Raises:
          ValueError: no examples, or sizes that do not fit each other.
        """
        self._sources = list(sources) if isinstance(sources, list | tuple) else [sources]
        self._ends = np.cumsum([len(source) for source in self._sources]).tolist()
        if not self._ends or not self._ends[-1]:
            raise ValueError("no examples to draw batches from")
        _check_share(batch_size, process_index, process_count)
        self._rows = batch_size // process_count
        self._batch_size, self._first = batch_size, process_index * self._rows
        self._fields = tuple(fields)
        self._reader = _Reader(size, self._fields, cache_bytes)
        sizes = [len(source) for source in self._sources]
        drawn = quotas(sizes, weights)
        self._length = sum(drawn)
        # One permutation per epoch: grain's shuffle costs 1 ms per index on sets this small.
        self._order = functools.lru_cache(maxsize=4)(
            lambda epoch: epoch_order(sizes, drawn, seed, epoch)
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """The pictures in each batch."""
        return self._fields

    @property
    def example_count(self) -> int:
        """Examples in one epoch."""
        return self._length

    def indices(self, step: int) -> list[int]:
        """Indices, into the sources laid end to end, of this process's rows at ``step``."""
        start = int(step) * self._batch_size + self._first
        places = (divmod(start + row, self._length) for row in range(self._rows))
        return [int(self._order(epoch)[place]) for epoch, place in places]

    def __getitem__(self, step: int) -> Batch:
        return _stack([self._read(i) for i in self.indices(step)], self._rows, self._fields)

    def iterate(self, start_step: int = 0, *, threads: int = 4, ahead: int = 4) -> Iterator[Batch]:
        """Yields ``batches[start_step]``, ``batches[start_step + 1]``, ... read ahead by threads.

        Args:
          start_step: the first step to yield.
          threads: reading threads.
          ahead: batches kept ready; each takes b * size * size bytes per field.
        """
        import grain

        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        steps = grain.MapDataset.range(int(start_step), sys.maxsize).map(self.__getitem__)
        iterator = iter(steps.to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()

    def _read(self, index: int) -> Batch:
        which = bisect.bisect_right(self._ends, index)
        offset = self._ends[which - 1] if which else 0
        return self._reader(self._sources[which], index - offset, key=index)


def eval_batches(
    source: Source,
    indices: Sequence[int] | None,
    *,
    batch_size: int,
    size: int,
    process_index: int = 0,
    process_count: int = 1,
    fields: Sequence[str] = ("image", "mask"),
) -> Iterator[Batch]:
    """Yields every chosen example once, in order, in batches of one shape.

    Args and shapes are those of ``Batches``. The last batch is filled up with zeros whose ``valid``
    is False, so that no example is counted twice and nothing recompiles. No indices, no batches.
    """
    _check_share(batch_size, process_index, process_count)
    chosen = range(len(source)) if indices is None else [int(i) for i in indices]
    rows, read = batch_size // process_count, _Reader(size, tuple(fields), cache_bytes=0)
    for start in range(0, len(chosen), batch_size):
        first = start + process_index * rows
        share = chosen[first : min(first + rows, start + batch_size)]
        pictures = [read(source, i, key=i) for i in share]
        yield _stack(pictures, rows, tuple(fields), size)


class _Reader:
    """Reads, decodes and resizes one example; keeps results while the byte budget lasts."""

    def __init__(self, size: int, fields: tuple[str, ...], cache_bytes: int):
        unknown = [name for name in fields if name not in PICTURES]
        if unknown or size < 1:
            raise ValueError(f"size {size} must be positive and fields {fields} out of {PICTURES}")
        self._size, self._fields = size, fields
        self._cache: dict[int, Batch] = {}
        self._room = cache_bytes // (size * size * len(fields))
        self._lock = threading.Lock()

    def __call__(self, source: Source, index: int, *, key: int) -> Batch:
        if (kept := self._cache.get(key)) is not None:
            return kept
        example = source[index]
        out = {name: self._picture(example, name) for name in self._fields}
        with self._lock:
            if len(self._cache) < self._room:
                self._cache[key] = out
        return out

    def _picture(self, example: Example, name: str) -> np.ndarray:
        if name == "mask" and name not in example:
            return np.zeros((self._size, self._size, 1), np.uint8)
        return resize(decode(example, name), self._size, labels=name in ("mask", "lung"))


def _check_share(batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} must be a positive multiple of {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} must lie in 0 .. {process_count - 1}")


def _stack(pictures: list[Batch], rows: int, fields: tuple[str, ...], size: int = 0) -> Batch:
    size = pictures[0][fields[0]].shape[0] if pictures else size
    batch: Batch = {"valid": np.arange(rows) < len(pictures)}
    for name in fields:
        batch[name] = np.zeros((rows, size, size, 1), np.uint8)
        for row, picture in enumerate(pictures):
            batch[name][row] = picture[name]
    return batch


def resize(picture: np.ndarray, size: int, *, labels: bool) -> np.ndarray:
    """A picture [H, W, 1] as [size, size, 1]; `labels` are never mixed."""
    import cv2

    height, width = picture.shape[:2]
    if (height, width) == (size, size):
        return picture
    shrinks = height >= size and width >= size
    smooth = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    # INTER_NEAREST_EXACT samples at pixel centres; INTER_NEAREST would shift masks by half a pixel.
    how = cv2.INTER_NEAREST_EXACT if labels else smooth
    return cv2.resize(picture, (size, size), interpolation=how)[..., None]

"""From examples to numpy batches: deterministic, without iterator state.

A *source* is anything with `__len__` and `__getitem__(int) -> example`, where an example is a dict
with `image` (and, where known, `mask`, `lung` and `prior`) as PNG bytes or uint8 [H, W, 1], and the
texts `id`, `patient`, `slice`, `group`. Batches are pure functions of (seed, step), so a run
resumes exactly with nothing saved but its step.
"""

import bisect
import functools
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

import numpy as np

PICTURES = ("image", "mask", "lung", "prior")
CACHE_BYTES = 1 << 30  # resized training examples are kept in memory until these are used

Example = Mapping[str, Any]
Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Subset:
    """The examples of a source at the given indices, in that order."""

    def __init__(self, source: Source, indices: Iterable[int]):
        self._source, self._indices = source, [int(i) for i in indices]
        if wrong := [i for i in self._indices if not 0 <= i < len(source)]:
            raise ValueError(f"index {wrong[0]} is outside the source's 0 .. {len(source) - 1}")

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._indices[index]]


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


class Batches:
    """Endless shuffled training batches, indexed by step and pure in (seed, step).

    `batches[step]` is a dict of uint8 [b, size, size, 1] for each of `fields` and `valid` bool [b].
    Of the global batch, process p of n gets the b = batch_size / n rows from p * b onward, so any
    number of processes together see the batch that one process would. A missing mask (unlabelled
    examples) reads as all background.

    Each epoch, of `example_count` examples, is a new permutation (see `epoch_order`); a batch may
    straddle two. `fields` are out of PICTURES, `weights` those of `quotas`, `process` is (p, n), by
    default this one. ValueError for no examples, or sizes that do not fit each other.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch_size: int,
        size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        fields: Sequence[str] = ("image", "mask"),
        process: tuple[int, int] | None = None,
    ):
        sizes = [len(source) for source in sources]
        if not sum(sizes):
            raise ValueError("no examples to draw batches from")
        self._first, self._rows = _share(batch_size, size, fields, process)
        self._sources, self._batch_size, self._size = list(sources), batch_size, size
        self.fields, self._ends = tuple(fields), np.cumsum(sizes).tolist()
        self._cache: dict[int, Batch] = {}
        self._room = CACHE_BYTES // (size * size * len(self.fields))
        drawn = quotas(sizes, weights)
        self.example_count = sum(drawn)
        # One permutation per epoch: grain's shuffle costs 1 ms per index on sets this small.
        order = functools.partial(epoch_order, sizes, drawn, seed)
        self._order = functools.lru_cache(maxsize=4)(order)

    def indices(self, step: int) -> list[int]:
        """Indices, into the sources laid end to end, of this process's rows at `step`."""
        start = int(step) * self._batch_size + self._first
        places = (divmod(start + row, self.example_count) for row in range(self._rows))
        return [int(self._order(epoch)[place]) for epoch, place in places]

    def __getitem__(self, step: int) -> Batch:
        pictures = [self._read(index) for index in self.indices(step)]
        return _stack(pictures, self._rows, self.fields, self._size)

    def iterate(self, start_step: int = 0) -> Generator[Batch]:
        """Yields `batches[start_step]`, `batches[start_step + 1]`, ... read ahead by threads."""
        import grain  # type: ignore[import-untyped]  # ships no stubs

        options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
        steps = grain.MapDataset.range(int(start_step), sys.maxsize).map(self.__getitem__)
        with closing(iter(steps.to_iter_dataset(options))) as iterator:
            yield from iterator

    def _read(self, index: int) -> Batch:
        """The pictures of one example; kept while there is room, give or take one a thread."""
        if (kept := self._cache.get(index)) is not None:
            return kept
        which = bisect.bisect_right(self._ends, index)
        source = self._sources[which]
        pictures = _read(source[index - self._ends[which] + len(source)], self.fields, self._size)
        if len(self._cache) < self._room:
            self._cache[index] = pictures
        return pictures


class Paired:
    """Training batches that also hold as many `unlabelled` images, of a stream of their own."""

    def __init__(self, labelled: Batches, unlabelled: Batches):
        self._streams = labelled, unlabelled
        self.fields, self.example_count = labelled.fields, labelled.example_count

    def iterate(self, start_step: int = 0) -> Generator[Batch]:
        """As `Batches.iterate`."""
        labelled, unlabelled = (stream.iterate(start_step) for stream in self._streams)
        with closing(labelled), closing(unlabelled):
            for batch, other in zip(labelled, unlabelled, strict=True):
                yield {**batch, "unlabelled": other["image"]}


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    size: int,
    fields: Sequence[str] = ("image", "mask"),
    process: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """Yields every example once, in order, in batches of one shape; no examples, no batches.

    Args and shapes are those of `Batches`. The last batch is filled up with zeros whose `valid` is
    False, so that no example is counted twice and nothing recompiles.
    """
    first, rows = _share(batch_size, size, fields, process)
    for start in range(0, len(source), batch_size):
        share = range(len(source))[start : start + batch_size][first : first + rows]
        yield _stack([_read(source[i], fields, size) for i in share], rows, fields, size)


def quotas(sizes: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """The draws from each source in an epoch: in all about as many as there are examples.

    `sizes` are the sources' numbers of examples, all above 0; `weights` their relative shares, or
    None: each example once.
    """
    if weights is None:
        return list(sizes)
    total = sum(sizes) / sum(weights)
    return [max(1, round(total * weight)) for weight in weights]


def epoch_order(sizes: Sequence[int], drawn: Sequence[int], seed: int, epoch: int) -> np.ndarray:
    """Returns the examples of one epoch, int64 [sum(drawn)] into the sources laid end to end.

    It is pure in (seed, epoch), both at least 0; `drawn` are the `quotas`. A source whose quota is
    not its size is gone through in passes: no example is ever more than one ahead of another.
    """
    order = np.random.default_rng((seed, epoch)).permutation(sum(drawn))
    if list(drawn) == list(sizes):
        return order
    found, start = [], 0
    for which, (size, count) in enumerate(zip(sizes, drawn, strict=True), 1):
        first, skipped = divmod(epoch * count, size)
        last = ((epoch + 1) * count - 1) // size
        # Passes count from 1: a seed that ends with 0 draws the same as the seed without it.
        seeds = [(seed, which, number + 1) for number in range(first, last + 1)]
        passes = [np.random.default_rng(each).permutation(size) for each in seeds]
        found.append(start + np.concatenate(passes)[skipped : skipped + count])
        start += size
    return np.concatenate(found)[order]


def _share(
    batch_size: int, size: int, fields: Sequence[str], process: tuple[int, int] | None
) -> tuple[int, int]:
    """Of each global batch, the first row and the number of rows that a process reads."""
    if size < 1 or not set(fields) <= set(PICTURES):
        raise ValueError(f"size {size} must be positive and fields {fields} out of {PICTURES}")
    if process is None:
        import jax

        process = jax.process_index(), jax.process_count()
    index, count = process
    if batch_size < 1 or batch_size % count:
        wanted = f"a positive multiple of {count} processes"
        raise ValueError(f"batch_size {batch_size} must be {wanted}")
    rows = batch_size // count
    return index * rows, rows


def _read(example: Example, fields: Sequence[str], size: int) -> Batch:
    """The pictures of an example, uint8 [size, size, 1]; without a mask all is background."""
    example = {"mask": np.zeros((size, size, 1), np.uint8), **example}
    return {n: resize(decode(example, n), size, labels=n in ("mask", "lung")) for n in fields}


def _stack(pictures: list[Batch], rows: int, fields: Sequence[str], size: int) -> Batch:
    """A batch of `rows`, filled up with zeros."""
    blank = dict.fromkeys(fields, np.zeros((size, size, 1), np.uint8))
    filled = pictures + [blank] * (rows - len(pictures))
    batch = {name: np.stack([each[name] for each in filled]) for name in fields}
    return {"valid": np.arange(rows) < len(pictures), **batch}


def decode(example: Example, name: str) -> np.ndarray:
    """The picture `name` of an example, uint8 [H, W, 1], out of PNG bytes or as it is.

    ValueError, which names the example, if it is missing, unreadable or of another kind.
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


def resize(picture: np.ndarray, size: int, *, labels: bool) -> np.ndarray:
    """A uint8 [H, W, 1] as [size, size, 1]; `labels` by the nearest, else by area or bilinear."""
    import cv2

    height, width = picture.shape[:2]
    if (height, width) == (size, size):
        return picture
    smooth = cv2.INTER_AREA if min(height, width) >= size else cv2.INTER_LINEAR
    # INTER_NEAREST_EXACT samples at pixel centres; INTER_NEAREST would shift masks by half a pixel.
    how = cv2.INTER_NEAREST_EXACT if labels else smooth
    return cv2.resize(picture, (size, size), interpolation=how)[..., None]


def text(value: Any) -> str:
    """A text of an example, bytes or not, as str."""
    return value.decode() if isinstance(value, bytes | np.bytes_) else str(value)

"""One shard of a big dataset: how it is written, and by whom: cores of this machine, or Beam."""

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from tfds_builders.report import Report

JOURNAL = "journal"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file to be: its final name, and what its examples are made of (equal repr = equal)."""

    split: str
    file: str
    items: tuple[Any, ...]


class Reader(Protocol):
    """Makes examples of items. It travels to other processes and machines, so it must pickle.

    Attributes:
      fingerprint: text that differs whenever equal items would give other examples.
      counted: features whose values the report counts.
    """

    fingerprint: str
    counted: tuple[str, ...]

    def features(self) -> tfds.features.FeaturesDict:
        """Returns what `_info` declares."""

    def examples(
        self, items: Iterable[Any], report: Report
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yields (key, example) in the order of the items; unfit ones go to `report.skip`."""


def write_shard(shard: Shard, *, folder: Path, reader: Reader) -> None:
    """Writes one shard and then its journal entry, unless both are there and fit.

    The entry is written last, so a shard without one counts for nothing. Memory: one example and
    the writer's buffer. Equal arguments give equal bytes, in whichever process.
    """
    digest = hashlib.sha256(repr((reader.fingerprint, shard)).encode()).hexdigest()
    record, journal = folder / shard.file, folder / JOURNAL / f"{shard.file}.json"
    if _finished(record, journal, digest):
        return
    report = Report(shard.split, counted=reader.counted)
    features = reader.features()
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    # Two processes may meet on one shard (a straggler of a cluster): neither sees the other's file.
    partial = folder / f"{shard.file}.{os.getpid()}.{threading.get_ident()}.partial"
    examples = size = 0
    try:
        writer = ArrayRecordWriter(str(partial), "group_size:1")  # as TFDS: random access
        try:
            for key, example in reader.examples(shard.items, report):
                proto = serializer.get_tf_example(features.encode_example(example))
                # Not TFDS's own call, whose order of features is another in each process.
                data = proto.SerializeToString(deterministic=True)
                writer.write(data)
                report.add(key, example)
                examples, size = examples + 1, size + len(data)
        finally:
            writer.close()
        _to_disk(partial)
        os.replace(partial, record)
    finally:
        partial.unlink(missing_ok=True)
    write_json(
        journal,
        {
            "digest": digest,
            "file_bytes": record.stat().st_size,
            "examples": examples,
            "bytes": size,
            "report": report.state(),
        },
    )


def _finished(record: Path, journal: Path, digest: str) -> bool:
    try:
        entry = json.loads(journal.read_text(encoding="utf-8"))
        return entry["digest"] == digest and entry["file_bytes"] == record.stat().st_size
    except (OSError, ValueError, KeyError):  # no entry, no shard, or one that was cut short
        return False


def _to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def entry_of(folder: Path, shard: Shard) -> dict[str, Any]:
    """The journal's entry of a finished shard: number of `examples`, their `bytes`, `report`."""
    return json.loads((folder / JOURNAL / f"{shard.file}.json").read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, path)


def write_here(shards: list[Shard], folder: Path, reader: Reader) -> Iterator[Shard]:
    """Writes shards with one process per core of this machine; yields them in order when done.

    Raises:
      OSError: a process died, as it does when memory runs out. What is finished stays.
    """
    write = functools.partial(write_shard, folder=folder, reader=reader)
    workers = min(_cores(), len(shards))
    if workers <= 1:
        for shard in shards:
            write(shard)
            yield shard
        return
    # Spawned, not forked: the caller may have threads (JAX's), which do not survive a fork.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
    try:
        for shard, _ in zip(shards, pool.map(write, shards), strict=True):
            yield shard
    except BrokenProcessPool as error:
        raise OSError(
            "a process that writes shards died (out of memory?); run the same command "
            "again: finished shards are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux, where a container may have fewer than the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_with_parent() -> None:
    """Lets a killed build take its processes along, before the next one starts its own."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_on_beam(
    shards: list[Shard], folder: Path, reader: Reader, runner: Any, options: Any
) -> Iterator[Shard]:
    """Writes shards with Apache Beam, by the same function; yields them when all are done.

    Args:
      folder: must be one and the same folder for all workers, as on a cluster's shared file system;
        so must the sources that the reader opens.
      runner: a runner or its name, as `beam.Pipeline` takes it; None: as the options say.
      options: `beam.options.pipeline_options.PipelineOptions`, or None.
    """
    import apache_beam as beam  # the extra `beam`; hardly anybody has a cluster

    with beam.Pipeline(runner=runner, options=options) as pipeline:
        shards_on_workers = pipeline | beam.Create(shards) | beam.Reshuffle()
        # In a lambda, because Beam would check annotations against what it can't infer.
        _ = shards_on_workers | beam.Map(lambda s: write_shard(s, folder=folder, reader=reader))
    yield from shards

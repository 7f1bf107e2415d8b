"""Datasets too big for one process or one sitting: shards laid out first, made one by one, kept.

TFDS's own builders cannot resume: `GeneratorBasedBuilder` keeps everything in temporary buckets
until it writes all shards at the very end, in one process, in a folder whose name is random. So
`ShardedBuilder` lays out the shards from a listing alone and lets each be written on its own, by
any process, in any order. Features, encoding, record format, file names and metadata are TFDS's,
and plain TFDS reads the result. Records keep the order of the listing: shuffle when reading.
"""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from tfds_builders import RESUMABLE, base
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
    _write_json(journal, {"digest": digest, "file_bytes": record.stat().st_size,
                          "examples": examples, "bytes": size, "report": report.state()})


def _finished(record: Path, journal: Path, digest: str) -> bool:
    try:
        entry = json.loads(journal.read_text(encoding="utf-8"))
        return entry["digest"] == digest and entry["file_bytes"] == record.stat().st_size
    except (OSError, ValueError, KeyError):  # no entry, no shard, or one that was cut short
        return False


def _to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _write_json(path: Path, content: Any) -> None:
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
        raise OSError("a process that writes shards died (out of memory?); run the same command "
                      "again: finished shards are kept") from error
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


class ShardedBuilder(base.Builder, skip_registration=True):
    """A builder whose `plan` lists all shards; the base of builders that must resume.

    `download_and_prepare` works below `incomplete.resume_VERSION`, beside the final folder. A build
    that is killed goes on from there: shards with a journal entry that fits are not made again. The
    final name appears by one rename when all is done, and the bytes are those of a build without
    interruption. `beam_runner` or `beam_options` of the `DownloadConfig` move it to Beam.
    """

    EXAMPLES_PER_SHARD = 1000  # about 150 MB of 512 x 512 slices

    @property
    def in_shards(self) -> bool:
        """Whether this config is built so; a small one may be left to TFDS by overriding this."""
        return True

    @abc.abstractmethod
    def plan(self, manual_dir: Path) -> tuple[dict[str, list[Any]], Reader]:
        """Returns the items of each split in order, and what reads them; skips go to `report`."""

    def download_and_prepare(
        self, *, download_config: tfds.download.DownloadConfig | None = None, **kwargs: Any
    ) -> None:
        """Builds the dataset or goes on with it; see the class.

        Raises:
          ValueError: no example was readable, or the report is strict and something was skipped.
        """
        if not self.in_shards:
            super().download_and_prepare(download_config=download_config, **kwargs)
            return
        config, final = download_config or tfds.download.DownloadConfig(), Path(self.data_dir)
        if (final / "dataset_info.json").exists():
            return
        folder = final.parent / f"{RESUMABLE}{final.name}"
        if (folder / JOURNAL).is_dir() or not (folder / "dataset_info.json").exists():
            self._fill(folder, config)
        default = final.parent.parent / ".config" / "metadata.json"  # where TFDS looks for it
        default.parent.mkdir(exist_ok=True)
        _write_json(default, {"default_config_name": self.BUILDER_CONFIGS[0].name})
        os.replace(folder, final)
        self.info.read_from_directory(final)

    def _fill(self, folder: Path, config: tfds.download.DownloadConfig) -> None:
        items, reader = self.plan(Path(config.manual_dir))
        shards = [s for split, found in items.items() for s in self._shards(split, found)]
        (folder / JOURNAL).mkdir(parents=True, exist_ok=True)
        known = {s.file for s in shards}
        for path in [*folder.iterdir(), *(folder / JOURNAL).iterdir()]:
            if path.name.removesuffix(".json") not in known | {JOURNAL}:
                path.unlink()  # of other source files, or half-written
        if config.beam_runner or config.beam_options:
            done = write_on_beam(shards, folder, reader, config.beam_runner, config.beam_options)
        else:
            done = write_here(shards, folder, reader)
        with contextlib.closing(done):  # an error here stops the processes too
            self._finish(folder, tfds.core.utils.tqdm(done, total=len(shards), unit=" shards"))

    def _shards(self, split: str, items: list[Any]) -> Iterator[Shard]:
        size, template = self.EXAMPLES_PER_SHARD, self._get_filename_template(split)
        count = -(-len(items) // size)
        for index in range(count):
            name = template.sharded_filepath(shard_index=index, num_shards=count).name
            yield Shard(split, name, tuple(items[index * size : (index + 1) * size]))

    def _finish(self, folder: Path, shards: Iterable[Shard]) -> None:
        """Gathers the journal while shards get ready, then writes the metadata beside them."""
        lengths: dict[str, list[int]] = {}
        sizes: dict[str, int] = {}
        for shard in shards:
            entry = json.loads((folder / JOURNAL / f"{shard.file}.json").read_text("utf-8"))
            self.report.merge(entry["report"])
            lengths.setdefault(shard.split, []).append(entry["examples"])
            sizes[shard.split] = sizes.get(shard.split, 0) + entry["bytes"]
        if not any(map(sum, lengths.values())):
            raise ValueError(f"{self.name}: not one readable example; see the reasons: "
                             f"{list(self.report.skipped.items())[:3]}")
        self.info.set_splits(tfds.core.SplitDict([
            tfds.core.SplitInfo(name=split, shard_lengths=found, num_bytes=sizes[split],
                                filename_template=self._get_filename_template(split))
            for split, found in lengths.items()
        ]))
        self._complete_report()
        self.info.write_to_directory(folder)
        self.report.write(folder)
        # From here on the folder is complete: one rename says so, and clearing up may be cut short.
        cleared = folder.with_name(f"incomplete.journal_{Path(self.data_dir).name}")
        os.replace(folder / JOURNAL, cleared)
        shutil.rmtree(cleared)

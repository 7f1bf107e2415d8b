"""Datasets too big for one process or one sitting: shards laid out first, made one by one, kept.

TFDS's own builders cannot resume: `GeneratorBasedBuilder` keeps everything in temporary buckets
until it writes all shards at the very end, in one process, in a folder whose name is random. So
`ShardedBuilder` lays out the shards from a listing alone and lets each be written on its own, by
any process, in any order. Features, encoding, record format, file names and metadata are TFDS's,
and plain TFDS reads the result. Records keep the order of the listing: shuffle when reading.
"""

import abc
import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from tfds_builders import RESUMABLE, base
from tfds_builders.shard_writers import (
    JOURNAL,
    Reader,
    Shard,
    entry_of,
    write_here,
    write_json,
    write_on_beam,
)


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
        write_json(default, {"default_config_name": self.BUILDER_CONFIGS[0].name})
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
            entry = entry_of(folder, shard)
            self.report.merge(entry["report"])
            lengths.setdefault(shard.split, []).append(entry["examples"])
            sizes[shard.split] = sizes.get(shard.split, 0) + entry["bytes"]
        for split in [split for split, found in lengths.items() if not any(found)]:
            self._drop(folder, split)  # TFDS cannot read an empty one
            del lengths[split]
        if not lengths:
            raise ValueError(
                f"{self.name}: not one readable example; see the reasons: "
                f"{list(self.report.skipped.items())[:3]}"
            )
        self.info.set_splits(
            tfds.core.SplitDict(
                [
                    tfds.core.SplitInfo(
                        name=split,
                        shard_lengths=found,
                        num_bytes=sizes[split],
                        filename_template=self._get_filename_template(split),
                    )
                    for split, found in lengths.items()
                ]
            )
        )
        self._complete_report()
        self.info.write_to_directory(folder)
        self.report.write(folder)
        # From here on the folder is complete: one rename says so, and clearing up may be cut short.
        cleared = folder.with_name(f"incomplete.journal_{Path(self.data_dir).name}")
        os.replace(folder / JOURNAL, cleared)
        shutil.rmtree(cleared)

    def _drop(self, folder: Path, split: str) -> None:
        self.report.note(f"no split {split}: nothing in it was readable")
        pattern = self._get_filename_template(split).sharded_filepaths_pattern()
        for path in folder.glob(Path(pattern).name):
            path.unlink()

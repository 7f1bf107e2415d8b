"""CC-CCII from the archives that the user has downloaded (Zhang et al., Cell 2020)."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import base, pictures, shards, tables
from tfds_builders.cc_ccii import layout, lesion_set
from tfds_builders.report import Report
from tfds_builders.splits import split_groups

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
COLUMNS = {
    "age": "age",
    "critical_illness": "critical_illness",
    "liver_function": "liver_function",
    "lung_function": "lung_function",
    "progression_days": "progression_days",
}  # feature -> column, by `tables.column`


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """`slices`: everything, with the scan's label; `lesions`: 750 slices with masks."""


@dataclasses.dataclass(frozen=True)
class SliceReader:
    """Reads listed slices straight out of their archives; see `shard_writers.Reader`."""

    root: Path
    tables: layout.Tables
    counted: tuple[str, ...] = ("label",)

    @property
    def fingerprint(self) -> str:
        """Changes with the tables, and by hand (the number) with what `examples` makes of them."""
        return f"1 {self.tables.fingerprint()}"

    def features(self) -> tfds.features.FeaturesDict:
        """Declares a slice; see the README for values."""
        text = {name: tfds.features.Text() for name in ("patient", "scan", "slice", "id", "group")}
        return tfds.features.FeaturesDict(
            {
                "image": base.picture_feature(),
                "label": tfds.features.ClassLabel(names=list(layout.LABELS)),
                "lesion": np.int64,
                "sex": tfds.features.Text(),
                **{name: np.float32 for name in COLUMNS},
                **text,
            }
        )

    def examples(
        self, items: Iterable[layout.Slice], report: Report
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (id, example) per readable slice; one archive is open at a time."""
        for source, found in itertools.groupby(items, lambda item: item.source):
            with layout.opened(self.root / source) as read:
                for item in found:
                    file = f"{source}/{item.member}"
                    image = report.attempt(file, self._image, read, item.member, file)
                    if image is not None:
                        yield item.id, self._example(item, image)

    def _image(self, read: Callable[[str, str], bytes], member: str, file: str) -> np.ndarray:
        return pictures.decode_grey(read(member, file), file)

    def _example(self, item: layout.Slice, image: np.ndarray) -> dict[str, Any]:
        row = self.tables.metadata.get((item.patient, item.scan), {})
        lesions = self.tables.lesions
        # The column is called `Sex`, or `Sex (Male 1/Female 2)` with any spacing.
        sex = next((value for name, value in row.items() if name.startswith("sex")), "")
        return {
            "image": base.encode_png(image),
            "label": item.label,
            "lesion": -1 if lesions is None else int(item.id in lesions),
            "sex": {"1": "M", "2": "F"}.get(sex.removesuffix(".0"), ""),
            **{name: tables.number(row.get(column, "")) for name, column in COLUMNS.items()},
            "patient": item.patient,
            "scan": item.scan,
            "slice": item.name,
            "id": item.id,
            "group": item.patient,
        }


class Builder(shards.ShardedBuilder):
    """Slices of chest CT with the scan's label, or the lesion set with masks and lungs."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        Config(name="slices", description="all slices, with the label of their scan"),
        Config(name="lesions", description="750 slices with lung, ground glass and consolidation"),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download the archives COVID19-*.zip, CP-*.zip and Normal-*.zip (any subset), metadata.csv,
    unzip_filenames.csv and lesions_slices.csv, and for the config `lesions` ct_lesion_seg.zip, from
    http://ncov-ai.big.ac.cn/download, and pass as manual_dir the folder that holds them.
    """
    COUNTED = ("label",)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=SliceReader(Path(), layout.Tables({}, {}, None)).features()
            if self.in_shards
            else lesion_set.features(),
            homepage="http://ncov-ai.big.ac.cn",
        )

    @property
    def in_shards(self) -> bool:
        """True for `slices`; the 750 of `lesions` need no more than TFDS's own way."""
        return self.builder_config.name == "slices"

    def plan(self, manual_dir: Path) -> tuple[dict[str, list[Any]], shards.Reader]:
        """Lists `slices`: splits by patient, the same for a subset when the slice table is there.

        Raises:
          FileNotFoundError: there are no archives.
          ValueError: a table is malformed, or no archive holds a slice.
        """
        beside = layout.read_tables(manual_dir, self.report)
        slices = layout.listing(manual_dir, self.report)
        if not slices:
            raise ValueError(
                f"{manual_dir}: no archive there holds a slice that can be used; "
                f"see {list(self.report.skipped.items())[:3]}"
            )
        self._compare(slices, beside.slices)
        patients = {patient for patient, _ in beside.slices} | {item.patient for item in slices}
        split_of = split_groups(patients, SHARES)
        found: dict[str, list[layout.Slice]] = {split: [] for split in SHARES}
        for item in slices:
            found[split_of[item.patient]].append(item)
        return {s: items for s, items in found.items() if items}, SliceReader(manual_dir, beside)

    def _compare(self, slices: list[layout.Slice], listed: dict[tuple[str, str], int]) -> None:
        """Notes scans at hand that have another number of slices than the table says."""
        counts = Counter((item.patient, item.scan) for item in slices)
        other = [
            f"{p}/{s}: {n} of {listed[p, s]}"
            for (p, s), n in counts.items()
            if listed.get((p, s), n) != n
        ]
        if other:
            self.report.note(
                f"{len(other)} scans have another number of slices than "
                f"unzip_filenames.csv says, such as {', '.join(other[:5])}"
            )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        pairs = lesion_set.pairs(Path(dl_manager.manual_dir), self.report)
        scans = {scan for scan, *_ in pairs}
        self.report.expect("slices with masks", lesion_set.SLICES, len(pairs))
        self.report.expect("scans with masks", lesion_set.SCANS, len(scans))
        split_of = split_groups(scans, SHARES)
        splits = {split: [p for p in pairs if split_of[p[0]] == split] for split in SHARES}
        return {
            split: self._generate_examples(pairs=found) for split, found in splits.items() if found
        }

    def _examples(self, pairs: list[lesion_set.Pair]) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from lesion_set.examples(pairs, self.report, self.remember)

"""covid-chestxray-dataset from a copy of its repository (Cohen et al. 2020)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import archives, base
from tfds_builders.covid_chestxray import metadata, volumes
from tfds_builders.splits import split_groups

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
MASKS = "annotations/lungVAE-masks"
ASPECT = 0.02  # how far the proportions of a lung mask may be off those of its X-ray


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """`xray`, `ct_picture` (figures of CT slices), or `ct_volume` (slices of NIfTI volumes)."""


class Builder(base.Builder):
    """X-rays with severity scores and lung masks where known, and CT, split by patient."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "First version.", "1.1.0": "`lung_known` was called `has_lung`."}
    BUILDER_CONFIGS = [
        Config(name="xray", description="X-rays, with severity scores and lung masks where known"),
        Config(name="ct_picture", description="CT slices that came as pictures"),
        Config(name="ct_volume", description="all slices of the CT volumes"),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Get a copy of https://github.com/ieee8023/covid-chestxray-dataset (its README has the torrent of
    the CT volumes, which belong into volumes/) and pass as manual_dir the folder that holds
    metadata.csv and images/.
    """
    COUNTED = ("label",)

    def _info(self) -> tfds.core.DatasetInfo:
        text = ("patient", "slice", "id", "group", *metadata.TEXTS)
        lung = {"lung": base.picture_feature(), "lung_known": np.bool_}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": base.picture_feature(),
                    "label": tfds.features.ClassLabel(names=list(metadata.LABELS)),
                    **{name: np.float32 for name in metadata.NUMBERS},
                    **{name: tfds.features.Text() for name in text},
                    **(lung if self.builder_config.name == "xray" else {}),
                }
            ),
            homepage="https://github.com/ieee8023/covid-chestxray-dataset",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = metadata.find_root(Path(dl_manager.manual_dir))
        every = metadata.read(root, self.report)
        # Over all configs: a patient's X-rays and CT slices are on the same side.
        split_of = split_groups({row.group for row in every}, SHARES)
        rows = [row for row in every if row.config == self.builder_config.name]
        folder = "volumes" if self.builder_config.name == "ct_volume" else "images"
        source = next((p for p in (root / folder, root / f"{folder}.zip") if p.exists()), None)
        if source is None:
            raise FileNotFoundError(
                f"{root}: no {folder}/, nor {folder}.zip, for the "
                f"{len(rows)} files that metadata.csv lists there"
            )
        splits = {split: [row for row in rows if split_of[row.group] == split] for split in SHARES}
        return {
            split: self._generate_examples(root=root, source=source, rows=found)
            for split, found in splits.items()
            if found
        }

    def _examples(
        self, root: Path, source: Path, rows: list[metadata.Row]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        missing = {metadata.plain(row.filename): row for row in rows}
        limit = volumes.MAX_FILE if self.builder_config.name == "ct_volume" else archives.MAX_MEMBER
        members = (
            archives.walk(source, limit=limit)
            if source.is_dir()
            else archives.zip_members(source, source.name, limit=limit)
        )
        for member in members:
            if isinstance(member, ValueError):
                self.report.skip(source.name, str(member))
                continue
            row = missing.pop(metadata.plain(PurePosixPath(member.name).name), None)
            data = row and self.report.attempt(member.name, member.read)
            if data is not None and row is not None:
                read = self._volume if row.config == "ct_volume" else self._picture
                yield from read(root, row, data, member.name)
        for row in missing.values():
            self.report.skip(f"{row.folder}/{row.filename}", "in metadata.csv, but not there")

    def _volume(
        self, root: Path, row: metadata.Row, data: bytes, name: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        del root
        slices = self.report.attempt(name, volumes.slices, data, name)
        if slices is None:
            return
        self.remember(data, name)
        for z, image in enumerate(slices):
            yield self._example(row, image, str(z), f"{row.filename}/{z}")

    def _picture(
        self, root: Path, row: metadata.Row, data: bytes, name: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        image = self.report.attempt(name, self.grey_from, data, name)
        if image is None:
            return
        key, example = self._example(row, image, row.filename, row.filename)
        if self.builder_config.name == "xray":
            lung = self._lung(root, row.filename, image.shape)
            example["lung_known"] = lung is not None
            example["lung"] = base.encode_png(np.zeros_like(image) if lung is None else lung)
        yield key, example

    def _example(
        self, row: metadata.Row, image: np.ndarray, number: str, key: str
    ) -> tuple[str, dict[str, Any]]:
        return key, {
            "image": base.encode_png(image),
            **row.fields,
            "patient": row.patient,
            "slice": number,
            "id": key,
            "group": row.group,
        }

    def _lung(self, root: Path, filename: str, shape: tuple[int, int]) -> np.ndarray | None:
        """Reads a lung mask as uint8 [H, W] 0/1 on its X-ray; None where there is none or unfit."""
        path = root / MASKS / f"{PurePosixPath(filename).stem}_mask.png"
        if not path.is_file():
            return None
        mask = self.report.attempt(path.relative_to(root), self.read_grey, path, root)
        if mask is None:
            return None
        (h, w), (height, width) = mask.shape, shape
        if abs(h * width / (w * height) - 1) > ASPECT:
            self.report.skip(path.relative_to(root), f"mask is {mask.shape}, its X-ray {shape}")
            return None
        if mask.shape != shape:  # made on a smaller copy of the X-ray
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        return (mask >= 128).astype(np.uint8) if mask.max() > 1 else mask

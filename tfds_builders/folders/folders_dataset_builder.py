"""A lab's own slices with lesion masks, lung masks, or both, from plain folders of pictures."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import base

IMAGES, MASKS, LUNGS, INDEX = "img", "label", "lung", "index.csv"
EFFUSION = 3


class Builder(base.Builder):
    """Slices as they are; masks 0, 1, 2 and lungs 0, 1 where there are any."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.1.0": "Knows the volume of a slice.", "1.0.0": "First version."}
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="default", description="all slices")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Pass as manual_dir a folder with img/ and label/ or lung/ (pictures of the same names), or a
    folder that holds several of them.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=base.segmentation_features(
                lung=base.picture_feature(),
                lung_known=np.bool_,
                labelled=np.bool_,
                volume=tfds.features.Text(),
            )
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir)
        parts = [p for p in (root, *sorted(root.iterdir())) if (p / IMAGES).is_dir()]
        parts = [p for p in parts if (p / MASKS).is_dir() or (p / LUNGS).is_dir()]
        if not parts:
            raise FileNotFoundError(
                f"{root}: no {IMAGES}/ with {MASKS}/ or {LUNGS}/ beside it, "
                "neither here nor one folder below"
            )
        return {"train": self._generate_examples(root=root, parts=parts)}

    def _examples(self, root: Path, parts: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        for part in parts:
            start = "" if part == root else f"{part.name}/"
            groups, volumes = self._index(part / INDEX, root)
            there = {
                kind: {s: p for s, _, p in base.pair(part / IMAGES, part / kind)}
                for kind in (MASKS, LUNGS)
                if (part / kind).is_dir()
            }
            for stem, path in base.pictures(part / IMAGES).items():
                image = self.read_grey(path, root)
                mask, lung = (
                    self._labels(there, kind, stem, image, root) for kind in (MASKS, LUNGS)
                )
                group = groups.get(stem, stem)
                yield (
                    f"{start}{stem}",
                    {
                        "image": base.encode_png(image),
                        "mask": base.encode_png(_classes(mask, path)),
                        "lung": base.encode_png((lung > 0).astype(np.uint8)),
                        "labelled": MASKS in there,
                        "lung_known": LUNGS in there,
                        "patient": start + group if stem in groups else "",
                        "slice": stem,
                        "id": f"{start}{stem}",
                        "group": f"{start}{group}",
                        "volume": start + volumes[stem] if stem in volumes else "",
                    },
                )

    def _labels(
        self, there: dict[str, dict[str, Path]], kind: str, stem: str, image: np.ndarray, root: Path
    ) -> np.ndarray:
        if kind not in there:
            return np.zeros_like(image)
        labels = self.read_labels(there[kind][stem], root)
        if labels.shape != image.shape:
            raise ValueError(f"{there[kind][stem]}: {labels.shape}, its image {image.shape}")
        return labels

    def _index(self, path: Path, root: Path) -> tuple[dict[str, str], dict[str, str]]:
        """Group, and volume, of each stem of which the index says it."""
        groups, volumes = {}, {}
        if not path.is_file():
            return groups, volumes
        data = path.read_bytes()
        self.remember(data, path.relative_to(root).as_posix())
        for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")):
            name = row.get("name") or row.get("id")
            group = row.get("group") or row.get("patient") or row.get("volume")
            if name and group:
                stem = Path(name).stem if Path(name).suffix in base.IMAGE_SUFFIXES else name
                groups[stem] = group
                if volume := row.get("volume"):
                    volumes[stem] = volume
        return groups, volumes


def _classes(labels: np.ndarray, path: Path) -> np.ndarray:
    """0, 1, 2 of a label picture; ValueError names the slice and the illegal values."""
    values = set(np.unique(labels).tolist())
    if values <= {0, 255}:
        return (labels > 0).astype(np.uint8)
    if not values <= {0, 1, 2, EFFUSION}:
        raise ValueError(
            f"{path}: its label holds {sorted(values)[:5]}; 0 to 3, or 0 and 255, expected"
        )
    return np.where(labels == EFFUSION, 0, labels).astype(np.uint8)

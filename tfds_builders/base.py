"""What every builder here shares: TensorFlow-free TFDS, one example layout, honest input checks.

TFDS can prepare datasets without TensorFlow when three habits are kept, and this module keeps them
for all builders: records are stored as array_record (the default TFRECORD format needs
TensorFlow), pictures are handed over as PNG bytes (an ndarray would be encoded by TensorFlow), and
keys are checked for uniqueness here (TFDS reports a duplicate as a missing module).
"""

import abc
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders.pictures import decode_grey, decode_labels, encode_png
from tfds_builders.report import Report

__all__ = ["Builder", "encode_png", "pair", "picture_feature", "pictures", "segmentation_features"]
MANIFEST = "manifest.sha256"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def picture_feature() -> tfds.features.Image:
    """Declares a grey picture, uint8 [H, W, 1], stored as PNG."""
    return tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png")


def segmentation_features(**extra: Any) -> tfds.features.FeaturesDict:
    """Features common to the segmentation builders, plus those given as keywords.

    image uint8 [H, W, 1] grey picture; mask uint8 [H, W, 1] classes (0 background, 1 ground-glass
    opacity, 2 consolidation; binary sets only 0 and 1); patient, slice, id, group text, read back
    as bytes. An empty patient means that nobody knows it. Slices that share a group must stay on
    the same side of a cross-validation split.
    """
    text = {name: tfds.features.Text() for name in ("patient", "slice", "id", "group")}
    pictures = {"image": picture_feature(), "mask": picture_feature()}
    return tfds.features.FeaturesDict({**pictures, **text, **extra})


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder that needs no TensorFlow and remembers which files it has read.

    Subclasses implement `_info`, `_split_generators`, and `_examples` in place of TFDS's
    `_generate_examples`. Files read through `read_grey`, `read_labels` and their `_from` forms are
    listed with their sha256 in `manifest.sha256` beside the prepared records (in the format of
    `sha256sum`). `report` counts every example by itself; a builder of messy downloads calls
    `report.skip` or `report.attempt` for the files it leaves out. `report.json` and
    `contact_sheet.png` appear beside the records.
    """

    COUNTED: tuple[str, ...] = ()  # features whose values the report counts, such as `label`

    def __init__(self, *, file_format: str = "array_record", strict: bool = False, **kwargs: Any):
        self._read_files: dict[str, str] = {}
        self.report = Report(self.name, strict=strict, counted=self.COUNTED)
        super().__init__(file_format=file_format, **kwargs)

    @abc.abstractmethod
    def _examples(self, **kwargs: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yields (key, example) pairs."""

    def _generate_examples(self, **kwargs: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Passes `_examples` on; ValueError at the first repeated key, or when there is none."""
        seen = set()
        for key, example in self._examples(**kwargs):
            if key in seen:
                raise ValueError(f"{self.name}: two examples share the key {key!r}")
            seen.add(key)
            self.report.add(key, example)
            yield key, example
        if not seen:
            reasons = "; ".join(f"{f}: {r}" for f, r in list(self.report.skipped.items())[:3])
            raise ValueError(f"{self.name}: a split has nothing readable; {reasons or 'no files'}")

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Prepares the records, then writes manifest and report into the same (hidden) folder."""
        super()._download_and_prepare(*args, **kwargs)
        self._complete_report()
        if self._read_files:
            lines = [f"{digest}  {name}\n" for name, digest in sorted(self._read_files.items())]
            Path(self.data_dir, MANIFEST).write_text("".join(lines), encoding="utf-8")
        self.report.write(Path(self.data_dir))

    def _complete_report(self) -> None:  # noqa: B027 (most builders have nothing to add)
        """Adds to the report what is only known at the end, such as counts that are expected."""

    def read_grey(self, path: Path, root: Path) -> np.ndarray:
        """Reads a grey picture as uint8 [H, W]; `root` is what the manifest's names start from.

        Raises:
          ValueError: the file is empty, no picture, or not 8-bit; the message names it.
        """
        return self._decoded(
            path.read_bytes(), path, path.relative_to(root).as_posix(), decode_grey
        )

    def read_labels(self, path: Path, root: Path) -> np.ndarray:
        """Reads a label picture as uint8 [H, W]: palette indices, grey levels, or 0/1 bits.

        Raises:
          ValueError: the file is empty, no picture, or has colours instead of labels.
        """
        return self._decoded(
            path.read_bytes(), path, path.relative_to(root).as_posix(), decode_labels
        )

    def grey_from(self, data: bytes, name: str) -> np.ndarray:
        """As `read_grey`, from bytes at hand (of an archive's member) that `name` names."""
        return self._decoded(data, name, name, decode_grey)

    def labels_from(self, data: bytes, name: str) -> np.ndarray:
        """As `read_labels`, from bytes at hand (of an archive's member) that `name` names."""
        return self._decoded(data, name, name, decode_labels)

    def remember(self, data: bytes, name: str) -> None:
        """Lists a file that was read in some other way in the manifest."""
        self._read_files[name] = hashlib.sha256(data).hexdigest()

    def _decoded(
        self, data: bytes, said: object, name: str, decode: Callable[[bytes, object], np.ndarray]
    ) -> np.ndarray:
        array = decode(data, said)
        self.remember(data, name)
        return array


def pictures(folder: Path) -> dict[str, Path]:
    """Maps stem to path for the pictures in a folder, sorted by name.

    Hidden files and other types are passed over. Raises ValueError when two pictures share a stem.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise ValueError(f"{path}: {found[path.stem].name} has the same stem; keep one")
        found[path.stem] = path
    return found


def pair(images: Path, masks: Path) -> list[tuple[str, Path, Path]]:
    """Pairs pictures of two folders by stem: (stem, image, mask), sorted by stem.

    Raises:
      ValueError: an image has no mask, a mask has no image, or there are no pictures at all.
    """
    images_by_stem, masks_by_stem = pictures(images), pictures(masks)
    for stem, path in images_by_stem.items():
        if stem not in masks_by_stem:
            raise ValueError(f"{path}: image without mask; expected {masks / (stem + '.png')}")
    for stem, path in masks_by_stem.items():
        if stem not in images_by_stem:
            raise ValueError(f"{path}: mask without image; expected {images / (stem + '.jpg')}")
    if not images_by_stem:
        raise ValueError(f"{images}: no .png or .jpg pictures here")
    return [(stem, path, masks_by_stem[stem]) for stem, path in images_by_stem.items()]

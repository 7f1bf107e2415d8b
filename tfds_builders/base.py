"""What every builder here shares: TensorFlow-free TFDS, one example layout, honest input checks.

TFDS can prepare datasets without TensorFlow when three habits are kept, and this module keeps them
for all builders: records are stored as array_record (the default TFRECORD format needs
TensorFlow), pictures are handed over as PNG bytes (an ndarray would be encoded by TensorFlow), and
keys are checked for uniqueness here (TFDS reports a duplicate as a missing module).
"""

import abc
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, UnidentifiedImageError

MANIFEST = "manifest.sha256"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def encode_png(picture: np.ndarray) -> bytes:
    """Encodes uint8 [H, W] (or [H, W, 1]) as an 8-bit grey PNG; equal arrays give equal bytes."""
    if picture.dtype != np.uint8:
        raise ValueError(f"a picture to encode must be uint8, got {picture.dtype}")
    return cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()


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
    `_generate_examples`. Files read through `read_grey` and `read_labels` are listed with their
    sha256 in `manifest.sha256` beside the prepared records (in the format of `sha256sum`).
    """

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        self._read_files: dict[str, str] = {}
        super().__init__(file_format=file_format, **kwargs)

    @abc.abstractmethod
    def _examples(self, **kwargs: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yields (key, example) pairs."""

    def _generate_examples(self, **kwargs: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Passes `_examples` on, and raises ValueError at the first repeated key."""
        seen = set()
        for key, example in self._examples(**kwargs):
            if key in seen:
                raise ValueError(f"{self.name}: two examples share the key {key!r}")
            seen.add(key)
            yield key, example

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Prepares the records, then writes the manifest into the same (still hidden) folder."""
        super()._download_and_prepare(*args, **kwargs)
        if self._read_files:
            lines = [f"{digest}  {name}\n" for name, digest in sorted(self._read_files.items())]
            Path(self.data_dir, MANIFEST).write_text("".join(lines), encoding="utf-8")

    def read_grey(self, path: Path, root: Path) -> np.ndarray:
        """Reads a grey picture as uint8 [H, W]; `root` is what the manifest's names start from.

        Raises:
          ValueError: the file is empty, no picture, or not 8-bit; the message names it.
        """
        return self._read(path, root, lambda picture: picture.convert("L"))

    def read_labels(self, path: Path, root: Path) -> np.ndarray:
        """Reads a label picture as uint8 [H, W]: palette indices, grey levels, or 0/1 bits.

        Raises:
          ValueError: the file is empty, no picture, or has colours instead of labels.
        """

        def labels(picture: Image.Image) -> Image.Image:
            if picture.mode not in ("1", "L", "P"):
                raise ValueError(f"{path}: a label picture must be grey or palette, "
                                 f"not {picture.mode}")
            return picture

        return self._read(path, root, labels)

    def _read(
        self, path: Path, root: Path, convert: Callable[[Image.Image], Image.Image]
    ) -> np.ndarray:
        data = path.read_bytes()
        if not data:
            raise ValueError(f"{path}: the file is empty (0 bytes); copy it again")
        try:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                wide = picture.mode.startswith(("I", "F"))
                array = None if wide else np.asarray(convert(picture)).astype(np.uint8)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{path}: not a readable picture ({error}); copy it again") from error
        if array is None:
            raise ValueError(f"{path}: expected an 8-bit picture, got mode {picture.mode}")
        self._read_files[path.relative_to(root).as_posix()] = hashlib.sha256(data).hexdigest()
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

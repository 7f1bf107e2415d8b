"""CC-CCII's lesion segmentation set: 750 slices of 150 scans with lung, GGO and consolidation."""

import contextlib
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import archives, base, pictures
from tfds_builders.report import Report

SLICES, SCANS = 750, 150
NAME = "ct_lesion_seg"
LUNG, LESIONS = 1, {2: 1, 3: 2}  # their classes; ground glass and consolidation are ours 1 and 2


class Pair(NamedTuple):
    """A slice and its mask by their names in the source."""

    scan: str
    name: str
    source: Path
    image: str
    mask: str


def features() -> tfds.features.FeaturesDict:
    """Declares image, mask (0, 1 ground glass, 2 consolidation), lung (0/1, lesions included)."""
    return base.segmentation_features(lung=base.picture_feature(), scan=tfds.features.Text())


def find(root: Path) -> Path:
    """Finds ct_lesion_seg.zip, or the folder with image/ and mask/, in `root` or one folder below.

    Raises:
      FileNotFoundError: neither is there.
    """
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        if (folder / f"{NAME}.zip").is_file():
            return folder / f"{NAME}.zip"
        if (folder / "image").is_dir() and (folder / "mask").is_dir():
            return folder
    raise FileNotFoundError(f"{root}: no {NAME}.zip, nor a folder with image/ and mask/")


def pairs(root: Path, report: Report) -> list[Pair]:
    """Pairs `image/<scan>/<slice>` with `mask/<scan>/<slice>`; the rest goes to `report.skip`.

    Raises:
      FileNotFoundError: as `find`.
      ValueError: the archive is broken, or there is no pair.
    """
    source = find(root)
    found: dict[str, dict[tuple[str, str], str]] = {"image": {}, "mask": {}}
    for member in _names(source, report):
        match = re.fullmatch(r"(?:.*/)?(image|mask)/([^/]+)/([^/]+)", member)
        if match is None or PurePosixPath(member).suffix.lower() not in base.IMAGE_SUFFIXES:
            report.skip(
                member, "out of place; expected image/<scan>/<slice>.jpg or mask/<scan>/<slice>.png"
            )
            continue
        kind, key = match[1], (match[2], PurePosixPath(match[3]).stem)
        if key in found[kind]:
            report.skip(member, f"{found[kind][key]} is the same slice")
        else:
            found[kind][key] = member
    images, masks = found["image"], found["mask"]
    for key in sorted(images.keys() ^ masks.keys()):
        member = images.get(key) or masks[key]
        report.skip(member, f"no {'mask' if key in images else 'image'} for it")
    both = [Pair(*key, source, images[key], masks[key]) for key in sorted(images.keys() & masks)]
    if not both:
        raise ValueError(f"{source}: holds no image/<scan>/<slice> with its mask")
    return both


def _names(source: Path, report: Report) -> list[str]:
    if source.is_dir():
        return [
            path.relative_to(source).as_posix()
            for part in ("image", "mask")
            for path in sorted((source / part).rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        ]
    try:
        with zipfile.ZipFile(source) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except Exception as error:  # a damaged directory makes zipfile raise whatever it hits first
        raise ValueError(f"{source}: not a whole zip ({error}); download it again") from error
    for name in filter(archives.leaves, names):
        report.skip(name, "the path leaves the archive; refused")
    return [
        name
        for name in names
        if not archives.leaves(name)
        and "__MACOSX" not in name
        and not PurePosixPath(name).name.startswith(".")
    ]


def examples(
    found: list[Pair], report: Report, remember: Callable[[bytes, str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (id, example) for each pair that can be read; `remember` is told what was."""
    with contextlib.ExitStack() as stack:
        read = _reader(found[0].source, stack)
        for pair in found:
            image_data = report.attempt(pair.image, read, pair.image)
            mask_data = report.attempt(pair.mask, read, pair.mask)
            if image_data is None or mask_data is None:
                continue
            image = report.attempt(pair.image, pictures.decode_grey, image_data, pair.image)
            classes = report.attempt(pair.mask, _classes, mask_data, pair.mask)
            if image is None or classes is None:
                continue
            if image.shape != classes.shape:
                report.skip(pair.mask, f"mask is {classes.shape}, its image {image.shape}")
                continue
            remember(image_data, pair.image)
            remember(mask_data, pair.mask)
            yield _example(pair, image, classes)


def _reader(source: Path, stack: contextlib.ExitStack) -> Callable[[str], bytes]:
    if source.is_dir():
        return lambda name: (source / name).read_bytes()
    archive = stack.enter_context(zipfile.ZipFile(source))
    return lambda name: archives.read_member(archive, archive.getinfo(name), name)


def _classes(data: bytes, name: str) -> np.ndarray:
    classes = pictures.decode_labels(data, name)
    if classes.max() > max(LESIONS):
        illegal = np.unique(classes[classes > max(LESIONS)])
        raise ValueError(f"{name}: label values {illegal[:5].tolist()} are not 0, 1, 2 or 3")
    return classes


def _example(pair: Pair, image: np.ndarray, classes: np.ndarray) -> tuple[str, dict[str, Any]]:
    mask = np.zeros_like(classes)
    for theirs, ours in LESIONS.items():
        mask[classes == theirs] = ours
    key = f"{pair.scan}/{pair.name}"
    return key, {
        "image": base.encode_png(image),
        "mask": base.encode_png(mask),
        "lung": base.encode_png((classes >= LUNG).astype(np.uint8)),
        "patient": "",
        "scan": pair.scan,
        "slice": pair.name,
        "id": key,
        "group": pair.scan,
    }

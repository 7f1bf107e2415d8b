"""COVID-SemiSeg from a folder that the user has downloaded (Fan et al., IEEE TMI 2020)."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import base

BINARY_TOLERANCE = 16  # grey levels from 0 or 255; the published masks are exact, re-saved ones not
IMAGES, MASKS = "Imgs", "GT"
FOLDERS = {
    "binary": {
        "train": "TrainingSet/LungInfection-Train/Doctor-label",
        "test": "TestingSet/LungInfection-Test",
    },
    "multiclass": {
        "train": "TrainingSet/MultiClassInfection-Train",
        "test": "TestingSet/MultiClassInfection-Test",
    },
}
UNLABELED = "TrainingSet/LungInfection-Train/Pseudo-label"
# Found by looking at the pictures; the dataset itself has no patient ids.
SAME_PATIENT = {stem: "slices-4-5-16-17-46-91-93" for stem in "4 5 16 17 46 91 93".split()}
SAME_PATIENT |= {stem: "slices-10-43" for stem in "10 43".split()}


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """Which truth the labelled splits carry: `binary` (0/1) or `multiclass` (0/1/2)."""


class Builder(base.Builder):
    """Slices turned upright, with masks; `unlabeled` has all-zero masks and labelled = False."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        Config(name="binary", description="0 background, 1 infection"),
        Config(name="multiclass", description="0 background, 1 ground glass, 2 consolidation"),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download the COVID-SemiSeg dataset (non-commercial use) from the Inf-Net project page
    (https://github.com/DengPingFan/Inf-Net), unpack it, and pass as manual_dir the folder that
    holds TrainingSet/ and TestingSet/, or the folder above it.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=base.segmentation_features(labelled=np.bool_),
            homepage="https://github.com/DengPingFan/Inf-Net",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = find_root(Path(dl_manager.manual_dir))
        folders = FOLDERS[self.builder_config.name]
        # Pair all splits before anything is read: a missing file shows in a second.
        pairs = {split: base.pair(*folder_pair(root, name)) for split, name in folders.items()}
        unlabeled = base.pictures(folder_of(root, f"{UNLABELED}/{IMAGES}"))
        splits = {split: self._generate_examples(root=root, pairs=p) for split, p in pairs.items()}
        return splits | {
            "unlabeled": self._generate_examples(
                root=root, pairs=[(stem, path, None) for stem, path in unlabeled.items()]
            )
        }

    def _examples(
        self, root: Path, pairs: list[tuple[str, Path, Path | None]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for stem, image_path, mask_path in pairs:
            image = self.read_grey(image_path, root)
            if mask_path is None:
                volume, number = volume_and_slice(image_path)
                mask, group = np.zeros_like(image), volume_group(volume)
                turn = volume_to_upright if is_coronacases(volume) else slice_to_upright
            else:
                volume, number, turn = "", stem, slice_to_upright
                mask, group = self._mask(mask_path, root), SAME_PATIENT.get(stem, stem)
            if mask.shape != image.shape:
                raise ValueError(f"{mask_path}: mask is {mask.shape}, its image {image.shape}")
            yield (
                stem,
                {
                    "image": base.encode_png(turn(image)),
                    "mask": base.encode_png(turn(mask)),
                    "labelled": mask_path is not None,
                    "patient": volume,
                    "slice": number,
                    "id": stem,
                    "group": group,
                },
            )

    def _mask(self, path: Path, root: Path) -> np.ndarray:
        """Reads truth as classes; ValueError names the file and the illegal values."""
        labels = self.read_labels(path, root)
        if self.builder_config.name == "multiclass":
            illegal = np.unique(labels[labels > 2])
            if illegal.size:
                raise ValueError(f"{path}: label values {illegal[:5].tolist()} are not 0, 1 or 2")
            return labels
        between = (labels > BINARY_TOLERANCE) & (labels < 255 - BINARY_TOLERANCE)
        if between.any():
            raise ValueError(
                f"{path}: a binary mask must hold 0 and 255 (give or take {BINARY_TOLERANCE}), "
                f"found {np.unique(labels[between])[:5].tolist()}"
            )
        return (labels >= 128).astype(np.uint8)


def find_root(manual_dir: Path) -> Path:
    """Finds the folder that holds TrainingSet/ and TestingSet/.

    Accepts that folder, or the one above it when it is called COVID-SemiSeg or Dataset (one inside
    the other works too). Raises FileNotFoundError that states the layout expected.
    """
    for below in ("", "COVID-SemiSeg", "Dataset", "COVID-SemiSeg/Dataset"):
        root = manual_dir / below
        if (root / "TrainingSet").is_dir() and (root / "TestingSet").is_dir():
            return root
    raise FileNotFoundError(
        f"{manual_dir}: not COVID-SemiSeg; expected TrainingSet/ and TestingSet/ in it, or in its "
        "COVID-SemiSeg/ or Dataset/ folder"
    )


def folder_of(root: Path, name: str) -> Path:
    """Returns root/name, or raises FileNotFoundError that names it."""
    if not (root / name).is_dir():
        raise FileNotFoundError(f"{root / name}: folder missing; COVID-SemiSeg has {name}")
    return root / name


def folder_pair(root: Path, name: str) -> tuple[Path, Path]:
    """Returns the image and the mask folder of a labelled part."""
    return folder_of(root, f"{name}/{IMAGES}"), folder_of(root, f"{name}/{MASKS}")


def volume_and_slice(path: Path) -> tuple[str, str]:
    """Splits `Data-1_<volume>_<n>` into volume and n; ValueError names any other file."""
    match = re.fullmatch(r"Data-1_(.+)_(\d+)", path.stem)
    if match is None:
        raise ValueError(f"{path}: unlabelled slices are called Data-1_<volume>_<n>")
    return match[1], match[2]


def is_coronacases(volume: str) -> bool:
    """Tells the ten coronacases.org volumes from those of Radiopaedia."""
    return volume.startswith("coronacases")


def volume_group(volume: str) -> str:
    """Names the case of a volume: Radiopaedia cases may come as several series of one patient."""
    match = re.fullmatch(r"(radiopaedia_org_covid-19-pneumonia-\d+)_.*", volume)
    return match[1] if match else volume


def slice_to_upright(picture: np.ndarray) -> np.ndarray:
    """Transposes [H, W] to [W, H]: the spine moves from the right edge to the bottom.

    The result is a radiological display (the patient's right at image left). Transposing again
    brings a mask back onto the source file.
    """
    return np.ascontiguousarray(picture.T)


def volume_to_upright(picture: np.ndarray) -> np.ndarray:
    """Turns [H, W] by 90 degrees anticlockwise: the spine moves from the left edge to the bottom.

    Undo with `numpy.rot90(mask, -1)`.
    """
    return np.ascontiguousarray(np.rot90(picture))

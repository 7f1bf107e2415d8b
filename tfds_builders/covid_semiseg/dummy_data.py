"""Writes a few made-up files in the layout of COVID-SemiSeg, for tests and dry runs."""

from pathlib import Path

import numpy as np
from PIL import Image

TRAIN, TEST = ("4", "10", "43"), ("6", "91")
UNLABELED = (
    "coronacases_org_001_1",
    "coronacases_org_001_2",
    "radiopaedia_org_covid-19-pneumonia-10_85902_1-dcm_1",
    "radiopaedia_org_covid-19-pneumonia-10_85902_3-dcm_7",
)
PALETTE = (0, 0, 0, 128, 0, 0, 0, 128, 0)


def make(folder: Path) -> Path:
    """Writes 3 training, 2 test and 4 unlabelled slices of 40 x 24 pixels (height x width).

    Returns:
      `folder`, which then holds TrainingSet/ and TestingSet/.
    """
    rng = np.random.default_rng(0)
    for part, stems in (("Training", TRAIN), ("Testing", TEST)):
        binary = (
            folder
            / f"{part}Set"
            / {"Training": "LungInfection-Train/Doctor-label", "Testing": "LungInfection-Test"}[
                part
            ]
        )
        multi = folder / f"{part}Set" / f"MultiClassInfection-{part.removesuffix('ing')}"
        for stem in stems:
            image = Image.fromarray(rng.integers(0, 256, (40, 24), dtype=np.uint8))
            classes = np.zeros((40, 24), np.uint8)
            classes[5:15, 3:9], classes[20:30, 12:20] = 1, 2
            palette = Image.fromarray(classes)
            palette.putpalette(PALETTE)
            for root in (binary, multi):
                _save(image, root / "Imgs" / f"{stem}.jpg")
            _save(
                Image.fromarray((classes > 0).astype(np.uint8) * 255), binary / "GT" / f"{stem}.png"
            )
            _save(palette, multi / "GT" / f"{stem}.png")
    for name in UNLABELED:
        image = Image.fromarray(rng.integers(0, 256, (40, 24), dtype=np.uint8))
        _save(
            image,
            folder / "TrainingSet/LungInfection-Train/Pseudo-label/Imgs" / f"Data-1_{name}.jpg",
        )
    return folder


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)

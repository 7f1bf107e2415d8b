"""Writes a few made-up slices as a lab may have them, for tests and dry runs."""

from pathlib import Path

import numpy as np
from PIL import Image


def make(folder: Path) -> Path:
    """Writes 4 slices of 40 x 24 pixels (height x width), two of each of two patients.

    Returns:
      `folder`, which then holds img/, label/ (0 to 2), lung/ (0 and 255) and index.csv.
    """
    rng, lines = np.random.default_rng(0), ["name,group"]
    for number in range(4):
        classes, lung = np.zeros((2, 40, 24), np.uint8)
        lung[4:36, 2:22] = 255
        classes[6 + number : 16, 4:10], classes[20:30, 12:20] = 1, 2
        image = rng.integers(0, 256, (40, 24), dtype=np.uint8)
        for kind, array in (("img", image), ("label", classes), ("lung", lung)):
            path = folder / kind / f"slice{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        lines.append(f"slice{number}.png,patient{number // 2}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    return folder

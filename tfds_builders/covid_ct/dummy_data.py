"""Writes a few made-up files in the layout of COVID-CT, zipped or unpacked."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

# (picture, split, patient); the two papers and the case have two pictures each.
COVID = (
    ("2020.01.24.919183-p27-132.png", "train", "1"),
    ("2020.01.24.919183-p27-133.png", "train", "2"),
    ("2020.02.10.20021584-p6-52%0.png", "val", "3"),
    ("kjr-21-e24-g1.jpg", "test", "4"),
)
NON_COVID = (
    ("21%0.jpg", "train", ""),
    ("21%1.jpg", "train", ""),
    ("7.png", "val", ""),
    ("103.png", "test", ""),
)
MODES = ("L", "RGB", "RGBA", "P")


def make(folder: Path, *, zipped: bool = True, table: bool = True) -> Path:
    """Writes 4 COVID and 4 other pictures of several sizes and modes, split files, meta table.

    Returns:
      `folder`, which then holds Images-processed/ and Data-split/.
    """
    rng = np.random.default_rng(0)
    for name, pictures in (("COVID", COVID), ("NonCOVID", NON_COVID)):
        below = folder / "Images-processed" / f"CT_{name}"
        below.mkdir(parents=True)
        for number, (file, split, _) in enumerate(pictures):
            grey = rng.integers(0, 256, (30 + number, 40), dtype=np.uint8)
            mode = "L" if file.endswith("jpg") else MODES[number]
            Image.fromarray(grey).convert(mode).save(below / file)
            path = folder / "Data-split" / name / f"{split}CT_{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as lines:
                lines.write(f"{file}\n")
        if zipped:
            with zipfile.ZipFile(below.with_suffix(".zip"), "w") as archive:
                for path in sorted(below.iterdir()):
                    archive.write(path, f"CT_{name}/{path.name}")
                    path.unlink()
            below.rmdir()
    if table:
        rows = "".join(f"{file.removesuffix('.png')},{patient},45\n" for file, _, patient in COVID)
        (folder / "COVID-CT-MetaInfo.csv").write_text("File name,Patient ID,Age\n" + rows)
    return folder

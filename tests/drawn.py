"""What a test looks for in a drawn picture."""

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image


def pixels_of(path, colour) -> int:
    """How many pixels of a PNG have nearly this colour."""
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB"), float)
    return int((np.abs(rgb - 255 * np.array(to_rgb(colour))).max(-1) < 12).sum())


def cells_of(table: str) -> list[list[str]]:
    """The cells of a Markdown table, row by row."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]

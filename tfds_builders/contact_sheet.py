"""Many small pictures with their masks on one page, to be looked over by a person."""

import cv2
import numpy as np

TILE = 96  # pixels
COLUMNS = 8
_COLOURS = np.array([(0, 0, 0), (255, 170, 0), (230, 40, 60), (60, 140, 255)], np.float32)  # RGB


def tile(picture: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Shrinks a picture into a square and tints its mask's classes.

    Args:
      picture: uint8 [H, W].
      mask: uint8 [H, W] classes, or None where nobody looked.

    Returns:
      uint8 [TILE, TILE, 3] RGB: the picture with its aspect kept, on black; class 1 amber, class 2
      red, every other class blue. A mask of another shape than its picture makes a red frame.
    """
    scale = TILE / max(picture.shape)
    size = [max(1, round(side * scale)) for side in picture.shape[::-1]]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    colour = np.repeat(small[..., None].astype(np.float32), 3, axis=2)
    fits = mask is None or mask.shape == picture.shape
    if mask is not None and fits:
        classes = np.minimum(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), 3)
        tint = 0.45 * (classes > 0)[..., None]
        colour = (1 - tint) * colour + tint * _COLOURS[classes]
    page = np.zeros((TILE, TILE, 3), np.uint8)
    top, left = (TILE - size[1]) // 2, (TILE - size[0]) // 2
    page[top : top + size[1], left : left + size[0]] = colour.round()
    if not fits:
        cv2.rectangle(page, (0, 0), (TILE - 1, TILE - 1), (255, 0, 0), 3)
    return page


def sheet(tiles: list[np.ndarray]) -> np.ndarray:
    """Lays tiles out in rows of COLUMNS, numbered from 0 in the corner; uint8 [H, W, 3] RGB.

    No tiles give one black row.
    """
    rows = max(1, -(-len(tiles) // COLUMNS))
    page = np.zeros((rows * TILE, COLUMNS * TILE, 3), np.uint8)
    for i, picture in enumerate(tiles):
        top, left = TILE * (i // COLUMNS), TILE * (i % COLUMNS)
        page[top : top + TILE, left : left + TILE] = picture
        cv2.putText(
            page,
            str(i),
            (left + 2, top + 11),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.35,
            (255, 255, 0),
            1,
            cv2.LINE_AA,
        )
    return page


def encode(page: np.ndarray) -> bytes:
    """Encodes an RGB page as PNG."""
    return cv2.imencode(".png", page[..., ::-1])[1].tobytes()

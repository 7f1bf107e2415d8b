"""Doubts about a scan and its lungs: frames and padding, other parts of the body, half a chest."""

import cv2
import numpy as np
from scipy import ndimage

LEVELS = 6  # grey levels of 255 that a line of a frame may differ in, JPEG noise included
SAME = 0.5  # share of the line behind a frame that may have the frame's grey
LEAST_SHARE = 0.05  # of the body, in its best slice: less lung than in any chest
MOST_SHARE = 0.75  # of the picture: at most .71 on 98 slices that are cropped close to the lungs
EDGE_SHARE = 0.3  # of its edge: at most .22 on those; lungs that run along more are air outside
SMALL_ML = 500  # of lung in a whole chest; an adult breathes with 2,000 and more
LONG_MM = 150  # from where on a volume is taken for a whole chest


def without_frame(grey: np.ndarray) -> tuple[slice, slice]:
    """The part of a picture, uint8 [H, W], inside a frame or padding of one grey, as slices.

    A side loses its uniform lines where the line behind them has another grey for the most part.
    Air around a body is no frame: it goes on beside the body. At least a quarter of a side stays.
    """
    top, bottom = _frame(grey), _frame(grey[::-1])
    left, right = _frame(grey.T), _frame(grey.T[::-1])
    height, width = grey.shape
    rows = slice(top, height - bottom) if 4 * (top + bottom) <= 3 * height else slice(None)
    columns = slice(left, width - right) if 4 * (left + right) <= 3 * width else slice(None)
    return rows, columns


def _frame(grey: np.ndarray) -> int:
    """How many first rows of a picture belong to a frame."""
    levels = np.median(grey, axis=1, keepdims=True)
    near = np.abs(grey - levels) <= LEVELS
    uniform = (near.mean(1) > 0.98) & (np.abs(levels[:, 0] - levels[0]) <= LEVELS)
    # The corners belong to the frames of the other sides.
    n = int(np.argmin(uniform)) if not uniform.all() else 0
    if n == 0:
        return 0
    behind = grey[n : n + 3]  # JPEG smears the border over the next lines
    return n if (np.abs(behind[-1] - levels[0].item()) <= LEVELS).mean() < SAME else 0


def doubts(
    pictures: np.ndarray,
    lung: np.ndarray,
    spacing: tuple[float, float, float] | None,
    *,
    given: bool = False,
) -> list[str]:
    """What speaks against a chest and its lungs, a line each; none where all looks right.

    Args:
      pictures: uint8 [D, H, W] in the lung window; lung: bool, same shape, not empty.
      spacing: (slice, row, column) in mm, None if not known.
      given: the lung is the user's own mask, which is not doubted for its size.

    Raises:
      ValueError: lungs found in three slices or more that are too small for a chest.
    """
    notes = []
    shares = [_shares(p, own) for p, own in zip(pictures, lung, strict=True) if own.any()]
    of_body, of_picture, of_edge = (max(values) for values in zip(*shares, strict=True))
    if of_picture > MOST_SHARE or of_edge > EDGE_SHARE:
        notes.append(
            f"lungs look wrong: they fill up to {100 * of_picture:.0f} % of a slice and run along "
            f"{100 * of_edge:.0f} % of its edge (air outside the body? a frame?); check them"
        )
    if of_body < LEAST_SHARE and not given:
        line = f"lungs fill at most {100 * of_body:.1f} % of the body in a slice: no chest?"
        if len(pictures) >= 3:
            raise ValueError(f"{line} Give the lung mask if it is one")
        notes.append(f"{line} Check the lungs")
    if spacing is not None and len(pictures) * spacing[0] >= LONG_MM:
        ml = float(np.count_nonzero(lung)) * float(np.prod(spacing)) / 1000
        if ml < SMALL_ML:
            notes.append(f"only {ml:.0f} ml of lung in a scan of a whole chest; check the lungs")
    return notes


def _shares(picture: np.ndarray, lung: np.ndarray) -> tuple[float, float, float]:
    """Lung as a share of the body and of the picture, and of the picture's edge."""
    scale = min(1.0, 192 / max(picture.shape))
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    own = cv2.resize(lung.astype(np.uint8), small.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    threshold, _ = cv2.threshold(small, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    labels, n = ndimage.label((small > threshold) | own)
    sizes = np.bincount(labels.ravel(), minlength=2)
    sizes[0] = 0
    body = ndimage.binary_fill_holes(labels == sizes.argmax())
    edge = np.ones(own.shape, bool)
    edge[1:-1, 1:-1] = False
    area = float(own.sum())
    return area / max(float(body.sum()), 1.0), area / own.size, float(own[edge].mean())

"""Are two pictures the same slice? Frames to look at, and correlation after a small alignment."""

import itertools
from collections.abc import Iterator

import cv2
import numpy as np

SIDE = 128  # pixels at which two pictures are compared
Box = tuple[float, float, float, float]  # top, left, height, width as shares of the picture
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_ZOOMS = (0.88, 0.94, 1.0, 1.06, 1.13)
_SHIFTS = (-0.06, -0.03, 0.0, 0.03, 0.06)
_MARGIN = SIDE // 8  # of the first picture, so that it may move within the second


def frames(picture: np.ndarray) -> list[Box]:
    """Returns the whole picture and, where it is clearly smaller, the box around the lungs.

    Publications crop the same slice differently; around the lungs both look alike.

    Args:
      picture: uint8 [H, W] chest CT in a lung window.
    """
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    level, _ = cv2.threshold(small, 0, 255, cv2.THRESH_OTSU)
    count, _, boxes, _ = cv2.connectedComponentsWithStats((small <= level).astype(np.uint8))
    kept = [
        box
        for box in boxes[1:count]
        if box[cv2.CC_STAT_AREA] > 0.01 * SIDE**2
        and min(box[:2]) > 0
        and max(box[0] + box[2], box[1] + box[3]) < SIDE
    ]
    if not kept:
        return [WHOLE]
    top, left = min(b[1] for b in kept), min(b[0] for b in kept)
    height = max(b[1] + b[3] for b in kept) - top
    width = max(b[0] + b[2] for b in kept) - left
    if height * width > 0.9 * SIDE**2 or height * width < 0.1 * SIDE**2:
        return [WHOLE]
    return [WHOLE, (top / SIDE, left / SIDE, height / SIDE, width / SIDE)]


def nudged(box: Box) -> Iterator[Box]:
    """Yields the box moved by 0, 3 and 6 % each way, each at three zooms: 75 boxes."""
    top, left, height, width = box
    for zoom, down, right in itertools.product((0.92, 1.0, 1.08), _SHIFTS, _SHIFTS):
        h, w = height * zoom, width * zoom
        yield (top + (height - h) / 2 + down * height, left + (width - w) / 2 + right * width, h, w)


def cut(picture: np.ndarray, box: Box, side: int = SIDE) -> np.ndarray:
    """Resamples a box of a picture to uint8 [side, side]; beyond the border it is black."""
    h, w = picture.shape
    rows, columns = max(1, round(box[2] * h)), max(1, round(box[3] * w))
    top, left = round(box[0] * h), round(box[1] * w)
    part = picture[max(top, 0) : top + rows, max(left, 0) : left + columns]
    page = np.zeros((rows, columns), np.uint8)
    page[
        max(-top, 0) : max(-top, 0) + part.shape[0], max(-left, 0) : max(-left, 0) + part.shape[1]
    ] = part
    return cv2.resize(page, (side, side), interpolation=cv2.INTER_AREA)


def likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the correlation of fine structure after the best small shift, zoom and shear.

    Vessels and lesions decide, for between chests the coarse shapes always correlate: two slices
    of different patients reach 0.2 to 0.5, neighbours of one patient 0.5 to 0.9, copies more.

    Args:
      first: uint8 [SIDE, SIDE], as `cut` returns it.
      second: likewise.

    Returns:
      -1..1; -1 when they cannot be aligned.
    """
    first, second = (cv2.GaussianBlur(a, (3, 3), 0) for a in (first, second))
    inner = first[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    start = _coarse(inner, second)
    try:
        _, warp = cv2.findTransformECC(
            inner, second, start, cv2.MOTION_AFFINE, (3, 40, 1e-4), None, 1
        )
    except cv2.error:  # flat, or it wanders off
        return -1.0
    scale = np.linalg.svd(warp[:, :2], compute_uv=False)
    if not (0.7 < scale.min() and scale.max() < 1.4):
        return -1.0
    size, how = inner.shape[::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(second, warp, size, flags=how)
    there = cv2.warpAffine(np.ones_like(second), warp, size, flags=how)
    there = cv2.erode(there, np.ones((9, 9), np.uint8)) > 0
    if there.mean() < 0.5:
        return -1.0
    return _correlation(_fine(inner)[there], _fine(moved)[there])


def _coarse(inner: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Finds the zoom and the shift at which `inner` lies best in `second`, as a 2 x 3 warp."""
    best = (-2.0, None)
    for zoom in _ZOOMS:
        side = round(SIDE * zoom)
        zoomed = cv2.resize(second, (side, side), interpolation=cv2.INTER_AREA)
        _, score, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(zoomed, inner, cv2.TM_CCOEFF_NORMED))
        if score > best[0]:
            best = (score, np.array([[1, 0, x], [0, 1, y]], np.float32) / np.float32(zoom))
    return best[1] if best[1] is not None else np.eye(2, 3, dtype=np.float32)


def _fine(picture: np.ndarray) -> np.ndarray:
    """Keeps structures of about 2 to 8 pixels."""
    values = picture.astype(np.float32)
    return cv2.GaussianBlur(values, (0, 0), 1) - cv2.GaussianBlur(values, (0, 0), 4)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else -1.0

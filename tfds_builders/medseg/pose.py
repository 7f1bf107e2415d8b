"""Is a chest CT upright, and do its masks lie where its lungs are? Judged from the pictures."""

import cv2
import numpy as np

SIDE = 32
MARGIN = 0.03  # of mean correlation over a stack; real upright stacks win by 0.04 and more
MIN_SLICES = 10  # single slices mislead: only a stack is judged
JUDGED = 40  # slices of a stack that are looked at, evenly spread
_DARKER = 10.0  # grey levels by which a flipped lung mask must fit better to be called out of step


def quarter_turns(stack: np.ndarray) -> int:
    """Returns how often `numpy.rot90` must be applied to each slice to have the back at the bottom.

    A drawn chest (two lungs, heart in front, spine behind) is correlated with each slice in the
    four turns. 0 unless another turn wins clearly over the whole stack. Mirroring is not judged.

    Args:
      stack: uint8 [Z, H, W] lung-window pictures.
    """
    if len(stack) < MIN_SLICES:
        return 0
    chest = _chest()
    bodies = [_body(picture) for picture in stack[:: max(1, len(stack) // JUDGED)]]
    scores = [
        np.mean([(np.rot90(body, turn) * chest).sum() for body in bodies]) for turn in range(4)
    ]
    best = int(np.argmax(scores))
    return best if scores[best] > scores[0] + MARGIN else 0


def lung_in_step(stack: np.ndarray, lung: np.ndarray) -> bool:
    """Tells whether a lung mask fits as it is at least as well as flipped, transposed or turned.

    Args:
      stack: uint8 [Z, H, W] lung-window pictures, in which lungs are dark.
      lung: bool [Z, H, W]; nothing set counts as in step.
    """
    if lung.shape != stack.shape:
        return False
    some = lung.any(axis=(1, 2))
    if not some.any():
        return True
    stack, lung = stack[some], lung[some]
    step = max(1, len(lung) // JUDGED)
    stack, lung = stack[::step], lung[::step]
    inside = [stack[way(lung)].mean() for way in _ways(lung.shape)]
    return inside[0] < min(inside) + _DARKER


def lesion_in_step(lesion: np.ndarray, lung: np.ndarray) -> bool:
    """Tells whether lesions lie in the lungs as they are, or clearly better in another turn.

    Args:
      lesion: bool [Z, H, W]; nothing set counts as in step.
      lung: bool [Z, H, W].
    """
    if lesion.shape != lung.shape:
        return False
    if not lesion.any() or not lung.any():
        return True
    some = lesion.any(axis=(1, 2))
    lesion, lung = lesion[some], lung[some]
    step = max(1, len(lesion) // JUDGED)
    lesion, lung = lesion[::step], lung[::step]
    inside = [lung[way(lesion)].mean() for way in _ways(lesion.shape)]
    return inside[0] > max(inside) - 0.1


def _ways(shape: tuple[int, ...]) -> list:
    """The symmetries of a slice, as functions of a [Z, H, W] array, the identity first."""
    flips = [lambda a: a, lambda a: a[:, ::-1], lambda a: a[:, :, ::-1], lambda a: a[:, ::-1, ::-1]]
    if shape[1] != shape[2]:
        return flips
    return flips + [lambda a, flip=flip: flip(a.transpose(0, 2, 1)) for flip in flips]


def _body(picture: np.ndarray) -> np.ndarray:
    """Cuts out the largest bright piece and returns it as float [SIDE, SIDE], mean 0, length 1."""
    smooth = cv2.blur(picture, (9, 9))
    level, _ = cv2.threshold(smooth, 0, 255, cv2.THRESH_OTSU)
    count, _, boxes, _ = cv2.connectedComponentsWithStats((smooth > level).astype(np.uint8))
    if count < 2:
        return np.zeros((SIDE, SIDE))
    x, y, w, h = boxes[1 + np.argmax(boxes[1:, cv2.CC_STAT_AREA]), :4]
    return _normed(picture[y : y + h, x : x + w])


def _chest() -> np.ndarray:
    """Draws an upright chest as `_body` would return it."""
    page = np.zeros((320, 320), np.uint8)
    cv2.ellipse(page, (160, 160), (158, 150), 0, 0, 360, 200, -1)
    for side in (-1, 1):
        cv2.ellipse(page, (160 + side * 75, 165), (58, 105), side * 8, 0, 360, 40, -1)
    cv2.ellipse(page, (175, 120), (55, 60), 0, 0, 360, 200, -1)  # heart
    cv2.ellipse(page, (160, 235), (28, 45), 0, 0, 360, 255, -1)  # spine
    return _normed(page)


def _normed(picture: np.ndarray) -> np.ndarray:
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(float)
    small -= small.mean()
    return small / max(np.linalg.norm(small), 1e-9)

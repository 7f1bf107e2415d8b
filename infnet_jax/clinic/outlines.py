"""One slice as the page shows it: a small picture, and outlines as SVG paths."""

import base64
from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np

SIDE = 448  # pixels of the longer side of a picture in the page


class Case(Protocol):
    """What is shown of a scan; maps are [D, H, W]."""

    name: str
    pictures: np.ndarray  # uint8, lung window
    mask: np.ndarray  # uint8: 0, then a label for each class
    classes: tuple[str, ...]  # ("infection",) or ("ggo", "consolidation")
    lung: np.ndarray  # bool
    regions: np.ndarray  # uint8: 0..20
    warnings: list[str]
    uncertainty: np.ndarray | None  # float 0..1


def describe(case: Case, i: int, classes: Sequence[str]) -> dict[str, Any]:
    """What the page holds of slice `i`, ready for JSON; with one class, it is all infection."""
    picture = case.pictures[i]
    scale = min(1.0, SIDE / max(picture.shape))
    width, height = (max(round(n * scale), 1) for n in picture.shape[::-1])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    mask, lung = case.mask[i], case.lung[i]
    inside, infected = int(lung.sum()), int((mask > 0).sum())
    text = f"{100 * infected / inside:.1f} % of the lung infected" if inside else "no lung"
    found = np.unique(case.regions[i])
    return {
        "name": case.name,
        "number": i + 1,
        "of": len(case.mask),
        "text": text,
        "w": width,
        "h": height,
        "image": _data(".jpg", small, "jpeg"),
        "classes": [
            [name, _path(mask == label if len(classes) > 1 else mask > 0, scale)]
            for label, name in enumerate(classes, start=1)
        ],
        "lung": _path(lung, scale),
        "regions": [[int(r), _path(case.regions[i] == r, scale)] for r in found if r],
        "unsure": None if case.uncertainty is None else _unsure(case.uncertainty[i], small.shape),
    }


def _path(mask: np.ndarray, scale: float) -> str:
    """The outlines of a mask as an SVG path, in pixels of the shown picture."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for line in lines:
        points = cv2.approxPolyDP(line, 0.4 / scale, True)[:, 0].astype(float)
        if len(points) > 1:
            steps = "L".join(f"{(x + 0.5) * scale:.1f} {(y + 0.5) * scale:.1f}" for x, y in points)
            parts.append(f"M{steps}Z")
    return "".join(parts)


def _unsure(values: np.ndarray, shape: tuple[int, int]) -> str:
    """Uncertainty as a green picture, the more opaque the more uncertain."""
    small = cv2.resize(values.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
    out = np.zeros((*shape, 4), np.uint8)
    out[..., :3] = (120, 255, 120)
    out[..., 3] = np.round(np.clip(small, 0, 1) * 255)
    return _data(".png", out, "png")


def _data(suffix: str, picture: np.ndarray, kind: str) -> str:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 82] if kind == "jpeg" else []
    _, encoded = cv2.imencode(suffix, picture, quality)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"

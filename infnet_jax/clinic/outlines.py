"""One slice as the page shows it: a small picture, and outlines as SVG paths."""

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from infnet_jax.clinic.case import Case

SIDE = 448  # pixels of the longer side of a picture in the page


def describe(case: Case, i: int, classes: Sequence[str]) -> dict[str, Any]:
    """What the page holds of slice `i`, ready for JSON; with one class, it is all infection."""
    picture, mask, lung, regions = (
        m[i] for m in (case.pictures, case.mask, case.lung, case.regions)
    )
    scale = min(1.0, SIDE / max(picture.shape))
    width, height = (max(round(n * scale), 1) for n in picture.shape[::-1])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    inside, infected = int(lung.sum()), int((mask > 0).sum())
    labels = mask if len(classes) > 1 else (mask > 0).astype(np.uint8)
    return {
        "name": case.name,
        "number": i + 1,
        "of": len(case.mask),
        "text": f"{100 * infected / inside:.1f} % of the lung infected" if inside else "no lung",
        "w": width,
        "h": height,
        "image": _data(small, "jpeg", [cv2.IMWRITE_JPEG_QUALITY, 82]),
        "classes": [[name, _path(labels == k, scale)] for k, name in enumerate(classes, start=1)],
        "lung": _path(lung, scale),
        "regions": [[int(r), _path(regions == r, scale)] for r in np.unique(regions) if r],
        "unsure": None if case.uncertainty is None else _unsure(case.uncertainty[i], small.shape),
    }


def _path(mask: np.ndarray, scale: float) -> str:
    """The outlines of a mask, bool [H, W], as an SVG path, in pixels of the shown picture."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for line in lines:
        points = cv2.approxPolyDP(line, 0.4 / scale, True)[:, 0].astype(float)
        if len(points) > 1:
            steps = "L".join(f"{(x + 0.5) * scale:.1f} {(y + 0.5) * scale:.1f}" for x, y in points)
            parts.append(f"M{steps}Z")
    return "".join(parts)


def _unsure(values: np.ndarray, shape: tuple[int, int]) -> str:
    """Uncertainty, float [H, W] 0..1, as a green picture, the more opaque the more uncertain."""
    small = cv2.resize(values.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
    out = np.zeros((*shape, 4), np.uint8)
    out[..., :3] = (120, 255, 120)
    out[..., 3] = np.round(np.clip(small, 0, 1) * 255)
    return _data(out, "png", [])


def _data(picture: np.ndarray, kind: str, options: Sequence[int]) -> str:
    _, encoded = cv2.imencode(f".{kind}", picture, options)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"

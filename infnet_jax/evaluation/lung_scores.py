"""How well a network's lungs fit the true ones, each slice by a network that has not seen it."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infnet_jax.clinic import lung_network
from infnet_jax.data.sources import Source, decode, text
from infnet_jax.dice import dice

KEPT = 0.97  # share of a slice's infected pixels inside the lung that counts as kept

Row = Mapping[str, float | None]


def measure(
    source: Source, run: Callable[[Source], list[np.ndarray]], threshold: float, folder: Path
) -> dict[str, Row]:
    """Compares a network's lungs, found as `predict` finds them in volumes, with the true ones.

    Args:
      source: examples of `LungTarget`; those that share a `volume` are its slices.
      run: the network, from examples to maps of lung [h, w], 0..1.
      threshold: from which a pixel is lung.
      folder: gets a picture of each slice's lungs, 0 or 255, under its id.

    Returns:
      id -> `dice` (None where both are empty) and `kept`, the share of the infected pixels inside
      (None without infection).
    """
    volumes: dict[str, list[int]] = {}
    for i in range(len(source)):
        name = text(source[i].get("volume", ""))
        volumes.setdefault(f"volume {name}" if name else f"slice {i}", []).append(i)

    def of_pictures(pictures: Iterable[np.ndarray]) -> list[np.ndarray]:
        return run([{"id": "", "image": picture[..., None]} for picture in pictures])

    rows: dict[str, Row] = {}
    for indices in volumes.values():
        indices.sort(key=lambda i: _in_order(text(source[i]["id"])))
        pictures = [decode(source[i], "image")[..., 0] for i in indices]
        found = lung_network.find(of_pictures, pictures, threshold)
        for i, lung in zip(indices, found, strict=True):
            truth, lesion = (decode(source[i], k)[..., 0] > 0 for k in ("lung", "lesion"))
            name = text(source[i]["id"])
            path = picture_of(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), lung.astype(np.uint8) * 255)
            score = float(dice(lung, truth))
            kept = float((lesion & lung).sum() / lesion.sum()) if lesion.any() else None
            rows[name] = {"dice": None if np.isnan(score) else score, "kept": kept}
    return rows


def picture_of(folder: Path, name: str) -> Path:
    """Where `measure` leaves the lungs of the slice of that id."""
    return folder / f"{name}.png"


def summarise(rows: Mapping[str, Row]) -> dict[str, Any]:
    """What `measure` found of all folds, as `cross_validation.json` holds it.

    Returns:
      `slices`: the rows. `parts`, by what stands before the first "/" of an id: the mean `dice`,
      `kept` (mean share) and `kept_slices` (share of the infected slices that keep at least 97 %),
      the `slices` with lung and the `infected` ones.
    """
    parts = {name.partition("/")[0] if "/" in name else "all" for name in rows}
    return {"parts": {part: _summary(rows, part) for part in sorted(parts)}, "slices": dict(rows)}


def _summary(rows: Mapping[str, Row], part: str) -> dict[str, float | int | None]:
    mine = [row for name, row in rows.items() if part in ("all", name.partition("/")[0])]
    scores, kept = (
        np.array([row[key] for row in mine if row[key] is not None]) for key in ("dice", "kept")
    )
    return {
        "slices": len(scores),
        "dice": float(scores.mean()) if scores.size else None,
        "infected": len(kept),
        "kept": float(kept.mean()) if kept.size else None,
        "kept_slices": float((kept >= KEPT).mean()) if kept.size else None,
    }


def _in_order(name: str) -> list[int | str]:
    """A key that puts slice 10 after slice 9."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", name)]

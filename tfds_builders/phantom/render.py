"""Paints a slice of a made-up patient in HU and turns it into an 8-bit CT picture."""

import cv2
import numpy as np

from tfds_builders.phantom.anatomy import (
    AIR,
    BLOOD,
    FAT,
    HEIGHT,
    SOFT,
    Patient,
    Slice,
    cover,
    ellipse,
)
from tfds_builders.phantom.lesions import Lesions


def blend(picture: np.ndarray, hu: np.ndarray | float, share: np.ndarray) -> np.ndarray:
    """Mixes `hu` into the picture by the covered share (partial volume)."""
    return picture + (hu - picture) * share


def body_hu(p: Patient, s: Slice) -> np.ndarray:
    """Paints all but the lungs: air, table, skin, fat, muscle, bones, mediastinum. HU [S, S]."""
    pixel = p.pixel / p.zoom
    hu = np.full_like(s.body, AIR)
    hu = blend(hu, -880.0, cover(np.abs(s.bed - 0.07) - 0.06, pixel))
    hu = blend(hu, -250.0, cover(np.abs(s.bed - 0.01) - 0.010, pixel))
    hu = blend(hu, SOFT, cover(s.body, pixel))
    flesh = p.flesh_field.at(s.t, p.size)
    under_skin = np.maximum(s.body + 0.02, 0.085 - s.cavity + 0.012 * flesh)
    hu = blend(hu, FAT, cover(under_skin, pixel, 2))
    hu = blend(hu, FAT, cover(np.abs(s.cavity - 0.075 - 0.008 * flesh) - 0.007, pixel, 2))
    inner = cover(s.cavity, pixel)
    hu = blend(hu, SOFT + 12 * flesh, inner)
    return paint_bones(p, s, hu, pixel)


def paint_bones(p: Patient, s: Slice, hu: np.ndarray, pixel: float) -> np.ndarray:
    """Adds ribs, sternum, vertebra and (higher up) shoulder blades."""
    x, y = s.x, s.y
    around = np.arctan2(y, x)
    ribs = 0.05 * (0.45 - np.cos(7 * around + p.rib_phase * np.sign(x) + p.rib_slope * s.t * 3))
    ribs = np.maximum(ribs, np.abs(s.cavity - 0.035) - 0.022)
    spine_y = 0.80 * s.half[1]
    vertebra = ellipse(x, y, (0, spine_y), (0.095, 0.085), power=2.4)
    arch = np.minimum(
        np.abs(ellipse(x, y, (0, spine_y + 0.13), (0.065, 0.06))) - 0.018,
        ellipse(x, y, (0, spine_y + 0.22), (0.016, 0.07)),
    )
    wing = np.abs(np.abs(x) * 0.75 - (y - spine_y - 0.1)) - 0.014
    arch = np.minimum(arch, np.maximum(wing, np.abs(np.abs(x) - 0.09) - 0.06))
    sternum = ellipse(x, y, (0, -s.half[1] - 0.05), (0.085, 0.028))
    bones = np.minimum(np.minimum(ribs, vertebra), np.minimum(arch, sternum))
    if s.t > 0.5:
        blade = np.abs(ellipse(np.abs(x), y, (0.30, 0.22), (0.50, 0.40), angle=-0.4)) - 0.014
        bones = np.minimum(bones, np.maximum(blade, np.maximum(0.06 - s.cavity, 0.12 - y)))
    bones = np.maximum(bones, s.body + 0.03)
    marrow = cover(bones + 0.016, pixel, 2)
    hu = blend(hu, 620.0, cover(bones, pixel))
    return blend(hu, 230.0, marrow)


def lung_hu(p: Patient, s: Slice) -> np.ndarray:
    """Lung tissue without vessels, HU [S, S]: gradients and textures that are no lesion."""
    depth = (s.y / s.half[1] + 1) / 2
    hu = p.lung_hu + p.gradient * np.clip(depth, 0, 1) ** 2
    hu = hu + p.mosaic * p.mosaic_field.at(s.t, p.size)
    hu += p.grain * p.grain_field.at(s.t, p.size)
    if p.dependent:  # collapse by weight: a smooth band along the back, alike on both sides
        round_back = np.sqrt(np.clip(1 - (s.x / s.half[0]) ** 2, 0, 1))
        band = s.half[1] * (0.42 + 0.55 * round_back)
        rise = (s.y - band + p.dependent_height) / p.dependent_height
        hu += p.dependent * np.clip(rise, 0, 1) ** 1.5 * np.clip(1.15 - s.t, 0, 1)
    if p.emphysema:
        hu -= p.emphysema * np.clip(p.bleb_field.at(s.t, p.size) - 0.8, 0, 1)
    for i, side in enumerate((-1, 1)):
        line = s.y - p.fissure[i] - p.fissure_slope[i] * (np.abs(s.x) - 0.4) + 0.5 * (s.t - 0.45)
        hu += 170 * np.exp(-((line / 0.006) ** 2)) * (s.x * side > 0)
    return hu


def paint_vessels(p: Patient, s: Slice, hu: np.ndarray) -> np.ndarray:
    """Draws the parts of the vessel trees inside the slice, with an airway beside large ones."""
    z = s.t * HEIGHT
    axis = (np.arange(p.size) + 0.5) * p.pixel - 1
    cos, sin = np.cos(p.tilt), np.sin(p.tilt)
    for tree in p.trees:
        rise = tree.end[:, 2] - tree.start[:, 2]
        rise = np.where(np.abs(rise) < 1e-6, 1e-6, rise)
        edge = p.thickness / 2 + tree.radius
        a, b = (z - edge - tree.start[:, 2]) / rise, (z + edge - tree.start[:, 2]) / rise
        low, high = np.clip(np.minimum(a, b), 0, 1), np.clip(np.maximum(a, b), 0, 1)
        for i in np.flatnonzero(high > low):
            way = tree.end[i, :2] - tree.start[i, :2]
            ends = tree.start[i, :2] + np.outer((low[i], high[i]), way)
            ends = (
                np.stack(
                    [ends[:, 0] * cos - ends[:, 1] * sin, ends[:, 0] * sin + ends[:, 1] * cos],
                    axis=1,
                )
                * p.zoom
                + p.shift
            )
            r = tree.radius[i] * p.zoom
            strength = min(1.0, 2.4 * r / (p.thickness + p.pixel))
            _capsule(hu, axis, ends, r, BLOOD, strength)
            if r > 0.013:
                beside = ends + np.array([1.5, 0.4]) * r
                _capsule(hu, axis, beside, 0.9 * r, -300.0, 0.8)
                _capsule(hu, axis, beside, 0.6 * r, -960.0, 1.0)
    return hu


def _capsule(
    hu: np.ndarray, axis: np.ndarray, ends: np.ndarray, r: float, value: float, strength: float
) -> None:
    """Paints a soft-edged thick line (in place), only touching the pixels around it."""
    pixel = axis[1] - axis[0]
    low = np.searchsorted(axis, ends.min(0) - r - pixel)
    high = np.searchsorted(axis, ends.max(0) + r + pixel)
    if (high <= low).any():
        return
    x, y = axis[None, low[0] : high[0]], axis[low[1] : high[1], None]
    way = ends[1] - ends[0]
    share = ((x - ends[0, 0]) * way[0] + (y - ends[0, 1]) * way[1]) / max(way @ way, 1e-9)
    share = np.clip(share, 0, 1)
    far = np.hypot(x - ends[0, 0] - share * way[0], y - ends[0, 1] - share * way[1])
    patch = hu[low[1] : high[1], low[0] : high[0]]
    patch += (value - patch) * cover(far - r, pixel) * strength


def paint_airways(p: Patient, s: Slice, hu: np.ndarray) -> np.ndarray:
    """Adds trachea and main bronchi."""
    pixel = p.pixel / p.zoom
    if s.t > 0.62:
        tubes = [ellipse(s.x, s.y, (0.0, 0.08), (0.052, 0.058))]
    else:
        spread = 0.06 + 0.55 * (0.62 - s.t)
        tubes = [ellipse(s.x, s.y, (side * spread, 0.08), (0.046, 0.036)) for side in (-1, 1)]
    for tube in tubes if s.t > 0.42 else []:
        hu = blend(hu, 20.0, cover(tube - 0.014, pixel))
        hu = blend(hu, -985.0, cover(tube, pixel))
    return hu


def render(p: Patient, s: Slice, lesions: Lesions, rng: np.random.Generator) -> np.ndarray:
    """Renders one slice as uint8 [S, S]: anatomy, lesions, blur, correlated noise, window."""
    tissue = lesions.paint(lung_hu(p, s), s)
    tissue = paint_vessels(p, s, tissue)
    hu = blend(body_hu(p, s), tissue, cover(s.lung, p.pixel / p.zoom, 1.6))
    hu = paint_airways(p, s, hu)
    scale = p.size / 256  # blur and noise grain keep their size relative to the body
    if p.motion:
        near = np.exp(-(((s.x - 0.25) ** 2 + (s.y + 0.1) ** 2) / 0.12)) if s.t < 0.6 else 0.3
        moved = cv2.GaussianBlur(hu, (0, 0), p.motion * scale, sigmaY=0.8 * scale)
        hu = hu + (moved - hu) * near
    hu = cv2.GaussianBlur(hu, (0, 0), max(p.kernel * scale, 0.2))
    noise = cv2.GaussianBlur(rng.standard_normal(hu.shape), (0, 0), 0.5 + 0.5 * p.kernel * scale)
    hu = hu + p.dose_hu * noise / noise.std()
    if p.circle:
        axis = (np.arange(p.size) + 0.5) * p.pixel - 1
        hu = np.where(np.hypot(axis[:, None], axis) < 1.0, hu, -2000.0)
    grey = (hu - (p.level - p.width / 2)) / p.width
    return np.round(np.clip(grey, 0, 1) * 255).astype(np.uint8)

"""A made-up chest: one patient's anatomy, cut at any height into CT numbers (HU).

Coordinates: x runs from -1 to 1 to the right of the image (the patient's left), y from -1 to 1
downwards (the patient's back), t from 0 (lung base) to 1 (apex). Every outline is an implicit
function that is negative inside and grows by about 1 per unit of length, so that `cover` turns it
into anti-aliased shares of a pixel (partial volume) at any picture size.
"""

import dataclasses

import cv2
import numpy as np

HEIGHT = 1.7  # length of the lungs along t, in units of x and y
SOFT, FAT, AIR, BLOOD = 45.0, -95.0, -1000.0, 35.0


class Noise:
    """A smooth random field over (x, y, t): unit variance, about `cells` bumps across."""

    def __init__(self, rng: np.random.Generator, cells: int, levels: int = 8):
        self._grid = rng.standard_normal((levels, cells + 3, cells + 3)).astype(np.float32)

    def at(self, t: float, size: int) -> np.ndarray:
        """Samples float32 [size, size] at height t."""
        z = np.clip(t, 0, 1) * (len(self._grid) - 1.001)
        low, share = int(z), z - int(z)
        flat = self._grid[low] * np.cos(share * np.pi / 2) + self._grid[low + 1] * np.sin(
            share * np.pi / 2
        )
        field = cv2.resize(flat, (size, size), interpolation=cv2.INTER_CUBIC)
        return field * np.float32(1.25)  # interpolation lowers the variance


def cover(outline: np.ndarray, pixel: float, blur: float = 1.0) -> np.ndarray:
    """Turns an outline into the covered share of each pixel, with an edge `blur` pixels wide."""
    return np.clip(0.5 - outline / (pixel * blur), 0.0, 1.0)


def smooth_max(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Maximum with a rounded corner of size k (intersection of two outlines)."""
    h = np.clip(0.5 + 0.5 * (a - b) / k, 0, 1)
    return b + (a - b) * h + k * h * (1 - h)


def ellipse(
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[float, float],
    half: tuple[float, float],
    *,
    angle: float = 0.0,
    power: float = 2.0,
) -> np.ndarray:
    """Outline of a (super)ellipse; `angle` in radians turns it clockwise on the screen."""
    dx, dy = x - centre[0], y - centre[1]
    if angle:
        dx, dy = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    radius = (np.abs(dx / half[0]) ** power + np.abs(dy / half[1]) ** power) ** (1 / power)
    return (radius - 1) * min(half)


@dataclasses.dataclass
class Tree:
    """Vessels of one lung as tapering segments."""

    start: np.ndarray  # float [N, 3], in x, y and height (t * HEIGHT)
    end: np.ndarray  # float [N, 3]
    radius: np.ndarray  # float [N]


def grow_tree(rng: np.random.Generator, side: int, n: int) -> Tree:
    """Grows a vessel tree from the hilum of one lung; side -1 is image left."""
    hilum = np.array([0.17 * side, 0.03, 0.5 * HEIGHT])
    r, phi = np.sqrt(rng.uniform(0, 1, n)), rng.uniform(0, 2 * np.pi, n)
    tips = np.stack(
        [
            side * 0.45 + 0.36 * r * np.cos(phi),
            0.02 + 0.58 * r * np.sin(phi),
            rng.uniform(0, HEIGHT, n),
        ],
        axis=1,
    )
    reach = np.linalg.norm(tips - hilum, axis=1)
    order = np.argsort(reach)
    nodes, reach = np.vstack([hilum, tips[order]]), np.append(0.0, reach[order])
    parent = np.zeros(n + 1, int)
    for i in range(1, n + 1):
        step = np.linalg.norm(nodes[:i] - nodes[i], axis=1)
        parent[i] = np.argmin(step**1.3 + 0.35 * reach[:i])  # short twigs, but no detours
    leaves = np.ones(n + 1)
    for i in range(n, 0, -1):
        leaves[parent[i]] += leaves[i]
    radius = 0.0046 * leaves[1:] ** 0.36 * rng.uniform(0.8, 1.2, n)
    return Tree(nodes[parent[1:]], nodes[1:], np.minimum(radius, 0.036))


class Patient:
    """One patient's anatomy and scan settings, all drawn from `rng`."""

    def __init__(self, rng: np.random.Generator, size: int):
        u = rng.uniform
        self.size, self.pixel = size, 2 / size
        self.wide, self.deep = u(0.92, 1.06), u(0.92, 1.1)
        self.zoom, self.tilt = u(0.9, 1.14), u(-0.06, 0.06)
        self.shift = u(-0.04, 0.04, 2)
        self.fat = u(0.02, 0.09)
        self.heart, self.heart_angle = u(0.88, 1.15), u(0.25, 0.6)
        self.dome = u(0.12, 0.22, 2)
        self.rib_phase, self.rib_slope = u(0, 6.28), u(6, 9)
        self.lung_hu = u(-890, -735)
        self.gradient = u(20, 150)
        self.dependent = u(140, 360) if u() < 0.7 else 0.0
        self.dependent_height = u(0.05, 0.13)
        self.mosaic, self.grain = u(10, 65), u(10, 38)
        self.fissure, self.fissure_slope = u(-0.05, 0.25, 2), u(0.1, 0.6, 2)
        self.emphysema = u(50, 130) if u() < 0.25 else 0.0
        self.thickness = u(0.012, 0.045)
        self.motion = u(1.5, 5) if u() < 0.3 else 0.0
        self.kernel, self.dose_hu = u(0.35, 1.0), u(12, 60)
        self.level, self.width = u(-740, -420), u(1000, 2000)
        if u() < 0.25:  # a bone-like window, as some hospitals export
            self.level, self.width = u(-380, -180), u(2000, 2600)
        self.circle = u() < 0.35
        self.table = u(0.76, 0.84)
        self.warps = [Noise(rng, 4), Noise(rng, 4)]
        self.mosaic_field, self.grain_field = Noise(rng, 9), Noise(rng, 64, 16)
        self.bleb_field, self.flesh_field = Noise(rng, 16, 10), Noise(rng, 11)
        self.trees = [grow_tree(rng, side, int(u(1000, 1500))) for side in (-1, 1)]


@dataclasses.dataclass
class Slice:
    """Outlines at one height: each float [size, size], negative inside."""

    t: float
    x: np.ndarray
    y: np.ndarray
    body: np.ndarray
    cavity: np.ndarray  # inside of the rib cage
    lung: np.ndarray
    bed: np.ndarray  # table top: negative above
    half: tuple[float, float]  # half-axes of the cavity


def outlines(p: Patient, t: float) -> Slice:
    """Cuts the patient's main outlines at height t."""
    axis = (np.arange(p.size) + 0.5) * p.pixel - 1
    x0, y0 = np.meshgrid(axis, axis)
    x0, y0 = (x0 - p.shift[0]) / p.zoom, (y0 - p.shift[1]) / p.zoom
    x = x0 * np.cos(p.tilt) + y0 * np.sin(p.tilt) + 0.018 * p.warps[0].at(t, p.size)
    y = y0 * np.cos(p.tilt) - x0 * np.sin(p.tilt) + 0.018 * p.warps[1].at(t, p.size)
    taper = 1 - 0.42 * np.clip((t - 0.35) / 0.65, 0, 1) ** 1.8
    half = (0.79 * p.wide * taper, 0.61 * p.deep * (1 - 0.5 * (1 - taper)))
    cavity = ellipse(x, y, (0, 0), half, power=2.3)
    rim = 0.10 + p.fat
    body = ellipse(
        x, y, (0, 0), (0.79 * p.wide * (0.35 + 0.65 * taper) + rim, half[1] + rim), power=2.4
    )
    middle = mediastinum(p, t, x, y, half)
    lung = smooth_max(cavity, -middle, 0.05)
    for side, top, reach in ((-1, p.dome[0] + 0.03, 0.40), (1, p.dome[1] - 0.02, 0.34)):
        rise = 1 - (t / top) ** 2
        if rise > 0.02:
            r = np.sqrt(rise)
            lung = smooth_max(
                lung, -ellipse(x, y, (side * 0.34, -0.08), (reach * r, 0.48 * r)), 0.04
            )
    bed = y0 - p.table + 0.1 * x0**2
    return Slice(t, x, y, body, cavity, lung, bed, half)


def mediastinum(
    p: Patient, t: float, x: np.ndarray, y: np.ndarray, half: tuple[float, float]
) -> np.ndarray:
    """Outline of all between the lungs: spine, heart, great vessels and the septum in front."""
    spine_y = 0.80 * half[1]
    parts = [
        ellipse(x, y, (0, spine_y + 0.12), (0.14, 0.25)),
        ellipse(x, y, (0, 0.14), (0.10, 0.38)),
        ellipse(x, y, (0.11, spine_y - 0.15), (0.075, 0.075)),  # descending aorta
        np.abs(x - 0.02) - 0.018,  # pleural reflections: the lungs never touch
    ]
    beat = 1 - ((t - 0.24) / 0.36) ** 2
    if beat > 0.02:
        r = np.sqrt(beat) * p.heart
        parts.append(ellipse(x, y, (0.10, -0.08), (0.32 * r, 0.26 * r), angle=p.heart_angle))
    if t > 0.45:
        arch = np.exp(-(((t - 0.7) / 0.08) ** 2))
        parts.append(ellipse(x, y, (0.02, -0.1), (0.13 + 0.03 * arch, 0.24), angle=0.2 * arch))
        parts.append(ellipse(x, y, (0.09 * arch, 0.02), (0.1 + 0.05 * arch, 0.27), angle=-0.35))
    hila = np.exp(-(((t - 0.5) / 0.1) ** 2))
    parts += [
        ellipse(x, y, (s * 0.15, 0.04), (0.02 + 0.09 * hila, 0.02 + 0.08 * hila)) for s in (-1, 1)
    ]
    union = parts[0]
    for part in parts[1:]:
        union = -smooth_max(-union, -part, 0.03)
    return union

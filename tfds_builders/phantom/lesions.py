"""Lesions of a made-up patient (ground glass, consolidation) and the regions that are scored."""

import dataclasses

import numpy as np

from tfds_builders.phantom.anatomy import HEIGHT, Noise, Slice

N_BANDS = 5  # per lung, front to back; each halved into medial and lateral: 20 regions in all
KINDS = ("ground_glass", "consolidation", "mixed")


@dataclasses.dataclass
class Focus:
    """One lesion: an ellipsoid that lies along the chest wall."""

    angle: float  # where on the wall, radians clockwise from the image's right
    reach: float  # 1 on the wall, 0 in the middle of the chest
    height: float  # t of its centre
    along: float  # half-lengths: along the wall,
    across: float  # towards the hilum,
    upright: float  # and along the body
    core: float  # field above which tissue is consolidated; infinite for pure ground glass
    haze_hu: float  # how much ground glass adds to the lung


class Lesions:
    """All foci of a patient; none makes a healthy patient."""

    def __init__(self, rng: np.random.Generator, infected: bool):
        self.edge, self.fine = Noise(rng, 13, 12), Noise(rng, 30, 16)
        self.streaks = Noise(rng, 45, 12)
        self.core_hu = rng.uniform(-90, 40)
        n = int(rng.integers(3, 9)) if infected else 0
        self.foci = [_draw_focus(rng) for _ in range(n)]

    def fields(self, s: Slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evaluates lesions at a slice, each [S, S]: field (inside where > 0), core, haze in HU."""
        size = s.x.shape[0]
        rough = 0.5 * self.edge.at(s.t, size) + 0.1 * self.fine.at(s.t, size)
        field = np.full_like(s.x, -9.0)
        core, haze = np.full_like(s.x, -9.0), np.zeros_like(s.x)
        for f in self.foci:
            wall = np.array([np.cos(f.angle) * s.half[0], np.sin(f.angle) * s.half[1]])
            out = wall / np.linalg.norm(wall)
            dx, dy = s.x - wall[0] * f.reach, s.y - wall[1] * f.reach
            v, u = dx * out[0] + dy * out[1], dy * out[0] - dx * out[1]
            w = (s.t - f.height) * HEIGHT
            one = 1 - (u / f.along) ** 2 - (v / f.across) ** 2 - (w / f.upright) ** 2 + rough
            haze = np.where(one > field, f.haze_hu, haze)
            field = np.maximum(field, one)
            core = np.maximum(core, one - f.core)
        return field, core, haze

    def mask(self, s: Slice, lung: np.ndarray) -> np.ndarray:
        """Classes uint8 [S, S] within the lung: 0 none, 1 ground glass, 2 consolidation."""
        field, core, _ = self.fields(s)
        classes = np.where(core > 0, 2, np.where(field > 0, 1, 0))
        return (classes * (lung > 0)).astype(np.uint8)

    def paint(self, hu: np.ndarray, s: Slice) -> np.ndarray:
        """Adds the lesions to lung tissue [S, S] in HU, with soft borders."""
        if not self.foci:
            return hu
        field, core, haze = self.fields(s)
        size = s.x.shape[0]
        paving = np.exp(-((self.streaks.at(s.t, size) / 0.25) ** 2))  # thickened septa
        texture = 1 + 0.16 * self.fine.at(s.t, size) + 0.35 * (paving - 0.25)
        hu = hu + haze * texture * _ramp(field, -0.22, 0.22)
        solid = self.core_hu + 35 * self.fine.at(s.t, size)
        return hu + (np.maximum(solid, hu) - hu) * _ramp(core, -0.16, 0.16)


def _ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    share = np.clip((value - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


def _draw_focus(rng: np.random.Generator) -> Focus:
    u = rng.uniform
    low = rng.beta(1.6, 2.0)  # height: more at the base
    side = rng.choice((-1, 1))
    tilt = np.radians(rng.triangular(-50, 40, 80))  # 0 is lateral, 90 the back
    angle = tilt if side > 0 else np.pi - tilt
    kind = rng.choice(KINDS, p=(0.6, 0.1, 0.3))
    core = {"ground_glass": np.inf, "consolidation": u(0.12, 0.25), "mixed": u(0.5, 0.75)}[kind]
    reach = u(0.78, 0.97) if u() < 0.8 else u(0.5, 0.75)
    scale = u(0.8, 1.5)
    return Focus(
        angle,
        reach,
        0.08 + 0.8 * low,
        scale * u(0.15, 0.31),
        scale * u(0.08, 0.17),
        scale * u(0.18, 0.42),
        core,
        u(220, 430),
    )


def regions(lung: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Cuts both lungs into 20 regions ("pseudo CT-SS"; not anatomical segments).

    Each lung is cut front to back into five bands of equal area by row quantiles, and each band
    into a medial and a lateral half by its column median.

    Args:
      lung: uint8 [S, S], 1 inside.
      x: float [S, S], negative in the patient's right lung (image left).

    Returns:
      uint8 [S, S]: 0 outside, patient's right lung 1..10, left lung 11..20; within a lung band b
      (0 in front) has 1 + 2 b (medial) and 2 + 2 b (lateral).
    """
    out = np.zeros(lung.shape, np.uint8)
    for side, offset in ((-1, 0), (1, 10)):
        rows, cols = np.nonzero((lung > 0) & (x * side >= (0 if side > 0 else 1e-9)))
        if rows.size == 0:
            continue
        cuts = np.quantile(rows, np.arange(1, N_BANDS) / N_BANDS)
        band = np.searchsorted(cuts, rows, side="left")
        for b in range(N_BANDS):
            here = band == b
            if here.any():
                lateral = (cols[here] - np.median(cols[here])) * side > 0
                out[rows[here], cols[here]] = offset + 1 + 2 * b + lateral
    return out


def region_shares(mask: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Infected share of each region, float32 [20] in 0..1; a region without pixels gives 0."""
    total = np.bincount(region.ravel(), minlength=21)[1:]
    infected = np.bincount(region.ravel(), weights=mask.ravel() > 0, minlength=21)[1:]
    return (infected / np.maximum(total, 1)).astype(np.float32)

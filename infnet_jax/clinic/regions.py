"""20 regions and six zones of the lungs by fixed rules: no anatomical segment is claimed.

Grids are canonical: [rows, columns] or [slices, rows, columns], slices from the feet up, rows
from the front to the back, columns from the patient's right to the left (radiological display).
A map of regions is uint8: 0 outside, 1..10 the patient's right lung, 11..20 the left. A map of
sides, from `sides.split`, holds 0 outside, 1 in the right lung, 2 in the left.
"""

from collections.abc import Callable, Iterable

import numpy as np

from infnet_jax.clinic.sides import LEFT, RIGHT

# Our lobes 1..5 in the order of lungmask's LTRCLobes; TotalSegmentator's ids are 9 higher.
LEFT_UPPER, LEFT_LOWER, RIGHT_UPPER, RIGHT_MIDDLE, RIGHT_LOWER = range(1, 6)


def slice_regions(sides: np.ndarray) -> np.ndarray:
    """20 regions of one slice ("pseudo CT-SS"), the same cuts as the phantom dataset's.

    Each lung is cut front to back into five bands of equal area by row quantiles, and each band
    into a medial and a lateral half by its column median: band b (0 in front) is 1 + 2 b (medial)
    and 2 + 2 b (lateral). Sides are integer [H, W], regions uint8 [H, W].
    """
    return _cut(sides[None], ((RIGHT, 1, _cut_slice, -1), (LEFT, 11, _cut_slice, 1)))[0]


def volume_regions(sides: np.ndarray) -> np.ndarray:
    """20 regions of a volume: per lung three thirds by volume from the top, cut into 3, 2 and 5.

    Sides are integer [D, H, W], regions uint8 [D, H, W].
    """
    thirds = ((0, _cut_upper), (3, _cut_sides), (5, _cut_lower))
    plan = [
        (zone + third, first + before, cut, outward)
        for zone, first, outward in ((1, 1, -1), (4, 11, 1))
        for third, (before, cut) in enumerate(thirds)
    ]
    return _cut(zones(sides), plan)


def lobe_regions(lobes: np.ndarray) -> np.ndarray:
    """20 regions of a volume whose lobes are known; integer [D, H, W] to uint8 [D, H, W].

    The lowest third of the left upper lobe stands for the lingula.
    """
    plan = (
        (RIGHT_UPPER, 1, _cut_upper, -1),
        (RIGHT_MIDDLE, 4, _cut_sides, -1),
        (RIGHT_LOWER, 6, _cut_lower, -1),
        (LEFT_UPPER, 11, _cut_upper_and_lingula, 1),
        (LEFT_LOWER, 16, _cut_lower, 1),
    )
    return _cut(lobes, plan)


def zones(sides: np.ndarray) -> np.ndarray:
    """Six zones of sides, integer [D, H, W]: right upper, middle, lower 1..3, left 4..6, uint8.

    The levels of the carina and the lower pulmonary vein are not known here: thirds of each
    lung's volume stand for them.
    """
    return _cut(sides, ((RIGHT, 1, _cut_thirds, 1), (LEFT, 4, _cut_thirds, 1)))


Rule = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _cut(labels: np.ndarray, plan: Iterable[tuple[int, int, Rule, int]]) -> np.ndarray:
    """Regions, uint8 [D, H, W], from labels, integer [D, H, W], each of which a rule cuts.

    `plan` has each label, its first region, its rule, and -1 or 1: times this, columns grow away
    from the middle of the body. A rule takes slices, rows and columns of the label's voxels,
    int16 [n] each (a lung has millions of voxels), and numbers the voxels from 0, int8 [n].
    """
    out = np.zeros(labels.shape, np.uint8)
    for label, first, cut, outward in plan:
        found = [np.nonzero(one == label) for one in labels]
        z = np.repeat(np.arange(len(labels), dtype=np.int16), [len(rows) for rows, _ in found])
        if not z.size:
            continue
        y, x = (np.concatenate([f[axis].astype(np.int16) for f in found]) for axis in (0, 1))
        values, end = first + cut(z, y, x * outward), 0
        for one, (rows, columns) in zip(out, found, strict=True):
            start, end = end, end + len(rows)
            one[rows, columns] = values[start:end]
    return out


def _quantile_bands(values: np.ndarray, n: int) -> np.ndarray:
    """Band 0..n-1 of each value, int8: bands of equal numbers, equal values together."""
    out = np.zeros(values.shape, np.int8)
    for cut in np.quantile(values, np.arange(1, n) / n):
        out += values > cut
    return out


def _cut_slice(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Band b from the front is 2 b in its medial, 2 b + 1 in its lateral half."""
    band = _quantile_bands(y, 5)
    out = 2 * band
    for b in np.unique(band):
        here = band == b
        out[here] += x[here] > np.median(x[here])
    return out


def _cut_thirds(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """0 the top, 1 the middle, 2 the lowest third."""
    return _quantile_bands(-z, 3)


def _cut_upper(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """0 the top third, 1 the back and 2 the front of the rest; x grows outwards."""
    below = _quantile_bands(-z, 3) > 0
    if not below.any():
        return np.zeros(z.shape, np.int8)
    return np.where(below, np.where(y > np.median(y[below]), np.int8(1), np.int8(2)), np.int8(0))


def _cut_sides(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """0 the lateral, 1 the medial half."""
    return np.where(x > np.median(x), np.int8(0), np.int8(1))


def _cut_lower(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """0 the top quarter; of the rest, by angle about its centre, 1 medial, 2 front, 3 lateral,
    4 back."""
    below = _quantile_bands(-z, 4) > 0
    out = np.zeros(z.shape, np.int8)
    if below.any():
        n, yb, xb = int(below.sum()), y[below].astype(np.int64), x[below].astype(np.int64)
        u, v = n * xb - xb.sum(), n * yb - yb.sum()  # whole numbers: a mirror changes nothing
        out[below] = np.where(np.abs(u) > np.abs(v), np.where(u > 0, 3, 1), np.where(v > 0, 4, 2))
    return out


def _cut_upper_and_lingula(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """0..2 as in `_cut_upper`; of the lowest third, 3 the upper and 4 the lower half."""
    lingula = _quantile_bands(-z, 3) == 2  # the top slice is never in it, so the rest is not empty
    out = np.zeros(z.shape, np.int8)
    out[~lingula] = _cut_upper(z[~lingula], y[~lingula], x[~lingula])
    if lingula.any():
        out[lingula] = 3 + _quantile_bands(-z[lingula], 2)
    return out

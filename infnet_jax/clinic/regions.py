"""20 regions and six zones of the lungs by fixed rules: no anatomical segment is claimed.

Grids are canonical: [rows, columns] or [slices, rows, columns], slices from the feet up, rows
from the front to the back, columns from the patient's right to the left (radiological display).
A map of regions is uint8: 0 outside, 1..10 the patient's right lung, 11..20 the left.
"""

import numpy as np

from infnet_jax.clinic.sides import LEFT, RIGHT

# Our lobes 1..5 in the order of lungmask's LTRCLobes; TotalSegmentator's ids are 9 higher.
LEFT_UPPER, LEFT_LOWER, RIGHT_UPPER, RIGHT_MIDDLE, RIGHT_LOWER = range(1, 6)


def slice_regions(sides: np.ndarray) -> np.ndarray:
    """20 regions of one slice ("pseudo CT-SS"), the same cuts as the phantom dataset's.

    Each lung is cut front to back into five bands of equal area by row quantiles, and each band
    into a medial and a lateral half by its column median: band b (0 in front) is 1 + 2 b (medial)
    and 2 + 2 b (lateral).

    Args:
      sides: integer [H, W], 0 outside, 1 right lung, 2 left lung.

    Returns:
      uint8 [H, W], 0..20.
    """
    out = np.zeros(sides.shape, np.uint8)
    for side, offset, outward in ((RIGHT, 0, -1), (LEFT, 10, 1)):
        rows, cols = np.nonzero(sides == side)
        if not rows.size:
            continue
        band = _quantile_bands(rows, 5)
        for b in range(5):
            here = band == b
            if here.any():
                lateral = (cols[here] - np.median(cols[here])) * outward > 0
                out[rows[here], cols[here]] = offset + 1 + 2 * b + lateral
    return out


def volume_regions(sides: np.ndarray) -> np.ndarray:
    """20 regions of a volume: per lung three thirds by volume from the top, cut into 3, 2 and 5.

    Args:
      sides: integer [D, H, W], 0 outside, 1 right lung, 2 left lung.

    Returns:
      uint8 [D, H, W], 0..20.
    """
    out = np.zeros(sides.shape, np.uint8)
    for side, offset, outward in ((RIGHT, 0, -1), (LEFT, 10, 1)):
        points = _points(sides, side)
        if not points[0].size:
            continue
        third, region = _quantile_bands(-points[0], 3), np.zeros(points[0].shape, np.uint8)
        for part, cut in enumerate((_cut_upper, _cut_sides, _cut_lower)):
            here = third == part
            if here.any():
                z, y, x = (p[here] for p in points)
                region[here] = offset + (1, 4, 6)[part] + cut(z, y, x * outward)
        _fill(out, sides, side, region)
    return out


def lobe_regions(lobes: np.ndarray) -> np.ndarray:
    """20 regions of a volume whose lobes are known.

    Args:
      lobes: integer [D, H, W], 1..5: left upper, left lower, right upper, middle, lower.

    Returns:
      uint8 [D, H, W], 0..20. The lowest third of the left upper lobe stands for the lingula.
    """
    out = np.zeros(lobes.shape, np.uint8)
    plan = (
        (RIGHT_UPPER, 1, _cut_upper, -1),
        (RIGHT_MIDDLE, 4, _cut_sides, -1),
        (RIGHT_LOWER, 6, _cut_lower, -1),
        (LEFT_UPPER, 11, _cut_upper_and_lingula, 1),
        (LEFT_LOWER, 16, _cut_lower, 1),
    )
    for lobe, first, cut, outward in plan:
        z, y, x = _points(lobes, lobe)
        if z.size:
            _fill(out, lobes, lobe, first + cut(z, y, x * outward))
    return out


def zones(sides: np.ndarray) -> np.ndarray:
    """Six zones, uint8 like `sides` [D, H, W]: right upper, middle, lower 1..3, left 4..6.

    The levels of the carina and the lower pulmonary vein are not known here: thirds of each
    lung's volume stand for them.
    """
    out = np.zeros(sides.shape, np.uint8)
    for side, first in ((RIGHT, 1), (LEFT, 4)):
        z, _, _ = _points(sides, side)
        if z.size:
            _fill(out, sides, side, first + _quantile_bands(-z, 3))
    return out


def standard_lobes(labels: np.ndarray) -> np.ndarray:
    """A lobe map as 1..5, from lungmask's (1..5) or TotalSegmentator's (10..14) numbers.

    Raises:
      ValueError: any other label.
    """
    found = set(np.unique(labels).tolist()) - {0}
    if found and found <= set(range(10, 15)):
        return np.where(labels > 0, labels - 9, 0).astype(np.uint8)
    if not found <= set(range(1, 6)):
        raise ValueError(f"lobe labels {sorted(found)}: 1..5 (lungmask) or 10..14 expected")
    return labels.astype(np.uint8)


def _points(labels: np.ndarray, label: int) -> tuple[np.ndarray, ...]:
    """Slice, row and column of the voxels with a label, int16: a lung has millions of them."""
    found = [np.nonzero(labels[i] == label) for i in range(len(labels))]
    z = np.repeat(np.arange(len(labels), dtype=np.int16), [len(rows) for rows, _ in found])
    return z, *(np.concatenate([f[axis].astype(np.int16) for f in found]) for axis in (0, 1))


def _fill(out: np.ndarray, labels: np.ndarray, label: int, values: np.ndarray) -> None:
    """Writes a value to each voxel with a label, in the order of `_points`."""
    end = 0
    for i in range(len(labels)):
        here = labels[i] == label
        start, end = end, end + np.count_nonzero(here)
        out[i][here] = values[start:end]


def _quantile_bands(values: np.ndarray, n: int) -> np.ndarray:
    """Band 0..n-1 of each value, int8: bands of equal numbers, equal values together."""
    out = np.zeros(values.shape, np.int8)
    for cut in np.quantile(values, np.arange(1, n) / n):
        out += values > cut
    return out


def _cut_upper(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """0 the top third, 1 the back and 2 the front of the rest; x grows outwards."""
    below = _quantile_bands(-z, 3) > 0
    out = np.zeros(z.shape, np.int8)
    if below.any():
        out[below] = np.where(y[below] > np.median(y[below]), 1, 2)
    return out


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
    lingula = _quantile_bands(-z, 3) == 2
    out = np.zeros(z.shape, np.int8)
    if (~lingula).any():
        rest = ~lingula
        out[rest] = _cut_upper(z[rest], y[rest], x[rest])
    if lingula.any():
        out[lingula] = 3 + _quantile_bands(-z[lingula], 2)
    return out

"""Right and left lung, 20 regions and six zones by fixed rules: no anatomical segment is claimed.

Grids are canonical: [rows, columns] or [slices, rows, columns], slices from the feet up, rows
from the front to the back, columns from the patient's right to the left (radiological display).
A map of regions is uint8: 0 outside, 1..10 the patient's right lung, 11..20 the left.
"""

import cv2
import numpy as np
from scipy import ndimage

RIGHT, LEFT = 1, 2
# Our lobes 1..5 in the order of lungmask's LTRCLobes; TotalSegmentator's ids are 9 higher.
LEFT_UPPER, LEFT_LOWER, RIGHT_UPPER, RIGHT_MIDDLE, RIGHT_LOWER = range(1, 6)


def split(lung: np.ndarray, *, upright: bool = True) -> np.ndarray:
    """Tells the right lung from the left.

    Args:
      lung: bool or integer, > 0 inside, [H, W] or [D, H, W] (each slice is split on its own, in
        the middle of all lungs).
      upright: columns run from the patient's right to the left; if not, rows do.

    Returns:
      uint8, the same shape: 0 outside, 1 the patient's right lung, 2 the left.
    """
    inside = np.asarray(lung) > 0
    if not upright:
        return np.swapaxes(split(np.swapaxes(inside, -1, -2)), -1, -2)
    middle = _middle(inside)
    if inside.ndim == 2:
        return _split_slice(inside, middle)
    return np.array([_split_slice(s, middle) for s in inside], np.uint8).reshape(inside.shape)


def lies_on_side(lung: np.ndarray) -> bool:
    """Whether the two lungs lie above each other in a slice [H, W], as in transposed pictures.

    False where fewer than two lungs are seen.
    """
    labels = two_lungs(np.asarray(lung) > 0)
    if labels.max() < 2:
        return False
    (r1, c1), (r2, c2) = ndimage.center_of_mass(labels > 0, labels, [1, 2])
    return bool(abs(r1 - r2) > abs(c1 - c2))


def unite(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Labels (lungs, lobes, regions) spread over the infection that they miss, by nearness.

    Args:
      labels: integer, 0 outside, any shape.
      mask: same shape, infected where > 0.

    Returns:
      A new array like `labels`; without a label anywhere, a copy.

    Raises:
      ValueError: shapes that differ.
    """
    if labels.shape != np.shape(mask):
        raise ValueError(f"labels of shape {labels.shape} and a mask of {np.shape(mask)}")
    missed = (np.asarray(mask) > 0) & (labels == 0)
    if not missed.any() or not labels.any():
        return labels.copy()
    near = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return np.where(missed, labels[tuple(near)], labels)


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
        points = np.nonzero(sides == side)
        if not points[0].size:
            continue
        third = _quantile_bands(-points[0], 3)
        for part, cut in enumerate((_cut_upper, _cut_sides, _cut_lower)):
            here = third == part
            if here.any():
                z, y, x = (p[here] for p in points)
                first = offset + (1, 4, 6)[part]
                out[z, y, x] = first + cut(z, y, x * outward)
    return out


def lobe_regions(lobes: np.ndarray) -> np.ndarray:
    """20 regions of a volume whose lobes are known.

    Args:
      lobes: integer [D, H, W], 1..5: left upper, left lower, right upper, middle, lower.

    Returns:
      uint8 [D, H, W], 0..20. The lowest third of the left upper lobe stands for the lingula.
    """
    out = np.zeros(lobes.shape, np.uint8)
    plan = ((RIGHT_UPPER, 1, _cut_upper, -1), (RIGHT_MIDDLE, 4, _cut_sides, -1),
            (RIGHT_LOWER, 6, _cut_lower, -1), (LEFT_UPPER, 11, _cut_upper_and_lingula, 1),
            (LEFT_LOWER, 16, _cut_lower, 1))
    for lobe, first, cut, outward in plan:
        z, y, x = np.nonzero(lobes == lobe)
        if z.size:
            out[z, y, x] = first + cut(z, y, x * outward)
    return out


def zones(sides: np.ndarray) -> np.ndarray:
    """Six zones, uint8 like `sides` [D, H, W]: right upper, middle, lower 1..3, left 4..6.

    The levels of the carina and the lower pulmonary vein are not known here: thirds of each
    lung's volume stand for them.
    """
    out = np.zeros(sides.shape, np.uint8)
    for side, first in ((RIGHT, 1), (LEFT, 4)):
        z, y, x = np.nonzero(sides == side)
        if z.size:
            out[z, y, x] = first + _quantile_bands(-z, 3)
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


def _quantile_bands(values: np.ndarray, n: int) -> np.ndarray:
    """Band 0..n-1 of each value: bands of equal numbers, equal values together."""
    cuts = np.quantile(values, np.arange(1, n) / n)
    return np.searchsorted(cuts, values, side="left")


def _cut_upper(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """0 the top third, 1 the back and 2 the front of the rest; x grows outwards."""
    below = _quantile_bands(-z, 3) > 0
    out = np.zeros(z.shape, int)
    if below.any():
        out[below] = np.where(y[below] > np.median(y[below]), 1, 2)
    return out


def _cut_sides(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """0 the lateral, 1 the medial half."""
    return np.where(x > np.median(x), 0, 1)


def _cut_lower(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """0 the top quarter; of the rest, by angle about its centre, 1 medial, 2 front, 3 lateral,
    4 back."""
    below = _quantile_bands(-z, 4) > 0
    out = np.zeros(z.shape, int)
    if below.any():
        n, yb, xb = int(below.sum()), y[below].astype(np.int64), x[below].astype(np.int64)
        u, v = n * xb - xb.sum(), n * yb - yb.sum()  # whole numbers: a mirror changes nothing
        out[below] = np.where(np.abs(u) > np.abs(v), np.where(u > 0, 3, 1), np.where(v > 0, 4, 2))
    return out


def _cut_upper_and_lingula(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """0..2 as in `_cut_upper`; of the lowest third, 3 the upper and 4 the lower half."""
    lingula = _quantile_bands(-z, 3) == 2
    out = np.zeros(z.shape, int)
    if (~lingula).any():
        rest = ~lingula
        out[rest] = _cut_upper(z[rest], y[rest], x[rest])
    if lingula.any():
        out[lingula] = 3 + _quantile_bands(-z[lingula], 2)
    return out


def two_lungs(lung: np.ndarray) -> np.ndarray:
    """Labels 0, 1, 2 of a slice's two largest pieces, thin bridges cut; 0 and 1 if it has one."""
    n, whole = np.sqrt(lung.size), lung.astype(np.uint8)
    for radius in range(0, max(int(0.06 * n), 1), max(int(0.006 * n), 1)):
        eroded = cv2.erode(whole, _disk(radius)) if radius else whole
        count, labels, stats, _ = cv2.connectedComponentsWithStats(eroded)
        areas = stats[:, cv2.CC_STAT_AREA].copy()
        areas[0] = 0
        first, second = np.argsort(-areas)[:2] if count > 2 else (0, 0)
        if count > 2 and areas[second] > 0.15 * areas.sum():
            seeds = np.where(labels == first, 1, np.where(labels == second, 2, 0))
            return unite(seeds, lung) * lung
    return whole.astype(int)


def _middle(inside: np.ndarray) -> float:
    """The column between the lungs of a slice or volume."""
    columns = np.flatnonzero(inside.reshape(-1, inside.shape[-1]).any(0))
    return float(columns[0] + columns[-1]) / 2 if columns.size else inside.shape[-1] / 2


def _split_slice(inside: np.ndarray, middle: float) -> np.ndarray:
    """Each piece goes to the side that its two-lung partner or the middle column says."""
    two, column = two_lungs(inside), np.arange(inside.shape[1])[None, :]
    if two.max() == 2:
        centres = [ndimage.center_of_mass(two == k)[1] for k in (1, 2)]
        if (centres[0] < middle) != (centres[1] < middle):
            right = 1 if centres[0] < middle else 2
            return np.where(two == right, 1, np.where(two > 0, 2, 0)).astype(np.uint8)
    return np.where(inside, np.where(column <= middle, 1, 2), 0).astype(np.uint8)


def _disk(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))

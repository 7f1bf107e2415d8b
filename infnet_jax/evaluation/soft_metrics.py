"""Map preparation, S-measure, E-measure and weighted F, as in the toolbox of Inf-Net's tables."""

import cv2
import numpy as np
from scipy import ndimage

EPS = np.finfo(np.float64).eps


def minmax(values: np.ndarray) -> np.ndarray:
    """Stretches a map to [0, 1]; a constant map is returned as it is (nothing to stretch)."""
    low, high = float(values.min()), float(values.max())
    return values if high == low else (values - low) / (high - low)


def resize_map(prob_map: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resizes a float64 map [h, w] bilinearly (half-pixel centres, no antialias) to `shape`."""
    same = prob_map.shape == tuple(shape)
    return prob_map if same else cv2.resize(prob_map, shape[::-1], interpolation=cv2.INTER_LINEAR)


def e_measure_of_counts(
    tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray
) -> np.ndarray:
    """E-measure from counts of any one shape: two masks only have four alignment values."""
    total, truth, marked = tp + fp + fn + tn, tp + fn, tp + fp
    mark_mean, truth_mean = marked / total, truth / total

    def part(mark: int, lesion: int) -> np.ndarray:
        a, b = mark - mark_mean, lesion - truth_mean
        return (2 * a * b / (a * a + b * b + EPS) + 1) ** 2 / 4

    aligned = tp * part(1, 1) + fp * part(1, 0) + fn * part(0, 1) + tn * part(0, 0)
    aligned = np.where(truth == 0, total - marked, np.where(truth == total, marked, aligned))
    return aligned / (total - 1 + EPS)


def s_measure(values: np.ndarray, truth: np.ndarray) -> float:
    """Structure measure (alpha .5) of a soft map [H, W] in [0, 1] against a bool truth [H, W].

    An empty truth scores 1 - mean(map), a full one mean(map).
    """
    share = truth.mean()
    if share in (0, 1):
        return float(values.mean() if share else 1 - values.mean())
    objects = share * _object_score(values[truth])
    objects += (1 - share) * _object_score(1 - values[~truth])
    return float(max(0.0, 0.5 * objects + 0.5 * _region_score(values, truth)))


def _object_score(inside: np.ndarray) -> float:
    mean = inside.mean()
    spread = inside.std(ddof=1) if inside.size > 1 else 0.0
    return 2 * mean / (mean * mean + 1 + spread + EPS)


def _region_score(values: np.ndarray, truth: np.ndarray) -> float:
    """Area-weighted similarity of the four quadrants around the truth's centroid."""
    rows, columns = np.nonzero(truth)
    # The centroid counts from 1 and rounds half up: it is the size of the upper left quadrant.
    row, column = (int(np.floor(axis.mean() + 1.5)) for axis in (rows, columns))
    total = 0.0
    for vertical in (slice(None, row), slice(row, None)):
        for horizontal in (slice(None, column), slice(column, None)):
            x, y = values[vertical, horizontal], truth[vertical, horizontal].astype(np.float64)
            if x.size:
                total += x.size / truth.size * _similarity(x, y)
    return total


def _similarity(x: np.ndarray, y: np.ndarray) -> float:
    mean_x, mean_y, free = x.mean(), y.mean(), x.size - 1 + EPS
    var_x, var_y = ((x - mean_x) ** 2).sum() / free, ((y - mean_y) ** 2).sum() / free
    covariance = ((x - mean_x) * (y - mean_y)).sum() / free
    above = 4 * mean_x * mean_y * covariance
    below = (mean_x**2 + mean_y**2) * (var_x + var_y)
    return above / (below + EPS) if above != 0 else float(below == 0)


def weighted_f(values: np.ndarray, truth: np.ndarray) -> float:
    """Weighted F (beta 1) of a soft map [H, W] in [0, 1]; NaN for an empty truth (undefined)."""
    if not truth.any():
        return float("nan")
    error = np.abs(values - truth)
    distance, nearest = ndimage.distance_transform_edt(~truth, return_indices=True)
    offsets = np.arange(-3, 4)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 5.0**2))
    spread = ndimage.correlate(error[tuple(nearest)], kernel / kernel.sum(), mode="constant")
    smallest = np.where(truth, np.minimum(error, spread), error)
    weighted = smallest * np.where(truth, 1.0, 2 - np.exp(np.log(0.5) / 5 * distance))
    hits, false = truth.sum() - weighted[truth].sum(), weighted[~truth].sum()
    recall, precision = 1 - weighted[truth].mean(), hits / (hits + false + EPS)
    return float(2 * recall * precision / (recall + precision + EPS))

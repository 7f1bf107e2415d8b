"""Right and left lung of a lung mask, and labels spread over the infection that they miss.

Grids as in `regions`: columns run from the patient's right to the left.
"""

import cv2
import numpy as np
from scipy import ndimage

RIGHT, LEFT = 1, 2
_SMALL = 256  # pixels of the longer side at which bridges between the lungs are looked for


def split(lung: np.ndarray, *, upright: bool = True) -> np.ndarray:
    """Tells the right lung from the left, each slice on its own, in the middle of all lungs.

    Args:
      lung: bool or integer, > 0 inside, [H, W] or [D, H, W].
      upright: columns run from the patient's right to the left; if not, rows do.

    Returns:
      uint8, the same shape: 0 outside, 1 the patient's right lung, 2 the left.
    """
    inside = lung > 0
    if not upright:
        return np.swapaxes(split(np.swapaxes(inside, -1, -2)), -1, -2)
    columns = np.flatnonzero(inside.reshape(-1, inside.shape[-1]).any(0))
    middle = float(columns[0] + columns[-1]) / 2 if columns.size else inside.shape[-1] / 2
    out = np.zeros(inside.shape, np.uint8)
    for i in np.ndindex(inside.shape[:-2]):  # the one slice, or those of a volume
        out[i] = _split_slice(inside[i], middle)
    return out


def lies_on_side(lung: np.ndarray) -> bool:
    """Whether the two lungs lie above each other in a slice, as in transposed pictures.

    The slice is bool or integer [H, W], > 0 inside; False where fewer than two lungs are seen.
    """
    labels = two_lungs(lung > 0)
    if labels.max() < 2:
        return False
    (r1, c1), (r2, c2) = ndimage.center_of_mass(labels > 0, labels, [1, 2])
    return bool(abs(r1 - r2) > abs(c1 - c2))


def unite(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of labels (lungs, lobes, regions), spread over the infection that they miss.

    Labels are integer, 0 outside, [H, W] or [D, H, W]; the mask, of the same shape, is infected
    where > 0. The nearest label of the same slice counts; of the nearest slice that has any,
    where the slice has none.

    Raises:
      ValueError: shapes that differ.
    """
    if labels.shape != mask.shape:
        raise ValueError(f"labels of shape {labels.shape} and a mask of {mask.shape}")
    if labels.ndim == 2:
        return unite(labels[None], mask[None])[0]
    out, missed = labels.copy(), (mask > 0) & (labels == 0)
    labelled = np.flatnonzero(labels.any((1, 2)))
    for i in np.flatnonzero(missed.any((1, 2))) if labelled.size else ():
        source = labels[labelled[np.abs(labelled - i).argmin()]]
        out[i] = np.where(missed[i], _nearest(source), labels[i])
    return out


def two_lungs(lung: np.ndarray) -> np.ndarray:
    """The two largest pieces of a slice's lungs, bool [H, W], thin bridges cut.

    Integer [H, W]: 0 outside, 1 the larger piece, 2 the other; only 0 and 1 if it has one.
    """
    scale = min(1.0, _SMALL / max(lung.shape))
    marked = lung.astype(np.uint8)
    whole = cv2.resize(marked, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    n = np.sqrt(whole.size)
    for radius in range(0, max(int(0.06 * n), 1), max(int(0.006 * n), 1)):
        labels, areas = components(cv2.erode(whole, disk(radius)) if radius else whole)
        first, second = np.argsort(-areas)[:2] if len(areas) > 2 else (0, 0)
        if areas[second] > 0.15 * areas.sum():
            seeds = np.select([labels == first, labels == second], [1, 2]).astype(np.uint8)
            wide = cv2.resize(_nearest(seeds), lung.shape[::-1], interpolation=cv2.INTER_NEAREST)
            return np.where(lung, wide, 0)
    return marked


def components(mask: np.ndarray, connectivity: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Connected components of a mask, bool or uint8 [H, W]: labels, int32 [H, W], 0 outside.

    And the pixels of each label, int32 [n + 1], 0 for label 0.
    """
    mask = mask.astype(np.uint8, copy=False)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    return labels, areas


def disk(radius: float) -> np.ndarray:
    """A disk for morphology, uint8 [2 r + 1, 2 r + 1], of at least one pixel's radius."""
    r = max(round(float(radius)), 1)
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))


def _nearest(labels: np.ndarray) -> np.ndarray:
    """The nearest label of each pixel [H, W]; there must be one."""
    near = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return labels[tuple(near)]


def _split_slice(inside: np.ndarray, middle: float) -> np.ndarray:
    """Each piece goes to the side that its two-lung partner or the middle column says."""
    two, column = two_lungs(inside), np.arange(inside.shape[1])[None, :]
    if two.max() == 2:
        centres = [ndimage.center_of_mass(two == k)[1] for k in (1, 2)]
        if (centres[0] < middle) != (centres[1] < middle):
            turned = (0, 1, 2) if centres[0] < middle else (0, 2, 1)
            return np.array(turned, np.uint8)[two]
    return np.where(inside, np.where(column <= middle, 1, 2), 0).astype(np.uint8)

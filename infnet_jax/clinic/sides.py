"""Right and left lung of a lung mask, and labels spread over the infection that they miss.

Grids as in `regions`: columns run from the patient's right to the left.
"""

import cv2
import numpy as np
from scipy import ndimage

RIGHT, LEFT = 1, 2
NAMES = {RIGHT: "right", LEFT: "left"}
STRAY = 0.02  # of the lungs: a side with less is no lung
CROSSING = 0.1  # of the only lung: so much may lie beyond the middle of the body
_SMALL = 256  # pixels of the longer side at which bridges between the lungs are looked for


def halves(
    lung: np.ndarray, mask: np.ndarray, middle: float, *, upright: bool = True
) -> tuple[np.ndarray, int | None]:
    """Tells the right lung from the left, and gives infection beside them to the nearest.

    Where all lung lies on one side of the body, the other side has none, and infection there has
    no side: how large its lung is, nobody knows.

    Args:
      lung, mask: bool or integer, > 0 inside, [D, H, W].
      middle: of the body, a column (a row if not `upright`); upright: as in `split`.

    Returns:
      uint8 [D, H, W] as `split`, and the side that is all there is, or None.
    """
    if not upright:
        turned, only = halves(np.swapaxes(lung, 1, 2), np.swapaxes(mask, 1, 2), middle)
        return np.swapaxes(turned, 1, 2), only
    inside, infected = lung > 0, mask > 0
    if CROSSING < _share_before(inside, middle) < 1 - CROSSING:
        return unite(split(inside), infected), None
    only = only_side(inside, middle)
    if only is None:  # a small lung beside a large one
        return unite(split(inside, middle=middle), infected), None
    before = np.arange(lung.shape[2]) <= middle
    own = infected & (before if only == RIGHT else ~before)
    return unite(np.where(inside, only, 0).astype(np.uint8), own), only


def only_side(lung: np.ndarray, middle: float) -> int | None:
    """The side on which all lung lies, bool [D, H, W], or None.

    By columns, and by pieces of slices: the only lung may grow over the middle of the body, and a
    shrunken one is a piece of its own.
    """
    right, total, share = 0, np.count_nonzero(lung), _share_before(lung, middle)
    if CROSSING < share < 1 - CROSSING:
        return None
    side = RIGHT if share > 0.5 else LEFT
    for one in lung:
        if one.any():
            _, _, stats, centres = cv2.connectedComponentsWithStats(one.astype(np.uint8))
            right += int(stats[1:, cv2.CC_STAT_AREA][centres[1:, 0] <= middle].sum())
    across = 1 - right / total if side == RIGHT else right / total
    return side if across < STRAY else None


def _share_before(lung: np.ndarray, middle: float) -> float:
    """The share of the lung, bool [D, H, W], in the columns up to the middle; of none one half."""
    columns = np.count_nonzero(lung, axis=(0, 1))
    return float(columns[: int(middle) + 1].sum() / columns.sum()) if columns.any() else 0.5


def body_middle(pictures: np.ndarray, *, upright: bool = True) -> float:
    """The column in the middle of the body (row if not upright) of uint8 pictures [D, H, W].

    It is halfway between the ends of the largest bright part, whatever lies inside it; in the
    middle of the picture where there is none.
    """
    if not upright:
        return body_middle(np.swapaxes(pictures, 1, 2))
    found = []
    for i in np.unique(np.linspace(0, len(pictures) - 1, 15).astype(int)):
        _, bright = cv2.threshold(pictures[i], 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        labels, areas = components(bright)
        if areas.any():
            columns = np.flatnonzero((labels == areas.argmax()).any(0))
            found.append((columns[0] + columns[-1]) / 2)
    return float(np.median(found)) if found else (pictures.shape[2] - 1) / 2


def split(lung: np.ndarray, *, upright: bool = True, middle: float | None = None) -> np.ndarray:
    """Tells the right lung from the left, each slice on its own, in the middle of all lungs.

    Args:
      lung: bool or integer, > 0 inside, [H, W] or [D, H, W].
      middle: the column between the lungs, if known.
      upright: columns run from the patient's right to the left; if not, rows do.

    Returns:
      uint8, the same shape: 0 outside, 1 the patient's right lung, 2 the left.
    """
    inside = lung > 0
    if not upright:
        return np.swapaxes(split(np.swapaxes(inside, -1, -2), middle=middle), -1, -2)
    if middle is None:
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

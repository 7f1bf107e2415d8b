"""Lungs of chest-CT pictures: by morphology (`segment`, no training needed), or by a network.

Written for 8-bit pictures in a lung window, whole or cropped close to the lungs, in any turn: no
rule asks where the front is. Sizes are relative to the picture's side, sqrt(H W).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy import ndimage

from infnet_jax.clinic.plausible import without_frame
from infnet_jax.clinic.sides import components, disk, two_lungs

SOFT_SHARE = 0.75  # the threshold's place between lung and soft tissue: ground glass is below it
BACKGROUND_CONTACT = 0.35  # share of its outline on the picture's edge that makes air outside
MIN_PART, MIN_PICTURE = 0.02, 0.0006  # smallest lung part: of the largest part, of the picture
TUBE = 0.012  # windpipe and bowel loops are smaller than this share of the picture, and darker
OPENING, CLOSING = 0.006, 0.03  # radii that cut off airways, and that bridge vessels
MAX_HOLE = 0.08  # of both lungs: larger holes are the domes of the diaphragm
MAX_NOTCH = 0.3  # of a lung: larger notches in its outer wall are no lesion
WORK = 320  # pixels of the longer side; finer detail does not matter to these rules
UNDER_LUNG = 0.4  # share of a part that the lung of the slice before must cover
_PAD = 0.12  # room around the picture for the closing
ROOM = 0.05  # margin around the lungs in the second pass, as a fraction of their extent
CLOSING_EACH = 0.2  # closing radius, as a fraction of sqrt(lung area)
MAX_ADDED = 0.025  # of the lung's area: larger notches stay open


class _Part(NamedTuple):
    """A dark part inside the body: a lung, or something that looks like one."""

    label: int
    area: int
    grey: float  # its median


def segment(grey: np.ndarray) -> np.ndarray:
    """Finds the lungs in uint8 [H, W], or [D, H, W] for a volume of neighbouring slices.

    Returns:
      bool, the same shape; all False where no lung was found. Vessels, small holes and notches in
      the outer wall are inside. Dense lesions that end a lung are lost: unite the infection.

    Raises:
      ValueError: another dtype or number of axes.
    """
    if grey.dtype != np.uint8 or grey.ndim not in (2, 3):
        raise ValueError(f"grey {grey.dtype} {grey.shape}: uint8 [H, W] or [D, H, W] expected")
    out = np.zeros(grey.shape, bool)
    for i in np.ndindex(grey.shape[:-2]):  # the one slice, or those of a volume
        out[i] = _segment_slice(grey[i])
    return without_islands(out) if out.ndim == 3 else out


def without_islands(lung: np.ndarray) -> np.ndarray:
    """A volume, bool [D, H, W], without what hangs together with no lung: gas in the bowel.

    A single slice stays as it is.
    """
    if len(lung) < 2 or not lung.any():
        return lung
    height, width = lung.shape[1:]
    scale = min(1.0, 128 / max(height, width))  # touching or not is seen on a coarse grid too
    coarse = np.stack([_resized(s.astype(np.float32), scale) > 0 for s in lung])
    labels, _ = ndimage.label(coarse, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = ((sizes >= 0.1 * sizes.max())[labels] & coarse).astype(np.uint8)
    wide = [cv2.resize(k, (width, height), interpolation=cv2.INTER_NEAREST) for k in kept]
    return without_newcomers(lung & (np.stack(wide) > 0))


def without_newcomers(lung: np.ndarray) -> np.ndarray:
    """A volume, bool [D, H, W], without parts of a slice that lie under no lung: gas again.

    From the slice with the largest lungs up and down, since they only narrow towards their ends.
    """
    out = lung.copy()
    # By the two largest parts of each slice, its lungs, whatever else is marked.
    largest = int(np.argmax([np.sort(components(marked)[1])[-2:].sum() for marked in lung]))
    for indices in (range(largest + 1, len(out)), range(largest - 1, -1, -1)):
        before = out[largest]
        for i in indices:
            labels, areas = components(out[i])
            common = np.bincount(labels[before], minlength=len(areas))
            out[i] = ((common >= UNDER_LUNG * areas) & (areas > 0))[labels]
            before = out[i] if out[i].any() else before
    return out


def _segment_slice(grey: np.ndarray) -> np.ndarray:
    """Works at most at WORK pixels a side; larger slices are shrunk, and their masks enlarged."""
    inside = without_frame(grey)
    if grey[inside].size < grey.size:
        out = np.zeros(grey.shape, bool)
        out[inside] = _segment_slice(np.ascontiguousarray(grey[inside]))
        return out
    scale = WORK / max(grey.shape)
    if scale >= 1:
        return _segment_small(grey)
    lung = _segment_small(_resized(grey, scale)).astype(np.float32)
    return cv2.resize(lung, grey.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5


def _resized(picture: np.ndarray, scale: float) -> np.ndarray:
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _segment_small(grey: np.ndarray) -> np.ndarray:
    n = np.sqrt(grey.size)
    smooth = cv2.GaussianBlur(grey, (0, 0), max(n / 250, 0.5))
    otsu, _ = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    low, high = smooth <= otsu, smooth > otsu
    if not low.any() or not high.any():
        return np.zeros(grey.shape, bool)
    air, soft = (float(np.median(smooth[here])) for here in (low, high))
    dark = (smooth < air + SOFT_SHARE * (soft - air)).astype(np.uint8)
    outside = _outside_air(dark)
    inner = cv2.morphologyEx(dark * ~outside, cv2.MORPH_OPEN, disk(OPENING * n))
    bright, areas = components(1 - dark)
    body = (areas >= 0.05 * max(areas.max(), 1))[bright]  # the table and its like are small
    labels, parts = _parts(inner, smooth, body)
    around = float(np.median(smooth[outside])) if outside.any() else 0.0
    parts = _without_gas(parts, around, soft, grey.size)
    lung = np.isin(labels, [part.label for part in parts])
    if not lung.any():
        return lung
    pad = int(_PAD * n) + 1
    lung = fill_holes(np.pad(lung, pad))
    closed = cv2.morphologyEx(lung.astype(np.uint8), cv2.MORPH_CLOSE, disk(CLOSING * n)) > 0
    lung = _fill_notches(fill_holes(closed), n)
    return lung[pad:-pad, pad:-pad]


def _outside_air(dark: np.ndarray) -> np.ndarray:
    """Bool: dark parts that run along the picture's edge, not only touch it as cropped lungs do."""
    n, labels = cv2.connectedComponents(dark, connectivity=4)
    frame = np.ones(dark.shape, bool)
    frame[1:-1, 1:-1] = False
    rim = (dark > 0) & ~ndimage.binary_erosion(dark, border_value=1)
    on_frame, on_rim = (np.bincount(labels[line], minlength=n) for line in (frame, rim))
    outside = on_frame > BACKGROUND_CONTACT * (on_frame + on_rim)
    outside[0] = False
    return outside[labels]


def _parts(
    inner: np.ndarray, smooth: np.ndarray, body: np.ndarray
) -> tuple[np.ndarray, list[_Part]]:
    """Labels int32 [H, W], and those that are large enough and surrounded by the body."""
    labels, areas = components(inner, connectivity=4)
    least = max(MIN_PART * areas.max(), MIN_PICTURE * inner.size)
    parts = []
    for label in np.flatnonzero(areas >= least):
        here = labels == label
        ring = (cv2.dilate(here.astype(np.uint8), disk(3)) > 0) & ~here
        if ring.any() and body[ring].mean() >= 0.3:
            parts.append(_Part(int(label), int(areas[label]), float(np.median(smooth[here]))))
    return labels, parts


def _without_gas(parts: list[_Part], air: float, soft: float, size: int) -> list[_Part]:
    """Leaves out windpipe and bowel: as dark as the air outside, or small and darker than lung."""
    kept = []
    for part in parts:
        others = [o.grey for o in parts if o is not part and o.area >= 0.3 * part.area]
        as_air = air > 8 and part.grey < air + 0.06 * (soft - air) and part.area < 0.08 * size
        darker = part.area < TUBE * size and part.grey < min(others, default=0) - 0.02 * soft
        if not (as_air or darker):
            kept.append(part)
    enough = sum(p.area for p in kept) >= 0.3 * sum(p.area for p in parts)
    return kept if enough else parts


def fill_holes(lung: np.ndarray) -> np.ndarray:
    """Fills holes of a slice's lungs, bool [H, W], that are small beside them."""
    holes = ndimage.binary_fill_holes(lung) & ~lung
    labels, areas = components(holes, connectivity=4)
    return lung | ((areas > 0) & (areas <= MAX_HOLE * lung.sum()))[labels]


def _fill_notches(lung: np.ndarray, n: float) -> np.ndarray:
    """Fills notches of each lung's hull that open to the chest wall, not to the other lung."""
    labels = two_lungs(lung)
    if labels.max() < 2:
        return lung
    out, both = lung.copy(), depth(_hull(lung))
    for side in (1, 2):
        own = labels == side
        hull = _hull(own)
        rim = (depth(hull) < 3) & hull
        gaps = cv2.morphologyEx((hull & ~lung).astype(np.uint8), cv2.MORPH_OPEN, disk(0.006 * n))
        gap, areas = components(gaps)
        for k in range(1, len(areas)):
            mouth = (gap == k) & rim
            if areas[k] < MAX_NOTCH * own.sum() and mouth.any() and (both[mouth] < 6).mean() > 0.8:
                out |= gap == k
    return out


def _hull(mask: np.ndarray) -> np.ndarray:
    """The convex hull of a mask, bool [H, W]."""
    out = np.zeros(mask.shape, np.uint8)
    points = cv2.findNonZero(mask.astype(np.uint8))
    return cv2.fillConvexPoly(out, cv2.convexHull(points), 1) > 0


def depth(mask: np.ndarray) -> np.ndarray:
    """Distance to the outside of a mask, bool [H, W], in pixels, float32 [H, W]."""
    return cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)


def find(
    run: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]],
    pictures: Sequence[np.ndarray],
    threshold: float,
) -> np.ndarray:
    """Finds lungs with a network, in two passes: the second sees them as large as it can.

    Args:
      run: the network, from uint8 [H, W] pictures to as many maps of lung, 0..1, of any size.
      pictures: the slices of a volume in order, or one picture; of one size.
      threshold: from which a pixel is lung.

    Returns:
      bool [D, H, W], tidied, each lung closed; all False where the first pass found none.
    """

    def marked(crop: tuple[slice, slice]) -> np.ndarray:
        shown, out = [np.ascontiguousarray(picture[crop]) for picture in pictures], empty.copy()
        for one, prob in zip(out, run(shown), strict=True):  # map by map: few are in memory
            wide = cv2.resize(prob, shown[0].shape[::-1], interpolation=cv2.INTER_LINEAR)
            one[crop] = wide >= threshold
        return tidy(out)

    empty = np.zeros((len(pictures), *pictures[0].shape), bool)
    found = marked(np.s_[:, :])
    if not found.any():
        return found
    rows, columns = (np.flatnonzero(found.any(axes)) for axes in ((0, 2), (0, 1)))
    crop = (_with_room(rows), _with_room(columns))
    if empty[0][crop].size <= 0.9 * empty[0].size:
        found = marked(crop)
    return np.stack([close_each(one) for one in found])


def _with_room(at: np.ndarray) -> slice:
    """From the first to the last of these indices, and a margin."""
    room = ROOM * np.ptp(at)
    return slice(max(0, int(at[0] - room)), int(at[-1] + 1 + room))


def tidy(found: np.ndarray) -> np.ndarray:
    """What a network marks as lung, bool [D, H, W], without specks, islands and small holes."""
    out = np.zeros(found.shape, bool)
    for i, marked in enumerate(found):
        labels, areas = components(marked)
        out[i] = fill_holes((areas >= max(MIN_PART * areas.max(), 1))[labels])
    return without_islands(out)


def close_each(lung: np.ndarray) -> np.ndarray:
    """A slice, bool [H, W], with small notches of each lung closed; what lies between stays out.

    Large notches are the heart and the domes of the diaphragm.
    """
    out, labels = lung.copy(), two_lungs(lung)
    for side in np.unique(labels[labels > 0]):
        own = labels == side
        radius = CLOSING_EACH * np.sqrt(own.sum())
        pad = int(radius) + 2
        grown = depth(~np.pad(own, pad)) <= radius  # by distances: a wide disk would be slow
        added = (depth(grown) > radius)[pad:-pad, pad:-pad] & ~lung
        notches, areas = components(added)
        out |= ((areas > 0) & (areas <= MAX_ADDED * own.sum()))[notches]
    return out

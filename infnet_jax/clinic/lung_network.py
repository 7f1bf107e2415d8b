"""Lungs of chest-CT pictures by a network: two passes, then the rules for what it marks."""

from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np

from infnet_jax.clinic import lungs, sides

ROOM = 0.05  # margin around the lungs in the second pass, as a fraction of their extent
CLOSING_EACH = 0.2  # closing radius, as a fraction of sqrt(lung area)
MAX_ADDED = 0.025  # of the lung's area: larger notches stay open


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
      bool [D, H, W], tidied, each lung closed, since dense lesions at the wall leave notches; all
      False where the first pass found none.
    """
    found = tidy(_marked(run(pictures), pictures[0].shape, len(pictures), threshold))
    if not found.any():
        return found
    spans = (np.flatnonzero(found.any(axes)) for axes in ((0, 2), (0, 1)))  # of rows, of columns
    crop = tuple(
        slice(max(0, int(at[0] - ROOM * np.ptp(at))), int(at[-1] + 1 + ROOM * np.ptp(at)))
        for at in spans
    )
    cropped = [np.ascontiguousarray(picture[crop]) for picture in pictures]
    if cropped[0].size <= 0.9 * pictures[0].size:
        again = np.zeros_like(found)
        again[:, *crop] = _marked(run(cropped), cropped[0].shape, len(cropped), threshold)
        found = tidy(again)
    return np.stack([close_each(marked) for marked in found])


def tidy(found: np.ndarray) -> np.ndarray:
    """What a network marks as lung, bool [D, H, W], without specks, islands and small holes."""
    out = np.zeros(found.shape, bool)
    for i, marked in enumerate(found):
        labels, areas = sides.components(marked)
        out[i] = lungs.fill_holes((areas >= max(lungs.MIN_PART * areas.max(), 1))[labels])
    return lungs.without_islands(out)


def close_each(lung: np.ndarray) -> np.ndarray:
    """A slice, bool [H, W], with small notches of each lung closed; what lies between stays out.

    Large notches are the heart and the domes of the diaphragm.
    """
    out, labels = lung.copy(), sides.two_lungs(lung)
    for side in np.unique(labels[labels > 0]):
        own = labels == side
        radius = CLOSING_EACH * np.sqrt(own.sum())
        pad = int(radius) + 2
        grown = lungs.depth(~np.pad(own, pad)) <= radius  # by distances: a wide disk would be slow
        added = (lungs.depth(grown) > radius)[pad:-pad, pad:-pad] & ~lung
        notches, areas = sides.components(added)
        out |= ((areas > 0) & (areas <= MAX_ADDED * own.sum()))[notches]
    return out


def _marked(
    maps: Iterable[np.ndarray], shape: tuple[int, int], count: int, threshold: float
) -> np.ndarray:
    """Bool [count, *shape], map by map, so that few are in memory."""
    out = np.zeros((count, *shape), bool)
    for marked, prob in zip(out, maps, strict=True):
        marked[:] = cv2.resize(prob, shape[::-1], interpolation=cv2.INTER_LINEAR) >= threshold
    return out

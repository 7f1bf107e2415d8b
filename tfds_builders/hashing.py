"""A perceptual hash of pictures, and pairs of hashes that are near each other."""

from collections.abc import Iterator

import cv2
import numpy as np

SIDE = 16  # the lowest SIDE x SIDE waves of the picture, one bit each
WORDS = SIDE * SIDE // 64
_BLOCK = 1024


def perceptual_hash(picture: np.ndarray) -> np.ndarray:
    """Hashes uint8 [H, W]: the signs of the lowest cosine waves of its 64 x 64 version.

    Re-encoding and rescaling change few bits. Returns uint64 [4]; a flat picture hashes to 0.
    """
    small = cv2.resize(picture, (4 * SIDE, 4 * SIDE), interpolation=cv2.INTER_AREA)
    waves = cv2.dct(small.astype(np.float32))[:SIDE, :SIDE]
    waves[0, 0] = 0  # the mean says nothing about the content
    return np.packbits(waves > 1).view(np.uint64)  # ties of a flat picture are noise below 1


def near_pairs(
    first: np.ndarray, second: np.ndarray, radius: int
) -> Iterator[tuple[int, int, int]]:
    """Yields (i, j, bits) for hashes first[i] and second[j] that differ in at most radius bits.

    Args:
      first: uint64 [N, W].
      second: uint64 [M, W]. Memory stays below 50 MB whatever N is, time grows as N x M.
    """
    for i in range(0, len(first), _BLOCK):
        for j in range(0, len(second), _BLOCK):
            a, b = first[i : i + _BLOCK, None], second[None, j : j + _BLOCK]
            bits = np.bitwise_count(a ^ b).sum(-1, dtype=np.uint16)
            for r, c in zip(*np.nonzero(bits <= radius), strict=True):
                yield int(i + r), int(j + c), int(bits[r, c])

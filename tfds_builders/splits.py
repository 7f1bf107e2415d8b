"""Splits by patient: a seeded rule that gives the same patient the same split every time."""

import hashlib
from collections.abc import Iterable, Mapping


def split_groups(
    groups: Iterable[str], shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, str]:
    """Assigns each group to a split.

    Groups are put in the order of sha256 of `seed/group` and dealt out by the shares, so the
    numbers are as near to the shares as whole groups allow. Pass every group that the dataset is
    known to have, whether it is at hand or not: then a partial download is split like the whole.

    Args:
      groups: names; repetitions do not count.
      shares: split name to a share, summing to 1.

    Returns:
      Group name to split name; empty for no groups.

    Raises:
      ValueError: the shares do not sum to 1.
    """
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares of splits must sum to 1, got {dict(shares)}")
    names = sorted(set(groups), key=lambda g: hashlib.sha256(f"{seed}/{g}".encode()).digest())
    found, done, total = {}, 0, 0.0
    for split, share in shares.items():
        total += share
        end = round(total * len(names))
        found.update(dict.fromkeys(names[done:end], split))
        done = end
    return found

"""What the numbers of a label map stand for: infection, lungs or lobes, and where they must lie."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from infnet_jax.clinic import sides

LESIONS = ("ggo", "consolidation")
INFECTION, IGNORE = "infection", "ignore"
KINDS = (INFECTION, *LESIONS, IGNORE)
EXAMPLE = "--labels 1=ggo,2=consolidation,3=ignore"
# First ids of five lobes in one order: lungmask, TotalSegmentator 2, TotalSegmentator 1.
FIRST_LOBES = (1, 10, 13)
LOBES = ("left upper", "left lower", "right upper", "right middle", "right lower")
WINDPIPE = 5  # beside the lungs 3 and 4 in the masks of LUNA16
FULL = 0.8  # of the lungs: more is rare; 0.83 is the most of 98 slices of infected patients
WHOLE = 0.95  # of the lungs: what marks more is a map of lungs
HALF_FULL = 1 / 3  # the same of labels that lie on one side each
ONE_SIDE = 0.9  # of a label's voxels
AERATED_HU = -750  # healthy lung; ground glass is denser

Meaning = Mapping[int, str]  # a map's number -> one of `KINDS`


def parse(text: str) -> dict[int, str]:
    """The meaning of labels as a user types it, `1=ggo,2=consolidation,3=ignore`.

    Raises:
      ValueError: anything else, or infection of unknown kind beside known kinds.
    """
    found: dict[int, str] = {}
    for pair in text.split(","):
        number, _, kind = (part.strip() for part in pair.partition("="))
        right = number.isdecimal() and 0 < int(number) < 256 and kind in KINDS
        if not right or int(number) in found:
            raise ValueError(
                f"--labels {text}: {pair!r}; NUMBER=KIND expected, each number (1 to 255) once, of "
                f"the kinds {', '.join(KINDS)}, such as {EXAMPLE}"
            )
        found[int(number)] = kind
    kinds = set(found.values()) - {IGNORE}
    if not kinds:
        raise ValueError(f"--labels {text}: no label is infection")
    if INFECTION in kinds and len(kinds) > 1:
        raise ValueError(
            f"--labels {text}: infection of unknown kind beside known kinds; call all of them "
            "infection, or leave it out with ignore"
        )
    return found


def infection(
    labels: np.ndarray, file: str, *, meaning: Meaning | None = None, others: Collection[int] = ()
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Returns the infection of a label map.

    Without a meaning, 255 is infection of any kind; 1, 2 and 3 are ground glass, consolidation and
    effusion, but where neither this map nor the others hold 2 or 3, 1 is infection of any kind.

    Args:
      labels: integer, any shape, 0 none; file: its name, for messages.
      meaning: of all its labels; None if nobody said.
      others: the labels of the maps that belong to it, such as those of the same folder.

    Returns:
      The mask, uint8 of the same shape, 0, 1 and 2; what 1 and 2 are; and warnings.

    Raises:
      ValueError: labels whose meaning is not known; names the file.
    """
    values = held(labels)
    shown, notes = f"{file}: labels {_listed(values)}", []
    if meaning is None and 255 in values and values <= {0, 255}:
        meaning = {255: INFECTION}
    elif meaning is None:
        if not values <= {0, 1, 2, 3}:
            raise ValueError(f"{shown}; 0 to 3, or 0 and 255, expected; name others: {EXAMPLE}")
        if {2, 3} & (values | set(others)):
            meaning = dict(enumerate((*LESIONS, IGNORE), start=1))
        else:
            meaning = {1: INFECTION}
            if 1 in values:
                how = "--labels 1=ggo or 1=consolidation names it"
                notes.append(f"{file}: label 1 is taken as infection of unknown kind; {how}")
        if 3 in values:
            notes.append(f"{file}: label 3 is taken as effusion and left out")
    elif not values <= {0, *meaning}:
        raise ValueError(f"{shown}; 0 and those that are named ({told(meaning)}) expected")
    classes = (INFECTION,) if INFECTION in meaning.values() else LESIONS
    table = np.zeros(256, np.uint8)
    for number, kind in meaning.items():
        table[number] = 0 if kind == IGNORE else 1 + classes.index(kind)
    return table[labels], classes, notes


def told(meaning: Meaning) -> str:
    """A meaning as `parse` reads it."""
    return ",".join(f"{number}={kind}" for number, kind in meaning.items())


def doubts(
    mask: np.ndarray, lung: np.ndarray, name: str, *, hu: np.ndarray | None, sure: bool
) -> list[str]:
    """Warnings about a mask of infection that looks like a map of something else.

    Args:
      mask: uint8 [D, H, W], 0..2, canonical; lung: bool, the same shape; name: for messages.
      hu: Hounsfield units, the same shape, where they are known.
      sure: somebody said what the labels are, so that nothing is refused.

    Raises:
      ValueError: labels 1 and 2 fill the lungs, or lie on one side each, as those of lungs do.
    """
    sick = mask > 0
    inside, n_sick = lung | sick, int(np.count_nonzero(sick))
    if not n_sick:
        return []
    notes, share = [], n_sick / int(np.count_nonzero(inside))
    marked = f"{100 * share:.0f} % of the lung is marked"
    if (mask == 1).any() and (mask == 2).any():
        apart = _one_side_each(mask, inside)
        where = ", label 1 on one side and 2 on the other" if apart else ""
        text = f"{name}: {marked}{where}: a map of lungs or lobes?"
        if not sure and share > (HALF_FULL if apart else WHOLE):
            raise ValueError(f"{text} If not, say so to severity: {EXAMPLE}")
        if share > FULL or apart and share > 0.05:
            notes.append(text)
    elif share > WHOLE:
        notes.append(f"{name}: {marked}: is the mask one of lungs, not of infection?")
    if hu is not None and share > 0.05:
        level = float(np.median(hu[sick]))
        if level < AERATED_HU:
            notes.append(f"{name}: what is marked has {level:.0f} HU, as lung without infection")
    return notes


def lungs(labels: np.ndarray, file: str) -> tuple[np.ndarray, list[str]]:
    """The lungs of a lung mask or lobe map, bool of the same shape, and warnings.

    Labels are integer: one or two of any number, one a lobe, or grey levels of a picture that was
    resized or saved as JPG, whose upper half counts.

    Raises:
      ValueError: labels of many things, or a mask of nothing; names the file.
    """
    found = held(labels) - {0}
    lobes = any(found <= set(range(first, first + 5)) for first in FIRST_LOBES)
    if found == {3, 4, WINDPIPE}:
        tube = labels == WINDPIPE
        if np.count_nonzero(tube) < 0.1 * np.count_nonzero(labels):
            return (labels > 0) & ~tube, [
                f"{file}: label 5 beside 3 and 4 is the windpipe; no lung"
            ]
    if lobes or len(found) <= 2:
        return labels > 0, []
    bright, middle = labels > 31, (labels > 31) & (labels < 224)
    if max(found) < 192 or np.count_nonzero(middle) > 0.3 * np.count_nonzero(bright):
        raise ValueError(
            f"{file}: labels {_listed(found)}; a mask of lungs has one label, or one for each lung "
            "or lobe"
        )
    return labels > 127, [f"{file}: grey levels; those above 127 are taken as lung"]


def standard_lobes(labels: np.ndarray, file: str = "lobe map") -> np.ndarray:
    """A lobe map, any shape, as uint8 1..5 in the order of `LOBES`.

    Labels are lungmask's 1..5, or all five of TotalSegmentator's 10..14 (13..17 in version 1).

    Raises:
      ValueError: any other label, ids that both versions use, or no lobe at all.
    """
    found = held(labels) - {0}
    for first in FIRST_LOBES:
        five = set(range(first, first + 5))
        if found == five or first == 1 and found and found <= five:
            return np.where(labels > 0, labels - (first - 1), 0).astype(np.uint8)
    raise ValueError(
        f"{file}: lobe labels {_listed(found)}; 1 to 5 (lungmask), or all five of 10 to 14 "
        "(TotalSegmentator; 13 to 17 in version 1) expected"
    )


def check_lobes(lobes: np.ndarray, name: str, middle: float) -> list[str]:
    """Warnings about lobes, uint8 [D, H, W], 1..5 on a canonical grid, that are not there.

    Args:
      name: for messages; middle: the column in the middle of the body.

    Raises:
      ValueError: lobes that lie where they cannot, as under another numbering.
    """
    at = {k: _centre(lobes == k) for k in held(lobes) - {0}}
    left, right = ([at[k][1] for k in side if k in at] for side in ((1, 2), (3, 4, 5)))
    if left and right:
        wrong = min(left) <= max(right)
    else:
        wrong = any(x <= middle for x in left) or any(x >= middle for x in right)
    order = ", ".join(f"{k} {lobe}" for k, lobe in enumerate(LOBES, start=1))
    if wrong and not (len(lobes) == 1 and sides.lies_on_side(lobes[0])):
        raise ValueError(f"{name}: lobes lie on the wrong side of the body; {order} expected")
    pairs = [(1, 2), (3, 5)] if len(lobes) > 3 else []
    if any(k in at and low in at and at[k][0] <= at[low][0] for k, low in pairs):
        raise ValueError(f"{name}: an upper lobe lies below the lower one; {order} expected")
    missing = [lobe for k, lobe in enumerate(LOBES, start=1) if k not in at]
    if missing and len(lobes) > 1:
        return [f"{name}: no {', '.join(missing)} lobe in the map; it has no points"]
    return []


def check_regions(regions: np.ndarray, name: str, middle: float) -> None:
    """Refuses labels 1 to 5 on both sides of the body as a map of 20 regions, [D, H, W].

    Such are lungs or lobes: 1 to 10 lie in one lung.

    Args:
      name: for messages; middle: the column in the middle of the body.
    """
    found = held(regions) - {0}
    columns = [_centre(regions == k)[1] for k in found] if found <= set(range(1, 6)) else []
    if columns and min(columns) < middle < max(columns):
        what = f"{name}: regions {_listed(found)} on both sides of the body: lungs or lobes?"
        raise ValueError(f"{what} 1 to 10 in one lung and 11 to 20 in the other expected")


def held(labels: np.ndarray) -> set[int]:
    """The numbers of a label map, of any shape."""
    if labels.dtype != np.uint8 or labels.ndim < 3:
        return set(np.unique(labels).tolist())
    counts = sum(np.bincount(one.ravel(), minlength=256) for one in labels)  # far from sorting all
    return set(np.flatnonzero(counts).tolist())


def _centre(part: np.ndarray) -> tuple[float, float]:
    """The mean slice and column of a part, bool [D, H, W], that is not empty."""
    counts = (np.count_nonzero(part, axis=axes) for axes in ((1, 2), (0, 1)))
    slices, columns = (float(np.average(np.arange(len(n)), weights=n)) for n in counts)
    return slices, columns


def _one_side_each(mask: np.ndarray, inside: np.ndarray) -> bool:
    """Whether label 1 lies in one lung and 2 in the other, [D, H, W]."""
    turned = len(inside) == 1 and sides.lies_on_side(inside[0])
    axes = (0, 2) if turned else (0, 1)
    places = np.flatnonzero(inside.any(axes))
    before = np.arange(inside.shape[1 if turned else 2]) < (places[0] + places[-1]) / 2
    first, second = (
        float(counts[before].sum() / counts.sum())
        for counts in (np.count_nonzero(mask == k, axis=axes) for k in (1, 2))
    )
    return max(first, second) > ONE_SIDE and min(first, second) < 1 - ONE_SIDE


def _listed(values: Collection[int]) -> str:
    """The first numbers in brackets."""
    some: Sequence[int] = sorted(values)
    return f"[{', '.join(map(str, some[:8]))}{', ...' if len(some) > 8 else ''}]"

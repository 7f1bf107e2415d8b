"""What networks find in training slices they have not seen: the thresholds of masks, and lungs."""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from infnet_jax.clinic import lungs
from infnet_jax.data import Source, decode, resize, text
from infnet_jax.data.sources import examples
from infnet_jax.dice import defined_mean, dice, dice_of_counts
from infnet_jax.evaluation.figures import Case, markdown_table
from infnet_jax.evaluation.predictor import full_size, mark

CANDIDATES = tuple(round(0.05 * i, 2) for i in range(1, 20))
KEPT = 0.97  # share of a slice's infected pixels inside the lung that counts as kept

Row = Mapping[str, float | None]  # of a slice, see `measure_lungs`


class OutOfFold(NamedTuple):
    """Training slices, each mapped by networks that have not seen it."""

    source: Source  # the examples, with masks
    maps: Sequence[np.ndarray]  # float32 [S, S, C] each, in the same order
    classes: tuple[str, ...]  # names of the labels 1, 2, ...


def choose(slices: OutOfFold) -> dict[str, float]:
    """The threshold of each class that gives the best mean Dice of out-of-fold masks.

    The Dice, empty-aware, is that of `predictor.mark` at the network's size, averaged over slices
    (at least one), then classes, for all `CANDIDATES`; of equal ones the nearest to 0.5. One below
    0.5 is right where a network often knows that there is a lesion but not of which class.
    """
    count, truths = len(slices.classes), _small_truths(slices)
    totals = [_count(truth, count) for truth in truths]
    # Most pixels are background at every threshold and cannot matter: the others make one row.
    kept = [probs[..., -count:].max(-1) >= CANDIDATES[0] for probs in slices.maps]
    maps = [probs[k][None] for probs, k in zip(slices.maps, kept, strict=True)]
    truths = [truth[k][None] for truth, k in zip(truths, kept, strict=True)]
    best, chosen = (-1.0, 0.0), {}
    for values in itertools.product(CANDIDATES, repeat=count):
        thresholds = dict(zip(slices.classes, values, strict=True))
        found = _mean(_dice([mark(probs, thresholds) for probs in maps], truths, totals))
        worth = (round(float(np.mean(found)), 9), -sum(abs(value - 0.5) for value in values))
        if worth > best:
            best, chosen = worth, thresholds
    return chosen


def choose_alone(slices: OutOfFold) -> dict[str, tuple[float, float]]:
    """For each class the threshold with which its map, cut there, is best, and its Dice there.

    Best in the toolbox reading, in which tables score each class's map: a pixel can be of both
    classes, and a slice without the class scores 0 whatever is marked. The Dice returned is
    empty-aware, as `choose` is, where a pixel is one thing and a healthy slice should stay empty.
    """
    chosen: dict[str, tuple[float, float]] = {}
    truths, count = _small_truths(slices), len(slices.classes)
    for label, name in enumerate(slices.classes, start=1):
        best = (-1.0, 0.0)
        maps = [probs[..., label - 1 - count] for probs in slices.maps]
        lesions = [true(truth, label, count) for truth in truths]
        totals = [_count(lesion, 1) for lesion in lesions]
        for value in CANDIDATES:
            found = _dice([probs >= np.float32(value) for probs in maps], lesions, totals)
            worth = (round(float(np.nan_to_num(found).mean()), 9), -abs(value - 0.5))
            if worth > best:
                best, chosen[name] = worth, (value, float(_mean(found)[0]))
    return chosen


def cross_validated(slices: OutOfFold, thresholds: Mapping[str, float]) -> dict[str, float]:
    """Empty-aware Dice of each class's masks of out-of-fold slices, at their own size."""
    truths = [case["mask"][..., 0] for case in examples(slices.source)]
    pairs = zip(slices.maps, truths, strict=True)
    masks = [mark(full_size(probs, truth.shape), thresholds) for probs, truth in pairs]
    found = _dice(masks, truths, [_count(truth, len(thresholds)) for truth in truths])
    return dict(zip(thresholds, map(float, _mean(found)), strict=True))


def _small_truths(slices: OutOfFold) -> list[np.ndarray]:
    """True masks at the network's size, uint8 [S, S] each."""
    side = len(slices.maps[0])
    return [resize(case["mask"], side, labels=True)[..., 0] for case in examples(slices.source)]


def true(truth: np.ndarray, label: int, classes: int) -> np.ndarray:
    """Where a class is; in masks of one class any label counts."""
    return truth > 0 if classes == 1 else truth == label


def _count(truth: np.ndarray, classes: int) -> list[int]:
    return [int(np.count_nonzero(true(truth, k + 1, classes))) for k in range(classes)]


def _mean(found: np.ndarray) -> np.ndarray:
    """Empty-aware mean of each class over slices, [n, classes] -> [classes]; 0 if undefined."""
    return np.nan_to_num(defined_mean(found))


def _dice(
    masks: Sequence[np.ndarray], truths: Sequence[np.ndarray], totals: Sequence[Sequence[int]]
) -> np.ndarray:
    """Dice of each slice and class [n, classes]; NaN where the class is neither true nor found.

    `totals`: each slice's true pixels of each class; background pixels may be left out of both.
    """
    both, total = np.zeros((2, len(masks), len(totals[0])))
    for i, (mask, truth) in enumerate(zip(masks, truths, strict=True)):
        for k, count in enumerate(totals[i]):
            found = mask == k + 1
            total[i, k] = np.count_nonzero(found) + count
            both[i, k] = np.count_nonzero(found & true(truth, k + 1, len(totals[i])))
    return dice_of_counts(both, total)


def measure_lungs(
    source: Source, run: Callable[[Source], list[np.ndarray]], threshold: float, folder: Path
) -> dict[str, Row]:
    """Compares a network's lungs, found as `predict` finds them in volumes, with the true ones.

    Examples (of `LungTarget`) that share a `volume` are its slices; `run` takes examples to maps of
    lung [h, w], 0..1, lung from `threshold` on. Writes each slice's lungs, 0 or 255, to
    `folder/<id>.png`. Returns id -> `dice` (None where both are empty) and `kept`, the share of the
    infected pixels inside (None without infection).
    """
    volumes: dict[str, list[int]] = {}
    for i in range(len(source)):
        name = text(source[i].get("volume", ""))
        volumes.setdefault(f"volume {name}" if name else f"slice {i}", []).append(i)

    def of_pictures(pictures: Iterable[np.ndarray]) -> list[np.ndarray]:
        return run([{"id": "", "image": picture[..., None]} for picture in pictures])

    rows: dict[str, Row] = {}
    for indices in volumes.values():
        indices.sort(key=lambda i: _in_order(text(source[i]["id"])))
        pictures = [decode(source[i], "image")[..., 0] for i in indices]
        found = lungs.find(of_pictures, pictures, threshold)
        for i, lung in zip(indices, found, strict=True):
            truth, lesion = (decode(source[i], k)[..., 0] > 0 for k in ("lung", "lesion"))
            name = text(source[i]["id"])
            path = folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), lung.astype(np.uint8) * 255)
            score = float(dice(lung, truth))
            kept = float((lesion & lung).sum() / lesion.sum()) if lesion.any() else None
            rows[name] = {"dice": None if np.isnan(score) else score, "kept": kept}
    return rows


def summarise_lungs(rows: Mapping[str, Row]) -> dict[str, Any]:
    """What `measure_lungs` found of all folds, as `cross_validation.json` holds it.

    `slices` are the rows; `parts`, by what precedes the first "/" of an id, the mean `dice` and
    `kept` share, `kept_slices` (share of the infected slices that keep at least 97 %), and the
    numbers of `slices` with lung and of `infected` ones.
    """
    parts = {}
    for part in sorted({name.partition("/")[0] if "/" in name else "all" for name in rows}):
        mine = [row for name, row in rows.items() if _belongs(name, part)]
        scores = np.array([row["dice"] for row in mine if row["dice"] is not None])
        kept = np.array([row["kept"] for row in mine if row["kept"] is not None])
        means = [float(v.mean()) if v.size else None for v in (scores, kept, kept >= KEPT)]
        parts[part] = {"slices": len(scores), "dice": means[0], "infected": len(kept)}
        parts[part] |= {"kept": means[1], "kept_slices": means[2]}
    return {"parts": parts, "slices": dict(rows)}


def lung_table(score: Mapping[str, Any]) -> str:
    """What `summarise_lungs` returns in Markdown, a row a part of the dataset."""
    header = ["lungs", "slices", "Dice, mean over slices", "infected slices"]
    header += ["infected pixels inside, mean", "slices with 97 % inside"]
    keys, parts = ("slices", "dice", "infected", "kept", "kept_slices"), score["parts"].items()
    rows = [[part, *("" if row[k] is None else row[k] for k in keys)] for part, row in parts]
    return markdown_table(header, rows)


def worst_lungs(score: Mapping[str, Any], source: Source, folder: Path) -> list[Case]:
    """The slices whose lungs fit worst, two of each part, for `figures.overlays`.

    `score` is what `summarise_lungs` made of the source's slices, whose pictures are in `folder`.
    """
    known = {text(source[i]["id"]): source[i] for i in range(len(source))}
    scores = {name: row["dice"] for name, row in score["slices"].items() if row["dice"] is not None}
    cases: list[Case] = []
    for part in score["parts"]:
        names = (name for name in scores if _belongs(name, part))
        for name in sorted(names, key=lambda name: scores[name])[:2]:
            image, truth = (decode(known[name], k)[..., 0] for k in ("image", "lung"))
            found = cv2.imread(str(folder / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
            title = f"{name}\nDice {scores[name]:.2f}"
            cases.append((title, image, truth > 0, np.asarray(found) > 0, None))
    return cases


def _belongs(name: str, part: str) -> bool:
    """Whether a slice is of a part of the dataset."""
    return part in ("all", name.partition("/")[0])


def _in_order(name: str) -> list[int | str]:
    """A key that puts slice 10 after slice 9."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", name)]

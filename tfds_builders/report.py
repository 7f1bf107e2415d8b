"""The quality report of a build: what was read, what was skipped and why, and how it looks."""

import base64
import collections
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from tfds_builders import contact_sheet, hashing

REPORT, SHEET = "report.json", "contact_sheet.png"
MAX_TILES = 48
SAME_BITS = 16  # of 256: re-encoded copies differ in up to 9, other patients in 42 and more
MAX_COMPARED = 20_000  # pictures; beyond, only equal hashes count as duplicates (time is N x N)
MAX_PAIRS = 200  # duplicates listed; all are counted
T = TypeVar("T")


class Report:
    """Collects figures while a builder reads; small, mergeable, and the same in any order.

    Attributes:
      strict: every skip, and every count that is not as expected, raises ValueError.
    """

    def __init__(self, name: str, *, strict: bool = False, counted: tuple[str, ...] = ()):
        """Starts empty.

        Args:
          name: the dataset's, for the summary.
          strict: see above.
          counted: features whose values are counted where an example has them.
        """
        self.name, self.strict, self.counted = name, strict, counted
        self.skipped: dict[str, str] = {}  # file -> reason
        self.notes: list[str] = []
        self.expected: dict[str, list[int]] = {}  # what -> [expected, found]
        self._grey = np.zeros(256, np.int64)
        self._pixels, self._with_class = np.zeros(256, np.int64), np.zeros(256, np.int64)
        self._values = {name: collections.Counter() for name in counted}
        self._sizes: collections.Counter[str] = collections.Counter()
        self._keys: dict[str, tuple[str, str]] = {}  # key -> group, hash in hex
        self._tiles: dict[str, tuple[str, bytes]] = {}  # order -> key, PNG; the MAX_TILES lowest

    def attempt(self, file: object, read: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """Returns read(*args, **kwargs); a ValueError or OSError becomes a skip, and None."""
        try:
            return read(*args, **kwargs)
        except (ValueError, OSError) as error:
            self.skip(file, str(error))
            return None

    def skip(self, file: object, reason: str) -> None:
        """Records that a file (named from the source folder) is left out, and why.

        Raises:
          ValueError: the report is strict.
        """
        if self.strict:
            said = reason if str(file) in reason else f"{file}: {reason}"
            raise ValueError(f"{said} (--strict: nothing may be skipped)")
        self.skipped[str(file)] = reason.removeprefix(f"{file}: ")

    def note(self, text: str) -> None:
        """Records one line that the reader of the report should know; repetitions count once."""
        if text not in self.notes:
            self.notes.append(text)

    def expect(self, what: str, expected: int, found: int) -> None:
        """Records a count that the whole dataset is known to have, beside the one found.

        Raises:
          ValueError: they differ and the report is strict.
        """
        if self.strict and expected != found:
            raise ValueError(
                f"{self.name}: {found} {what}, the whole dataset has {expected} (--strict)"
            )
        self.expected[what] = [expected, found]

    def add(self, key: str, example: Mapping[str, Any]) -> None:
        """Counts one example: `image`, and `mask` unless `labelled` is false, are PNG bytes."""
        image = _decode(example["image"])
        self._grey += np.bincount(image.ravel(), minlength=256)
        self._sizes["x".join(map(str, image.shape))] += 1
        mask = None
        if "mask" in example and example.get("labelled", True):
            mask = _decode(example["mask"])
            pixels = np.bincount(mask.ravel(), minlength=256)
            self._pixels += pixels
            self._with_class += pixels > 0
        for name, counter in self._values.items():
            if name in example:
                counter[str(example[name])] += 1
        bits = hashing.perceptual_hash(image).tobytes().hex()
        self._keys[str(key)] = (str(example.get("group", key)), bits)
        order = hashlib.sha1(str(key).encode()).hexdigest()
        if len(self._tiles) < MAX_TILES or order < max(self._tiles):
            tile = contact_sheet.tile(image, mask)
            self._tiles[order] = (str(key), contact_sheet.encode(tile))
            if len(self._tiles) > MAX_TILES:
                del self._tiles[max(self._tiles)]

    def state(self) -> dict[str, Any]:
        """Returns all that was collected as a JSON-able dict, for `merge` in another process."""
        return {
            "skipped": self.skipped,
            "notes": self.notes,
            "expected": self.expected,
            "grey": self._grey.tolist(),
            "pixels": self._pixels.tolist(),
            "with_class": self._with_class.tolist(),
            "values": self._values,
            "sizes": self._sizes,
            "keys": self._keys,
            "tiles": {
                order: (key, base64.b64encode(png).decode())
                for order, (key, png) in self._tiles.items()
            },
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Takes in the `state()` of a report on other examples (also after a trip through JSON)."""
        for file, reason in state["skipped"].items():
            self.skip(file, reason)
        for text in state["notes"]:
            self.note(text)
        for what, (expected, found) in state["expected"].items():
            self.expect(what, expected, found)
        self._grey += state["grey"]
        self._pixels += state["pixels"]
        self._with_class += state["with_class"]
        for name, counter in state["values"].items():
            self._values[name].update(counter)
        self._sizes.update(state["sizes"])
        self._keys.update((key, tuple(value)) for key, value in state["keys"].items())
        for order, (key, png) in state["tiles"].items():
            self._tiles[order] = (key, base64.b64decode(png))
        self._tiles = dict(sorted(self._tiles.items())[:MAX_TILES])

    def duplicates(self) -> list[tuple[str, str, bool]]:
        """Returns pairs of keys that look like copies, and whether both are of one group.

        Slices of one group are neighbours that look alike, so there only equal hashes count;
        between groups SAME_BITS bits may differ. Flat pictures have no content to compare.
        """
        rows = [(key, *value) for key, value in sorted(self._keys.items()) if int(value[1], 16)]
        hashes = np.array([np.frombuffer(bytes.fromhex(r[2]), np.uint64) for r in rows])
        hashes = hashes.reshape(-1, hashing.WORDS)
        if len(rows) <= MAX_COMPARED:
            near = hashing.near_pairs(hashes, hashes, SAME_BITS)
            pairs = [
                (i, j) for i, j, bits in near if i < j and (bits == 0 or rows[i][1] != rows[j][1])
            ]
        else:
            first: dict[str, int] = {}
            pairs = [
                (first[row[2]], j) for j, row in enumerate(rows) if first.setdefault(row[2], j) != j
            ]
        return [(rows[i][0], rows[j][0], rows[i][1] == rows[j][1]) for i, j in pairs]

    def as_dict(self) -> dict[str, Any]:
        """Returns the report's content; counts of classes are over labelled examples only."""
        grey, levels, total = self._grey, np.arange(256), max(int(self._grey.sum()), 1)
        mean = float(levels @ grey) / total
        sd = float(np.sqrt(((levels - mean) ** 2) @ grey / total))
        present, pairs = np.flatnonzero(grey), self.duplicates()
        classes = np.flatnonzero(self._pixels)
        return {
            "dataset": self.name,
            "read": len(self._keys),
            "skipped_count": len(self.skipped),
            "skipped": dict(sorted(self.skipped.items())),
            "notes": self.notes,
            "expected": {
                what: {"expected": e, "found": f} for what, (e, f) in self.expected.items()
            },
            "duplicate_count": len(pairs),
            "duplicates": [
                {"a": a, "b": b, "same_group": same}
                for a, b, same in sorted(pairs, key=lambda pair: pair[2])[:MAX_PAIRS]
            ],
            "groups": len({group for group, _ in self._keys.values()}),
            "intensity": {
                "min": int(present[0]),
                "max": int(present[-1]),
                "mean": round(mean, 3),
                "sd": round(sd, 3),
            }
            if present.size
            else None,
            "mask_classes": {
                str(c): {"pixels": int(self._pixels[c]), "examples": int(self._with_class[c])}
                for c in classes
            },
            "values": {name: dict(sorted(c.items())) for name, c in self._values.items() if c},
            "sizes": dict(self._sizes.most_common(20)),
            "contact_sheet": [self._tiles[order][0] for order in sorted(self._tiles)],
        }

    def write(self, folder: Path) -> None:
        """Writes report.json and contact_sheet.png into a folder."""
        text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False)
        Path(folder, REPORT).write_text(text + "\n", encoding="utf-8")
        tiles = [
            cv2.imdecode(np.frombuffer(self._tiles[order][1], np.uint8), cv2.IMREAD_COLOR)
            for order in sorted(self._tiles)
        ]
        page = contact_sheet.sheet([tile[..., ::-1] for tile in tiles])
        Path(folder, SHEET).write_bytes(contact_sheet.encode(page))


def summary(report: Mapping[str, Any]) -> str:
    """Renders a report's dict (`as_dict`, or report.json read back) as a few lines of text."""
    lines = [
        f"{report['dataset']}: {report['read']} examples in {report['groups']} groups; "
        f"{report['skipped_count']} files skipped"
    ]
    lines += [
        f"  skipped {file}: {reason}" for file, reason in list(report["skipped"].items())[:10]
    ]
    if report["skipped_count"] > 10:
        lines.append(f"  ... and {report['skipped_count'] - 10} more, all in {REPORT}")
    lines += [
        f"  COUNT: {count['found']} {what}, the whole dataset has {count['expected']}"
        for what, count in report["expected"].items()
        if count["found"] != count["expected"]
    ]
    lines += [f"  note: {text}" for text in report["notes"]]
    between = sum(not pair["same_group"] for pair in report["duplicates"])
    if report["duplicate_count"]:
        lines.append(
            f"  look-alikes: {report['duplicate_count']} pairs, of those listed "
            f"{between} between groups"
        )
    if grey := report["intensity"]:
        lines.append(
            f"  grey levels {grey['min']}-{grey['max']}, mean {grey['mean']}, sd {grey['sd']}"
        )
    total = sum(c["pixels"] for c in report["mask_classes"].values())
    lines += [
        f"  mask class {label}: {c['pixels'] / total:.2%} of pixels, in {c['examples']} examples"
        for label, c in report["mask_classes"].items()
    ]
    lines += [
        f"  {name}: " + ", ".join(f"{value} {n}" for value, n in counts.items())
        for name, counts in report["values"].items()
    ]
    return "\n".join(lines)


def _decode(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)

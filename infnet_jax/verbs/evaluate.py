"""`infnet-jax evaluate`: a folder of predicted maps against true masks, paired by file stem.

Truth masks may be grey pictures (lesion > 128), class masks (index PNGs with a palette, or grey
pictures holding only the indices 0..3 or the greys 0, 38 and 75 of such palettes): 1 ground-glass
opacity (GGO), 2 consolidation, 3 pleural effusion, which is no lesion here. Predictions are grey
maps of the probability (8 bit: value / 255, 16 bit: value / 65535) or class masks as above. Grey
levels are judged over a folder: those that may be other classes are refused unless `--labels`
names them.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from infnet_jax.clinic import labels
from infnet_jax.evaluation import metrics
from infnet_jax.files import write_csv
from infnet_jax.verbs import existing

LABELS = {"ggo": 1, "consolidation": 2}
SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY_CLASSES = (0, 38, 75)
_FEW = 8  # levels: more are those of a map, or of a mask that was resized or saved as JPG
_BLOCKS = {"mean": "mean of 256", "max": "max of 256", "adaptive": "adaptive"}
_BLOCKS |= {"minmax": "at {:g}, min-max", "none": "at {:g}, raw"}
MEANING = f"what the numbers of class masks are: {', '.join(labels.KINDS)} (127=ggo,255=ignore)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add = parser.add_argument
    add("--predictions", type=existing, required=True, metavar="DIR", help="maps or masks")
    add("--truth", type=existing, required=True, metavar="DIR", help="true masks, same names")
    add("--csv", type=Path, metavar="OUT", help="also write one row a picture")
    add("--label", choices=[*LABELS], help="score one class only")
    add("--labels", metavar="N=KIND,...", help=MEANING)


def run(options: argparse.Namespace) -> int:
    """Prints the table, writes the rows if asked, returns 0; raises as `evaluate_maps` does."""
    meaning = labels.parse(options.labels) if options.labels else None
    rows, summary = evaluate_maps(options.predictions, options.truth, options.label, meaning)
    print(format_table(summary))
    if options.csv is not None:
        write_csv(options.csv, rows)
    return 0


def list_pictures(folder: Path) -> dict[str, Path]:
    """Returns the PNG and JPG files of a folder by stem.

    FileNotFoundError: it is missing or holds none; ValueError: two pictures share a stem.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
        if path.stem in found:
            raise ValueError(f"{path}: {found[path.stem].name} has the same stem; keep one")
        found[path.stem] = path
    if not found:
        raise FileNotFoundError(f"{folder}: holds no PNG or JPG picture")
    return found


class _Picture(NamedTuple):
    """A picture's numbers as stored, and what they can be."""

    path: Path
    values: np.ndarray  # [H, W]: palette indices or grey levels
    top: int  # the level that means a probability of 1; 0 for indices of classes


def _read(path: Path, meaning: labels.Meaning | None = None) -> _Picture:
    """Reads a picture; of a palette the indices, where they are classes."""
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode == "P" or picture.mode.startswith("I"):
                indices = np.asarray(picture)
                if indices.max() <= 3 or meaning and set(np.unique(indices)) <= {0, *meaning}:
                    return _Picture(path, indices, 0)
                if picture.mode != "P":  # 16 bit grey
                    return _Picture(path, indices, 65535)
            grey = np.asarray(picture.convert("L"))
            colours = np.asarray(picture.convert("RGB")).astype(int)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from error
    # JPG colour conversion may leave a grey picture a few levels off grey.
    if np.ptp(colours, axis=-1).max() > 16 and not np.isin(grey, _GREY_CLASSES).all():
        raise ValueError(f"{path}: a colour picture; a grey map or a class mask is needed")
    return _Picture(path, grey, 255)


def _classes(one: _Picture, meaning: labels.Meaning | None) -> np.ndarray | None:
    """The classes, integer [H, W]: 1 GGO, 2 consolidation, 3 neither; None for grey levels."""
    if meaning is not None:
        mask, kinds, _ = labels.infection(one.values, str(one.path), meaning=meaning)
        return mask if kinds == labels.LESIONS else None
    if one.top == 0:
        return one.values
    if one.values.any() and np.isin(one.values, _GREY_CLASSES).all():
        return np.searchsorted(_GREY_CLASSES, one.values)
    return None


def _select(classes: np.ndarray, label: str | None) -> np.ndarray:
    return np.isin(classes, (1, 2)) if label is None else classes == LABELS[label]


def read_truth(
    path: Path, label: str | None = None, meaning: labels.Meaning | None = None
) -> np.ndarray:
    """Reads a truth mask as bool [H, W]: GGO or consolidation (None), or one of them (`label`).

    ValueError: not a readable picture, or a label asked of a mask that has no classes.
    """
    return _truth(_read(path, meaning), label, meaning)


def _truth(one: _Picture, label: str | None, meaning: labels.Meaning | None) -> np.ndarray:
    values, classes = one.values, _classes(one, meaning)
    if classes is None and meaning is None and 0 < values.max() <= 3:
        classes = values
    if classes is not None:
        return _select(classes, label)
    if label is not None and values.max() > 0:
        raise ValueError(
            f"{one.path}: holds no classes (0, 1 GGO, 2 consolidation), so {label!r} cannot be "
            "told; leave the label out or give a class mask"
        )
    if meaning is not None:
        return labels.infection(values, str(one.path), meaning=meaning)[0] > 0
    found = np.unique(values)
    # One level beside 0 is the lesion, whatever it is; of a map, what lies above one half.
    single = len(found) == 2 and found[0] == 0
    return values > 0 if single else values / (one.top or 255) > 128 / 255


def _map(one: _Picture, label: str | None, meaning: labels.Meaning | None) -> np.ndarray:
    """A prediction as float64 [H, W] in 0..1."""
    classes = _classes(one, meaning)
    if classes is not None:
        return _select(classes, label).astype(np.float64)
    if meaning is not None:
        return _truth(one, label, meaning).astype(np.float64)
    return one.values / one.top


def _check_levels(folder: Path, found: Mapping[str, _Picture], *, votes: bool) -> None:
    """Refuses levels that may be those of classes: a folder is of one kind.

    Known are classes 0 to 3, their greys 0, 38, 75, one level beside 0, and maps or smooth masks
    of more than eight; `votes` lets steps of one size from 0 to the top pass as well.
    """
    levels: set[int] = set()
    smooth, top = False, 0
    for one in found.values():
        if one.top:
            own, counts = np.unique(one.values, return_counts=True)
            top = one.top
            if len(own) <= _FEW:
                levels |= set(own.tolist())
            else:
                smooth = True
                _check_plateau(one, own, counts, votes=votes)
    several = sorted(levels - {0})
    known = len(several) < 2 or set(several) <= {1, 2, 3} or set(several) <= {*_GREY_CLASSES}
    if votes and smooth:
        return  # maps, some of them nearly blank
    even = votes and len(several) > 2 and several[-1] == top
    if not known and not (even and np.ptp(np.diff([0, *several])) <= 1):
        shown = ", ".join(map(str, [0, *several][:12]))
        raise ValueError(
            f"{folder}: levels {shown}: classes? One level beside 0, classes 0 to 3, or maps of "
            f"more than {_FEW} levels expected; name others: {labels.EXAMPLE}"
        )


def _check_plateau(one: _Picture, own: np.ndarray, counts: np.ndarray, *, votes: bool) -> None:
    """Refuses a mask of several levels that JPG or resizing has smoothed."""
    share = own / one.top
    marked, between = counts[share > 0.1].sum(), (share > 0.1) & (share < 0.9)
    if votes or not between.any():
        return
    near = [counts[np.abs(share - level) < 0.035].sum() for level in share[between]]
    if max(near) > 0.6 * counts[between].sum() and max(near) > 0.2 * marked:
        level = int(own[between][int(np.argmax(near))])
        raise ValueError(
            f"{one.path}: many pixels of about {level} beside 0: a class of its own? Save the mask "
            f"as PNG without smoothing, and name its levels: {labels.EXAMPLE}"
        )


def _check_indices(folder: Path, found: Mapping[str, _Picture]) -> None:
    """Refuses a folder of grey index masks, which would pass for blank maps."""
    highest = max(255 if one.top == 0 else int(one.values.max()) for one in found.values())
    if 0 < highest <= 3:
        raise ValueError(
            f"{folder}: no map exceeds the value 3, so these look like "
            "class indices; save maps as probability x 255 or class masks with a palette"
        )


def evaluate_maps(
    predictions: Path, truth: Path, label: str | None = None, meaning: labels.Meaning | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Evaluates every map of a folder, resized bilinearly to the size of its truth.

    Truths are masks with the same stems; `label` is None (any lesion), `ggo` or `consolidation`;
    `meaning` says what the numbers of truths are, and of predictions that hold several of them.

    Returns one row per slice in stem order (`stem`, `lesion_pixels`, toolbox scores `mean_*`,
    `adaptive_*`, `minmax_*`, `raw_*`, then `s_measure`, `weighted_f` (NaN for an empty truth),
    `mae`), and the summary: `label`, `nearly_blank` (names of maps that hold nothing above 3), and
    what `metrics.both_readings` returns.

    FileNotFoundError: a folder is missing or empty, or a slice lacks its map or truth. ValueError:
    an unreadable or unsuitable picture, levels that may be classes, or a map on its side against
    its truth.
    """
    maps, masks = list_pictures(predictions), list_pictures(truth)
    _check_partners(masks, maps, f"{predictions}: no prediction")
    _check_partners(maps, masks, f"{truth}: no truth")
    found, true = (
        {stem: _read(path, meaning) for stem, path in some.items()} for some in (maps, masks)
    )
    held = set[int]().union(*(np.unique(one.values).tolist() for one in found.values())) - {0}
    named = meaning if meaning is not None and len(held) > 1 and held <= {*meaning} else None
    if named is None:
        _check_levels(predictions, found, votes=True)
        _check_indices(predictions, found)
    if meaning is None:
        _check_levels(truth, true, votes=False)
    rows, records = [], []
    for stem, one in true.items():
        mask, values = _truth(one, label, meaning), _map(found[stem], label, named)
        (height, width), (tall, wide) = mask.shape, values.shape
        if height != width and (tall, wide) == (width, height):
            raise ValueError(
                f"{maps[stem]}: {tall} x {wide}, and its truth {height} x {width}: one of "
                "the two lies on its side, turn it first (a builder's README says how it turned)"
            )
        records.append(metrics.toolbox(values, mask))
        rows.append({"stem": stem} | _row(records[-1]))
    blank = [one.path.name for one in found.values() if one.top and 0 < one.values.max() <= 3]
    notes = {"nearly_blank": [] if named else blank}
    return rows, {"label": label or "lesion"} | notes | metrics.both_readings(records)


def _check_partners(here: Mapping[str, Path], there: Mapping[str, Path], what: str) -> None:
    missing = [path.name for stem, path in here.items() if stem not in there]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{what} for {missing[0]}{more}")


def _row(record: dict[str, Any]) -> dict[str, Any]:
    row = {"lesion_pixels": record["positives"]}
    row |= {f"mean_{name}": float(curve.mean()) for name, curve in record["curves"].items()}
    for kind, name in (("adaptive", "adaptive"), ("minmax", "minmax"), ("none", "raw")):
        found = metrics.threshold_scores(record, kind)
        row |= {f"{name}_{score}": value for score, value in found.items()}
    return row | {name: record[name] for name in metrics.MAP_SCORES}


def format_table(summary: dict[str, Any]) -> str:
    """Returns a summary as text: both readings, all columns, number of empty truths."""
    toolbox, threshold = summary["toolbox"], summary["toolbox"]["threshold"]
    empty = f"{toolbox['empty_truths']} of them with an empty truth"
    lines = [f"{summary['label']}: {toolbox['images']} slices, {empty}"]
    heads = "".join(f"{score.title:>7}" for score in metrics.TABLE if score.of == "threshold")
    for reading in metrics.READINGS:
        found = summary[reading]
        lines += ["", f"{reading:<18}{heads}"]
        for block, title in _BLOCKS.items():
            cells = "".join(f"{found[block][name]:7.3f}" for name in metrics.SCORES)
            left_out = found["undefined"].get(block, found["undefined"]["curves"])["dice"]
            note = f"  ({left_out} undefined)" if left_out else ""
            lines.append(f"  {title.format(threshold):<16}{cells}{note}")
        rest = [f"{s.title} {found[s.key]:.3f}" for s in metrics.TABLE if s.of != "threshold"]
        lines.append(f"  {'  '.join(rest)} (pooled pixels, raw)")
    if names := summary["nearly_blank"]:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what = "nothing above 3, taken as nearly blank maps, not as classes"
        lines += ["", f"{', '.join(names[:3])}{more}: {what}"]
    spans = {kind: "{:.3f}..{:.3f}".format(*span) for kind, span in summary["interval"].items()}
    lines += ["", f"95 % intervals of the toolbox Dice over slices: mean of 256 {spans['mean']}, "]
    return "\n".join(lines) + f"at {threshold:g}, min-max {spans['minmax']}"

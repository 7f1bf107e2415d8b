"""`infnet-jax evaluate`: a folder of predicted maps against true masks, paired by file stem.

Truth masks may be grey pictures (lesion > 128), class masks (index PNGs with a palette, or grey
pictures holding only the indices 0..3 or the greys 0, 38 and 75 of such palettes): 1 ground-glass
opacity (GGO), 2 consolidation, 3 pleural effusion, which is no lesion here. Predictions are grey
maps of the probability (8 bit: value / 255, 16 bit: value / 65535) or class masks as above.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax.evaluation import metrics
from infnet_jax.files import write_csv
from infnet_jax.verbs import existing

LABELS = {"ggo": 1, "consolidation": 2}
SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY_CLASSES = (0, 38, 75)
_BLOCKS = {"mean": "mean of 256", "max": "max of 256", "adaptive": "adaptive"}
_BLOCKS |= {"minmax": "at {:g}, min-max", "none": "at {:g}, raw"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add = parser.add_argument
    add("--predictions", type=existing, required=True, metavar="DIR")
    add("--truth", type=existing, required=True, metavar="DIR")
    add("--csv", type=Path, metavar="OUT", help="also write one row a picture")
    add("--label", choices=[*LABELS], help="score one class only")


def run(options: argparse.Namespace) -> int:
    """Prints the table, writes the rows if asked, returns 0; raises as `evaluate_maps` does."""
    rows, summary = evaluate_maps(options.predictions, options.truth, options.label)
    print(format_table(summary))
    if options.csv is not None:
        write_csv(options.csv, rows)
    return 0


def list_pictures(folder: Path) -> dict[str, Path]:
    """Returns the PNG and JPG files of a folder by stem; ValueError: two pictures share one.

    FileNotFoundError: it is missing or holds none.
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


def _read(path: Path) -> tuple[np.ndarray, bool]:
    """Reads a picture as (float64 map in [0, 1], False) or (class indices 0..3, True), [H, W]."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode == "P" or picture.mode.startswith("I"):
                indices = np.asarray(picture)
                if indices.max() <= 3:
                    return indices, True
                if picture.mode != "P":  # 16 bit grey
                    return indices / 65535, False
            grey = np.asarray(picture.convert("L"))
            colours = np.asarray(picture.convert("RGB")).astype(int)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from error
    if grey.any() and np.isin(grey, _GREY_CLASSES).all():
        return np.searchsorted(_GREY_CLASSES, grey), True
    # JPG colour conversion may leave a grey picture a few levels off grey.
    if np.ptp(colours, axis=-1).max() > 16:
        raise ValueError(f"{path}: a colour picture; a grey map or a class mask is needed")
    return grey / 255, False


def _select(classes: np.ndarray, label: str | None) -> np.ndarray:
    return np.isin(classes, (1, 2)) if label is None else classes == LABELS[label]


def read_truth(path: Path, label: str | None = None) -> np.ndarray:
    """Reads a truth mask as bool [H, W]: GGO or consolidation (None), or one of them (`label`).

    ValueError: not a readable picture, or a label asked of a mask that has no classes.
    """
    values, classes = _read(path)
    if not classes and 0 < values.max() <= 3 / 255:
        values, classes = np.rint(values * 255), True
    if classes:
        return _select(values, label)
    if label is not None and values.max() > 0:
        hint = f"so {label!r} cannot be told; leave the label out or give a class mask"
        raise ValueError(f"{path}: holds no classes (0, 1 GGO, 2 consolidation), {hint}")
    return values > 128 / 255


def _read_predictions(paths: Mapping[str, Path], label: str | None) -> dict[str, np.ndarray]:
    """Reads all maps, refusing a folder of grey index masks, which would pass for blank maps."""
    maps, highest = {}, 0.0
    for stem, path in paths.items():
        values, classes = _read(path)
        maps[stem] = _select(values, label).astype(np.float64) if classes else values
        highest = max(highest, 1.0 if classes else float(values.max()))
    if 0 < highest <= 3 / 255:
        folder, what = next(iter(paths.values())).parent, "so these look like class indices"
        hint = "save maps as probability x 255 or class masks with a palette"
        raise ValueError(f"{folder}: no map exceeds the value 3, {what}; {hint}")
    return maps


def evaluate_maps(
    predictions: Path, truth: Path, label: str | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Evaluates every map of a folder, resized bilinearly to the size of its truth.

    Returns one row per slice in stem order (`stem`, `lesion_pixels`, toolbox scores `mean_*`,
    `adaptive_*`, `minmax_*`, `raw_*`, then `s_measure`, `weighted_f` (NaN for an empty truth),
    `mae`), and the summary: `label` (`ggo`, `consolidation`; None: any lesion), and what
    `metrics.both_readings` returns.

    FileNotFoundError: a folder is missing or empty, or a slice lacks its map or truth. ValueError:
    an unreadable or unsuitable picture, or a map on its side against its truth.
    """
    maps, masks = list_pictures(predictions), list_pictures(truth)
    sides = ((masks, maps, f"{predictions}: no prediction"), (maps, masks, f"{truth}: no truth"))
    for here, there, what in sides:
        if missing := [path.name for stem, path in here.items() if stem not in there]:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise FileNotFoundError(f"{what} for {missing[0]}{more}")
    values, rows, records = _read_predictions(maps, label), [], []
    for stem, path in masks.items():
        mask = read_truth(path, label)
        (height, width), (tall, wide) = mask.shape, values[stem].shape
        if height != width and (tall, wide) == (width, height):
            hint = "lies on its side, turn it first (a builder's README says how it turned)"
            sizes = f"{tall} x {wide}, and its truth {height} x {width}"
            raise ValueError(f"{maps[stem]}: {sizes}: one of the two {hint}")
        records.append(metrics.toolbox(values[stem], mask))
        rows.append({"stem": stem} | _row(records[-1]))
    return rows, {"label": label or "lesion"} | metrics.both_readings(records)


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
    spans = {kind: "{:.3f}..{:.3f}".format(*span) for kind, span in summary["interval"].items()}
    lines += ["", f"95 % intervals of the toolbox Dice over slices: mean of 256 {spans['mean']}, "]
    return "\n".join(lines) + f"at {threshold:g}, min-max {spans['minmax']}"

"""`infnet-jax predict`: scans in; masks, severity and a page out."""

import argparse
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from infnet_jax import __version__, verbs
from infnet_jax.clinic import case, imaging
from infnet_jax.files import write_json, write_npz
from infnet_jax.runs.logs import clock

INPUT = (
    "pictures, TIFF stacks, NIfTI, NRRD or MHA volumes, DICOM folders or zips, or folders of them"
)
TTA = "average eight views, with an uncertainty map (default: as the run did)"
WAYS = "morphology (the default), the --workdir of a run of configs/lung.py, or your own lung masks"
CONTINUE = "read back what this network has already written to --out"
IDENTIFIERS = "let names, ids and dates pass from DICOM headers into DICOM-SEG"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add, existing = parser.add_argument, verbs.existing
    add("inputs", type=existing, nargs="+", metavar="INPUT", help=INPUT)
    add("--checkpoint", type=existing, required=True, metavar="DIR", help=verbs.RUN)
    add("--out", type=Path, required=True, metavar="DIR")
    add("--tta", action=argparse.BooleanOptionalAction, default=None, help=TTA)
    add("--batch", type=int, default=0, metavar="N", help="slices at once")
    add("--device", choices=["cpu", "gpu", "tpu"], help="default: the fastest")
    add("--lungs", default=verbs.MORPHOLOGY, metavar="WAY", help=WAYS)
    add("--lobes", type=existing, metavar="PATH", help="your own lobe maps 1..5")
    add("--one-patient", action="store_true", help="all inputs are one patient's")
    add("--continue", dest="go_on", action="store_true", help=CONTINUE)
    add("--resample", action="store_true", help=verbs.RESAMPLE)
    add("--not-hu", action="store_true", help=verbs.NOT_HU)
    add("--save-probabilities", action="store_true")
    add("--keep-identifiers", action="store_true", help=IDENTIFIERS)


def run(options: argparse.Namespace, network: "verbs.Predictor | None" = None) -> int:
    """Segments and scores scans; one that fails is named and does not stop the others.

    Writes `masks/`, `severity.csv`, `severity.json` and `report.html` into `--out`, each file
    whole, and `probabilities/<name>.npz` if asked, float16 on the file's own grid. Lobes of one's
    own go before lungs by morphology. `network` None loads that of `--checkpoint`. Returns 0, or 1
    if any input failed; ValueError or OSError: no input at all, no usable checkpoint, lobes that
    are not there, or `--out` cannot be written.
    """
    if options.device:  # read by jax when it is first imported
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(options.device, options.device)
    sources = imaging.find(options.inputs)
    if network is None:
        network = verbs.load(options.checkpoint, tta=options.tta, batch_size=options.batch)
    alone, lobes_of = len(sources) == 1, None
    how = {"alone": alone, "resample": options.resample}
    finder, lung_name = verbs.choose_lungs(options.lungs, **how)
    if options.lobes is not None:
        lobes_of = verbs.given_maps(options.lobes, "lobes", **how)
        if lung_name == verbs.MORPHOLOGY:
            finder, lung_name = lobes_of, "given lobes"
    model = network.identity | {"lungs": lung_name}
    (options.out / "masks").mkdir(parents=True, exist_ok=True)
    read_case = functools.partial(_case, options, network, finder, lobes_of, model)
    patient = options.out.resolve().name if options.one_patient else None
    watched = _progress(sources)
    return verbs.score("predict", watched, read_case, options.out, model=model, patient=patient)


def segment(
    network: "verbs.Predictor", scan: imaging.Scan, lung: np.ndarray | None, *, keep_probs: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Runs the network over the slices of a scan, from the first to the last that shows lung.

    `lung` is bool [D, H, W]; None runs every slice. `keep_probs=False` spares their memory.

    Returns the mask, uint8 [D, H, W]: 1 ground glass (or infection, of a single-class network), 2
    consolidation; the uncertainty, float16 [D, H, W] in 0..1, or None; and probabilities, float16
    [D, H, W, C], one channel a class, or None.
    """
    shape, n_classes = scan.values.shape, len(network.classes)
    mask, spread = np.zeros(shape, np.uint8), None
    probs = np.zeros((*shape, n_classes), np.float16) if keep_probs else None
    shown = np.arange(len(mask)) if lung is None else np.flatnonzero(lung.any((1, 2)))
    span = range(shown[0], shown[-1] + 1) if len(shown) else range(0)
    for i, found in zip(span, network(scan.picture(i) for i in span), strict=True):
        mask[i] = found.mask
        if probs is not None:  # without the background's channel
            probs[i] = found.probs.reshape(*shape[1:], -1)[..., -n_classes:]
        if found.spread is not None:
            spread = np.zeros(shape, np.float16) if spread is None else spread
            spread[i] = 2 * found.spread  # the standard deviation of values in 0..1 is at most 0.5
    return mask, spread, probs


def _case(
    options: argparse.Namespace,
    network: "verbs.Predictor",
    finder: verbs.Finder,
    lobes_of: verbs.Finder | None,
    model: Mapping[str, str],
    source: imaging.Source,
) -> case.Case:
    """One scan: its mask written, its case returned."""
    scan = imaging.read(source, not_hu=options.not_hu)
    lobes, lung = lobes_of and lobes_of(scan), finder(scan)
    out, folder, classes = options.out, options.out / "masks", network.classes
    marker = out / ".finished" / f"{scan.name}.json"
    mine = {"model": model, "thresholds": network.thresholds}
    if options.go_on and marker.exists():
        before = json.loads(marker.read_text())
        if {k: before[k] for k in mine} != mine:
            raise ValueError(
                f"{scan.name}: {out} has a mask of another model or other lungs; use another --out"
            )
        mask = imaging.read_labels(folder / before["file"], scan)
        return case.assess(scan, mask, lung, lobes=lobes, classes=classes)
    shown = lung if len(lung) > 1 else None
    mask, unsure, probs = segment(network, scan, shown, keep_probs=options.save_probabilities)
    n_marked = np.count_nonzero(mask)
    if dropped := case.drop_detached(mask, lung > 0):
        share = f"{100 * dropped / n_marked:.0f} % of the marked pixels"
        scan.warnings.append(f"{scan.name}: {share} touched no lung and were dropped")
    found = case.assess(scan, mask, lung, lobes=lobes, uncertainty=unsure, classes=classes)
    how = {"keep_identifiers": options.keep_identifiers, "version": __version__}
    files, notes = imaging.write_mask(scan, mask, folder, classes=classes, **how)
    found.warnings.extend(notes)
    if probs is not None:
        on_grid = {name: scan.grid.source(probs[..., c]) for c, name in enumerate(classes)}
        write_npz(out / "probabilities" / f"{scan.name}.npz", on_grid)
    write_json(marker, mine | {"file": files[0].name})
    return found


def _progress(sources: Sequence[imaging.Source]) -> Iterator[imaging.Source]:
    """The sources, with a line that says how far we are where a person is watching."""
    if not sys.stderr.isatty():
        yield from sources
        return
    began = time.perf_counter()
    for i, source in enumerate(sources):
        spent = time.perf_counter() - began
        left = clock(spent / i * (len(sources) - i)) if i else "--:--"
        line = f"{i}/{len(sources)} done, ETA {left}  {source.name}"
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:width]}\x1b[K", end="", file=sys.stderr, flush=True)
        yield source
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)

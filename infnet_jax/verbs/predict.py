"""`infnet-jax predict`: scans in; masks, severity and a page out."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax import __version__, verbs
from infnet_jax.clinic import case, imaging
from infnet_jax.files import write_npz
from infnet_jax.runs.logs import clock
from infnet_jax.verbs import inputs, kept

INPUT = (
    "pictures, TIFF stacks, NIfTI, NRRD or MHA volumes, DICOM folders or zips, or folders of them"
)
TTA = "average eight views, with an uncertainty map (default: as the run did)"
WAYS = "morphology (the default), the --workdir of a run of configs/lung.py, or your own lung masks"
CONTINUE = "read back what this network has already written to --out of the same scans"
IDENTIFIERS = "let names, ids and dates pass from DICOM headers into DICOM-SEG"
LIST = "only print the scans and DICOM series in the inputs; needs no other option"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add, existing = parser.add_argument, verbs.existing
    add("inputs", type=existing, nargs="+", metavar="INPUT", help=INPUT)
    add("--checkpoint", type=existing, metavar="DIR", help=verbs.RUN)
    add("--out", type=Path, metavar="DIR", help="folder for masks, scores and page")
    add("--list", action="store_true", help=LIST)
    add("--series", default="", metavar="N", help="only the DICOM series of this number")
    add("--tta", action=argparse.BooleanOptionalAction, default=None, help=TTA)
    add("--batch", type=int, default=0, metavar="N", help="slices at once")
    add("--device", choices=["cpu", "gpu", "tpu"], help="default: the fastest")
    add("--lungs", default=verbs.MORPHOLOGY, metavar="WAY", help=WAYS)
    add("--lobes", type=existing, metavar="PATH", help="your own lobe maps 1..5")
    add("--one-patient", action="store_true", help="all inputs are one patient's")
    add("--continue", dest="go_on", action="store_true", help=CONTINUE)
    add("--resample", action="store_true", help=verbs.RESAMPLE)
    add("--not-hu", action="store_true", help=verbs.NOT_HU)
    add("--save-probabilities", action="store_true", help="maps too, as .npz")
    add("--keep-identifiers", action="store_true", help=IDENTIFIERS)


def run(options: argparse.Namespace, network: "verbs.Predictor | None" = None) -> int:
    """Segments and scores scans; one that fails is named and does not stop the others.

    Writes `masks/`, `severity.csv`, `severity.json` and `report.html` into `--out`, each file
    whole, and `probabilities/<name>.npz` if asked, float16 on the file's own grid. Patients that
    earlier runs of the same network left there stay. Lobes of one's own go before lungs by
    morphology. `network` None loads that of `--checkpoint`. Returns 0; 1 if any input failed or is
    damaged; 2 without `--checkpoint` or `--out`. ValueError or OSError: no input at all, no usable
    checkpoint or device, lobes that are not there, or `--out` cannot be written or has what this
    run would mix up.
    """
    if options.device:  # read by jax when it is first imported
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(options.device, options.device)
    voice = verbs.Voice("predict")
    missing = [name for name in ("checkpoint", "out") if getattr(options, name) is None]
    if missing and not options.list:
        voice(f"--{missing[0]} DIR is required (see infnet-jax predict --help)")
        return 2
    found = inputs.find(options.inputs, out=options.out, series=options.series)
    if options.list:
        return inputs.show(found)
    if network is None:
        if options.device:
            verbs.use_device(options.device)
        network = verbs.load(options.checkpoint, tta=options.tta, batch_size=options.batch)
    with kept.held(options.out):
        return _score(options, network, found, voice)


def _score(
    options: argparse.Namespace,
    network: "verbs.Predictor",
    found: inputs.Inputs,
    voice: verbs.Voice,
) -> int:
    """What `run` does once the scans are found and the network is loaded."""
    finder, lobes_of, lung_name = _maps(options, alone=len(found.sources) == 1)
    lung_name, _, lung_caution = lung_name.partition("; ")
    model = network.identity | {"lungs": lung_name}
    patient = options.out.resolve().name if options.one_patient else None
    refused = kept.check(options.out, found.sources, _mine(network, model), go_on=options.go_on)
    names = [source.name for source in found.sources if source.name not in refused]
    earlier = kept.patients(options.out, names, patient, model)
    (options.out / "masks").mkdir(parents=True, exist_ok=True)

    def read_case(source: imaging.Source) -> case.Case:
        if source.name in refused:
            raise ValueError(refused[source.name])
        return _case(options, network, finder, lobes_of, model, source)

    scored = {*names, *(scan for one in earlier for scan in one.scans)}
    if left := kept.unscored(options.out, scored):
        voice(f"{options.out} has masks without scores of a run that broke off: {', '.join(left)}")
    return verbs.score(
        voice,
        _progress(found.sources),
        read_case,
        options.out,
        model=model,
        patient=patient,
        caution=" ".join(
            filter(None, dict.fromkeys((verbs.caution(network.identity), lung_caution)))
        ),
        passed=found.passed,
        earlier=earlier,
    )


def _maps(
    options: argparse.Namespace, *, alone: bool
) -> tuple[verbs.Finder, verbs.Finder | None, str]:
    """What finds lungs, and lobes or None; and what the first is called, as in `choose_lungs`."""
    finder, name = verbs.choose_lungs(options.lungs, alone=alone, resample=options.resample)
    if options.lobes is None:
        return finder, None, name
    lobes = verbs.given_maps(options.lobes, "lobes", alone=alone, resample=options.resample)
    return (lobes, lobes, "given lobes") if name == verbs.MORPHOLOGY else (finder, lobes, name)


def _mine(network: "verbs.Predictor", model: Mapping[str, str]) -> dict[str, Any]:
    """What all masks of a run depend on beside their scans."""
    return {"model": dict(model), "thresholds": network.thresholds}


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
    out, classes = options.out, network.classes
    try:
        digest = kept.digest(source)  # before it is read: a file that changes then is done again
        scan = inputs.read(source, options.inputs, not_hu=options.not_hu)
        lobes, lung = lobes_of and lobes_of(scan), finder(scan)
    except inputs.NoScan:
        raise
    except Exception:
        kept.forget(out, source.name)
        raise
    by_us = not model["lungs"].startswith("given")  # such lungs may be something else
    record = _mine(network, model) | {
        "input": digest,
        "lung": kept.digest_of_map(lung > 0),
        "lobes": kept.digest_of_map(lobes),
        "identifiers": options.keep_identifiers,
    }
    stored = out / "probabilities" / f"{scan.name}.npz"
    complete = stored.exists() or not options.save_probabilities
    before = kept.finished(out, scan.name, record) if options.go_on and complete else None
    if before is not None:
        mask = imaging.read_labels(out / "masks" / before["file"], scan)
        found = case.assess(scan, mask, lung, lobes=lobes, classes=classes, found=by_us)
        found.warnings.extend(before["notes"])
        return found
    kept.forget(out, scan.name)
    shown = lung if len(lung) > 1 else None
    mask, unsure, probs = segment(network, scan, shown, keep_probs=options.save_probabilities)
    n_marked, notes = np.count_nonzero(mask), []
    if dropped := case.drop_detached(mask, lung > 0):
        share = f"{100 * dropped / n_marked:.0f} % of the marked pixels"
        notes.append(f"{scan.name}: {share} touched no lung and were dropped")
    found = case.assess(
        scan, mask, lung, lobes=lobes, uncertainty=unsure, classes=classes, found=by_us
    )
    how = {"keep_identifiers": options.keep_identifiers, "version": __version__}
    files, more = imaging.write_mask(scan, mask, out / "masks", classes=classes, **how)
    notes += more
    found.warnings.extend(notes)
    if probs is not None:
        on_grid = {name: scan.grid.source(probs[..., c]) for c, name in enumerate(classes)}
        write_npz(stored, on_grid)
    kept.finish(out, scan.name, files, record | {"place": kept.place(source), "notes": notes})
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

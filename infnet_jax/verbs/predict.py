"""`infnet-jax predict`: scans in; masks, severity and a page out."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from infnet_jax import __version__
from infnet_jax.clinic import case as scoring, imaging, page as report
from infnet_jax.evaluation.predictor import Segmenter
from infnet_jax.runs.logs import clock
from infnet_jax.verbs import find_lungs, severity as score_files


def run(
    inputs: Sequence[Path],
    *,
    checkpoint: Path,
    out: Path,
    lung_way: str = find_lungs.MORPHOLOGY,
    lobes: Path | None = None,
    tta: bool | None = None,
    batch_size: int = 0,
    save_probabilities: bool = False,
    go_on: bool = False,
    one_patient: bool = False,
    keep_identifiers: bool = False,
) -> int:
    """Segments and scores scans; one that fails is named and does not stop the others.

    Writes `masks/`, `severity.csv`, `severity.json` and `report.html` into `out`, each file whole.

    Args:
      inputs: pictures, NIfTI volumes, DICOM folders or zips, or folders of them.
      checkpoint: workdir of a finished run.
      lung_way: as in `find_lungs.choose`; over lobes, only if it is not morphology.
      lobes: folder (or file) with the user's own lobe maps, by the scans' names.
      tta: average over eight views, with their spread as uncertainty; None as the run did.
      batch_size: slices at once; 0 as the run did.
      save_probabilities: also `probabilities/<name>.npz`, float16 on the file's own grid.
      go_on: scans whose masks this network has written here before are read back, not run again.
      one_patient: all inputs belong to one patient and are scored together.
      keep_identifiers: lets names, ids and dates pass from DICOM headers into DICOM-SEG.

    Returns:
      0, or 1 if any input failed.

    Raises:
      FileNotFoundError, ValueError: no input at all, or no usable checkpoint.
      OSError: `out` cannot be written.
    """
    sources = imaging.find(inputs)
    segmenter = Segmenter(checkpoint, tta=tta, batch_size=batch_size)
    finder, lung_name = find_lungs.choose(lung_way, alone=len(sources) == 1)
    lobe_maps = None if lobes is None else imaging.by_name(lobes)
    if lobe_maps is not None and lung_way == find_lungs.MORPHOLOGY:
        finder, lung_name = None, "given lobes"
    identity = segmenter.identity | {"lungs": lung_name}
    for name in ("masks", ".finished", *(["probabilities"] if save_probabilities else [])):
        (out / name).mkdir(parents=True, exist_ok=True)
    failed = 0
    rows: list[score_files.Row] = []
    together: list[scoring.Case] = []
    with report.Page(out / "report.html", model=identity) as page:
        for source in _progress(sources):
            try:
                scan = imaging.read(source)
                own = (
                    None
                    if lobe_maps is None
                    else imaging.read_labels(
                        imaging.partner(
                            source.name, lobe_maps, "lobes", alone=len(sources) == 1
                        ).files[0],
                        scan,
                    )
                )
                lung = own if finder is None else finder(scan)
                case = _predict(
                    scan,
                    segmenter,
                    out,
                    lung,
                    own,
                    identity=identity,
                    go_on=go_on,
                    save_probabilities=save_probabilities,
                    keep_identifiers=keep_identifiers,
                )
            except (ValueError, OSError, ImportError) as error:
                failed += 1
                _say(f"infnet-jax predict: {' '.join(str(error).split())}")
                continue
            if one_patient:
                together.append(case)
            else:
                rows.append(score_files.add(page, scoring.pool(source.name, [case])))
        if together:
            rows.append(score_files.add(page, scoring.pool(out.resolve().name, together)))
    return score_files.conclude(out, rows, model=identity, failed=failed)


def segment(
    segmenter: Segmenter,
    scan: imaging.Scan,
    lung: np.ndarray | None = None,
    *,
    keep_probs: bool = True,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Runs the network over the slices of a scan, from the first to the last that shows lung.

    Args:
      segmenter: as loaded; scan: as read.
      lung: bool [D, H, W]; None runs every slice.
      keep_probs: False spares their memory.

    Returns:
      mask uint8 [D, H, W]: 1 ground glass (or infection, of a single-class network), 2
      consolidation; uncertainty float16 [D, H, W] in 0..1 or None; probs float16 [D, H, W, C],
      one channel a class, or None.
    """
    shape = scan.values.shape
    mask = np.zeros(shape, np.uint8)
    probs = np.zeros((*shape, len(segmenter.classes)), np.float16) if keep_probs else None
    spread = None
    shown = np.arange(len(mask)) if lung is None else np.flatnonzero(lung.any((1, 2)))
    span = range(shown[0], shown[-1] + 1) if len(shown) else range(0)
    for i, found in zip(span, segmenter(scan.picture(i) for i in span), strict=True):
        mask[i] = found.mask
        if probs is not None:
            probs[i] = found.probs[..., None] if found.probs.ndim == 2 else found.probs[..., 1:]
        if found.spread is not None:
            spread = np.zeros(shape, np.float16) if spread is None else spread
            spread[i] = 2 * found.spread  # the standard deviation of values in 0..1 is at most 0.5
    return mask, spread, probs


def drop_detached(mask: np.ndarray, lung: np.ndarray) -> int:
    """Clears, in place, patches that touch no lung in their slice: beside the body, in the belly.

    Args:
      mask: uint8 [D, H, W]; lung: bool [D, H, W].

    Returns:
      The number of pixels cleared.
    """
    before = np.count_nonzero(mask)
    for i in range(len(mask)):
        if mask[i].any():
            patches, n = ndimage.label(mask[i] > 0, np.ones((3, 3)))
            near = ndimage.binary_dilation(lung[i], np.ones((3, 3)))
            touching = np.zeros(n + 1, bool)
            touching[np.unique(patches[near])] = True
            mask[i][~touching[patches]] = 0
    return before - np.count_nonzero(mask)


def _predict(
    scan: imaging.Scan,
    segmenter: Segmenter,
    out: Path,
    lung: np.ndarray,
    lobes: np.ndarray | None,
    *,
    identity: dict[str, str],
    go_on: bool,
    save_probabilities: bool,
    keep_identifiers: bool,
) -> scoring.Case:
    """One scan: its mask written, its case returned."""
    marker = out / ".finished" / f"{scan.name}.json"
    mine = {"model": identity, "thresholds": segmenter.thresholds}
    if go_on and marker.exists():
        before = json.loads(marker.read_text())
        if {k: before[k] for k in mine} != mine:
            raise ValueError(
                f"{scan.name}: {out} has a mask of another model or other lungs; use another --out"
            )
        mask = imaging.read_labels(out / "masks" / before["file"], scan)
        return scoring.assess(scan, mask, lung, lobes=lobes, classes=segmenter.classes)
    mask, uncertainty, probs = segment(
        segmenter, scan, lung if len(lung) > 1 else None, keep_probs=save_probabilities
    )
    n_marked = np.count_nonzero(mask)
    if dropped := drop_detached(mask, np.asarray(lung) > 0):
        scan.warnings.append(
            f"{scan.name}: {100 * dropped / n_marked:.0f} % of the marked pixels touched no lung "
            "and were dropped"
        )
    case = scoring.assess(
        scan, mask, lung, lobes=lobes, uncertainty=uncertainty, classes=segmenter.classes
    )
    files, notes = imaging.write_mask(
        scan,
        mask,
        out / "masks",
        classes=segmenter.classes,
        keep_identifiers=keep_identifiers,
        version=__version__,
    )
    case.warnings.extend(notes)
    if probs is not None:
        fresh = out / "probabilities" / f".part-{scan.name}.npz"
        on_grid = {
            name: scan.grid.source(probs[..., c]) for c, name in enumerate(segmenter.classes)
        }
        np.savez_compressed(fresh, **on_grid)
        fresh.replace(out / "probabilities" / f"{scan.name}.npz")
    fresh = marker.with_suffix(".tmp")
    fresh.write_text(json.dumps({**mine, "file": files[0].name}))
    os.replace(fresh, marker)
    return case


def _progress(sources: Sequence[imaging.Source]) -> Iterator[imaging.Source]:
    """The sources, with a line that says how far we are where a person is watching."""
    began = time.perf_counter()
    for i, source in enumerate(sources):
        if sys.stderr.isatty():
            spent = time.perf_counter() - began
            left = clock(spent / i * (len(sources) - i)) if i else "--:--"
            line = f"{i}/{len(sources)} done, ETA {left}  {source.name}"
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]}\x1b[K", end="", file=sys.stderr, flush=True)
        yield source
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _say(line: str) -> None:
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(start + line, file=sys.stderr, flush=True)

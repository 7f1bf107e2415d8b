"""Which scans a verb is given: own outputs and label maps are none, what is passed over is said."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from infnet_jax.clinic import imaging

OUTPUTS = ("masks", "probabilities")  # the folders of --out that hold pictures and volumes
FINISHED = ".finished"  # stands beside them
RUN = ("config.json", "statistics.json")  # stand in the workdir of a run of main.py
MAX_LABEL = 32  # of a map of lesions, lobes, segments; the darkest 8-bit slices exceed it
MAP, BLANK_FILE = "a label map, no scan", "blank, no scan"  # reasons of `NoScan`
FEW, BLANK = 8, 0.8  # grey levels of a map, and its share of 0; of a chest more of either is seen
# How reasons begin that are a failure: what somebody named, or what may have been a slice.
BROKEN = re.compile(r": (damaged|holds no picture|unpacks to|not a picture|no picture)\b")


class NoScan(ValueError):
    """Why a file among the scans of a folder is none; passing it over is no failure."""


class Inputs(NamedTuple):
    """Scans in order, and a line for each thing beside them that was passed over."""

    sources: list[imaging.Source]
    passed: list[str]


def find(
    paths: Sequence[Path], *, out: Path | None = None, series: str = "", masks: bool = False
) -> Inputs:
    """Finds the scans in files and folders, without what `predict` wrote in this or earlier runs.

    Args:
      out: where this run writes; series: takes the DICOM series of this number only.
      masks: masks are wanted, those of `predict` too, once each.

    Raises:
      ValueError: no scan at all, or no series of that number.
    """
    own: dict[Path, None] = {}
    how: dict[str, Any] = {} if masks else {"skip": outputs(out, own)}
    lines: list[str] = []
    try:
        sources = imaging.find(paths, number=series, **how)
    except ValueError:
        good, lines = _usable(paths, own, how)
        sources = imaging.find(good, number=series, **how)
    kept = _without_segs(sources) if masks else _without_reports(sources, paths)
    told = (one for one in sources if one.slices or (one not in kept and not masks))
    passed = dict.fromkeys(line for source in told for line in source.beside)
    lines += [*(f"{folder}: written by infnet-jax" for folder in own), *passed]
    return Inputs(kept, lines)


def _without_reports(
    sources: Sequence[imaging.Source], paths: Sequence[Path]
) -> list[imaging.Source]:
    """Scans without DICOM folders that hold reports, plans and masks alone, beside other scans."""

    def given(source: imaging.Source) -> Path | None:
        return next((p for p in paths if p in (source.files[0], *source.files[0].parents)), None)

    def idle(source: imaging.Source) -> bool:
        return source.kind == "dicom" and not source.slices and not damaged(source.beside)

    useful = {given(one) for one in sources if not idle(one)}
    return [one for one in sources if not idle(one) or given(one) not in useful]


def _usable(
    paths: Sequence[Path], own: dict[Path, None], how: Mapping[str, Any]
) -> tuple[list[Path], list[str]]:
    """Those of the paths that hold something, and a line for each of the others; `own` grows.

    ValueError if all are of no use.
    """
    good, bad = [], []
    own.clear()
    for path in paths:
        before = len(own)
        try:
            imaging.find([path], **how)
            good.append(path)
        except ValueError as error:
            bad += [str(error)] if len(own) == before else []  # else there is what we wrote
    if not good:
        bad += [f"{folder}: written by infnet-jax, no scans" for folder in own]
        raise ValueError("; ".join(bad))
    return good, bad


def damaged(passed: Iterable[str]) -> bool:
    """Whether lines on what was passed over name something that was meant, or may have been."""
    return any(BROKEN.search(line) for line in passed)


def outputs(out: Path | None, seen: dict[Path, None] | None = None) -> Callable[[Path], bool]:
    """Returns whether a file lies in a folder of outputs, of this run or of others, or of training.

    Such folders are added to `seen`, as keys.
    """
    mine = {out.resolve() / name for name in OUTPUTS} if out is not None else set()

    def within(file: Path) -> bool:
        for folder in file.resolve().parents:
            by_us = folder.name in OUTPUTS and (folder.parent / FINISHED).is_dir()
            of_training = all((folder / name).is_file() for name in RUN)
            if by_us or of_training or folder in mine:
                if seen is not None:
                    seen[folder] = None
                return True
        return False

    return within


def _without_segs(sources: Sequence[imaging.Source]) -> list[imaging.Source]:
    """Masks without the DICOM-SEGs that lie beside NIfTI masks of the same names, as we write."""

    def twin(file: Path) -> bool:
        return any(file.with_name(file.stem + suffix).exists() for suffix in (".nii.gz", ".nii"))

    kept = [s for s in sources if s.kind != "dicom" or s.slices or not all(map(twin, s.files))]
    return kept or list(sources)


def read(source: imaging.Source, given: Iterable[Path], **how: Any) -> imaging.Scan:
    """Reads a scan; `how` are options of `imaging.read`.

    Raises:
      NoScan: a label map or a blank file in a folder.
      ValueError: one that was `given` by its name, or no readable scan.
    """
    file, labels = source.files[0], None
    try:
        scan = imaging.read(source, **how)
        if not _is_map(scan.values):
            return scan
        reason = MAP
    except ValueError:
        if source.kind != "dicom":
            labels = _labels(file)
        if labels is None or (labels.any() and not _is_map(labels)):
            raise
        if file in given and not labels.any():
            raise
        reason = MAP if labels.any() else BLANK_FILE
    raise ValueError(f"{file}: {reason}") if file in given else NoScan(reason)


def show(found: Inputs) -> int:
    """Prints the scans, a line each, and what was passed over; 1 if something was damaged."""
    bad = damaged(found.passed)
    for one in found.sources:
        files = f"{len(one.slices)} slices" if one.slices else str(one.files[0])
        if one.kind == "dicom" and not one.slices:
            bad, files = True, f"not usable: {one.beside[0]}"
        print("  ".join(word for word in (one.name, one.kind, one.about, files) if word))
    for line in found.passed:
        print(f"passed over: {line}")
    return int(bad)


def _labels(file: Path) -> np.ndarray | None:
    try:
        return imaging.read_labels(file)
    except ValueError:
        return None


def _is_map(values: np.ndarray) -> bool:
    """Whether these are labels: small numbers, one level beside 0, or few levels in much blank."""
    if values.dtype.kind not in "iub":
        return False
    low, high = int(values.min()), int(values.max())
    if low != 0 or not 0 < high <= 255:
        return False
    counts = np.bincount(values.ravel(), minlength=256)
    levels, blank = np.count_nonzero(counts), counts[0] / values.size
    return high <= MAX_LABEL or levels == 2 or bool(levels <= FEW and blank >= BLANK)

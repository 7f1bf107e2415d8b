"""From masks to a patient's scores, tables and page: what `predict` and `severity` share."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from infnet_jax.clinic import imaging, labels, lungs, plausible, regions as cuts, severity, sides
from infnet_jax.files import write_csv, write_json

SCHEMA = 1  # of severity.json; see docs/severity.md
USE = "research only, not a medical device"
LISTS = ("ct_ss_regions", "region_shares", "lobe_shares")  # scores that get no column


@dataclasses.dataclass
class Case:
    """One scan with its mask, ready to be scored, pooled and shown; all maps [D, H, W].

    Attributes:
      pictures: uint8, in the lung window.
      mask: uint8, 0, then a label for each class.
      lung: bool, the infection included; regions: uint8, 0..20; uncertainty: float 0..1.
      tally: its counts; warnings: one line each.
      classes: what labels 1 and 2 are: `infection`, or `ggo` and `consolidation`.
    """

    name: str
    pictures: np.ndarray
    mask: np.ndarray
    lung: np.ndarray
    regions: np.ndarray
    tally: severity.Tally
    warnings: list[str]
    uncertainty: np.ndarray | None = None
    classes: tuple[str, ...] = labels.LESIONS


@dataclasses.dataclass
class Patient:
    """A patient with the names of the scans, and the scores and warnings of all of them pooled."""

    name: str
    scans: list[str]
    scores: severity.Severity
    warnings: list[str]


def drop_detached(mask: np.ndarray, lung: np.ndarray) -> int:
    """Clears, in place, connected components of a slice that touch no lung in it.

    Such lie beside the body, or in the belly. Mask uint8 and lung bool are [D, H, W]; the number
    of pixels cleared is returned.
    """
    before = int(np.count_nonzero(mask))
    for i in range(len(mask)):
        if mask[i].any():
            patches, n = ndimage.label(mask[i] > 0, np.ones((3, 3)))
            near = ndimage.binary_dilation(lung[i], np.ones((3, 3)))
            touching = np.zeros(n + 1, bool)
            touching[np.unique(patches[near])] = True
            mask[i][~touching[patches]] = 0
    return before - int(np.count_nonzero(mask))


def assess(
    scan: imaging.Scan,
    mask: np.ndarray,
    lung: np.ndarray | None = None,
    *,
    lobes: np.ndarray | None = None,
    regions: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
    classes: Sequence[str] = labels.LESIONS,
    found: bool = False,
    origin: Literal["network", "named", "guessed"] = "network",
) -> Case:
    """Counts one scan's infection.

    Args:
      scan: as read; mask: uint8 [D, H, W] on its canonical grid, 0..2.
      lung: bool or integer, same shape; None takes the lobes, or finds it by morphology.
      lobes, regions: the user's own maps, lobes by `labels.standard_lobes`, regions 1..20; without
        them 20 regions are cut by fixed rules.
      uncertainty: float, same shape, 0..1, only passed on.
      classes: what labels 1 and 2 are; with one class, shares per class are not known.
      found: the lung was found by morphology or a network, and may be something else.
      origin: of the mask: a network, or a file whose labels are named or not (`labels.doubts`).

    Raises:
      ValueError: no lung found, one that is too small for a chest, maps of other shapes, or labels
        that cannot be what they should.
    """
    if mask.shape != scan.values.shape:
        raise ValueError(f"{scan.name}: mask of shape {mask.shape}, scan of {scan.values.shape}")
    pictures, notes, zones = scan.pictures(), list(scan.warnings), None
    if lobes is not None and lobes.any():
        lobes = labels.standard_lobes(lobes, scan.name)
        notes += labels.check_lobes(lobes, scan.name, _middle(scan))
    if lung is None:
        found, lung = (True, lungs.segment(pictures)) if lobes is None else (False, lobes)
    if lung.shape != mask.shape:
        raise ValueError(f"{scan.name}: lung of shape {lung.shape}, mask of {mask.shape}")
    if lung.dtype != bool:
        lung, said = labels.lungs(lung, scan.name)
        notes += said
    if not np.any(lung):
        raise ValueError(f"{scan.name}: no lung found; give its mask")
    hu = scan.values if scan.is_hu else None
    notes += _doubts_of_lung(scan, lung, given=not found)
    if origin != "network":
        notes += _doubts(scan.name, mask, lung, hu, sure=origin == "named")
    if lobes is not None:
        lobes = sides.unite(lobes, mask)
    if regions is None:
        regions, zones = _cut(scan, lung, mask, lobes, notes)
    else:
        labels.check_regions(regions, scan.name, _middle(scan))
        regions = sides.unite(regions, mask)
    maps = {"regions": regions, "lobes": lobes, "zones": zones, "hu": hu}
    sick, known = mask if len(classes) > 1 else mask > 0, tuple(classes)
    tally = severity.count(sick, lung, **maps, spacing=scan.spacing)
    mask, regions = (array.astype(np.uint8, copy=False) for array in (mask, regions))
    inside = lung | (mask > 0)
    return Case(scan.name, pictures, mask, inside, regions, tally, notes, uncertainty, known)


def pool(name: str, cases: Sequence[Case]) -> Patient:
    """Adds up a patient's scans before anything is graded.

    ValueError for no case, or voxels of different volumes.
    """
    if not cases:
        raise ValueError(f"patient {name} has no scan")
    total = functools.reduce(operator.add, (case.tally for case in cases))
    notes = [note for case in cases for note in case.warnings]
    return Patient(name, [case.name for case in cases], severity.grade(total), notes)


def write_tables(folder: Path, patients: Sequence[Patient], *, model: Mapping[str, Any]) -> None:
    """Writes `severity.csv` (a row a patient) and `severity.json` (regions too), each whole.

    `model` identifies model and config; {} where masks came from elsewhere.
    """
    rows, records = [], []
    for patient in patients:
        scores, n = patient.scores.as_dict(), len(patient.scans)
        flat = {name: value for name, value in scores.items() if name not in LISTS}
        rows.append({"patient": patient.name, "scans": n} | flat)
        record = {"patient": patient.name, "scans": patient.scans, "scores": scores}
        records.append(record | {"warnings": patient.warnings})
    write_csv(folder / "severity.csv", rows)
    document = {"schema": SCHEMA, "use": USE, "model": model, "patients": records}
    write_json(folder / "severity.json", document)


def _cut(
    scan: imaging.Scan,
    lung: np.ndarray,
    mask: np.ndarray,
    lobes: np.ndarray | None,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray | None]:
    """20 regions and, for a volume, six zones; the infection gets the nearest one."""
    if lobes is not None:
        left = np.isin(lobes, (cuts.LEFT_UPPER, cuts.LEFT_LOWER))
        halves = np.where(left, sides.LEFT, np.where(lobes > 0, sides.RIGHT, 0)).astype(np.uint8)
        return cuts.lobe_regions(lobes), cuts.zones(sides.unite(halves, mask))
    upright = len(lung) > 1 or scan.oriented or not sides.lies_on_side(lung[0])
    if not upright:
        notes.append(f"{scan.name}: the lungs lie above each other; taken as transposed")
    halves, only = sides.halves(lung, mask, _middle(scan, upright=upright), upright=upright)
    if only is not None:
        side, other = sides.NAMES[only], sides.NAMES[sides.RIGHT + sides.LEFT - only]
        text = f"{scan.name}: only the {side} lung is there; the {other} one has no region"
        n_sick, stray = int((mask > 0).sum()), int(((mask > 0) & (halves == 0)).sum())
        notes.append(
            f"{text}, nor has {100 * stray / n_sick:.0f} % of the infection" if stray else text
        )
    if len(lung) > 1:
        return cuts.volume_regions(halves), cuts.zones(halves)
    turned = cuts.slice_regions(halves[0] if upright else halves[0].T)
    return (turned if upright else turned.T)[None], None


def _middle(scan: imaging.Scan, *, upright: bool = True) -> float:
    """The column in the middle of the body, or a row; of the picture where no image is given."""
    if scan.kind == "labels":
        return (scan.values.shape[2 if upright else 1] - 1) / 2
    return sides.body_middle(scan.pictures(), upright=upright)


def _doubts_of_lung(scan: imaging.Scan, lung: np.ndarray, *, given: bool) -> list[str]:
    """`plausible.doubts` with the scan's name; a map that stands in for its scan shows no body."""
    if scan.kind == "labels":
        return []
    try:
        doubts = plausible.doubts(scan.pictures(), lung, scan.spacing, given=given)
    except ValueError as error:
        raise ValueError(f"{scan.name}: {error}") from None
    return [f"{scan.name}: {doubt}" for doubt in doubts]


def _doubts(
    name: str, mask: np.ndarray, lung: np.ndarray, hu: np.ndarray | None, *, sure: bool
) -> list[str]:
    """Warnings about a mask from a file, uint8 [D, H, W], in its lung, bool; as `labels.doubts`."""
    notes, n_marked = labels.doubts(mask, lung, name, hu=hu, sure=sure), np.count_nonzero(mask)
    if (apart := drop_detached(mask.copy(), lung)) >= 0.01 * n_marked > 0:
        share = f"{100 * apart / n_marked:.0f} % of the marked pixels"
        notes.append(f"{name}: {share} touch no lung, but count as lung")
    return notes

"""From masks to a patient's scores, tables and page: what `predict` and `severity` share."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from infnet_jax.clinic import imaging, lungs, plausible, regions as cuts, severity, sides
from infnet_jax.files import write_csv, write_json

LESIONS = ("ggo", "consolidation")
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
    classes: tuple[str, ...] = LESIONS


@dataclasses.dataclass
class Patient:
    """A patient with the names of the scans, and the scores and warnings of all of them pooled."""

    name: str
    scans: list[str]
    scores: severity.Severity
    warnings: list[str]


def infection(
    labels: np.ndarray, file: str, *, one_class: bool = False
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Returns the infection of a label map.

    Args:
      labels: integer, any shape: 0 none, 1 ground glass, 2 consolidation, 3 effusion; or 0 and
        255, infection of any kind.
      file: its name, for messages; one_class: label 1 is infection of any kind.

    Returns:
      The mask, uint8 of the same shape, 0, 1 and 2; what 1 and 2 are; and warnings.

    Raises:
      ValueError: other labels; names the file.
    """
    values = set(np.unique(labels).tolist())
    if 255 in values and values <= {0, 255} or one_class and values <= {0, 1}:
        return (labels > 0).astype(np.uint8), ("infection",), []
    if one_class:
        raise ValueError(f"{file}: labels {sorted(values)[:6]}; --one-class allows 0 and 1, or 255")
    if not values <= {0, 1, 2, 3}:
        raise ValueError(f"{file}: labels {sorted(values)[:6]}; 0 to 3, or 0 and 255, expected")
    notes = [f"{file}: label 3 is taken as effusion and left out"] if 3 in values else []
    return np.where(labels == 3, 0, labels).astype(np.uint8), LESIONS, notes


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
    classes: Sequence[str] = LESIONS,
    found: bool = False,
) -> Case:
    """Counts one scan's infection.

    Args:
      scan: as read; mask: uint8 [D, H, W] on its canonical grid, 0..2.
      lung: bool or integer, same shape; None takes the lobes, or finds it by morphology.
      lobes, regions: the user's own maps 1..5 (or TotalSegmentator's 10..14) and 1..20; without
        them 20 regions are cut by fixed rules.
      uncertainty: float, same shape, 0..1, only passed on.
      classes: what labels 1 and 2 are; with one class, shares per class are not known.
      found: the lung was found by morphology or a network, and may be something else.

    Raises:
      ValueError: no lung found, one that is too small for a chest, or maps of other shapes.
    """
    if mask.shape != scan.values.shape:
        raise ValueError(f"{scan.name}: mask of shape {mask.shape}, scan of {scan.values.shape}")
    pictures, notes, zones = scan.pictures(), list(scan.warnings), None
    if lung is None:
        found, lung = (True, lungs.segment(pictures)) if lobes is None else (False, lobes)
    if lung.shape != mask.shape:
        raise ValueError(f"{scan.name}: lung of shape {lung.shape}, mask of {mask.shape}")
    if not np.any(lung):
        raise ValueError(f"{scan.name}: no lung found; give its mask")
    if scan.kind != "labels":  # a map that stands in for its scan shows no body
        try:
            doubts = plausible.doubts(pictures, lung > 0, scan.spacing, given=not found)
        except ValueError as error:
            raise ValueError(f"{scan.name}: {error}") from None
        notes += [f"{scan.name}: {doubt}" for doubt in doubts]
    if lobes is not None:
        lobes = sides.unite(cuts.standard_lobes(lobes), mask)
    if regions is None:
        regions, zones = _cut(scan, lung > 0, mask, lobes, notes)
    else:
        regions = sides.unite(regions, mask)
    sick, hu = mask if len(classes) > 1 else mask > 0, scan.values if scan.is_hu else None
    maps = {"regions": regions, "lobes": lobes, "zones": zones, "hu": hu}
    tally = severity.count(sick, lung, **maps, spacing=scan.spacing)
    mask, regions = (labels.astype(np.uint8, copy=False) for labels in (mask, regions))
    inside, known = (lung > 0) | (mask > 0), tuple(classes)
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
    if len(lung) > 1:
        halves = sides.unite(sides.split(lung), mask)
        return cuts.volume_regions(halves), cuts.zones(halves)
    upright = scan.oriented or not sides.lies_on_side(lung[0])
    if not upright:
        notes.append(f"{scan.name}: the lungs lie above each other; taken as transposed")
    halves = sides.unite(sides.split(lung[0], upright=upright), mask[0])
    turned = cuts.slice_regions(halves if upright else halves.T)
    return (turned if upright else turned.T)[None], None

"""From masks to a patient's scores, tables and page: what `predict` and `severity` share."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax.clinic import imaging, lungs, regions as cuts, severity, sides as halves
from infnet_jax.files import write_csv, write_text

LESIONS = ("ggo", "consolidation")
SCHEMA = 1  # of severity.json; see docs/severity.md


@dataclasses.dataclass
class Case:
    """One scan with its mask, ready to be scored, pooled and shown; all maps [D, H, W].

    Attributes:
      name: of the scan.
      pictures: uint8, in the lung window.
      mask: uint8, 0, then a label for each class.
      lung: bool, the infection included.
      regions: uint8, 0..20.
      tally: its counts.
      warnings: one line each.
      uncertainty: float 0..1, or None.
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
    """A patient's cases, and the scores of all of them pooled."""

    name: str
    cases: list[Case]
    scores: severity.Severity


def assess(
    scan: imaging.Scan,
    mask: np.ndarray,
    lung: np.ndarray | None = None,
    *,
    lobes: np.ndarray | None = None,
    regions: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
    classes: Sequence[str] = LESIONS,
) -> Case:
    """Counts one scan's infection.

    Args:
      scan: as read.
      mask: uint8 [D, H, W] on the scan's canonical grid, 0..2.
      lung: bool or integer, same shape; None finds it by morphology.
      lobes, regions: the user's own maps 1..5 (or TotalSegmentator's 10..14) and 1..20; without
        them 20 regions are cut by fixed rules.
      uncertainty: float, same shape, 0..1, only passed on.
      classes: what labels 1 and 2 are; with one class, shares per class are not known.

    Raises:
      ValueError: no lung found, or maps of other shapes.
    """
    if mask.shape != scan.values.shape:
        raise ValueError(f"{scan.name}: mask of shape {mask.shape}, scan of {scan.values.shape}")
    pictures, notes = scan.pictures(), list(scan.warnings)
    if lung is None and lobes is not None:
        lung = lobes
    if lung is None:
        lung = lungs.segment(pictures)
    if lung.shape != mask.shape:
        raise ValueError(f"{scan.name}: lung of shape {lung.shape}, mask of {mask.shape}")
    if not np.any(lung):
        raise ValueError(f"{scan.name}: no lung found; give its mask")
    known: dict[str, np.ndarray | None] = {"lobes": None, "zones": None}
    if lobes is not None:
        known["lobes"] = halves.unite(cuts.standard_lobes(lobes), mask)
    if regions is None:
        regions, known["zones"] = _cut(scan, np.asarray(lung) > 0, mask, known["lobes"], notes)
    else:
        regions = halves.unite(regions, mask)
    tally = severity.count(
        mask if len(classes) > 1 else mask > 0,
        lung,
        regions=regions,
        hu=scan.values if scan.is_hu else None,
        spacing=scan.spacing,
        **known,
    )
    return Case(
        scan.name,
        pictures,
        mask.astype(np.uint8, copy=False),
        (np.asarray(lung) > 0) | (mask > 0),
        regions.astype(np.uint8, copy=False),
        tally,
        notes,
        uncertainty,
        tuple(classes),
    )


def pool(name: str, cases: Sequence[Case]) -> Patient:
    """Adds up a patient's scans before anything is graded.

    Raises:
      ValueError: no case, or voxels of different volumes.
    """
    if not cases:
        raise ValueError(f"patient {name} has no scan")
    total = cases[0].tally
    for case in cases[1:]:
        total = total + case.tally
    return Patient(name, list(cases), severity.grade(total))


def write_tables(
    folder: Path,
    patients: Sequence[tuple[str, list[str], severity.Severity, list[str]]],
    *,
    model: dict[str, Any],
) -> None:
    """Writes `severity.csv` (a row a patient) and `severity.json` (regions too), each whole.

    Args:
      folder: must exist.
      patients: name, names of scans, scores and warnings of each.
      model: what identifies model and config; {} where masks came from elsewhere.
    """
    rows, records = [], []
    for name, scans, scores, notes in patients:
        values = scores.as_dict()
        flat = {k: v for k, v in values.items() if not isinstance(v, list)}
        lists = ("ct_ss_regions", "region_shares", "lobe_shares")
        rows.append(
            {"patient": name, "scans": len(scans)}
            | {k: v for k, v in flat.items() if k not in lists}
        )
        records.append({"patient": name, "scans": scans, "scores": values, "warnings": notes})
    write_csv(folder / "severity.csv", rows)
    document = {
        "schema": SCHEMA,
        "use": "research only, not a medical device",
        "model": model,
        "patients": records,
    }
    write_text(folder / "severity.json", json.dumps(document, indent=1, allow_nan=False) + "\n")


def _cut(
    scan: imaging.Scan,
    lung: np.ndarray,
    mask: np.ndarray,
    lobes: np.ndarray | None,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray | None]:
    """20 regions and, for a volume, six zones; the infection gets the nearest one."""
    if lobes is not None:
        return cuts.lobe_regions(lobes), cuts.zones(halves.unite(_sides_of(lobes), mask))
    if len(lung) > 1:
        sides = halves.unite(halves.split(lung), mask)
        return cuts.volume_regions(sides), cuts.zones(sides)
    upright = scan.oriented or not halves.lies_on_side(lung[0])
    if not upright:
        notes.append(f"{scan.name}: the lungs lie above each other; taken as transposed")
    sides = halves.unite(halves.split(lung[0], upright=upright), mask[0])
    turned = cuts.slice_regions(sides if upright else sides.T)
    return (turned if upright else turned.T)[None], None


def _sides_of(lobes: np.ndarray) -> np.ndarray:
    left = (lobes == cuts.LEFT_UPPER) | (lobes == cuts.LEFT_LOWER)
    return np.where(left, halves.LEFT, np.where(lobes > 0, halves.RIGHT, 0)).astype(np.uint8)

"""The verb `severity`: scores existing masks (ours, nnU-Net's, a radiologist's), no model."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infnet_jax.clinic import case as scoring, imaging, page as report, severity

Row = tuple[str, list[str], severity.Severity, list[str]]


def run(
    masks: Sequence[Path],
    *,
    out: Path,
    images: Path | None = None,
    lung: Path | None = None,
    lobes: Path | None = None,
    regions: Path | None = None,
    one_patient: bool = False,
    one_class: bool = False,
) -> int:
    """Scores masks and writes `severity.csv`, `severity.json` and `report.html` into `out`.

    Args:
      masks: pictures, NIfTI files or folders of them; 0 none, 1 ground glass, 2 consolidation,
        3 (effusion) is left out. A mask of 0 and 255 has one class, infection.
      out: folder, made if need be.
      images: the scans, a file or folder; paired by name (nnU-Net's `_0000` is ignored).
      lung, lobes, regions: label maps of the same grids, a file or folder, paired likewise.
        Without lung and lobes the lungs are found in the images.
      one_patient: all masks are slices of one patient.
      one_class: label 1 is infection of any kind, as single-class networks write it.

    Returns:
      0, or 1 if an input failed: one line each on stderr, the others are written.

    Raises:
      ValueError: nothing to score with, or no mask at all.
      OSError: `out` cannot be written.
    """
    if images is None and lung is None and lobes is None:
        raise ValueError("give --images (lungs are found in them), --lung or --lobes")
    sources = imaging.find(masks)
    sides = {"images": images, "lung": lung, "lobes": lobes, "regions": regions}
    found = {k: imaging.by_name(v) for k, v in sides.items() if v is not None}
    out.mkdir(parents=True, exist_ok=True)
    failed, rows, together = 0, [], []
    with report.Page(out / "report.html", model={}) as page:
        for source in sources:
            try:
                case = _case(source, found, alone=len(sources) == 1, one_class=one_class)
            except (ValueError, OSError, ImportError) as error:
                failed += 1
                print(f"infnet-jax severity: {' '.join(str(error).split())}", file=sys.stderr)
                continue
            if one_patient:
                together.append(case)
            else:
                rows.append(add(page, scoring.pool(source.name, [case])))
        if together:
            rows.append(add(page, scoring.pool(_patient_name(masks), together)))
    return conclude(out, rows, model={}, failed=failed)


def conclude(out: Path, rows: Sequence[Row], *, model: dict[str, str], failed: int) -> int:
    """Writes the tables, prints a line a patient, and returns the exit code."""
    scoring.write_tables(out, rows, model=model)
    for name, _, scores, _ in rows:
        ct_ss = "not known" if scores.ct_ss is None else f"{scores.ct_ss:g} of 40"
        print(f"{name}: {100 * scores.infected_share:.1f} % of the lung infected, CT-SS {ct_ss}")
    n_scans = sum(len(scans) for _, scans, _, _ in rows)
    print(f"{n_scans} scored, {failed} failed: {out / 'report.html'}")
    return 1 if failed else 0


def infection(
    labels: np.ndarray, file: str, *, one_class: bool = False
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """A mask as 0, 1, 2; what 1 and 2 are; and warnings.

    Raises:
      ValueError: labels that are neither 0..3 nor 0 and 255; names the file.
    """
    values = set(np.unique(labels).tolist())
    if 255 in values and values <= {0, 255} or one_class and values <= {0, 1}:
        return (labels > 0).astype(np.uint8), ("infection",), []
    if one_class:
        raise ValueError(f"{file}: labels {sorted(values)[:6]}; --one-class allows 0 and 1, or 255")
    if not values <= {0, 1, 2, 3}:
        raise ValueError(f"{file}: labels {sorted(values)[:6]}; 0 to 3, or 0 and 255, expected")
    notes = [f"{file}: label 3 is taken as effusion and left out"] if 3 in values else []
    return np.where(labels == 3, 0, labels).astype(np.uint8), scoring.LESIONS, notes


def _case(source: imaging.Source, found: dict, *, alone: bool, one_class: bool) -> scoring.Case:
    path = source.files[0]
    partner = {k: imaging.partner(source.name, v, k, alone=alone) for k, v in found.items()}
    if source.kind == "dicom":
        raise ValueError(f"{path}: DICOM masks are not read; export them as NIfTI")
    scan = (
        imaging.read(partner.pop("images"))
        if "images" in partner
        else (imaging.scan_of_labels(path, source.name))
    )
    labels = imaging.read_labels(path, scan)
    mask, classes, notes = infection(labels, path.name, one_class=one_class)
    maps = {k: imaging.read_labels(s.files[0], scan) for k, s in partner.items()}
    scan.warnings += notes
    return scoring.assess(
        scan,
        mask,
        maps.get("lung"),
        lobes=maps.get("lobes"),
        regions=maps.get("regions"),
        classes=classes,
    )


def _patient_name(masks: Sequence[Path]) -> str:
    return masks[0].resolve().name if masks[0].is_dir() else masks[0].resolve().parent.name


def add(page: report.Page, patient: scoring.Patient) -> Row:
    """Puts a patient on the page; returns its row of the tables."""
    page.add(patient.name, patient.cases, patient.scores)
    notes = [note for case in patient.cases for note in case.warnings]
    return patient.name, [case.name for case in patient.cases], patient.scores, notes

"""The tables of covid-chestxray-dataset, in any of the forms that metadata.csv has had."""

import re
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tfds_builders import tables
from tfds_builders.report import Report

LABELS = ("non_covid", "covid", "unknown")
SCORED = 94
NUMBERS = ("age", "offset", "geographic_extent", "opacity")
TEXTS = (
    "finding",
    "view",
    "modality",
    "sex",
    "survival",
    "intubated",
    "went_icu",
    "needed_supplemental_o2",
    "license",
    "url",
)
_UNKNOWN = ("", "todo", "unknown", "n/a")
_CT_VIEWS = ("ct", "axial", "coronal", "sagittal")


class Row(NamedTuple):
    """One file of the dataset: where it is, whose, and the features that need no picture."""

    folder: str
    filename: str
    patient: str
    fields: dict[str, Any]

    @property
    def group(self) -> str:
        """The patient, or the file itself where nobody says whose it is."""
        return self.patient or self.filename

    @property
    def config(self) -> str:
        """Which config the file belongs to."""
        if self.folder == "volumes":
            return "ct_volume"
        return "ct_picture" if self.fields["modality"] == "CT" else "xray"


def find_root(manual_dir: Path) -> Path:
    """Finds the folder with metadata.csv: that one, or one folder below.

    Raises:
      FileNotFoundError: it is nowhere; the message states the layout.
    """
    for root in (manual_dir, *sorted(path for path in manual_dir.iterdir() if path.is_dir())):
        if (root / "metadata.csv").is_file():
            return root
    raise FileNotFoundError(
        f"{manual_dir}: not covid-chestxray-dataset; expected metadata.csv, images/ (and volumes/, "
        "annotations/) in it or in a folder of it"
    )


def read(root: Path, report: Report) -> list[Row]:
    """Reads metadata.csv and the severity scores; a row without a file name goes to `report.skip`.

    Raises:
      ValueError: a table is malformed; the message names it.
    """
    path = root / "metadata.csv"
    rows = tables.read(path)
    tables.require(path, rows, "patientid", "finding", "view", "filename")
    scores = read_scores(root, report)
    found: dict[tuple[str, str], Row] = {}
    for number, cells in enumerate(rows, start=2):
        row = parse(cells, scores)
        key = row.folder, plain(row.filename)
        if not row.filename:
            report.skip(f"metadata.csv row {number}", "no file name")
        elif key in found:
            report.skip(f"metadata.csv row {number}", f"{row.filename} has a row before")
        else:
            found[key] = row
    return list(found.values())


def parse(cells: dict[str, str], scores: dict[str, tuple[float, float]]) -> Row:
    """Makes a row of cells, filling what early tables do not say: `folder` and `modality`."""
    filename = PurePosixPath(cells["filename"].replace("\\", "/")).name
    folder = (cells.get("folder", "") or "images").strip("/").lower()
    if filename.lower().endswith((".nii", ".nii.gz")):
        folder = "volumes"
    modality = cells.get("modality", "") or (
        "CT" if folder == "volumes" or cells["view"].lower() in _CT_VIEWS else "X-ray"
    )
    extent, opacity = scores.get(plain(filename), (float("nan"), float("nan")))
    fields = {name: cells.get(name, "") for name in TEXTS}
    fields |= {"modality": "CT" if modality.upper() == "CT" else modality}
    fields |= {
        "age": tables.number(cells.get("age", "")),
        "offset": tables.number(cells.get("offset", "")),
        "geographic_extent": extent,
        "opacity": opacity,
        "label": label(cells["finding"]),
    }
    return Row(folder, filename, cells["patientid"].removesuffix(".0"), fields)


def label(finding: str) -> str:
    """`covid` where one part of `Pneumonia/Viral/COVID-19` (or `COVID-19, ARDS`) says so."""
    parts = [part.strip().lower() for part in re.split(r"[/,]", finding)]
    if "covid-19" in parts:
        return "covid"
    return "unknown" if all(part in _UNKNOWN for part in parts) else "non_covid"


def read_scores(root: Path, report: Report) -> dict[str, tuple[float, float]]:
    """Reads annotations/covid-severity-scores.csv, if it is there: name to (extent, opacity).

    Extent runs from 0 to 8, opacity from 0 to 6, both the mean of three experts.

    Raises:
      ValueError: a column is missing, or a score is no number of that range.
    """
    path = root / "annotations" / "covid-severity-scores.csv"
    if not path.is_file():
        report.note(f"no {path.relative_to(root)}: nothing has severity scores")
        return {}
    rows = tables.read(path)
    tables.require(path, rows, "filename", "geographic_mean", "opacity_mean")
    found = {}
    for row in rows:
        scores = tables.number(row["geographic_mean"]), tables.number(row["opacity_mean"])
        if not (0 <= scores[0] <= 8 and 0 <= scores[1] <= 6):
            raise ValueError(
                f"{path}: {row['filename']} has the scores {row['geographic_mean']!r} "
                f"and {row['opacity_mean']!r}, expected 0 to 8 and 0 to 6"
            )
        found[plain(row["filename"])] = scores
    report.expect("pictures with severity scores in the table", SCORED, len(found))
    return found


def plain(name: str) -> str:
    """A file name for comparison: Unicode composed, case folded."""
    return unicodedata.normalize("NFC", name.strip()).casefold()

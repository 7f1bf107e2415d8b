"""DICOM series in: from a folder or a zip, sorted by position, checked for gaps and mixtures."""

import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from infnet_jax.clinic.imaging import nifti, scan as scan_lib

if TYPE_CHECKING:
    import pydicom

# Modalities that are certainly no CT. Others (NM, OT, SC: converters write them) get a warning.
NOT_CT = {
    "CR",
    "DX",
    "RG",
    "MG",
    "MR",
    "US",
    "PT",
    "XA",
    "RF",
    "ECG",
    "SR",
    "SEG",
    "PR",
    "KO",
    "RTSTRUCT",
    "RTDOSE",
    "RTPLAN",
    "OP",
    "ES",
    "SM",
}


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark after its preamble, or its usual suffix."""
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read(files: list[Path], name: str) -> scan_lib.Scan:
    """Reads the series of these files, or of the DICOM members of one zip.

    Raises:
      ValueError: unreadable or truncated files, more than one series, missing slices, doubled
        positions, another modality, a zip member outside its folder; names the file.
      ImportError: pydicom is not installed.
    """
    zipped = len(files) == 1 and files[0].suffix.lower() == ".zip"
    slices = list(_zip_members(files[0]) if zipped else ((str(p), p) for p in files))
    folder = str(files[0] if zipped or len(files) == 1 else files[0].parent)
    headers = [(label, _header(label, data)) for label, data in slices]
    notes = _check_series(headers, folder, name)
    ordered, affine = _in_order(headers, folder, notes)
    pictures = []
    for label, d in ordered:
        pictures.append(scan_lib.plain_values(_pixels(label, d)))
        del d.PixelData  # one copy of a volume is enough
    first = ordered[0][1]
    array = np.stack(pictures).transpose(2, 1, 0)  # as NIfTI has it: x, y, z
    known = affine is not None
    place = affine if known else _made_up_affine(first)
    grid = nifti.grid_of(place, array.shape, array.shape)
    origin = {"headers": [d for _, d in ordered], "affine": place, "positions": known}
    return scan_lib.finish(
        name,
        "dicom",
        array,
        grid,
        spacing=nifti.spacing_of(place),
        oriented=known,
        origin=origin,
        warnings=notes,
        file=folder,
    )


def _zip_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each DICOM file of a zip; nothing is written to disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                place = PurePosixPath(info.filename.replace("\\", "/"))
                drive = info.filename[1:2] == ":"  # as in C:
                if place.is_absolute() or ".." in place.parts or drive:
                    raise ValueError(f"{path}: member {info.filename!r} lies outside its folder")
                if info.is_dir() or place.name.startswith(".") or place.name == "DICOMDIR":
                    continue
                data = archive.read(info)
                if place.suffix.lower() in (".dcm", ".dicom") or data[128:132] == b"DICM":
                    yield f"{path}:{info.filename}", data
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: damaged zip ({error})") from None


def _header(label: str, data: Path | bytes) -> "pydicom.Dataset":
    try:
        import pydicom
    except ImportError:
        raise ImportError("DICOM needs more packages: pip install 'infnet-jax[dicom]'") from None
    try:
        found = pydicom.dcmread(io.BytesIO(data) if isinstance(data, bytes) else data)
    except (pydicom.errors.InvalidDicomError, EOFError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{label}: damaged or no DICOM file ({reason})") from None
    modality = str(found.get("Modality", ""))
    if modality in NOT_CT:
        raise ValueError(f"{label}: modality {modality}; CT expected")
    if "PixelData" not in found:
        raise ValueError(f"{label}: holds no picture (truncated?)")
    return found


def _check_series(
    headers: list[tuple[str, "pydicom.Dataset"]], folder: str, name: str
) -> list[str]:
    """One series of one size; returns the warnings."""
    if not headers:
        raise ValueError(f"{folder}: no DICOM slice in it")
    for tag, what in (("SeriesInstanceUID", "series"), ("Rows", "sizes"), ("Columns", "sizes")):
        kinds = Counter(str(d.get(tag, "")) for _, d in headers)
        if len(kinds) > 1:
            rare = min(kinds, key=kinds.get)
            odd = next(label for label, d in headers if str(d.get(tag, "")) == rare)
            raise ValueError(f"{folder}: {len(kinds)} {what} mixed (see {odd}); give one at a time")
    modality = str(headers[0][1].get("Modality", "")) or "none"
    return [] if modality == "CT" else [f"{name}: modality {modality}, taken as CT all the same"]


def _in_order(
    headers: list[tuple[str, "pydicom.Dataset"]], folder: str, notes: list[str]
) -> tuple[list[tuple[str, "pydicom.Dataset"]], np.ndarray | None]:
    """Slices in order of position, with the RAS affine; by number, None where none is given."""
    placed = [d for _, d in headers if "ImagePositionPatient" in d and _axes(d) is not None]
    if len(placed) not in (0, len(headers)):
        has = {id(d) for d in placed}
        bad = next(label for label, d in headers if id(d) not in has)
        raise ValueError(f"{bad}: has no position, unlike the other slices of its series")
    if placed:
        row, column = _axes(headers[0][1])
        if any(not np.allclose(_axes(d), (row, column), atol=1e-3) for d in placed):
            raise ValueError(f"{folder}: slices of several orientations mixed (a localizer?)")
        normal = np.cross(row, column)
        height = [float(np.dot(d.ImagePositionPatient, normal)) for d in placed]
    else:
        notes.append("slices without positions, ordered by number, the first at the feet")
        tag = "SliceLocation" if all(d.get("SliceLocation") for _, d in headers) else None
        height = [_number(label, d, tag or "InstanceNumber") for label, d in headers]
    order = np.argsort(height, kind="stable")
    ordered, height = [headers[i] for i in order], np.asarray(height, float)[order]
    _check_gaps(ordered, height)
    if not placed:
        return ordered, None
    first, last = (np.array(ordered[i][1].ImagePositionPatient, float) for i in (0, -1))
    n = len(ordered)
    step = (last - first) / (n - 1) if n > 1 else normal * _thickness(ordered[0][1])
    dy, dx = (float(v) for v in ordered[0][1].PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.stack([row * dx, column * dy, step, first], axis=1)
    return ordered, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's LPS to RAS


def _check_gaps(ordered: list[tuple[str, "pydicom.Dataset"]], height: np.ndarray) -> None:
    if len(height) < 2:
        return
    steps = np.diff(height)
    usual = float(np.median(steps))
    doubled = np.flatnonzero(steps <= max(0.01 * usual, 1e-4))
    if doubled.size:
        a, b = (ordered[doubled[0] + i][0] for i in (0, 1))
        raise ValueError(f"{b}: at the same position as {a}; give each slice once")
    if len(steps) > 1 and steps.max() > 1.5 * usual:
        k = int(steps.argmax())
        raise ValueError(
            f"{ordered[k + 1][0]}: slices are missing before it (a step of {steps[k]:g}, "
            f"usually {usual:g})"
        )


def _number(label: str, header: "pydicom.Dataset", tag: str) -> float:
    if header.get(tag) is None:
        raise ValueError(f"{label}: has neither a position nor a number; slices cannot be ordered")
    return float(header.get(tag))


def _axes(header: "pydicom.Dataset") -> tuple[np.ndarray, np.ndarray] | None:
    values = np.array(header.get("ImageOrientationPatient") or [], float)
    if values.size != 6 or np.linalg.norm(np.cross(values[:3], values[3:])) < 0.5:
        return None
    return values[:3], values[3:]


def _pixels(label: str, header: "pydicom.Dataset") -> np.ndarray:
    """Slice [H, W] in the units of the rescale tags (HU for CT)."""
    try:
        from pydicom.pixels import pixel_array

        array = pixel_array(header)  # keeps no second copy in the header
    except (ValueError, AttributeError, RuntimeError, NotImplementedError, EOFError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{label}: truncated or unreadable pixels ({reason})") from None
    if array.ndim != 2:
        raise ValueError(f"{label}: pixels of shape {array.shape}; one grey slice a file expected")
    slope = float(header.get("RescaleSlope", 1) or 1)
    offset = float(header.get("RescaleIntercept", 0) or 0)
    if slope == 1 and offset == int(offset):
        return array.astype(np.int32) + int(offset)
    return array.astype(np.float32) * slope + offset


def _thickness(header: "pydicom.Dataset") -> float:
    for tag in ("SpacingBetweenSlices", "SliceThickness"):
        if header.get(tag):
            return abs(float(header.get(tag))) or 1.0
    return 1.0


def _made_up_affine(header: "pydicom.Dataset") -> np.ndarray:
    """The affine of a series without positions, as if it lay in radiological display."""
    dy, dx = (float(v) for v in header.get("PixelSpacing") or (1.0, 1.0))
    return np.diag([-dx, -dy, _thickness(header), 1.0])

"""DICOM series in, sorted by position, checked for gaps and mixtures; masks out as DICOM-SEG.

A SEG is what viewers lay over a series; headers are stripped first.
"""

import datetime
import io
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from infnet_jax.clinic.imaging.scan import MaskInfo, NoMask, Scan, finish, one_line, plain_values

if TYPE_CHECKING:
    import highdicom as hd
    import pydicom

SUFFIXES = (".dcm", ".dicom", ".zip")
# Modalities that are certainly no CT. Others (NM, OT, SC: converters write them) get a warning.
NOT_CT = frozenset(
    "CR DX RG MG MR US PT XA RF ECG SR SEG PR KO RTSTRUCT RTDOSE RTPLAN OP ES SM".split()
)
# What a SEG needs of each slice: geometry, and the UIDs that tie it to the series it lies on.
_KEPT = """
SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality
Rows Columns PixelSpacing SliceThickness SpacingBetweenSlices ImagePositionPatient
ImageOrientationPatient SamplesPerPixel BitsAllocated BitsStored HighBit PixelRepresentation
PhotometricInterpretation
""".split()
_IDENTIFIERS = """
PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber
ReferringPhysicianName StudyDescription
""".split()

Slice = tuple[str, "pydicom.Dataset"]  # where a header comes from, for messages, and the header


def has_mark(path: Path) -> bool:
    """Whether a file has DICOM's mark after its preamble."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read(files: Sequence[Path], name: str) -> Scan:
    """Reads the series of these files, or of the DICOM members of one zip.

    Raises:
      ValueError: unreadable or truncated files, more than one series, missing slices, doubled
        positions, another modality, a zip member outside its folder; names the file.
      ImportError: pydicom is not installed.
    """
    data: Iterable[tuple[str, Path | bytes]] = ((str(path), path) for path in files)
    folder = str(files[0].parent if len(files) > 1 else files[0])
    if len(files) == 1 and files[0].suffix.lower() == ".zip":
        data = _zip_members(files[0])
    slices = [(label, _header(label, one)) for label, one in data]
    notes = _check_series(slices, folder, name)
    ordered, affine = _in_order(slices, folder, notes)
    pictures = []
    for label, header in ordered:
        pictures.append(plain_values(_pixels(label, header)))
        del header.PixelData  # one copy of a volume is enough
    headers = [header for _, header in ordered]
    array, known = np.stack(pictures).transpose(2, 1, 0), affine is not None  # x, y, z
    if affine is None:  # as if the series lay in radiological display
        dy, dx = (float(v) for v in headers[0].get("PixelSpacing") or (1.0, 1.0))
        affine = np.diag([-dx, -dy, _thickness(headers[0]), 1.0])
    return finish(
        name, "dicom", array, folder, affine=affine, oriented=known, origin=headers, warnings=notes
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
    """The header, pixels included, of one file or of its bytes."""
    try:
        import pydicom
    except ImportError:
        raise ImportError("DICOM needs more packages: pip install 'infnet-jax[dicom]'") from None
    try:
        found = pydicom.dcmread(io.BytesIO(data) if isinstance(data, bytes) else data)
    except (pydicom.errors.InvalidDicomError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{label}: damaged or no DICOM file ({one_line(error)})") from None
    modality = str(found.get("Modality", ""))
    if modality in NOT_CT:
        raise ValueError(f"{label}: modality {modality}; CT expected")
    if "PixelData" not in found:
        raise ValueError(f"{label}: holds no picture (truncated?)")
    return found


def _check_series(slices: Sequence[Slice], folder: str, name: str) -> list[str]:
    """One series of one size; returns the warnings."""
    if not slices:
        raise ValueError(f"{folder}: no DICOM slice in it")
    for tag, what in (("SeriesInstanceUID", "series"), ("Rows", "sizes"), ("Columns", "sizes")):
        kinds = Counter(str(header.get(tag, "")) for _, header in slices)
        if len(kinds) > 1:
            rare = min(kinds, key=lambda kind: kinds[kind])
            odd = next(label for label, header in slices if str(header.get(tag, "")) == rare)
            raise ValueError(f"{folder}: {len(kinds)} {what} mixed (see {odd}); give one at a time")
    modality = str(slices[0][1].get("Modality", "")) or "none"
    return [] if modality == "CT" else [f"{name}: modality {modality}, taken as CT all the same"]


def _in_order(
    slices: Sequence[Slice], folder: str, notes: list[str]
) -> tuple[list[Slice], np.ndarray | None]:
    """Slices in order of position, with the RAS affine; by number, None where none is given."""
    axes = [_axes(header) for _, header in slices]
    known = [pair for pair in axes if pair is not None]
    if not known:
        notes.append("slices without positions, ordered by number, the first at the feet")
        located = all(header.get("SliceLocation") for _, header in slices)
        tag = "SliceLocation" if located else "InstanceNumber"
        bad = next((label for label, header in slices if header.get(tag) is None), None)
        if bad is not None:
            end = "has neither a position nor a number; slices cannot be ordered"
            raise ValueError(f"{bad}: {end}")
        return _sorted(slices, [float(header.get(tag)) for _, header in slices]), None
    if len(known) < len(slices):
        bad = next(label for (label, _), pair in zip(slices, axes, strict=True) if pair is None)
        raise ValueError(f"{bad}: has no position, unlike the other slices of its series")
    if not np.allclose(known, known[0], atol=1e-3):
        raise ValueError(f"{folder}: slices of several orientations mixed (a localizer?)")
    row, column = known[0]
    normal = np.cross(row, column)
    ordered = _sorted(slices, [float(np.dot(h.ImagePositionPatient, normal)) for _, h in slices])
    headers = [header for _, header in ordered]
    first, last = (np.array(headers[i].ImagePositionPatient, float) for i in (0, -1))
    n = len(ordered)
    step = (last - first) / (n - 1) if n > 1 else normal * _thickness(headers[0])
    dy, dx = (float(v) for v in headers[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.stack([row * dx, column * dy, step, first], axis=1)
    return ordered, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's LPS to RAS


def _sorted(slices: Sequence[Slice], heights: Sequence[float]) -> list[Slice]:
    """Slices by height; none may be missing between two, and no two at the same height."""
    order = np.argsort(heights, kind="stable")
    ordered, steps = [slices[i] for i in order], np.diff(np.asarray(heights)[order])
    usual = float(np.median(steps)) if steps.size else 0.0
    doubled = np.flatnonzero(steps <= max(0.01 * usual, 1e-4))
    if doubled.size:
        a, b = (ordered[doubled[0] + i][0] for i in (0, 1))
        raise ValueError(f"{b}: at the same position as {a}; give each slice once")
    if len(steps) > 1 and steps.max() > 1.5 * usual:
        k = int(steps.argmax())
        gap = f"(a step of {steps[k]:g}, usually {usual:g})"
        raise ValueError(f"{ordered[k + 1][0]}: slices are missing before it {gap}")
    return ordered


def _axes(header: "pydicom.Dataset") -> tuple[np.ndarray, np.ndarray] | None:
    """Unit vectors (3,) along a row and along a column, in the patient's LPS; None if unknown."""
    values = np.array(header.get("ImageOrientationPatient") or [], float)
    placed = "ImagePositionPatient" in header and values.size == 6
    if not placed or np.linalg.norm(np.cross(values[:3], values[3:])) < 0.5:
        return None
    return values[:3], values[3:]


def _pixels(label: str, header: "pydicom.Dataset") -> np.ndarray:
    """Slice [H, W], int32 or float32, in the units of the rescale tags (HU for CT)."""
    try:
        from pydicom.pixels import pixel_array

        array = pixel_array(header)  # keeps no second copy in the header
    except (ValueError, AttributeError, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{label}: truncated or unreadable pixels ({one_line(error)})") from None
    if array.ndim != 2:
        raise ValueError(f"{label}: pixels of shape {array.shape}; one grey slice a file expected")
    slope = float(header.get("RescaleSlope", 1) or 1)
    offset = float(header.get("RescaleIntercept", 0) or 0)
    if slope == 1 and offset == int(offset):
        return array.astype(np.int32) + int(offset)
    return array.astype(np.float32) * slope + offset


def _thickness(header: "pydicom.Dataset") -> float:
    """From slice to slice, in mm; 1 where the header does not say."""
    given = (header.get(tag) for tag in ("SpacingBetweenSlices", "SliceThickness"))
    return next((abs(float(value)) for value in given if value), 0.0) or 1.0


def write_mask(path: Path, scan: Scan, array: np.ndarray, info: MaskInfo) -> None:
    """Writes a mask, uint8 [x, y, z], slices in the order of the headers in the scan's `origin`.

    The UIDs of study and series are kept in any case: without them no viewer finds the scan.

    Raises:
      NoMask: highdicom is not installed, a mask without a marked voxel, or headers that are too
        poor for a SEG.
    """
    if not scan.oriented:
        raise NoMask("no DICOM-SEG, since the series has no positions")
    headers = [_strip(header, info.keep_identifiers) for header in scan.origin]
    try:
        found = _segmentation(np.ascontiguousarray(array.transpose(2, 1, 0)), headers, info)
        found.save_as(path)
    except (ImportError, ValueError, AttributeError, TypeError) as error:
        raise NoMask(f"no DICOM-SEG ({one_line(error)})") from None


def _strip(header: "pydicom.Dataset", keep_identifiers: bool) -> "pydicom.Dataset":
    """A new header with geometry and UIDs only; names, ids and dates are empty or kept."""
    import pydicom

    out = pydicom.Dataset()
    for tag in _KEPT:
        if tag in header:
            setattr(out, tag, header.get(tag))
    for tag in _IDENTIFIERS:
        value = header.get(tag) if keep_identifiers else None
        setattr(out, tag, value if value is not None else "")
    out.file_meta = pydicom.dataset.FileMetaDataset()
    out.file_meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    return out


def _segmentation(
    mask: np.ndarray, headers: Sequence["pydicom.Dataset"], info: MaskInfo
) -> "hd.seg.Segmentation":
    """The SEG of a mask, uint8 [D, H, W], with a segment for each class that is marked."""
    try:
        import highdicom as hd
    except ImportError:
        message = "DICOM-SEG needs more packages: pip install 'infnet-jax[dicom]'"
        raise ImportError(message) from None
    if not mask.any():
        raise ValueError("no infection found: an empty mask is written as NIfTI only")
    labels = enumerate(info.classes.items(), start=1)
    present = [(label, names) for label, names in labels if (mask == label).any()]
    # One plane a segment: numbers start at 1 without a gap, whatever the labels are.
    planes = np.stack([mask == label for label, _ in present], axis=-1).astype(np.uint8)
    version, numbered = info.version or "0", enumerate(present, start=1)
    found = hd.seg.Segmentation(
        source_images=headers,
        pixel_array=planes,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(i, *names, version) for i, (_, names) in numbered],
        series_instance_uid=hd.UID(),
        series_number=900,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="infnet-jax",
        manufacturer_model_name="infnet-jax",
        software_versions=version,
        device_serial_number="0",
        series_description="infection (research use)",
        content_label="INFECTION",
    )
    now = datetime.datetime.now()
    found.SeriesDate = now.date()  # type: ignore[assignment]  # pydicom converts them
    found.SeriesTime = now.time()  # type: ignore[assignment]
    return found


def _description(number: int, code: str, name: str, version: str) -> "hd.seg.SegmentDescription":
    """Says of a segment what it is and what found it."""
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept

    abnormal = CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
    family = CodedConcept("123110", "DCM", "Artificial Intelligence")
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=abnormal,
        segmented_property_type=CodedConcept(code, "99INFNET", name),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence("infnet-jax", family, version),
    )

"""Masks out as DICOM-SEG, which viewers lay over a series; headers are stripped first."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infnet_jax.clinic.imaging.scan import MaskInfo, NoMask, Scan, one_line

if TYPE_CHECKING:
    import highdicom as hd
    import pydicom

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


def write_mask(path: Path, scan: Scan, array: np.ndarray, info: MaskInfo) -> None:
    """Writes a mask, uint8 [x, y, z], slices in the order of the headers in the scan's `origin`.

    The UIDs of study and series are kept in any case: without them no viewer finds the scan.

    Raises:
      NoMask: highdicom is not installed, a mask without a marked voxel, or headers that are too
        poor for a SEG.
    """
    if not scan.oriented:
        raise NoMask("no DICOM-SEG, since the series has no positions")
    if len({id(header) for header in scan.origin}) < len(scan.origin):
        raise NoMask("no DICOM-SEG of an enhanced multi-frame series")
    headers = [_strip(header, info.keep_identifiers) for header in scan.origin]
    _add_measures(headers, scan)
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
    if keep_identifiers:
        out.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: pydicom has decoded what the file had
    out.file_meta = pydicom.dataset.FileMetaDataset()
    out.file_meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    return out


def _add_measures(headers: Sequence["pydicom.Dataset"], scan: Scan) -> None:
    """A SEG must say how thick a slice is; where the headers do not, their positions do."""
    for header in headers:
        if not header.get("SliceThickness") and scan.spacing is not None:
            header.SliceThickness = scan.spacing[0]


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

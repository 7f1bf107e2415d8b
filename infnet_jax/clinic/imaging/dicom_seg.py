"""Masks as DICOM-SEG, which viewers lay over the series; headers are stripped first."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pydicom

# What a SEG needs of each slice: geometry, and the UIDs that tie it to the series it lies on.
_KEPT = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "Rows",
    "Columns",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
)
_IDENTIFIERS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
)


def strip(header: "pydicom.Dataset", *, keep_identifiers: bool = False) -> "pydicom.Dataset":
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


def write(
    path: Path,
    mask: np.ndarray,
    headers: list["pydicom.Dataset"],
    classes: dict[str, str],
    *,
    keep_identifiers: bool = False,
    version: str = "",
) -> None:
    """Writes a mask on the grid of its series.

    Args:
      path: the file; replaced whole.
      mask: uint8 [D, H, W], slices in the order of `headers`.
      headers: of the source slices, with positions.
      classes: code to name of labels 1, 2, ..., in their order.
      keep_identifiers: copies the patient's name, id and dates, which are else left empty. The
        UIDs of study and series are always kept: without them no viewer finds the scan.
      version: of this software.

    Raises:
      ImportError: highdicom is not installed.
      ValueError: the mask is empty: a SEG holds at least one marked voxel.
    """
    try:
        import highdicom as hd
        from highdicom.sr.coding import CodedConcept
    except ImportError:
        raise ImportError("DICOM-SEG needs more packages: pip install 'infnet-jax[dicom]'") from (
            None
        )
    if not mask.any():
        raise ValueError("no infection found: an empty mask is written as NIfTI only")
    abnormal = CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
    algorithm = hd.AlgorithmIdentificationSequence(
        name="infnet-jax",
        version=version or "0",
        family=CodedConcept("123110", "DCM", "Artificial Intelligence"),
    )
    labels = enumerate(classes.items(), start=1)
    present = [(label, *names) for label, names in labels if (mask == label).any()]
    described = [
        hd.seg.SegmentDescription(
            segment_number=i,
            segment_label=name,
            segmented_property_category=abnormal,
            segmented_property_type=CodedConcept(code, "99INFNET", name),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for i, (_, code, name) in enumerate(present, start=1)
    ]
    # One plane a segment: numbers start at 1 without a gap, whatever the labels are.
    planes = np.stack([mask == label for label, _, _ in present], axis=-1).astype(np.uint8)
    found = hd.seg.Segmentation(
        source_images=[strip(h, keep_identifiers=keep_identifiers) for h in headers],
        pixel_array=planes,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=hd.UID(),
        series_number=900,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="infnet-jax",
        manufacturer_model_name="infnet-jax",
        software_versions=version or "0",
        device_serial_number="0",
        series_description="infection (research use)",
        content_label="INFECTION",
    )
    now = datetime.datetime.now()
    found.SeriesDate, found.SeriesTime = now.date(), now.time()
    found.save_as(path)

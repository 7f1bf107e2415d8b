"""Drawn chests, and a rule that stands in for a network that segments them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from infnet_jax.evaluation.predictor import Prediction


def chest(side: int = 96, lesion: int = 9) -> np.ndarray:
    """A body with two lungs, uint8; the lesion is a square of grey 120 in the right one."""
    y, x = np.mgrid[:side, :side] / side
    picture = np.where(((x - 0.5) / 0.46) ** 2 + ((y - 0.5) / 0.4) ** 2 < 1, 200, 0)
    for centre in (0.28, 0.72):
        picture[((x - centre) / 0.16) ** 2 + ((y - 0.5) / 0.28) ** 2 < 1] = 30
    top, left = side // 2, side // 4
    picture[top : top + lesion, left : left + lesion] = 120
    return picture.astype(np.uint8)


class Rule:
    """Marks grey levels of 90..150 as the first class; counts the slices it is given."""

    def __init__(self, classes=("ggo", "consolidation"), tta=False, weights="abc"):
        self.classes, self.thresholds = classes, dict.fromkeys(classes, 0.5)
        self.identity, self.tta, self.n_slices = {"weights": weights}, tta, 0

    def __call__(self, slices: Iterator[np.ndarray]) -> Iterator[Prediction]:
        for picture in slices:
            self.n_slices += 1
            first = ((picture > 90) & (picture < 150)).astype(np.float32)
            probs = np.stack([0.9 - 0.8 * first, 0.05 + 0.8 * first, 0.05 + 0 * first], -1)
            if len(self.classes) == 1:
                probs = probs[..., 1:2]
            yield Prediction(np.uint8(first), probs, 0.25 * first if self.tta else None)


def ct_header(uid: str, number: int) -> Any:
    """The header of slice `number` of a CT series, without geometry and pixels; names no one."""
    pydicom = pytest.importorskip("pydicom")
    d = pydicom.Dataset()
    d.file_meta = pydicom.dataset.FileMetaDataset()
    d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = pydicom.uid.CTImageStorage
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = f"{uid}.{number}"
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = "1.2.3", uid, "1.2.9"
    d.Modality, d.InstanceNumber, d.PatientName, d.PatientID = "CT", number, "", ""
    d.PatientBirthDate = d.PatientSex = d.StudyDate = d.StudyTime = d.AccessionNumber = ""
    d.StudyID = d.ReferringPhysicianName = ""
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    return d

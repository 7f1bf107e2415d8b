"""Writes a few made-up files in the layout of covid-chestxray-dataset."""

from pathlib import Path

import numpy as np
from PIL import Image

EARLY = (
    "Patientid,offset,sex,age,finding,survival,view,date,location,filename,doi, url,license,notes"
)
LATE = (
    "patientid,offset,sex,age,finding,RT_PCR_positive,survival,intubated,intubation_present,"
    "went_icu,in_icu,needed_supplemental_O2,extubated,temperature,pO2_saturation,"
    "leukocyte_count,neutrophil_count,lymphocyte_count,view,modality,date,location,folder,"
    "filename,doi,url,license,clinical_notes,other_notes,"
)
ROWS = (  # patient, finding, view, modality, folder, filename
    ("2", "Pneumonia/Viral/COVID-19", "PA", "X-ray", "images", "a-1.jpeg"),
    ("2", "Pneumonia/Viral/COVID-19", "AP Supine", "X-ray", "images", "a-2.jpeg"),
    ("3", "Pneumonia/Viral/SARS", "PA", "X-ray", "images", "b.webp-day5.png"),
    ("4", "todo", "L", "X-ray", "images", "c.jpg"),
    ("5", "Pneumonia", "AP", "X-ray", "images", "d.jpg"),
    ("6", "No Finding", "PA", "X-ray", "images", "e.png"),
    ("3", "Pneumonia/Viral/SARS", "Axial", "CT", "images", "f.png"),
    ("7", "Pneumonia/Viral/COVID-19", "Axial", "CT", "volumes", "coronacases_org_001.nii.gz"),
)
SCORES = {"a-1.jpeg": ("6.0", "4.0"), "e.png": ("0.3", "0.0")}


def make(folder: Path, *, early: bool = False) -> Path:
    """Writes 7 pictures, one volume of 3 slices, 2 lung masks, 2 severity scores and metadata.csv.

    Args:
      early: with the header of the first months, which has no modality and no folder, findings
        without a path, and the CT picture's view called `CT`; volumes are left out then.

    Returns:
      `folder`, which then holds metadata.csv.
    """
    rng = np.random.default_rng(0)
    lines = [EARLY if early else LATE]
    for number, (patient, finding, view, modality, place, name) in enumerate(ROWS):
        cells = {
            "patientid": patient,
            "offset": "3",
            "sex": "F",
            "age": "60",
            "finding": finding,
            "view": view,
            "modality": modality,
            "folder": place,
            "filename": name,
            "license": "CC BY-NC-SA",
        }
        path = folder / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if early:
            cells |= {
                "finding": finding.rsplit("/", 1)[-1],
                "view": "CT" if modality == "CT" else view,
            }
        if place == "volumes":
            if early:
                continue
            _volume(path)
        else:
            grey = rng.integers(0, 256, (30 + number, 40), dtype=np.uint8)
            Image.fromarray(grey).convert("RGB" if number % 2 else "L").save(path)
        columns = [column.strip().lower() for column in lines[0].split(",")]
        lines.append(",".join(cells.get(column, "") for column in columns))
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    _annotations(folder)
    return folder


def _volume(path: Path) -> None:
    """Three slices of 12 x 10 x 3 HU: air, and one bright voxel right, in front, at the head."""
    import nibabel

    hu = np.full((12, 10, 3), -1000, np.int16)
    hu[-1, -1, -1] = 250  # the axes run to the right, the front and the head
    image = nibabel.Nifti1Image(hu, np.eye(4))
    flipped = nibabel.orientations.axcodes2ornt("LPS")  # as scanners store them
    ornt = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), flipped)
    nibabel.save(image.as_reoriented(ornt), path)


def _annotations(folder: Path) -> None:
    masks = folder / "annotations" / "lungVAE-masks"
    masks.mkdir(parents=True)
    lung = np.zeros((30, 40), np.uint8)
    lung[5:15, 4:14] = 255
    Image.fromarray(lung).save(masks / "a-1_mask.png")  # of the X-ray's size
    Image.fromarray(np.kron(lung[:16, :20], np.ones((2, 2), np.uint8))).save(
        masks / "b.webp-day5_mask.png"
    )  # 32 x 40, that X-ray's size
    scores = "".join(f"{name},{extent},{opacity}\n" for name, (extent, opacity) in SCORES.items())
    (masks.parent / "covid-severity-scores.csv").write_text(
        "## three raters\n## License: CC BY-SA\nfilename,geographic_mean,opacity_mean\n" + scores
    )

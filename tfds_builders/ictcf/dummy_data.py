"""Writes a few made-up files in the layout of iCTCF, for tests and dry runs."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

HEADER = (
    "Hospital",
    "Patient",
    "Age",
    "Gender",
    "SARS-CoV-2 nucleic acids",
    "CT",
    "Morbidity",
    "Mortality",
)
SEVERITIES = ("Control", "Suspected", "Mild", "Regular", "Severe", "Critically ill")


def rows(n: int) -> list[tuple]:
    """Makes rows of n patients, the severities in turn."""
    return [
        (
            "HUST-Union Hospital",
            f"Patient {i + 1}",
            40 + i,
            ("Male", "Female")[i % 2],
            ("Negative", "Positive")[i % 6 > 1],
            ("Positive", "Negative", "N/A")[i % 3],
            SEVERITIES[i % 6],
            ("Cured", "Unknown", "Deceased")[i % 3],
        )
        for i in range(n)
    ]


def write_table(path: Path, lines: list[tuple]) -> Path:
    """Writes the clinical table as .xlsx."""
    import openpyxl

    book = openpyxl.Workbook()
    for line in (HEADER, *lines):
        book.active.append(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> bytes:
    """Makes the bytes of a JPG of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 5), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_patient(folder: Path, number: int, *, packed: bool, slices: int = 2) -> None:
    """Writes one patient's pictures as `Patient N.zip` or as the folder `Patient N`."""
    names = [f"Patient {number}/CT/IMG-0001-{i + 1:05d}.jpg" for i in range(slices)]
    made = {name: picture(1000 * number + i) for i, name in enumerate(names)}
    folder.mkdir(parents=True, exist_ok=True)
    if packed:
        with zipfile.ZipFile(folder / f"Patient {number}.zip", "w") as archive:
            for name, data in made.items():
                archive.writestr(name, data)
        return
    for name, data in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def make(folder: Path, *, patients: int = 18) -> Path:
    """Writes the table, every other patient packed, and two slices of each slice-level class.

    The slice-level set lies in its own folder, `slices/`. Returns `folder`/patients.
    """
    write_table(folder / "patients/Patients.xlsx", rows(patients))
    for number in range(1, patients + 1):
        write_patient(folder / "patients", number, packed=number % 2 == 1)
    for k, kind in enumerate(("NiCT", "nCT", "pCT")):
        below = folder / "slices" / kind
        below.mkdir(parents=True, exist_ok=True)
        for i in range(2):
            (below / f"IMG-{i:05d}.jpg").write_bytes(picture(90 + 10 * k + i))
    return folder / "patients"

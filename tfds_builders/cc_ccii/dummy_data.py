"""Writes a made-up CC-CCII in its archive layout, of any number of slices, some files damaged."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ARCHIVES = {"NCP": "COVID19", "CP": "CP", "Normal": "Normal"}
SLICES_PER_SCAN = 20
SCANS_PER_ARCHIVE = 50


def make(
    folder: Path, slices: int = 60, *, size: int = 64, damaged: float = 0.0, seed: int = 0
) -> Path:
    """Writes archives, tables, lesion list, and a lesion set of 2 scans with 3 slices each.

    Scans have 20 slices and patients one or two scans; labels take turns. Scans are jpg and png in
    turn. The same arguments give the same pictures.

    Args:
      folder: made if need be.
      slices: total number; the last scan may be shorter.
      size: height and width in pixels.
      damaged: share of slice files that get cut short or overwritten in the middle.

    Returns:
      `folder`, to be used as manual_dir.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    counts, rows, lesions = dict.fromkeys(ARCHIVES, 0), [], []
    writers: dict[str, zipfile.ZipFile] = {}
    for scan in range(-(-slices // SLICES_PER_SCAN)):
        label = list(ARCHIVES)[scan % 3]
        name = f"{ARCHIVES[label]}-{counts[label] // SCANS_PER_ARCHIVE + 1}.zip"
        counts[label] += 1
        if name not in writers:
            writers[name] = zipfile.ZipFile(folder / name, "w", zipfile.ZIP_STORED)
        patient = scan // 3 * 3 // 2 * 10 + scan % 3  # scans 3 k + i of one label share patients
        number = min(SLICES_PER_SCAN, slices - scan * SLICES_PER_SCAN)
        kind = ("jpg", "png")[scan // 3 % 2]
        for index, picture in enumerate(_scan(rng, number, size)):
            path = f"{label}/{patient}/{1000 + scan}/{index:04d}.{kind}"
            writers[name].writestr(path, _spoilt(_encode(picture, kind), rng, damaged))
            if label != "Normal" and index % 4 == 0:
                lesions.append(path)
        rows.append((name.replace("COVID19", "NCP"), label, patient, 1000 + scan, number))
    for writer in writers.values():
        writer.close()
    _tables(folder, rows, lesions)
    _lesion_set(folder / "ct_lesion_seg.zip", rng, size)
    return folder


def _scan(rng: np.random.Generator, number: int, size: int) -> Iterator[np.ndarray]:
    """Slices uint8 [size, size] of one body: two dark lungs that wax and wane, and noise."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    offset = rng.uniform(0.15, 0.25)
    for index in range(number):
        reach = 0.08 + 0.12 * np.sin(np.pi * (index + 1) / (number + 1))
        body = np.where((x / 0.45) ** 2 + (y / 0.35) ** 2 < 1, 160.0, 5.0)
        for side in (-1, 1):
            body[((x - side * offset) / reach) ** 2 + (y / (1.4 * reach)) ** 2 < 1] = 40
        yield (body + rng.normal(0, 6, body.shape)).clip(0, 255).astype(np.uint8)


def _encode(picture: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "jpeg" if kind == "jpg" else kind)
    return buffer.getvalue()


def _spoilt(data: bytes, rng: np.random.Generator, share: float) -> bytes:
    if rng.random() >= share:
        return data
    half = len(data) // 2
    return data[:half] if rng.random() < 0.5 else data[:20] + rng.bytes(half) + data[20 + half :]


def _tables(folder: Path, rows: list[tuple], lesions: list[str]) -> None:
    listed = "".join(",".join(map(str, row)) + "\n" for row in rows)
    (folder / "unzip_filenames.csv").write_text(
        "zip_file,label,patient_id,scan_id,n_slice\n" + listed
    )
    (folder / "lesions_slices.csv").write_text("imgpath\n" + "".join(f"{p}\n" for p in lesions))
    known = [
        f"{patient},{scan},{40 + scan % 40},{1 + scan % 2},{scan % 2},2.5,,{scan % 9}\n"
        for _, label, patient, scan, _ in rows
        if label == "NCP"
    ]
    (folder / "metadata.csv").write_text(
        "patient_id,scan_id,Age,Sex(Male 1/Female 2),Critical_illness,Liver_function,"
        "Lung_function,Progression (Days)\n" + "".join(known)
    )


def _lesion_set(path: Path, rng: np.random.Generator, size: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for scan in range(2):
            for index, picture in enumerate(_scan(rng, 3, size)):
                classes = (picture < 80).astype(np.uint8)  # 1: lung (and air around)
                classes[size // 4 : size // 2, size // 4 : size // 2] = 2
                classes[size // 2 : 5 * size // 8, size // 4 : size // 2] = 3
                archive.writestr(f"image/{scan}/{index}.jpg", _encode(picture, "jpg"))
                archive.writestr(f"mask/{scan}/{index}.png", _encode(classes, "png"))

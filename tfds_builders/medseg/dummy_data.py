"""Writes a few made-up files in the layouts of the medseg sets, for tests and dry runs."""

from pathlib import Path

import nibabel as nib
import numpy as np

# Array axes run towards left, back and head: what `nifti.slices` calls upright, transposed.
LPS = np.diag([-0.7, -0.7, 5.0, 1.0])


def chest(n: int, height: int = 48, width: int = 56) -> dict[str, np.ndarray]:
    """Draws n upright slices: image int16 [n, H, W] in Hounsfield units, labels, lung uint8."""
    rows, columns = np.mgrid[:height, :width]
    y, x = rows / height * 2 - 1, columns / width * 2 - 1
    lung = ((np.abs(x) - 0.45) / 0.3) ** 2 + ((y - 0.05) / 0.6) ** 2 < 1
    lung[(x > 0.1) & (x < 0.5) & (y < 0)] = False  # the heart, to the patient's left, in front
    body = x**2 / 0.95 + y**2 / 0.9 < 1
    image = np.where(body, 40, -1000)
    image[(np.abs(x) < 0.15) & (y > 0.3) & (y < 0.8)] = 400  # spine
    image[lung] = -850
    images, labels = np.repeat(image[None], n, axis=0), np.zeros((n, height, width), np.uint8)
    for z in range(1, n):  # the first slice is healthy
        labels[z, height // 2 : height // 2 + 2 + z % 6, width // 5 : width // 5 + 5] = 1 + z % 2
    labels *= lung
    images = images + np.random.default_rng(n).integers(-30, 30, images.shape)
    images[labels == 1], images[labels == 2] = -500, -50
    return {
        "image": images.astype(np.int16),
        "labels": labels,
        "lung": np.repeat(lung[None], n, axis=0).astype(np.uint8),
    }


def save_nifti(stack: np.ndarray, path: Path, affine: np.ndarray = LPS) -> None:
    """Writes [Z, H, W] upright slices as a NIfTI whose header says `affine`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stack.transpose(2, 1, 0)), affine), path)


def make(folder: Path, *, n: int = 12) -> Path:
    """Writes both sets as NIfTI: n labelled and 2 other slices; volumes 1 to 9 of 3 slices each.

    Returns:
      `folder`, which then holds tr_im.nii.gz and so on, and rp_im/, rp_msk/, rp_lung_msk/.
    """
    made, rest = chest(n), chest(2)
    for name, part in (
        ("tr_im", made["image"]),
        ("tr_mask", made["labels"]),
        ("tr_lungmasks", made["lung"]),
        ("val_im", rest["image"]),
    ):
        save_nifti(part, folder / f"{name}.nii.gz")
    for number in range(1, 10):
        made = chest(3)
        for name, part in (("rp_im", "image"), ("rp_msk", "labels"), ("rp_lung_msk", "lung")):
            save_nifti(made[part], folder / name / f"{number}.nii.gz")
    return folder


def make_npy(folder: Path, *, n: int = 12) -> Path:
    """Writes both sets in Kaggle's form: float images, masks as four channels of 0 and 1."""
    folder.mkdir(parents=True, exist_ok=True)
    made = chest(n)
    for name in ("medseg", "radiopedia"):
        save_npy(made, folder / f"images_{name}.npy", folder / f"masks_{name}.npy")
    np.save(folder / "test_images_medseg.npy", chest(2)["image"][..., None].astype(np.float32))
    return folder


def save_npy(made: dict[str, np.ndarray], images: Path, masks: Path) -> None:
    """Writes stacks as `chest` returns them: ground glass, consolidation, other lung, the rest."""
    labels, lung = made["labels"], made["lung"] > 0
    on = [labels == 1, labels == 2, lung & (labels == 0), ~lung & (labels == 0)]
    np.save(images, made["image"][..., None].astype(np.float32))
    np.save(masks, np.stack(on, -1).astype(np.uint8))

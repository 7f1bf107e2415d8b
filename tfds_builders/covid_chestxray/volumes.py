"""CT volumes in NIfTI files: bytes in, upright 8-bit slices out."""

import numpy as np

WINDOW = (-1250.0, 250.0)  # HU; a lung window wide enough to tell ground glass from consolidation
MAX_FILE = 2**29  # bytes of the file as it lies on disk


def slices(data: bytes, name: str) -> np.ndarray:
    """Reads a NIfTI file as uint8 [Z, H, W], foot to head, each slice as a radiologist sees it.

    HU are cut to `WINDOW` and spread over 0 to 255; a volume within 0 to 255 (the Radiopaedia ones
    have no HU) is taken as it is.

    Args:
      data: of a .nii or .nii.gz file, told by content.
      name: what messages call it.

    Raises:
      ValueError: no NIfTI file, damaged, not a volume, too big, or with values that are no numbers.
    """
    from tfds_builders import nifti  # nibabel takes a second; the X-rays do without it

    hu = np.array(nifti.values(nifti.load(data, name)), np.float32)
    if not np.isfinite(hu).all():
        raise ValueError(f"{name}: has voxels that are no numbers")
    return windowed(hu)


def windowed(voxels: np.ndarray) -> np.ndarray:
    """Maps float32 HU, or grey levels already, of any shape to contiguous uint8; empties `voxels`.

    In place, because a volume is large and this is its last use.
    """
    low, high = WINDOW
    if voxels.min() < 0 or voxels.max() > 255:
        voxels -= low
        voxels *= 255 / (high - low)
    np.clip(voxels, 0, 255, out=voxels)
    return np.ascontiguousarray(np.rint(voxels, out=voxels).astype(np.uint8))

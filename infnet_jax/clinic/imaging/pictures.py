"""PNG and JPG slices in, palette PNG masks out."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from infnet_jax.clinic.imaging import scan as scan_lib

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# Black, and the colours of the public multi-class masks: they look like a picture anywhere.
PALETTE = (0, 0, 0, 255, 64, 64, 64, 208, 96, 255, 208, 64)


def read(path: Path, name: str) -> scan_lib.Scan:
    """Reads one 8-bit or 16-bit grey slice as a scan [1, H, W] in radiological display.

    Raises:
      ValueError: unreadable, colourful, constant, or not like a CT slice; names the file.
    """
    array = _decode(path)
    if array.ndim == 3:
        array = array[..., :3]  # without transparency
        spread = array.max(-1).astype(int) - array.min(-1)
        # Coloured marks on a grey slice are common; a coloured picture is something else.
        if (spread > 24).mean() > 0.05:
            raise ValueError(f"{path}: a colour picture (a photo?); grey CT slices expected")
        array = cv2.cvtColor(array, cv2.COLOR_BGR2GRAY)
    if array.dtype == np.uint16:
        array = scan_lib.plain_values(array)
    grid = scan_lib.Grid(array.shape, (1, *array.shape), (0, 1, 2), (False, False, False))
    return scan_lib.finish(
        name,
        "picture",
        array,
        grid,
        spacing=None,
        oriented=False,
        origin=None,
        warnings=[],
        file=str(path),
        may_be_hu=False,
    )


def read_labels(path: Path) -> np.ndarray:
    """Labels [H, W] of a mask picture, uint8: palette indices, or grey levels as they are.

    Raises:
      ValueError: unreadable, or a label above 255; names the file.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L", "1", "I", "I;16"):
                picture = picture.convert("L")
            labels = np.array(picture)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path}: no readable mask picture ({error})") from None
    if labels.max(initial=0) > 255:
        raise ValueError(f"{path}: label {labels.max()}; 0 to 255 expected (is it a scan?)")
    return labels.astype(np.uint8)


def encode_mask(mask: np.ndarray) -> bytes:
    """A palette PNG of a mask [H, W]: index 1 red, 2 green, 3 yellow.

    Raises:
      ValueError: a label above 3, which the small palette would cut off in silence.
    """
    if mask.max(initial=0) >= len(PALETTE) // 3:
        raise ValueError(f"mask holds label {mask.max()}: 0 to {len(PALETTE) // 3 - 1} allowed")
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette(PALETTE)
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def _decode(path: Path) -> np.ndarray:
    data = np.fromfile(path, np.uint8)
    array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if array is None:
        raise ValueError(f"{path}: no readable picture (damaged, or not {', '.join(SUFFIXES)})")
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: pixels of type {array.dtype}; 8-bit or 16-bit expected")
    return array

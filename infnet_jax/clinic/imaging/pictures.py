"""PNG and JPG slices in, palette PNG masks out."""

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from infnet_jax.clinic.imaging import grids
from infnet_jax.clinic.imaging.scan import MaskInfo, Scan, finish, plain_values

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# Black, and the colours of the public multi-class masks: they look like a picture anywhere.
PALETTE = (0, 0, 0, 255, 64, 64, 64, 208, 96, 255, 208, 64)


def read(files: Sequence[Path], name: str) -> Scan:
    """Reads one 8-bit or 16-bit grey slice as a scan [1, H, W] in radiological display.

    Raises:
      ValueError: unreadable, colourful, constant, or not like a CT slice; names the file.
    """
    path = files[0]
    data = np.fromfile(path, np.uint8)
    array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if array is None:
        raise ValueError(f"{path}: no readable picture (damaged, or not {', '.join(SUFFIXES)})")
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: pixels of type {array.dtype}; 8-bit or 16-bit expected")
    if array.ndim == 3:
        array = array[..., :3]  # without transparency
        spread = array.max(-1).astype(int) - array.min(-1)
        # Coloured marks on a grey slice are common; a coloured picture is something else.
        if (spread > 24).mean() > 0.05:
            raise ValueError(f"{path}: a colour picture (a photo?); grey CT slices expected")
        array = cv2.cvtColor(array, cv2.COLOR_BGR2GRAY)
    return finish(name, "picture", plain_values(array), str(path))


def read_labels(path: Path) -> grids.Labels:
    """Labels of a mask picture, uint8 [1, H, W] (palette indices or grey levels).

    Raises:
      ValueError: unreadable, or a label above 255; names the file.
    """
    try:
        with Image.open(path) as picture:
            plain = picture.mode in ("P", "L", "1", "I", "I;16")
            labels = np.array(picture if plain else picture.convert("L"))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path}: no readable mask picture ({error})") from None
    if labels.max(initial=0) > 255:
        raise ValueError(f"{path}: label {labels.max()}; 0 to 255 expected (is it a scan?)")
    return grids.Labels(labels.astype(np.uint8)[None])


def write_mask(path: Path, scan: Scan, array: np.ndarray, info: MaskInfo) -> None:
    """Writes a mask, uint8 [H, W], as `encode_mask` does; a PNG needs no scan and no info."""
    path.write_bytes(encode_mask(array))


def encode_mask(mask: np.ndarray) -> bytes:
    """A palette PNG of a mask, integer [H, W]: index 1 red, 2 green, 3 yellow.

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

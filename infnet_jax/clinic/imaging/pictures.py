"""PNG and JPG slices in, palette PNG masks out."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from infnet_jax.clinic.imaging import classes, grids
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
            _check_palette(path, picture, labels)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path}: no readable mask picture ({error})") from None
    if labels.max(initial=0) > 255:
        raise ValueError(f"{path}: label {labels.max()}; 0 to 255 expected (is it a scan?)")
    return grids.Labels(labels.astype(np.uint8)[None])


def write_mask(path: Path, scan: Scan, array: np.ndarray, info: MaskInfo) -> None:
    """Writes a mask, uint8 [H, W], as `encode_mask` does; a PNG needs no scan."""
    path.write_bytes(encode_mask(array, info.classes))


def _check_palette(path: Path, picture: Image.Image, labels: np.ndarray) -> None:
    """Refuses indices of one label whose 0 is white: either could be the background."""
    used = np.unique(labels).tolist()
    if picture.mode == "P" and len(used) == 2 and used[1] < 255:
        colours = np.reshape(picture.getpalette("RGB") or [0] * 768, (-1, 3))[used]
        if np.ptp(colours, axis=1).max() == 0 and colours[0, 0] > colours[1, 0]:
            raise ValueError(
                f"{path}: label {used[0]} is shown white and {used[1]} black, so the marked one is "
                "not known; save it as grey levels, with 255 where it is marked"
            )


def encode_mask(mask: np.ndarray, codes: Iterable[str] = ()) -> bytes:
    """A palette PNG of a mask, integer [H, W]: index 1 red, 2 green, 3 yellow.

    Args:
      mask: the labels; codes: what 1, 2, ... are, for whoever reads the file.

    Raises:
      ValueError: a label above 3, which the small palette would cut off in silence.
    """
    if mask.max(initial=0) >= len(PALETTE) // 3:
        raise ValueError(f"mask holds label {mask.max()}: 0 to {len(PALETTE) // 3 - 1} allowed")
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette(PALETTE)
    out = io.BytesIO()
    chunks = PngInfo()
    if codes := tuple(codes):
        chunks.add_text(classes.KEY, classes.text(codes))
    picture.save(out, format="PNG", pnginfo=chunks)
    return out.getvalue()

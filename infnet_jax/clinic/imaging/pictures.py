"""PNG and JPG slices in, palette PNG masks out."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from infnet_jax.clinic.imaging import classes, grids
from infnet_jax.clinic.imaging.scan import MaskInfo, Scan, finish, plain_values
from tfds_builders import pictures as files

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
# Black, and the colours of the public multi-class masks: they look like a picture anywhere.
PALETTE = (0, 0, 0, 255, 64, 64, 64, 208, 96, 255, 208, 64)
MAX_BYTES = 2**29  # of a file; nothing that may pass is as large
_EXIF = 274  # the tag of EXIF and TIFF that says how a viewer turns the picture


def read(paths: Sequence[Path], name: str) -> Scan:
    """Reads one 8-bit or 16-bit grey slice as a scan [1, H, W] in radiological display.

    A picture is turned as its EXIF says, as in viewers.

    Raises:
      ValueError: unreadable, of a wrong checksum, too large, animated, colourful, constant, or not
        like a CT slice; names the file.
    """
    path = paths[0]
    checked, data = _opened(path)
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError(f"{path}: not a readable picture (not {', '.join(SUFFIXES)} inside)")
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: pixels of type {array.dtype}; 8-bit or 16-bit expected")
    if array.ndim == 3:
        array = grey(array[..., 2::-1] if array.shape[2] > 2 else array[..., :1], path)
    turn = orientation(checked)
    scan = finish(name, "picture", turned(plain_values(array), turn), str(path))
    scan.warnings += [f"{name}: {note}" for note in doubts(scan, array.dtype, turn)]
    return scan


def doubts(scan: Scan, dtype: np.dtype, turn: int) -> list[str]:
    """What a page or a picture of this type leaves in doubt, a line each."""
    notes = []
    if turn != 1:
        notes.append(f"turned as its EXIF orientation {turn} says; so is its mask")
    if not scan.is_hu and dtype != np.uint8 and scan.values.dtype != np.uint8:
        span = f"values {scan.values.min():g} to {scan.values.max():g}"
        notes.append(f"{span} cannot be HU; taken as a picture in a lung window")
    return notes


def grey(array: np.ndarray, path: Path) -> np.ndarray:
    """The grey levels, [H, W], of channels [H, W, C] that are red, green, blue, or one.

    Raises:
      ValueError: a picture in colours; names the file.
    """
    if array.shape[2] == 1:
        return array[..., 0]
    spread = array.max(-1).astype(int) - array.min(-1)
    # Coloured marks on a grey slice are common; a coloured picture is something else.
    if (spread > 24).mean() > 0.05:
        raise ValueError(f"{path}: a colour picture (a photo?); grey CT slices expected")
    return cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_RGB2GRAY)


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1, as stored, where none can be read."""
    try:
        found = int(picture.getexif().get(_EXIF, 1))
    except Exception:  # damaged metadata raise nearly anything, and turn nothing in viewers
        return 1
    return found if 1 <= found <= 8 else 1


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """An array [H, W] as viewers show it by an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        array = array.T
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def read_labels(path: Path) -> grids.Labels:
    """Labels of a mask picture, uint8 [1, H, W] (palette indices or grey levels).

    Raises:
      ValueError: unreadable, of a wrong checksum, in colours, or a label above 255; names the file.
    """
    picture, _ = _opened(path)
    labels = label_levels(picture, path)
    _check_palette(path, picture, labels)
    labels = turned(labels, orientation(picture))
    return grids.Labels(labels[None])


def label_levels(picture: Image.Image, path: Path) -> np.ndarray:
    """Palette indices or grey levels, uint8 [H, W]; errors as of `read_labels`."""
    labels = np.array(picture)
    if labels.ndim == 3:
        colours = labels[..., : labels.shape[2] - (picture.mode in ("LA", "RGBA"))]
        if (colours != colours[..., :1]).any():
            reason = f"colours ({picture.mode}) where labels should be"
            raise ValueError(f"{path}: {reason}; save grey levels or a palette")
        labels = colours[..., 0]
    if labels.max(initial=0) > 255 or labels.min(initial=0) < 0:
        worst = labels.max() if labels.max() > 255 else labels.min()
        raise ValueError(f"{path}: label {worst}; 0 to 255 expected (is it a scan?)")
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.round(labels)):
        raise ValueError(f"{path}: not a label map (whole numbers from 0 to 255 expected)")
    return labels.astype(np.uint8)


def _opened(path: Path) -> tuple[Image.Image, bytes]:
    """A picture that is whole, and its bytes."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: a file of {size} bytes; at most {MAX_BYTES} pass")
    data = path.read_bytes()
    picture = files.opened(data, path)
    if (n := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
        raise ValueError(f"{path}: holds {n} pictures; one slice a file, or a TIFF stack, expected")
    return picture, data


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

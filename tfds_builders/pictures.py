"""Bytes that somebody downloaded, decoded to grey pictures and label pictures, or refused."""

import io
import warnings
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 50_000_000  # declared width x height; the largest chest X-rays have about 25 million
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # told by content: names lie about it


def encode_png(picture: np.ndarray) -> bytes:
    """Encodes uint8 [H, W] (or [H, W, 1]) as an 8-bit grey PNG; equal arrays give equal bytes."""
    if picture.dtype != np.uint8:
        raise ValueError(f"a picture to encode must be uint8, got {picture.dtype}")
    return cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()


def decode_grey(data: bytes, name: object) -> np.ndarray:
    """Decodes a picture of any mode as grey uint8 [H, W].

    Colours become their luminance, palettes are looked up, 1-bit pictures become 0 and 255.

    Args:
      data: the file's bytes; its format is told from them, so a WebP called .png is read.
      name: what messages call the file.

    Raises:
      ValueError: empty, damaged, no picture, more than 8 bits, or more than MAX_PIXELS.
    """
    return _decode(data, name, lambda picture: picture.convert("L"))


def decode_labels(data: bytes, name: object) -> np.ndarray:
    """Decodes a label picture as uint8 [H, W]: palette indices, grey levels, or bits as 0 and 1.

    RGB whose three channels agree counts as grey (an opaque alpha channel is passed over).

    Raises:
      ValueError: as `decode_grey`, or there are colours where labels should be.
    """

    def labels(picture: Image.Image) -> np.ndarray:
        array = np.asarray(picture)
        if picture.mode in ("1", "L", "P"):
            return array
        if picture.mode in ("LA", "RGB", "RGBA"):
            opaque = picture.mode == "RGB" or (array[..., -1] == 255).all()
            channels = array[..., : 1 if picture.mode == "LA" else 3]
            if opaque and (channels == channels[..., :1]).all():
                return channels[..., 0]
        raise ValueError(f"a label picture must be grey or palette, not {picture.mode} colours")

    return _decode(data, name, labels)


def opened(data: bytes, name: object) -> Image.Image:
    """Decodes a picture of any mode with Pillow; of a PNG the checksums are compared.

    Raises:
      ValueError: empty, damaged, no picture, or more than MAX_PIXELS; starts with the name.
    """
    if not data:
        raise ValueError(f"{name}: the file is empty (0 bytes); copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is none of our business
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = picture.size
            if width * height <= MAX_PIXELS:  # told before anything is unpacked
                picture.load()
                if picture.format == "PNG":
                    # To load does not compare checksums: spoilt bytes may pass as other pixels.
                    Image.open(io.BytesIO(data), formats=FORMATS).verify()
    except Exception as error:  # damaged bytes make Pillow raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
        if isinstance(error, UnidentifiedImageError):  # it names an address: another in each run
            reason = f"none of {', '.join(FORMATS)}"
        raise ValueError(f"{name}: not a readable picture ({reason}); copy it again") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name}: declares {width} x {height} pixels; at most {MAX_PIXELS} pass")
    return picture


def _decode(data: bytes, name: object, convert: Callable[[Image.Image], object]) -> np.ndarray:
    picture = opened(data, name)
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"{name}: expected an 8-bit picture, got mode {picture.mode}")
    try:
        return np.asarray(convert(picture)).astype(np.uint8)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error

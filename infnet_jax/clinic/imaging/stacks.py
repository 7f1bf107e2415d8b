"""TIFF files in: one page is a picture, several are a volume, as ImageJ saves them; masks out."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from infnet_jax.clinic.imaging import grids, pictures
from infnet_jax.clinic.imaging.scan import MaskInfo, Scan, finish, one_line, plain_values

SUFFIXES = (".tif", ".tiff")
MAX_VOXELS = 2**29  # of all pages: 2,048 slices of 512 x 512
# Tags of TIFF.
_REDUCED, _PHOTOMETRIC, _DESCRIPTION, _ORIENTATION, _X, _Y = 254, 262, 270, 274, 282, 283
_WHITE_IS_ZERO = 0
_UNITS = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "micron": 0.001, "um": 0.001}


class _Stack(NamedTuple):
    """Pages [D, H, W] as viewers show them; slice, row and column in mm, or None."""

    pages: np.ndarray
    spacing: tuple[float, float, float] | None
    inverted: bool
    turn: int


def read(paths: Sequence[Path], name: str) -> Scan:
    """Reads all pages: a slice [1, H, W], or a volume whose first page lies at the feet.

    Raises:
      ValueError: unreadable, too large, pages that differ or are missing, several channels or
        times, colourful, constant, or no CT; names the file.
    """
    path = paths[0]
    found = _read(path, labels=False)
    array = plain_values(found.pages)
    if len(array) == 1:
        scan = finish(name, "picture", array[0], str(path), inverted=found.inverted)
    else:
        scan = finish(name, "stack", array, str(path), inverted=found.inverted)
        order = "its first page is taken as the one at the feet"
        scan.warnings.append(f"{name}: a stack of pictures says no orientation; {order}")
        scan.spacing = found.spacing
    notes = pictures.doubts(scan, found.pages.dtype, found.turn)
    scan.warnings += [f"{name}: {note}" for note in notes]
    return scan


def read_labels(path: Path) -> grids.Labels:
    """Labels of all pages, uint8 [D, H, W]; errors as in `read`, and labels above 255."""
    found = _read(path, labels=True)
    return grids.Labels(found.pages, spacing=found.spacing)


def write_mask(path: Path, scan: Scan, array: np.ndarray, info: MaskInfo) -> None:
    """Writes a mask, uint8 [D, H, W], as a palette picture a page; labels go up to 3."""
    if array.max(initial=0) >= len(pictures.PALETTE) // 3:
        raise ValueError(f"mask holds label {array.max()}: 0 to 3 allowed")
    pages = [Image.fromarray(page) for page in array]
    for page in pages:
        page.putpalette(pictures.PALETTE)
    packed = "tiff_deflate"
    pages[0].save(path, "TIFF", save_all=True, append_images=pages[1:], compression=packed)


def _read(path: Path, *, labels: bool) -> _Stack:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is none of our business
            # Bytes are missing: less would be read in silence.
            warnings.filterwarnings("error", message="(?i).*(corrupt|truncated)")
            with Image.open(path, formats=["TIFF"]) as picture:
                assert isinstance(picture, TiffImageFile)
                return _pages(picture, path, labels)
    except Exception as error:  # damaged bytes make Pillow raise nearly anything
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        reason = one_line(error) or type(error).__name__
        raise ValueError(f"{path}: not a readable TIFF ({reason}); copy it again") from None


def _pages(picture: TiffImageFile, path: Path, labels: bool) -> _Stack:
    """All pages but previews, with what ImageJ says of them."""
    n, (width, height) = picture.n_frames, picture.size
    if n * width * height > MAX_VOXELS:
        raise ValueError(f"{path}: {n} pages of {height} x {width}; at most {MAX_VOXELS} voxels")
    tags, said = dict(picture.tag_v2), _said(str(picture.tag_v2.get(_DESCRIPTION, "")), path)
    first, found = (picture.size, picture.mode), []
    turn = int(picture.tag_v2.get(_ORIENTATION, 1))
    for i in range(n):
        picture.seek(i)
        if i and int(picture.tag_v2.get(_REDUCED, 0)) & 1:
            continue  # a preview
        if (picture.size, picture.mode) != first:
            sizes = f"{first} and {(picture.size, picture.mode)}"
            raise ValueError(f"{path}: pages of unlike size or type ({sizes}); not one volume")
        picture.load()
        page = pictures.label_levels(picture, path) if labels else _grey(picture, path)
        # Pillow turns a page as it is loaded; versions that do not leave the tag in place.
        found.append(pictures.turned(page, pictures.orientation(picture)))
    if said.get("images", 1) > len(found):
        raise ValueError(
            f"{path}: {said['images']:g} pages by its description, {len(found)} can be read; save "
            "it as NIfTI, or as a file a slice"
        )
    pages = np.stack(found)
    if said.get("vf") == 0 and "c1" in said and not labels:  # how ImageJ stores signed numbers
        pages = pages.astype(np.float32) * said["c1"] + said.get("c0", 0.0)
    wide = first[1] not in ("1", "L", "P", "RGB", "RGBA", "LA")  # Pillow turns 8 bits itself
    inverted = wide and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    return _Stack(pages, _spacing(tags, said, turn), inverted, turn)


def _grey(picture: Image.Image, path: Path) -> np.ndarray:
    """The numbers of a page, [H, W]."""
    if picture.mode in ("P", "RGBA", "CMYK", "YCbCr"):
        picture = picture.convert("RGB")
    array = np.array(picture.convert("L") if picture.mode in ("1", "LA") else picture)
    array = array.astype(array.dtype.newbyteorder("="))
    return pictures.grey(array, path) if array.ndim == 3 else array


def _said(text: str, path: Path) -> dict[str, float]:
    """The numbers in ImageJ's description, and `unit` as millimetres; {} of other programs.

    Raises:
      ValueError: several channels or times, whose pages are no slices of one volume.
    """
    several = re.search(r'\bSize[CT]="0*([2-9]|[1-9]\d+)"', text)  # of OME
    found: dict[str, float] = {}
    if text.startswith("ImageJ"):
        for key, value in re.findall(r"^(\w+)=(.+?)\s*$", text, re.MULTILINE):
            if key == "unit" and value in _UNITS:
                found["unit"] = _UNITS[value]
            elif re.fullmatch(r"-?\d+(\.\d*)?(E-?\d+)?", value):
                found[key] = float(value)
    if several or max(found.get("channels", 1), found.get("frames", 1)) > 1:
        raise ValueError(f"{path}: several channels or times in one stack; one volume expected")
    return found


def _spacing(
    tags: dict[int, object], said: dict[str, float], turn: int
) -> tuple[float, float, float] | None:
    """Slice, row and column spacing in mm, where ImageJ gives all three."""
    x, y = (float(str(tags.get(tag, 0)) or 0) for tag in (_X, _Y))
    if "unit" not in said or not said.get("spacing") or not x > 0 or not y > 0:
        return None
    columns, rows = (y, x) if turn > 4 else (x, y)
    spacing = abs(said["spacing"]) * said["unit"], said["unit"] / rows, said["unit"] / columns
    low, high = grids.EDGES
    return spacing if all(low <= edge <= high for edge in spacing) else None

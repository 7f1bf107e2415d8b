"""A DICOM series in, its numbers in HU."""

import contextlib
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infnet_jax.clinic.imaging import geometry, series
from infnet_jax.clinic.imaging.scan import Scan, finish, one_line, plain_values

if TYPE_CHECKING:
    import pydicom

_PER_FRAME = "PerFrameFunctionalGroupsSequence"
Frame = tuple[series.Slice, int]  # a file and the number of its frame
Rescale = tuple[float, float]  # slope and intercept
AIR = -400  # HU; every slice of a chest CT has air or lung below it
# Compressed pixels that pydicom leaves to other packages, and the package for each.
_GPL = "pip install pylibjpeg pylibjpeg-libjpeg (its licence is the GPL), or python-gdcm (BSD)"
_DECODERS = {
    "1.2.840.10008.1.2.4.50": _GPL,
    "1.2.840.10008.1.2.4.51": _GPL,
    "1.2.840.10008.1.2.4.57": _GPL,
    "1.2.840.10008.1.2.4.70": _GPL,
    "1.2.840.10008.1.2.4.201": "pip install pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pip install pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pip install pylibjpeg pylibjpeg-openjpeg",
}


def read(slices: Sequence[series.Slice], name: str, where: str) -> Scan:
    """Reads the slices of one series; `where` is its folder or zip, for messages.

    An enhanced file gives a slice for each of its frames.

    Raises:
      ValueError: truncated or colour pixels, or what `geometry.stack` refuses; names the file.
    """
    modality = str(slices[0].header.get("Modality", "")) or "none"
    sizes = {(one.header.Rows, one.header.Columns): one.label for one in slices}
    if len(sizes) > 1:
        words = " and ".join(f"{h} x {w} ({label})" for (h, w), label in sizes.items())
        raise ValueError(f"{where}: slices of several sizes in one series: {words}")
    notes = [] if modality == "CT" else [f"modality {modality}, taken as CT all the same"]
    frames = [(one, k) for one in slices for k in range(_n_frames(one.header))]
    stack = geometry.stack([_place(one, k) for one, k in frames], where)
    rescales = _rescales(frames)
    loaded: dict[str, np.ndarray] = {}
    pictures = []
    packed = zipfile.ZipFile(slices[0].file) if slices[0].member else None
    with packed or contextlib.nullcontext():
        for i in stack.order:
            one, k = frames[i]
            if one.label not in loaded:  # of an enhanced file all frames, else one slice
                loaded = {one.label: _pixels(one, packed)}
            pictures.append(plain_values(_scaled(loaded[one.label][k], *rescales[i])))
    order = stack.order
    _check_levels([frames[i] for i in order], [rescales[i] for i in order], pictures)
    headers = [frames[i][0].header for i in stack.order]
    array, notes = np.stack(pictures).transpose(2, 1, 0), notes + stack.notes  # x, y, z
    inverted = str(headers[0].get("PhotometricInterpretation", "")) == "MONOCHROME1"
    return finish(
        name,
        "dicom",
        array,
        where,
        affine=stack.affine,
        oriented=stack.placed,
        origin=headers,
        inverted=inverted,
        warnings=[f"{name}: {note}" for note in notes],
    )


def _n_frames(header: "pydicom.Dataset") -> int:
    return len(header.get(_PER_FRAME) or ()) or 1


def _of_frame(header: "pydicom.Dataset", k: int, macro: str, tag: str) -> Any:
    """A value of frame k: of its own functional groups, of the shared ones, or of the header."""
    groups = (("PerFrame", k), ("Shared", 0)) if _PER_FRAME in header else ()
    for owner, i in groups:
        items = header.get(f"{owner}FunctionalGroupsSequence")
        found = items[i].get(macro) if items and macro else None
        if found and found[0].get(tag) is not None:
            return found[0].get(tag)
    return header.get(tag)


def _place(one: series.Slice, k: int) -> geometry.Place:
    """What the header says of where frame k lies."""

    def numbers(macro: str, tag: str, count: int) -> np.ndarray | None:
        value = _of_frame(one.header, k, macro, tag)
        if value in (None, ""):
            return None
        try:
            found = np.array(value, float).reshape(-1)
        except (TypeError, ValueError):
            found = np.empty(0)
        if found.size != count or not np.isfinite(found).all():
            raise ValueError(f"{one.label}: {tag} {value}; {count} numbers expected")
        return found

    position = numbers("PlanePositionSequence", "ImagePositionPatient", 3)
    axes = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    if axes is not None and np.linalg.norm(np.cross(axes[:3], axes[3:])) < 0.5:
        axes = None  # converters write zeros
        position = None
    thickness = 0.0
    for tag in ("SpacingBetweenSlices", "SliceThickness"):
        value = numbers("PixelMeasuresSequence", tag, 1)
        thickness = thickness or (0.0 if value is None else abs(float(value[0])))
    number = None
    for tag in ("InstanceNumber", "SliceLocation"):
        value = numbers("", tag, 1)
        number = float(value[0]) + k if number is None and value is not None else number
    row, column = (None, None) if axes is None else (axes[:3], axes[3:])
    pair = None if spacing is None else (float(spacing[0]), float(spacing[1]))
    return geometry.Place(one.label, position, row, column, pair, thickness, number)


def _rescales(frames: Sequence[Frame]) -> list[Rescale]:
    """Slope and intercept of each frame, 1 and 0 where no frame says one.

    ValueError: some frames only say how their numbers become HU.
    """
    macro, found = "PixelValueTransformationSequence", []
    for tag, usual in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        values = [_of_frame(one.header, k, macro, tag) for one, k in frames]
        known = [value not in (None, "") for value in values]
        if any(known) and not all(known):
            bad = frames[known.index(False)][0].label
            raise ValueError(f"{bad}: no {tag}, unlike the other slices of its series")
        found.append([float(value) if any(known) else usual for value in values])
    return [(slope or 1.0, offset) for slope, offset in zip(*found, strict=True)]


def _check_levels(
    frames: Sequence[Frame], rescales: Sequence[Rescale], pictures: Sequence[np.ndarray]
) -> None:
    """Refuses a slice whose own rescale tags leave it without air, unlike the others.

    Tags may differ from slice to slice; one that is wrong shifts its slice by hundreds of HU.
    """
    if len(set(rescales)) > 1:
        airy = [bool((picture < AIR).any()) for picture in pictures]
        if sum(airy) > len(airy) / 2 and not all(airy):
            i = airy.index(False)
            tags = "slope {:g} and intercept {:g}".format(*rescales[i])
            label = frames[i][0].label
            raise ValueError(f"{label}: {tags} leave it without air, unlike the other slices")


def _scaled(array: np.ndarray, slope: float, offset: float) -> np.ndarray:
    """Stored numbers [H, W] as int32 or float32; 8 bits without a rescale stay as they are."""
    if (slope, offset) == (1, 0) and array.dtype == np.uint8:
        return array
    if slope == 1 and offset == int(offset):
        return array.astype(np.int32) + int(offset)
    return array.astype(np.float32) * slope + offset


def _pixels(one: series.Slice, packed: zipfile.ZipFile | None) -> np.ndarray:
    """The stored numbers of a file, [frames, H, W]."""
    try:
        from pydicom.pixels import pixel_array

        header = series.unpacked(one, packed) if packed else one.header
        if "TransferSyntaxUID" not in header.file_meta:
            header.file_meta.TransferSyntaxUID = one.header.file_meta.TransferSyntaxUID
        array = pixel_array(header)  # keeps no second copy in the header
    except Exception as error:  # decoders raise nearly anything
        syntax = one.header.file_meta.TransferSyntaxUID
        if syntax in _DECODERS:
            raise ValueError(
                f"{one.label}: compressed as {syntax.name} ({syntax}), which needs another "
                f"package: {_DECODERS[syntax]}"
            ) from None
        reason = one_line(error)
        raise ValueError(f"{one.label}: truncated or unreadable pixels ({reason})") from None
    if "ModalityLUTSequence" in header:
        from pydicom.pixels import apply_modality_lut

        array = apply_modality_lut(array, header)
    for tag in series.PIXELS:
        if tag in one.header:
            delattr(one.header, tag)  # one copy of a volume is enough
    frames = _n_frames(one.header)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or len(array) != frames:
        raise ValueError(f"{one.label}: pixels of shape {array.shape}; grey slices expected")
    return array

"""A DICOM series in, its numbers in HU."""

import contextlib
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from infnet_jax.clinic.imaging import geometry, series
from infnet_jax.clinic.imaging.scan import Scan, finish, one_line, plain_values

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
    modality = str(slices[0].get("Modality") or "none")
    sizes = {(one.get("Rows"), one.get("Columns")): one.label for one in slices}
    if len(sizes) > 1:
        words = " and ".join(f"{h} x {w} ({label})" for (h, w), label in sizes.items())
        raise ValueError(f"{where}: slices of several sizes in one series: {words}")
    notes = [] if modality == "CT" else [f"modality {modality}, taken as CT all the same"]
    frames = [(one, k) for one in slices for k in range(_n_frames(one))]
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
    first = frames[order[0]][0]
    array, notes = np.stack(pictures).transpose(2, 1, 0), notes + stack.notes  # x, y, z
    inverted = first.get("PhotometricInterpretation") == "MONOCHROME1"
    return finish(
        name,
        "dicom",
        array,
        where,
        affine=stack.affine,
        oriented=stack.placed,
        origin=[frames[i][0].header for i in order],
        inverted=inverted,
        warnings=[f"{name}: {note}" for note in notes],
    )


def _n_frames(one: series.Slice) -> int:
    return len(one.get(series.PER_FRAME) or ()) or 1


def _of_frame(one: series.Slice, k: int, macro: str, tag: str) -> Any:
    """A value of frame k: of its own functional groups, of the shared ones, or of the header."""
    groups = (("PerFrame", k), ("Shared", 0)) if one.get(series.PER_FRAME) is not None else ()
    for owner, i in groups:
        items = one.get(f"{owner}FunctionalGroupsSequence")
        found = items[i].get(macro) if items and macro else None
        if found and found[0].get(tag) is not None:
            return found[0].get(tag)
    return one.get(tag)


def _place(one: series.Slice, k: int) -> geometry.Place:
    """What the header says of where frame k lies."""

    def numbers(macro: str, tag: str, count: int) -> np.ndarray | None:
        value = _of_frame(one, k, macro, tag)
        if value in (None, ""):
            return None
        try:
            found = np.array(value, float, ndmin=1)
        except (TypeError, ValueError):
            found = np.empty(0)
        if found.size != count or not np.isfinite(found).all():
            raise ValueError(f"{one.label}: {tag} {value}; {count} numbers expected")
        return found

    def number(macro: str, tag: str) -> float | None:
        found = numbers(macro, tag, 1)
        return None if found is None else float(found[0])

    position = numbers("PlanePositionSequence", "ImagePositionPatient", 3)
    axes = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    if axes is not None and np.linalg.norm(np.cross(axes[:3], axes[3:])) < 0.5:
        axes = None  # converters write zeros
        position = None
    steps = (number("PixelMeasuresSequence", t) for t in ("SpacingBetweenSlices", "SliceThickness"))
    thickness = next((abs(step) for step in steps if step), 0.0)
    ranks = (number("", tag) for tag in ("InstanceNumber", "SliceLocation"))
    rank = next((rank + k for rank in ranks if rank is not None), None)
    row, column = (None, None) if axes is None else (axes[:3], axes[3:])
    pair = None if spacing is None else (float(spacing[0]), float(spacing[1]))
    return geometry.Place(one.label, position, row, column, pair, thickness, rank)


def _rescales(frames: Sequence[Frame]) -> list[Rescale]:
    """Slope and intercept of each frame, 1 and 0 where no frame says one.

    ValueError: some frames only say how their numbers become HU.
    """
    macro, found = "PixelValueTransformationSequence", []
    for tag, usual in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        values = [_of_frame(one, k, macro, tag) for one, k in frames]
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
    """Stored numbers [H, W], rescaled: int16, int32 or float32; plain 8 bits stay as they are."""
    if (slope, offset) == (1, 0) and array.dtype == np.uint8:
        return array
    if slope != 1 or offset != int(offset):
        return array.astype(np.float32) * slope + offset
    whole, low = int(offset), 0 if array.dtype.kind == "u" else int(array.min())
    if low + whole >= -32768 and int(array.max()) + whole <= 32767:
        # The sum wraps to the right number, whatever the two wrap to; half the time of int32.
        return array.astype(np.int16) + np.array(whole).astype(np.int16)
    return array.astype(np.int32) + whole


def _pixels(one: series.Slice, packed: zipfile.ZipFile | None) -> np.ndarray:
    """The stored numbers of a file, [frames, H, W]."""
    try:
        from pydicom.pixels import pixel_array

        header = series.unpacked(one, packed) if packed else one.header
        if "TransferSyntaxUID" not in header.file_meta:
            header.file_meta.TransferSyntaxUID = one.header.file_meta.TransferSyntaxUID
        # Rescaling copies it; one with unused bits is copied at once, and a view of it warned of.
        bare = header.get("BitsStored") == header.get("BitsAllocated")
        array = pixel_array(header, view_only=bare)
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
    frames = _n_frames(one)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or len(array) != frames:
        raise ValueError(f"{one.label}: pixels of shape {array.shape}; grey slices expected")
    return array

"""Reads one stack of medseg slices: upright grey pictures, classes, and lungs, in step."""

import dataclasses
from collections.abc import Callable

import numpy as np

from tfds_builders import archives, nifti
from tfds_builders.medseg import grey, pose, sources

Remember = Callable[[archives.Member, bytes | None], None]


@dataclasses.dataclass(frozen=True)
class Stack:
    """One stack, each slice upright in radiological display.

    Attributes:
      image: uint8 [Z, H, W] lung-window pictures.
      labels: [Z, H, W] numbers as published, or None.
      lung: bool [Z, H, W], or None where unknown.
      notes: what the reader of the report should know.
    """

    image: np.ndarray
    labels: np.ndarray | None
    lung: np.ndarray | None
    notes: tuple[str, ...] = ()


def read(source: sources.Source, remember: Remember) -> Stack:
    """Reads a source's files.

    Args:
      source: the files of one stack.
      remember: is told each file that was read, and its bytes (None: see its path).

    Raises:
      ValueError: a file is damaged, its shape or numbers are not what they should be, or a mask
        lies beside the picture whichever header is believed.
    """
    stack = _npy(source, remember) if source.is_npy else _nifti(source, remember)
    turns = pose.quarter_turns(stack.image)
    if not turns:
        return stack
    note = f"{source.image.name}: lies on its side or head; turned by {90 * turns} degrees"
    image, labels, lung = (
        None if a is None else np.rot90(a, turns, axes=(1, 2))
        for a in (stack.image, stack.labels, stack.lung)
    )
    return Stack(image, labels, lung, (*stack.notes, note))


def classes(labels: np.ndarray, highest: int, name: object) -> np.ndarray:
    """Maps [H, W] published labels to uint8 0 background, 1 ground glass, 2 consolidation.

    Pleural effusion (3 in set 1) is no lung lesion: background.

    Raises:
      ValueError: other numbers than 0..highest.
    """
    found = np.unique(labels)
    illegal = found[~np.isin(found, np.arange(highest + 1))]
    if illegal.size:
        said = ", ".join(f"{value:g}" for value in illegal[:5])
        raise ValueError(f"{name}: label values [{said}] are not 0 to {highest}")
    return np.where(labels == 3, 0, labels).astype(np.uint8)


def _nifti(source: sources.Source, remember: Remember) -> Stack:
    def volume(member: archives.Member | None) -> nifti.Volume | None:
        if member is None:
            return None
        data = member.read()
        found = nifti.load(data, member.name)
        remember(member, data)
        return found

    image, mask, lung = (volume(m) for m in (source.image, source.mask, source.lung))
    picture = _grey(nifti.values(image), source.image.name)
    notes = (
        ()
        if image.coded
        else (
            f"{source.image.name}: no orientation in its header; taken as stored left, back, head",
        )
    )
    # Published masks do not always carry the header of their image: believe their own first.
    for like in (None, image):
        labels = None if mask is None else nifti.values(mask, like)
        lungs = None if lung is None else nifti.values(lung, like) > 0
        if _in_step(picture, labels, lungs):
            return Stack(picture, labels, lungs, notes)
        notes = (*notes, f"{source.image.name}: masks fit by the image's header, not by their own")
    names = ", ".join(m.name for m in (source.mask, source.lung) if m is not None)
    shapes = [a.shape for a in (picture, labels, lungs) if a is not None]
    raise ValueError(f"{source.image.name}: out of step with {names} by shape or place ({shapes})")


def _in_step(picture: np.ndarray, labels: np.ndarray | None, lungs: np.ndarray | None) -> bool:
    if any(a is not None and a.shape != picture.shape for a in (labels, lungs)):
        return False
    if lungs is None:
        return True
    return pose.lung_in_step(picture, lungs) and (
        labels is None or pose.lesion_in_step((labels == 1) | (labels == 2), lungs)
    )


def _npy(source: sources.Source, remember: Remember) -> Stack:
    image = _mapped(source.image, 1)[..., 0]
    remember(source.image, None)
    picture = _grey(image, source.image.name)
    if source.mask is None:
        return Stack(picture, None, None)
    mask = _mapped(source.mask, 4)
    remember(source.mask, None)
    if mask.shape[:3] != image.shape:
        raise ValueError(f"{source.mask.name}: masks are {mask.shape[:3]}, images {image.shape}")
    labels, lung = np.empty(image.shape, np.uint8), np.empty(image.shape, bool)
    for z, channels in enumerate(mask):
        on = channels > 0.5
        if not np.isin(channels, (0, 1)).all() or (on.sum(-1) != 1).any():
            raise ValueError(f"{source.mask.name}: slice {z} is not one class of four per pixel")
        labels[z], lung[z] = on[..., 0] + 2 * on[..., 1], on[..., :3].any(-1)
    return Stack(picture, labels, lung)


def _mapped(member: archives.Member, channels: int) -> np.ndarray:
    """Maps an npy file of numbers [N, H, W, channels] without loading it."""
    if member.path is None:
        raise ValueError(f"{member.name}: npy files are too large to read inside a zip; unpack it")
    try:
        array = np.load(member.path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header is parsed as Python, and may raise anything
        reason = " ".join(str(error).split())
        raise ValueError(f"{member.name}: not a whole npy file ({reason}); copy again") from error
    if array.ndim != 4 or array.shape[-1] != channels or not array.size:
        raise ValueError(
            f"{member.name}: expected [slices, rows, columns, {channels}], got {array.shape}"
        )
    if array.dtype.kind not in "buif":
        raise ValueError(f"{member.name}: expected numbers, got {array.dtype}")
    return array


def _grey(stack: np.ndarray, name: str) -> np.ndarray:
    kind = grey.kind_of(stack, name)
    return np.stack([grey.to_grey(picture, kind) for picture in stack])

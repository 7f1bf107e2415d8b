"""Where the slices of a series lie: from the numbers of their headers to one affine, or a refusal.

All positions are millimetres in the patient's system of DICOM (LPS: left, back, head).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHARE, LEAST = 0.01, 0.05  # tolerance of a position: a share of the step, and at least so many mm
AXIAL = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])


class Place(NamedTuple):
    """What one header says of where its slice lies; None where it says nothing.

    Attributes:
      label: of its file, for messages.
      position: float (3,), centre of the first pixel; row, column: unit vectors (3,) along a row
        and along a column; spacing: (between rows, between columns); thickness: from slice to
        slice, 0 if not said.
      number: for an order without positions.
    """

    label: str
    position: np.ndarray | None
    row: np.ndarray | None
    column: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float
    number: float | None


class Stack(NamedTuple):
    """A series in order of position, from the feet up where the series is axial.

    Attributes:
      order: indices of the places.
      affine: float [4, 4], (column, row, slice) to RAS; of an assumed pose if not `placed`.
      placed: whether the headers say how the patient lies.
      notes: what had to be assumed.
    """

    order: list[int]
    affine: np.ndarray
    placed: bool
    notes: list[str]


def stack(places: Sequence[Place], series: str) -> Stack:
    """Orders the slices of one series and finds their common affine.

    Steps may differ by 1 % of the usual step (at least .05 mm), and so may the places in the
    plane; a shear, as of a tilted gantry, is kept in the affine.

    Raises:
      ValueError: missing, doubled, uneven or shifted slices, mixed orientations, unlike or
        impossible pixel spacings, no order at all; names the file.
    """
    spacing, notes = _spacing(places, series)
    if sum(p.position is not None for p in places) not in (0, len(places)):
        bad = next(p.label for p in places if p.position is None)
        raise ValueError(f"{bad}: has no position, unlike the other slices of its series")
    if places[0].position is None:
        return _by_number(places, spacing, notes)
    if all(p.row is None for p in places):
        notes.append("slices without orientation, taken as axial, the patient on the back")
    (row, column), normal = _axes(places, series)
    positions = np.array([p.position for p in places])
    heights = positions @ normal
    order = [int(i) for i in np.argsort(heights, kind="stable")]
    ordered, positions = [places[i] for i in order], positions[order]
    step = normal * (places[0].thickness or 1.0)
    if len(order) > 1:
        _check_steps(ordered, heights[order], series)
        _check_line(ordered, positions, series)
        step = (positions[-1] - positions[0]) / (len(order) - 1)
    elif not places[0].thickness:
        notes.append("one slice without a thickness, taken as 1 mm")
    affine = np.eye(4)
    affine[:3] = np.stack([row * spacing[1], column * spacing[0], step, positions[0]], axis=1)
    placed = any(p.row is not None for p in places)
    return Stack(order, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, placed, notes)


def _spacing(places: Sequence[Place], series: str) -> tuple[tuple[float, float], list[str]]:
    """The one pixel spacing of a series."""
    given = [p.spacing for p in places]
    known = [(p, p.spacing) for p in places if p.spacing is not None]
    if not known:
        if places[0].position is not None:
            raise ValueError(f"{places[0].label}: no PixelSpacing; a volume has no size without it")
        return (1.0, 1.0), ["no PixelSpacing: sizes in millimetres are not known, taken as 1 mm"]
    if len(known) < len(given):
        bad = next(p.label for p in places if p.spacing is None)
        raise ValueError(f"{bad}: no PixelSpacing, unlike the other slices of its series")
    first = known[0][1]
    for place, spacing in known:
        if not np.isfinite(spacing).all() or min(spacing) <= 0:
            raise ValueError(f"{place.label}: PixelSpacing {spacing}; two numbers above 0 expected")
        if not np.allclose(spacing, first, rtol=1e-3, atol=0):
            raise ValueError(f"{series}: PixelSpacing {first} and {spacing} mixed ({place.label})")
    return first, []


def _axes(places: Sequence[Place], series: str) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Unit vectors along a row and along a column, and the normal; axial where none is given."""
    given = [(p.row, p.column) for p in places if p.row is not None and p.column is not None]
    if len(given) not in (0, len(places)):
        bad = next(p.label for p in places if p.row is None)
        raise ValueError(f"{bad}: has no orientation, unlike the other slices of its series")
    row, column = given[0] if given else AXIAL
    if given and not np.allclose(given, given[0], atol=1e-3):
        raise ValueError(f"{series}: slices of several orientations mixed (a localizer?)")
    return (row, column), np.cross(row, column)


def _by_number(places: Sequence[Place], spacing: tuple[float, float], notes: list[str]) -> Stack:
    """By InstanceNumber or SliceLocation, as if the series lay in radiological display."""
    bad = next((p.label for p in places if p.number is None), None)
    if bad is not None:
        raise ValueError(f"{bad}: has neither a position nor a number; slices cannot be ordered")
    numbers = np.array([p.number for p in places], float)
    order = [int(i) for i in np.argsort(numbers, kind="stable")]
    twins = np.flatnonzero(np.diff(numbers[order]) == 0)
    if twins.size:
        a, b = (places[order[int(twins[0]) + i]].label for i in (0, 1))
        raise ValueError(f"{b}: has the same number as {a}; slices cannot be ordered")
    notes.append("slices without positions, ordered by number, the first at the feet")
    affine = np.diag([-spacing[1], -spacing[0], places[0].thickness or 1.0, 1.0])
    return Stack(order, affine, False, notes)


def _check_steps(places: Sequence[Place], heights: np.ndarray, series: str) -> None:
    """Refuses slices that are doubled, missing or unevenly spaced."""
    steps = np.diff(heights)
    usual = float(np.median(steps))
    doubled = int(np.argmin(steps))
    if steps[doubled] <= max(SHARE * usual, 1e-4):
        here, before = places[doubled + 1].label, places[doubled].label
        raise ValueError(f"{here}: at the same position as {before}; give each slice once")
    off = np.abs(steps - usual)
    if off.max() <= max(SHARE * usual, LEAST):
        return
    k = int(off.argmax())
    times = steps[k] / usual
    if times > 1.5 and abs(times - round(times)) < 0.1 and (off > LEAST).mean() < 0.5:
        gap = f"(a step of {steps[k]:g} mm, usually {usual:g})"
        raise ValueError(f"{places[k + 1].label}: slices are missing before it {gap}")
    span = f"{steps.min():g} to {steps.max():g} mm"
    raise ValueError(f"{series}: uneven steps of {span} between slices; resample it to even ones")


def _check_line(places: Sequence[Place], positions: np.ndarray, series: str) -> None:
    """Refuses a stack whose slices do not lie on one straight line."""
    share = np.linspace(0, 1, len(positions))[:, None]
    way = positions[-1] - positions[0]
    off = np.linalg.norm(positions - (positions[0] + share * way), axis=1)
    step = float(np.linalg.norm(way)) / (len(positions) - 1)
    # Each step may differ by the tolerance, so a place may by that of half the steps.
    if off.max() > max(SHARE * step, LEAST) * max(1.0, len(positions) / 4):
        k = int(off.argmax())
        where = f"{off[k]:.1f} mm beside the line of the others"
        raise ValueError(f"{places[k].label}: lies {where}; {series} is no straight stack")

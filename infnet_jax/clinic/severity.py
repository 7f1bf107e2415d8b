"""Severity scores of an infection mask: how much of which part of the lung is infected.

Everything is counted first (`count`, whole numbers per region) and graded last (`grade`), so a
patient's total never depends on how the slices were cut. Thresholds are compared in whole numbers.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

N_REGIONS, N_LOBES, N_ZONES, GGO, CONSOLIDATION = 20, 5, 6, 1, 2
CT_SS_CUTOFF = 19.5  # Yang et al. 2020: above it, severe
SHARE_BOUNDS = (1, 50)  # percent: none or trace, moderate, severe (the public code's grades)
LOBAR_BOUNDS = (5, 25, 50, 75)  # percent; 25-point score
QUARTERS = (25, 50, 75)  # percent; TSS and the six zones
DENSE_HU = -200  # above it, opacity counts as high (PHO)


@dataclasses.dataclass
class Tally:
    """Whole-number counts of voxels; tallies of disjoint slices of one patient add up."""

    lung: int  # infected voxels included
    infected: int  # of any class
    consolidation: int | None  # None where the mask tells no classes apart
    dense: int | None  # infected and above -200 HU; None where no HU are known
    volume_ml: float | None  # of one voxel; None without spacing
    # Lung and infected voxels per label, int64 [2, n + 1]; column 0 is what no label covers.
    regions: np.ndarray | None
    lobes: np.ndarray | None
    zones: np.ndarray | None

    def __add__(self, other: "Tally") -> "Tally":
        """Pools two sets of slices; a part that one of them lacks is lost, never guessed.

        Raises:
          ValueError: the voxels have different volumes (by more than rounding explains).
        """
        if not _alike(self.volume_ml, other.volume_ml):
            both = f"voxels of {self.volume_ml} and {other.volume_ml} ml cannot be pooled"
            raise ValueError(f"{both}: give slices of one spacing, or no spacing")
        pairs = {name: (mine, getattr(other, name)) for name, mine in vars(self).items()}
        sums: dict[str, Any] = {
            name: None if a is None or b is None else a + b for name, (a, b) in pairs.items()
        }
        return Tally(**sums | {"volume_ml": self.volume_ml})


def _alike(a: float | None, b: float | None) -> bool:
    """Whether two volumes are one: headers round spacings in different ways."""
    return a == b if a is None or b is None else math.isclose(a, b, rel_tol=1e-3)


@dataclasses.dataclass
class Severity:
    """A patient's scores. Shares are 0..1 of the parenchyma; None: what it needs is not known."""

    infected_share: float  # infected / lung; NaN without a lung voxel
    grade: int | None  # 0 (below 1 %), 1 (1 % and more), 2 (50 % and more); None without a lung
    po_percent: float  # opacity, percent of the lung (Chaganti et al.)
    pho_percent: float | None  # the same above -200 HU
    ggo_share: float | None  # None for a mask of one class
    consolidation_share: float | None
    lung_ml: float | None
    infected_ml: float | None
    ct_ss: float | None  # 0..40, rescaled by 20 / used where regions are empty; NaN where all are
    ct_ss_regions: list[int] | None  # 20 regions of 0..2 points; -1 not used
    region_shares: list[float] | None  # of 20 regions; NaN not used
    regions_used: int | None  # 0..20
    severe: bool | None  # whether ct_ss is above its cut-off
    lobar_25: int | None  # 0..25, five lobes of 0..5 points
    tss: int | None  # 0..20, five lobes of 0..4 points
    lobe_shares: list[float] | None  # left upper, left lower, right upper, middle, lower
    six_zone: int | None  # 0..24, six zones of 0..4 points
    outside_regions: int | None  # infected voxels that no region covers

    def as_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes None."""
        return {
            name: [_known(v) for v in value] if isinstance(value, list) else _known(value)
            for name, value in dataclasses.asdict(self).items()
        }


def count(
    mask: np.ndarray,
    lung: np.ndarray,
    *,
    regions: np.ndarray | None = None,
    lobes: np.ndarray | None = None,
    zones: np.ndarray | None = None,
    hu: np.ndarray | None = None,
    spacing: Sequence[float] | None = None,
) -> Tally:
    """Counts voxels; all maps have one shape, [D, H, W] or [H, W] as a rule.

    Args:
      mask: integer, 0 none, 1 ground glass, 2 consolidation; or bool, infection of unknown class.
      lung: bool or integer, lung where > 0; always united with the infection.
      regions, lobes, zones: integer label maps, 1..20, 1..5 and 1..6; 0 is outside.
      hu: Hounsfield units, any number type.
      spacing: voxel edges in mm.

    Raises:
      ValueError: shapes that differ, or labels out of range.
    """
    maps = {"lung": lung, "regions": regions, "lobes": lobes, "zones": zones, "hu": hu}
    for name, other in maps.items():
        if other is not None and np.shape(other) != mask.shape:
            shapes = f"{name} has shape {np.shape(other)}, the mask {mask.shape}"
            raise ValueError(f"{shapes}: bring both to one grid")
    strange = mask[(mask != 0) & (mask != GGO) & (mask != CONSOLIDATION)]
    if strange.size:
        allowed = "0, 1 (ground glass) and 2 (consolidation) allowed"
        raise ValueError(f"mask holds {strange.min()}: {allowed}")
    infected = mask > 0
    inside = (lung > 0) | infected
    return Tally(
        lung=int(inside.sum()),
        infected=int(infected.sum()),
        consolidation=None if mask.dtype == bool else int((mask == CONSOLIDATION).sum()),
        dense=None if hu is None else int((infected & (hu > DENSE_HU)).sum()),
        volume_ml=None if spacing is None else float(np.prod(spacing)) / 1000,
        regions=_per_label("regions", regions, N_REGIONS, inside, infected),
        lobes=_per_label("lobes", lobes, N_LOBES, inside, infected),
        zones=_per_label("zones", zones, N_ZONES, inside, infected),
    )


def grade(tally: Tally) -> Severity:
    """Turns a patient's pooled counts into scores."""
    infected, lung, ml = tally.infected, tally.lung, tally.volume_ml
    share, dense = _ratio(infected, lung), tally.consolidation
    ct_ss, points, used = None, None, None
    if tally.regions is not None:
        pairs = tally.regions[:, 1:].T.tolist()
        points = [(sick > 0) + (2 * sick >= whole) if whole else -1 for whole, sick in pairs]
        used = sum(p >= 0 for p in points)
        ct_ss = _ratio(N_REGIONS * sum(p for p in points if p > 0), used)
    return Severity(
        infected_share=share,
        grade=None if lung == 0 else sum(100 * infected >= b * lung for b in SHARE_BOUNDS),
        po_percent=100 * share,
        pho_percent=None if tally.dense is None else 100 * _ratio(tally.dense, lung),
        ggo_share=None if dense is None else _ratio(infected - dense, lung),
        consolidation_share=None if dense is None else _ratio(dense, lung),
        lung_ml=None if ml is None else lung * ml,
        infected_ml=None if ml is None else infected * ml,
        ct_ss=ct_ss,
        ct_ss_regions=points,
        region_shares=_shares(tally.regions),
        regions_used=used,
        severe=ct_ss > CT_SS_CUTOFF if ct_ss is not None and used else None,
        lobar_25=_total(tally.lobes, LOBAR_BOUNDS),
        tss=_total(tally.lobes, QUARTERS),
        lobe_shares=_shares(tally.lobes),
        six_zone=_total(tally.zones, QUARTERS),
        outside_regions=None if tally.regions is None else int(tally.regions[1, 0]),
    )


def _per_label(
    name: str, labels: np.ndarray | None, n: int, inside: np.ndarray, infected: np.ndarray
) -> np.ndarray | None:
    """Lung and infected voxels per label, int64 [2, n + 1], from maps of one shape."""
    if labels is None:
        return None
    if labels.size and (labels.min() < 0 or labels.max() > n):
        raise ValueError(f"{name} holds labels {labels.min()} to {labels.max()}: 0 to {n} allowed")
    found, flat, step = np.zeros((2, n + 1), np.int64), np.ravel(labels), 1 << 22
    for row, chosen in zip(found, map(np.ravel, (inside, infected)), strict=True):
        for i in range(0, flat.size, step):  # bincount makes eight bytes of each voxel
            some = flat[i : i + step][chosen[i : i + step]]
            row += np.bincount(some.astype(int), minlength=n + 1)
    return found


def _shares(counts: np.ndarray | None) -> list[float] | None:
    """Infected share of each label; counts as in `Tally`."""
    pairs = None if counts is None else counts[:, 1:].T.tolist()
    return pairs and [_ratio(sick, whole) for whole, sick in pairs]


def _total(counts: np.ndarray | None, bounds: Sequence[int]) -> int | None:
    """Each infected label has 1 point, and one more for each bound (percent) that is exceeded."""
    if counts is None:
        return None
    whole, sick = counts[:, 1:]
    points = 1 + np.sum([100 * sick > bound * whole for bound in bounds], axis=0)
    return int(points[sick > 0].sum())


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value

"""Severity scores of an infection mask: how much of which part of the lung is infected.

Everything is counted first (`count`: whole numbers per region, which add up over the slices of a
patient) and graded last (`grade`), so a patient's total never depends on how the slices were cut.
Thresholds are compared in whole numbers: a region infected to exactly one half is on the boundary.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

N_REGIONS, N_LOBES, N_ZONES, GGO, CONSOLIDATION = 20, 5, 6, 1, 2
CT_SS_CUTOFF = 19.5  # Yang et al. 2020: above it, severe
SHARE_BOUNDS = (1, 50)  # percent: none or trace, moderate, severe (the public code's grades)
LOBAR_BOUNDS = (5, 25, 50, 75)  # percent; 25-point score
QUARTERS = (25, 50, 75)  # percent; TSS and the six zones
DENSE_HU = -200  # above it, opacity counts as high (PHO)

Pairs = list[tuple[int, int]] | None  # infected and lung voxels of labels 1, 2, ...


@dataclasses.dataclass
class Tally:
    """Whole-number counts of voxels; tallies of disjoint slices of one patient add up.

    Attributes:
      lung: lung voxels, infected ones included.
      infected: voxels of any class.
      consolidation: voxels of class 2; None where the mask tells no classes apart.
      dense: infected voxels above -200 HU; None where no HU are known.
      volume_ml: of one voxel; None without spacing.
      regions, lobes, zones: int64 [2, n + 1] lung and infected voxels per label, or None;
        column 0 is what no label covers.
    """

    lung: int
    infected: int
    consolidation: int | None
    dense: int | None
    volume_ml: float | None
    regions: np.ndarray | None
    lobes: np.ndarray | None
    zones: np.ndarray | None

    def __add__(self, other: "Tally") -> "Tally":
        """Pools two sets of slices; a part that one of them lacks is lost, never guessed.

        Raises:
          ValueError: the voxels have different volumes.
        """
        if self.volume_ml != other.volume_ml:
            raise ValueError(
                f"voxels of {self.volume_ml} and {other.volume_ml} ml cannot be pooled: "
                "give slices of one spacing, or no spacing"
            )
        sums: dict[str, Any] = {}
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            sums[name] = None if mine is None or theirs is None else mine + theirs
        return Tally(**sums | {"volume_ml": self.volume_ml})


@dataclasses.dataclass
class Severity:
    """A patient's scores. Shares are 0..1 of the parenchyma; None: what it needs is not known.

    Attributes:
      infected_share: infected / lung, 0..1; NaN without a lung voxel.
      grade: 0 (below 1 %), 1 (1 % and more), 2 (50 % and more); None without a lung.
      po_percent, pho_percent: opacity, and opacity above -200 HU (None without HU), percent of
        the lung (Chaganti et al.).
      ggo_share, consolidation_share: of the lung, 0..1; None for a mask of one class.
      lung_ml, infected_ml: millilitres; None without spacing.
      ct_ss: 0..40, cut-off 19.5; rescaled by 20 / used where regions are too small to count;
        NaN where none is used.
      ct_ss_regions: points 0, 1, 2 per region, int [20]; -1 not used.
      region_shares: float [20], 0..1; NaN not used.
      regions_used: 0..20.
      severe: whether ct_ss is above its cut-off; None where ct_ss is not known.
      lobar_25: 0..25, five lobes of 0..5 points. tss: 0..20, five lobes of 0..4.
      lobe_shares: float [5], 0..1 (left upper, left lower, right upper, middle, lower).
      six_zone: 0..24, six zones of 0..4 points.
      outside_regions: infected voxels that no region covers (in the share, in no region).
    """

    infected_share: float
    grade: int | None
    po_percent: float
    pho_percent: float | None
    ggo_share: float | None
    consolidation_share: float | None
    lung_ml: float | None
    infected_ml: float | None
    ct_ss: float | None
    ct_ss_regions: list[int] | None
    region_shares: list[float] | None
    regions_used: int | None
    severe: bool | None
    lobar_25: int | None
    tss: int | None
    lobe_shares: list[float] | None
    six_zone: int | None
    outside_regions: int | None

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
    """Counts voxels.

    Args:
      mask: integer, any shape ([D, H, W] or [H, W] as a rule): 0 none, 1 ground glass, 2
        consolidation; or bool, infection whose class is not known.
      lung: bool or integer, same shape, lung where > 0; always united with the infection.
      regions, lobes, zones: integer label maps of the same shape, 1..20, 1..5 and 1..6; 0 is
        outside.
      hu: Hounsfield units, any number type, same shape.
      spacing: voxel edges in mm.

    Raises:
      ValueError: shapes that differ, or labels out of range.
    """
    mask = np.asarray(mask)
    maps = {"lung": lung, "regions": regions, "lobes": lobes, "zones": zones, "hu": hu}
    for name, other in maps.items():
        if other is not None and np.shape(other) != mask.shape:
            raise ValueError(
                f"{name} has shape {np.shape(other)}, the mask {mask.shape}: bring both to one grid"
            )
    strange = mask[(mask != 0) & (mask != GGO) & (mask != CONSOLIDATION)]
    if strange.size:
        raise ValueError(
            f"mask holds {strange.min()}: 0, 1 (ground glass) and 2 (consolidation) allowed"
        )
    infected = mask > 0
    inside = (np.asarray(lung) > 0) | infected
    return Tally(
        lung=int(inside.sum()),
        infected=int(infected.sum()),
        consolidation=None if mask.dtype == bool else int((mask == CONSOLIDATION).sum()),
        dense=None if hu is None else int((infected & (np.asarray(hu) > DENSE_HU)).sum()),
        volume_ml=None if spacing is None else float(np.prod(spacing)) / 1000,
        regions=_per_label("regions", regions, N_REGIONS, inside, infected),
        lobes=_per_label("lobes", lobes, N_LOBES, inside, infected),
        zones=_per_label("zones", zones, N_ZONES, inside, infected),
    )


def grade(tally: Tally) -> Severity:
    """Turns a patient's pooled counts into scores."""
    infected, lung, ml = tally.infected, tally.lung, tally.volume_ml
    share, dense = _ratio(infected, lung), tally.consolidation
    regions, lobes, zones = (_pairs(n) for n in (tally.regions, tally.lobes, tally.zones))
    used = [whole > 0 for _, whole in regions or ()]
    points = [
        int(sick > 0) + int(2 * sick >= whole) if whole else -1 for sick, whole in regions or ()
    ]
    ct_ss = None
    if regions is not None:
        total = sum(p for p in points if p > 0)
        ct_ss = N_REGIONS * total / sum(used) if any(used) else float("nan")
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
        ct_ss_regions=None if regions is None else points,
        region_shares=_shares(regions),
        regions_used=None if regions is None else sum(used),
        severe=ct_ss > CT_SS_CUTOFF if ct_ss is not None and any(used) else None,
        lobar_25=_total(lobes, LOBAR_BOUNDS),
        tss=_total(lobes, QUARTERS),
        lobe_shares=_shares(lobes),
        six_zone=_total(zones, QUARTERS),
        outside_regions=None if tally.regions is None else int(tally.regions[1, 0]),
    )


def _per_label(
    name: str, labels: np.ndarray | None, n: int, inside: np.ndarray, infected: np.ndarray
) -> np.ndarray | None:
    """Lung and infected voxels per label, int64 [2, n + 1], from maps of one shape."""
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.size and (labels.min() < 0 or labels.max() > n):
        raise ValueError(f"{name} holds labels {labels.min()} to {labels.max()}: 0 to {n} allowed")
    found, flat, step = np.zeros((2, n + 1), np.int64), np.ravel(labels), 1 << 22
    for row, chosen in zip(found, map(np.ravel, (inside, infected)), strict=True):
        for i in range(0, flat.size, step):  # bincount makes eight bytes of each voxel
            some = flat[i : i + step][chosen[i : i + step]]
            row += np.bincount(some.astype(int), minlength=n + 1)
    return found


def _pairs(counts: np.ndarray | None) -> Pairs:
    """From counts int [2, n + 1]."""
    return None if counts is None else [(sick, whole) for whole, sick in counts[:, 1:].T.tolist()]


def _shares(pairs: Pairs) -> list[float] | None:
    return None if pairs is None else [_ratio(sick, whole) for sick, whole in pairs]


def _total(pairs: Pairs, bounds: Sequence[int]) -> int | None:
    return None if pairs is None else sum(_points(sick, whole, bounds) for sick, whole in pairs)


def _points(infected: int, whole: int, bounds: Sequence[int]) -> int:
    """0 for no infection, else 1 and one more for each bound (percent) that is exceeded."""
    return 0 if infected == 0 else 1 + sum(100 * infected > b * whole for b in bounds)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value

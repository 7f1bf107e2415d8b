"""Slices whose truth is known, from prepared datasets and folders, for the severity study."""

import csv
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax.clinic import imaging
from infnet_jax.data.sources import examples, open_split
from infnet_jax.verbs import clinical, severity as score_files

EXPERT_SCORES = ("geographic_extent", "opacity")  # of X-rays, 0..8 and 0..6


@dataclasses.dataclass
class Slice:
    """One slice; what is not known of it is None.

    Attributes:
      name: of the slice.
      unit: patient or volume; the slice's own name where nobody knows it.
      image: uint8 [H, W], lung window.
      mask: bool [H, W], infection.
      lung: bool [H, W].
      regions: uint8 [H, W], 0..20.
      experts: those of `EXPERT_SCORES` that readers gave.
    """

    name: str
    unit: str
    image: np.ndarray
    mask: np.ndarray | None = None
    lung: np.ndarray | None = None
    regions: np.ndarray | None = None
    experts: dict[str, float] = dataclasses.field(default_factory=dict)


def read(source: Path, split: str) -> Iterator[Slice]:
    """Yields the slices of a source.

    Args:
      source: the version folder of a prepared dataset; or a folder with `img/` and, by the same
        names, `label/` (0 none, 1 and 2 infection, or 0 and 255), `lung/` and `index.csv`, whose
        column `patient`, `volume` or `group` tells the unit; or scans without truth, whose unit is
        the patient number in their path, or the scan.
      split: of a prepared dataset.

    Raises:
      ValueError, FileNotFoundError: names the file or folder that cannot be used.
    """
    if (source / "dataset_info.json").is_file():
        return _prepared(source, split)
    if (source / "img").is_dir():
        return _folder(source)
    return _scans(source)


def _prepared(folder: Path, split: str) -> Iterator[Slice]:
    source = open_split(folder, split)
    for i, known in enumerate(examples(source)):
        raw: Any = source[i]
        unit = known.get("patient") or known.get("group") or known["id"]
        found = Slice(known["id"], unit, known["image"][..., 0])
        if "mask" in known and raw.get("labelled", True):
            found.mask = known["mask"][..., 0] > 0
        if "lung" in known and raw.get("lung_known", True):
            found.lung = known["lung"][..., 0] > 0
            if "region" in raw:
                found.regions = np.asarray(raw["region"])[..., 0]
        scores = {name: float(raw[name]) for name in EXPERT_SCORES if name in raw}
        found.experts = {name: value for name, value in scores.items() if math.isfinite(value)}
        yield found


def _folder(folder: Path) -> Iterator[Slice]:
    units: dict[str, str] = {}
    if (folder / "index.csv").is_file():
        with (folder / "index.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                name = row.get("name") or row.get("id") or ""
                unit = row.get("patient") or row.get("volume") or row.get("group")
                units[name.removesuffix(".png")] = unit or name.removesuffix(".png")
    kinds = [kind for kind in ("label", "lung") if (folder / kind).is_dir()]
    partners = {kind: imaging.by_name(folder / kind) for kind in kinds}
    for source in imaging.find([folder / "img"]):
        scan = imaging.read(source)
        maps = {
            kind: imaging.read_labels(
                imaging.partner(source.name, found, kind, alone=False).files[0], scan
            )
            for kind, found in partners.items()
        }
        if "label" in maps:
            maps["label"] = score_files.infection(maps["label"], source.name)[0]
        for i in range(len(scan.values)):
            yield Slice(
                source.name if len(scan.values) == 1 else f"{source.name}/{i + 1}",
                units.get(source.name, source.name),
                scan.picture(i),
                maps["label"][i] > 0 if "label" in maps else None,
                maps["lung"][i] > 0 if "lung" in maps else None,
            )


def _scans(folder: Path) -> Iterator[Slice]:
    for source in imaging.find([folder]):
        n = clinical.number(str(source.files[0].resolve().relative_to(folder.resolve().parent)))
        unit = source.name if n is None else f"patient{n:04d}"
        scan = imaging.read(source)
        for i in range(len(scan.values)):
            yield Slice(f"{source.name}/{i + 1}", unit, scan.picture(i))

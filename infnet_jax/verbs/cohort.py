"""Slices of many patients with what is known of them: what `detect` and `severity-study` share."""

import csv
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax import verbs
from infnet_jax.clinic import case, imaging, labels
from infnet_jax.data import sources
from infnet_jax.verbs import inputs

EXPERT_SCORES = ("geographic_extent", "opacity")  # of X-rays, 0..8 and 0..6
_NUMBER = re.compile(r"patient[ _-]*0*(\d+)", re.IGNORECASE)


@dataclasses.dataclass
class Slice:
    """One slice, its maps [H, W]; what is not known of it is None."""

    name: str
    unit: str  # patient or volume; the slice's own name where nobody knows it
    image: np.ndarray  # uint8, lung window
    mask: np.ndarray | None = None  # bool, infection
    lung: np.ndarray | None = None  # bool
    regions: np.ndarray | None = None  # uint8, 0..20
    experts: dict[str, float] = dataclasses.field(default_factory=dict)  # of EXPERT_SCORES

    @property
    def scan(self) -> imaging.Scan:
        """The slice as a scan of its own."""
        return imaging.scan_of_picture(self.name, np.ascontiguousarray(self.image))


Masked = tuple[Slice, np.ndarray]  # a slice with a predicted mask, bool [H, W]


def read(source: Path, split: str) -> Iterator[Slice]:
    """Yields the slices of a source; ValueError or FileNotFoundError names what cannot be used.

    That is the version folder of a prepared dataset, of which one `split` is read; a folder with
    `img/` and, by the same names, `label/` (0 none, 1 and 2 infection, or 0 and 255), `lung/` and
    `index.csv`, whose column `patient`, `volume` or `group` tells the unit; or scans without truth,
    whose unit is the patient number in their path, or the scan.
    """
    if (source / "dataset_info.json").is_file():
        return _prepared(source, split)
    return _folder(source) if (source / "img").is_dir() else _scans(source)


def patient_number(name: str) -> int | None:
    """The patient's number in a name or path (`Patient 12/CT/IMG-1.jpg`); None if not just one."""
    found = {int(digits) for digits in _NUMBER.findall(name)}
    return found.pop() if len(found) == 1 else None


def predicted(slices: Iterable[Slice], network: "verbs.Predictor") -> Iterator[Masked]:
    """Yields slices with the mask that a network predicts."""
    ahead, behind = itertools.tee(slices)
    for one, found in zip(behind, network(s.image for s in ahead), strict=True):
        yield one, found.mask > 0


def given(slices: Iterable[Slice], folder: Path) -> Iterator[Masked]:
    """Yields slices with the mask of their name in a folder.

    ValueError if there is none, it is of another size, or has unknown labels or those of lungs.
    """
    mask_of = verbs.given_maps(folder, "masks")
    for one in slices:
        mask = labels.infection(mask_of(one.scan), one.name)[0]
        if one.lung is not None:
            labels.doubts(mask, one.lung[None], one.name, hu=None, sure=False)
        yield one, mask[0] > 0


def inside_lung(
    one: Slice, mask: np.ndarray, finder: verbs.Finder | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a predicted mask without what touches no lung, and that lung, both bool [H, W].

    Without a `finder` it is the true lung; ValueError if that is not known.
    """
    lung = one.lung if finder is None else finder(one.scan)[0] > 0
    if lung is None:
        raise ValueError(f"{one.name}: no true lung")
    kept = mask[None].astype(np.uint8)
    case.drop_detached(kept, lung[None])
    return kept[0] > 0, lung


def _prepared(folder: Path, split: str) -> Iterator[Slice]:
    source = sources.open_split(folder, split)
    for i, known in enumerate(sources.examples(source)):
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
                name = (row.get("name") or row.get("id") or "").removesuffix(".png")
                units[name] = row.get("patient") or row.get("volume") or row.get("group") or name
    kinds = [kind for kind in ("label", "lung") if (folder / kind).is_dir()]
    readers = {kind: verbs.given_maps(folder / kind, kind) for kind in kinds}
    for source in imaging.find([folder / "img"]):
        name, scan = source.name, imaging.read(source)
        maps = {kind: reader(scan) for kind, reader in readers.items()}
        if "label" in maps:
            maps["label"] = labels.infection(maps["label"], name)[0]
            if "lung" in maps:
                labels.doubts(maps["label"], maps["lung"] > 0, name, hu=None, sure=False)
        for i in range(len(scan.values)):
            own = name if len(scan.values) == 1 else f"{name}/{i + 1}"
            mask, lung = (maps[k][i] > 0 if k in maps else None for k in ("label", "lung"))
            yield Slice(own, units.get(name, name), scan.picture(i), mask, lung)


def _scans(folder: Path) -> Iterator[Slice]:
    for source in imaging.find([folder], skip=inputs.outputs(None)):
        n = patient_number(str(source.files[0].resolve().relative_to(folder.resolve().parent)))
        unit = source.name if n is None else f"patient{n:04d}"
        scan = imaging.read(source)
        for i in range(len(scan.values)):
            yield Slice(f"{source.name}/{i + 1}", unit, scan.picture(i))

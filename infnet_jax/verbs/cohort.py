"""Slices of many patients with what is known of them: what `detect` and `severity-study` share."""

import csv
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infnet_jax.clinic import case, imaging
from infnet_jax.data import sources
from infnet_jax.verbs import scans

if TYPE_CHECKING:
    from infnet_jax.evaluation.predictor import Predictor

EXPERT_SCORES = ("geographic_extent", "opacity")  # of X-rays, 0..8 and 0..6
# The classes of the paper's authors; `suspected` is none of them.
GRADES = {"control": 0, "mild": 0, "regular": 0, "severe": 1, "critically ill": 2}
SUSPECTED = "suspected"
_NUMBER = re.compile(r"patient[ _-]*0*(\d+)", re.IGNORECASE)


@dataclasses.dataclass
class Slice:
    """One slice, its maps [H, W]; what is not known of it is None.

    Attributes:
      unit: patient or volume; the slice's own name where nobody knows it.
      image: uint8, lung window; mask: bool, infection; lung: bool; regions: uint8, 0..20.
      experts: those of `EXPERT_SCORES` that readers gave.
    """

    name: str
    unit: str
    image: np.ndarray
    mask: np.ndarray | None = None
    lung: np.ndarray | None = None
    regions: np.ndarray | None = None
    experts: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def scan(self) -> imaging.Scan:
        """The slice as a scan of its own."""
        return imaging.scan_of_picture(self.name, np.ascontiguousarray(self.image))


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


def patient_number(name: str) -> int | None:
    """The patient's number in a name or path (`Patient 12/CT/IMG-1.jpg`); None if not just one."""
    found = {int(digits) for digits in _NUMBER.findall(name)}
    return found.pop() if len(found) == 1 else None


def read_morbidity(path: Path) -> dict[int, str]:
    """Returns the morbidity of each patient of Patients.xlsx, in small letters, by number.

    Raises:
      ValueError: no such table, a number twice, or a morbidity that nobody knows.
    """
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        lines = [row for sheet in book.worksheets for row in sheet.iter_rows(values_only=True)]
    except Exception as error:  # a damaged xlsx raises whatever its zip or XML hits first
        raise ValueError(f"{path}: not a readable xlsx table ({error})") from error
    header = [str(cell or "").strip().lower() for cell in lines[0]] if lines else []
    if not {"patient", "morbidity"} <= {*header}:
        raise ValueError(f"{path}: columns {', '.join(header)}; Patient and Morbidity expected")
    who, what = header.index("patient"), header.index("morbidity")
    found: dict[int, str] = {}
    for line in lines[1:]:
        n, word = patient_number(str(line[who])), str(line[what]).strip().lower()
        if n is None or n in found or word not in (*GRADES, SUSPECTED):
            words = ", ".join((*GRADES, SUSPECTED))
            raise ValueError(
                f"{path}: row {line[who]!r}, {line[what]!r}: each patient's number "
                f"once, and one of {words} expected"
            )
        found[n] = word
    return found


def predicted(slices: Iterable[Slice], network: "Predictor") -> Iterator[tuple[Slice, np.ndarray]]:
    """Yields slices with the mask that a network predicts, bool [H, W]."""
    ahead, behind = itertools.tee(slices)
    for one, found in zip(behind, network(s.image for s in ahead), strict=True):
        yield one, found.mask > 0


def given(slices: Iterable[Slice], folder: Path) -> Iterator[tuple[Slice, np.ndarray]]:
    """Yields slices with the mask of their name in a folder, bool [H, W].

    Raises:
      ValueError: there is none, it is of another size, or has unknown labels.
    """
    masks = imaging.by_name(folder)
    for one in slices:
        path = imaging.partner(one.name, masks, "masks", alone=False).files[0]
        labels = imaging.read_labels(path, one.scan)
        yield one, case.infection(labels, path.name)[0][0] > 0


def inside_lung(
    one: Slice, mask: np.ndarray, finder: scans.Finder | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a predicted mask without what touches no lung, and that lung, both bool [H, W].

    Without a `finder` it is the true lung; ValueError if that is not known.
    """
    if finder is not None:
        lung = finder(one.scan)[0] > 0
    elif one.lung is not None:
        lung = one.lung
    else:
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
    units = _units(folder / "index.csv")
    kinds = [kind for kind in ("label", "lung") if (folder / kind).is_dir()]
    readers = {kind: scans.given_maps(folder / kind, kind) for kind in kinds}
    for source in imaging.find([folder / "img"]):
        name, scan = source.name, imaging.read(source)
        maps = {kind: reader(scan) for kind, reader in readers.items()}
        if "label" in maps:
            maps["label"] = case.infection(maps["label"], name)[0]
        for i in range(len(scan.values)):
            own = name if len(scan.values) == 1 else f"{name}/{i + 1}"
            mask, lung = (maps[k][i] > 0 if k in maps else None for k in ("label", "lung"))
            yield Slice(own, units.get(name, name), scan.picture(i), mask, lung)


def _units(index: Path) -> dict[str, str]:
    """The unit of each named slice of an `index.csv`; none without the file."""
    units: dict[str, str] = {}
    if index.is_file():
        with index.open(newline="") as file:
            for row in csv.DictReader(file):
                name = (row.get("name") or row.get("id") or "").removesuffix(".png")
                units[name] = row.get("patient") or row.get("volume") or row.get("group") or name
    return units


def _scans(folder: Path) -> Iterator[Slice]:
    for source in imaging.find([folder]):
        n = patient_number(str(source.files[0].resolve().relative_to(folder.resolve().parent)))
        unit = source.name if n is None else f"patient{n:04d}"
        scan = imaging.read(source)
        for i in range(len(scan.values)):
            yield Slice(f"{source.name}/{i + 1}", unit, scan.picture(i))

"""`infnet-jax severity`: scores existing masks (ours, nnU-Net's, a radiologist's), no model."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from infnet_jax import verbs
from infnet_jax.clinic import case, imaging, labels
from infnet_jax.clinic.imaging import classes as carried
from infnet_jax.verbs import inputs, kept

MAPS = {  # option -> what it gives, files of the masks' grids paired with them by name
    "images": "the scans",
    "lung": "lung masks",
    "lobes": "lobe maps 1..5",
    "regions": "maps of 20 regions or segments",
}
LABELS = f"what the labels are: {', '.join(labels.KINDS)} (1=ggo,2=consolidation,3=ignore)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add = parser.add_argument
    add("masks", type=verbs.existing, nargs="+", metavar="MASK", help="files or folders")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for scores and page")
    for name, what in MAPS.items():
        add(f"--{name}", type=verbs.existing, metavar="PATH", help=what)
    add("--series", default="", metavar="N", help="of the images: the DICOM series of this number")
    add("--one-patient", action="store_true", help="all are slices of one patient")
    add("--resample", action="store_true", help=verbs.RESAMPLE)
    add("--not-hu", action="store_true", help=verbs.NOT_HU)
    add("--one-class", action="store_true", help="label 1 is any infection; --labels 1=infection")
    add("--labels", metavar="N=KIND,...", help=LABELS)


def run(options: argparse.Namespace) -> int:
    """Scores masks, writes `severity.csv`, `severity.json` and `report.html` into `--out`.

    Labels mean what `--labels` says, else what a mask of ours says itself, else what
    `labels.infection` finds; then masks that look like lungs are refused. nnU-Net's `_0000` is
    ignored in names. Without lung and lobes the lungs are found in the images. Returns 0, or 1 if
    an input failed: one line each on stderr, the others are written. ValueError: nothing to score
    with, or no mask at all; OSError: `--out` cannot be written.
    """
    if options.images is None and options.lung is None and options.lobes is None:
        raise ValueError("give --images (lungs are found in them), --lung or --lobes")
    named = labels.parse(options.labels) if options.labels else None
    if options.one_class and named is None:
        named = {1: labels.INFECTION, 255: labels.INFECTION}
    sources, passed = inputs.find(options.masks, masks=True)
    given = {name: getattr(options, name) for name in MAPS if getattr(options, name) is not None}
    how = {"images": {"number": options.series, "skip": inputs.outputs(options.out)}}
    maps = {name: imaging.by_name(path, **how.get(name, {})) for name, path in given.items()}
    options.out.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def held() -> frozenset[int]:
        return _labels_of([source.files[0] for source in sources])

    def read_case(source: imaging.Source) -> case.Case:
        path, alone = source.files[0], len(sources) == 1
        found = {k: imaging.partner(source.name, v, k, alone=alone) for k, v in maps.items()}
        if source.kind == "dicom":
            raise ValueError(f"{path}: DICOM masks are not read; export them as NIfTI")
        image = found.pop("images", None)
        read = functools.partial(imaging.read_labels, resample=options.resample)
        shown = functools.partial(imaging.scan_of_labels, path, source.name)
        scan = imaging.read(image, not_hu=options.not_hu) if image else shown()
        scan.name = source.name  # a single image need not bear it
        array, meaning = read(path, scan), named or _own_words(path)
        others = held() if meaning is None and array.max(initial=0) <= 1 else ()
        mask, classes, notes = labels.infection(array, path.name, meaning=meaning, others=others)
        origin: Literal["named", "guessed"] = "guessed" if meaning is None else "named"
        scan.warnings += notes
        known = {k: read(partner.files[0], scan) for k, partner in found.items()}
        lung, lobes, regions = map(known.get, ("lung", "lobes", "regions"))
        return case.assess(
            scan, mask, lung, lobes=lobes, regions=regions, classes=classes, origin=origin
        )

    first = options.masks[0].resolve()
    patient = (first if first.is_dir() else first.parent).name if options.one_patient else None
    earlier = kept.patients(options.out, [source.name for source in sources], patient, {})
    beside = (line for one in maps.get("images", {}).values() if one.slices for line in one.beside)
    return verbs.score(
        verbs.Voice("severity"),
        sources,
        read_case,
        options.out,
        model={},
        patient=patient,
        passed=list(dict.fromkeys([*passed, *beside])),
        earlier=earlier,
    )


def _own_words(path: Path) -> labels.Meaning | None:
    """What a mask of ours says of its labels; ValueError if they are no infection."""
    found = carried.read(path)
    if strange := set(found.values()) - set(labels.KINDS):
        raise ValueError(f"{path}: a mask of {', '.join(sorted(strange))}, not of infection")
    return found or None


def _labels_of(paths: Sequence[Path]) -> frozenset[int]:
    """The labels of all readable masks."""
    found: set[int] = set()
    for path in paths:
        if found & {2, 3}:  # these settle what 1 is
            break
        try:
            found |= labels.held(imaging.read_labels(path))
        except (ValueError, OSError, ImportError):  # said when it is scored
            continue
    return frozenset(found)

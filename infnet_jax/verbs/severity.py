"""`infnet-jax severity`: scores existing masks (ours, nnU-Net's, a radiologist's), no model."""

import argparse
from pathlib import Path

from infnet_jax import verbs
from infnet_jax.clinic import case, imaging
from infnet_jax.verbs import inputs, kept

MAPS = {  # option -> what it gives, files of the masks' grids paired with them by name
    "images": "the scans",
    "lung": "lung masks",
    "lobes": "lobe maps 1..5",
    "regions": "maps of 20 regions or segments",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add = parser.add_argument
    add("masks", type=verbs.existing, nargs="+", metavar="MASK", help="files or folders")
    add("--out", type=Path, required=True, metavar="DIR")
    for name, what in MAPS.items():
        add(f"--{name}", type=verbs.existing, metavar="PATH", help=what)
    add("--series", default="", metavar="N", help="of the images: the DICOM series of this number")
    add("--one-patient", action="store_true", help="all are slices of one patient")
    add("--resample", action="store_true", help=verbs.RESAMPLE)
    add("--not-hu", action="store_true", help=verbs.NOT_HU)
    add("--one-class", action="store_true", help="label 1 is any infection")


def run(options: argparse.Namespace) -> int:
    """Scores masks, writes `severity.csv`, `severity.json` and `report.html` into `--out`.

    Labels are those of `case.infection`. nnU-Net's `_0000` is ignored in names. Without lung and
    lobes the lungs are found in the images. Returns 0, or 1 if an input failed: one line each on
    stderr, the others are written. ValueError: nothing to score with, or no mask at all; OSError:
    `--out` cannot be written.
    """
    if options.images is None and options.lung is None and options.lobes is None:
        raise ValueError("give --images (lungs are found in them), --lung or --lobes")
    sources, passed = inputs.find(options.masks, masks=True)
    given = {name: getattr(options, name) for name in MAPS if getattr(options, name) is not None}
    how = {"images": {"number": options.series, "skip": inputs.outputs(options.out)}}
    maps = {name: imaging.by_name(path, **how.get(name, {})) for name, path in given.items()}
    options.out.mkdir(parents=True, exist_ok=True)

    def read_case(source: imaging.Source) -> case.Case:
        path, alone = source.files[0], len(sources) == 1
        found = {k: imaging.partner(source.name, v, k, alone=alone) for k, v in maps.items()}
        if source.kind == "dicom":
            raise ValueError(f"{path}: DICOM masks are not read; export them as NIfTI")
        image, read = found.pop("images", None), imaging.read_labels
        if image:
            scan = imaging.read(image, not_hu=options.not_hu)
        else:
            scan = imaging.scan_of_labels(path, source.name)
        scan.name = source.name  # a single image need not bear it
        labels = read(path, scan, resample=options.resample)
        mask, classes, notes = case.infection(labels, path.name, one_class=options.one_class)
        scan.warnings += notes
        known = {
            k: read(partner.files[0], scan, resample=options.resample)
            for k, partner in found.items()
        }
        lung, lobes, regions = map(known.get, ("lung", "lobes", "regions"))
        return case.assess(scan, mask, lung, lobes=lobes, regions=regions, classes=classes)

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

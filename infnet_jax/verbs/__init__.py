"""One file a verb of `infnet-jax`, named as it is typed; here is what they share."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infnet_jax.clinic import case, imaging, lungs, page

if TYPE_CHECKING:
    from infnet_jax.evaluation.predictor import Predictor

RUN = "the --workdir of a finished run of main.py, or an export of it"
MORPHOLOGY = "morphology"
RESAMPLE = "bring masks on another grid to that of their scan, by the nearest voxel"
NOT_HU = "take volumes whose numbers are not HU as pictures in a lung window"

Finder = Callable[[imaging.Scan], np.ndarray]  # a scan to its lungs, > 0 inside, [D, H, W]


def existing(text: str) -> Path:
    """A path that must exist; argparse turns the error into the usage line."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return path


def load(workdir: Path, **options: Any) -> "Predictor":
    """`Predictor.load`, imported late: `--device` has to be set before jax is imported."""
    from infnet_jax.evaluation.predictor import Predictor

    return Predictor.load(workdir, **options)


def choose_lungs(way: str, *, alone: bool = False, resample: bool = False) -> tuple[Finder, str]:
    """Returns a function that finds the lungs of a scan, and what to call it.

    Args:
      way: `morphology`; the workdir of a run of configs/lung.py; or a file or folder with the
        user's own lung masks, by the scans' names. ValueError for anything else.
      alone: there is one scan only; then a single file need not bear its name.
      resample: the user's masks may lie on other grids than the scans.
    """
    path = Path(way)
    if way == MORPHOLOGY:
        return (lambda scan: lungs.segment(scan.pictures())), MORPHOLOGY
    if (path / "config.json").is_file():
        return _network(path)
    if not path.exists():
        raise ValueError(
            f"--lungs {way}: give morphology, the workdir of a run of "
            "configs/lung.py, or a file or folder with lung masks"
        )
    return given_maps(path, "lungs", alone=alone, resample=resample), "given masks"


def _network(workdir: Path) -> tuple[Finder, str]:
    """The same of a network: its lungs are bool [D, H, W], by `lungs.find`."""
    network = load(workdir, lungs=True)

    def probabilities(pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return (found.probs.reshape(found.mask.shape) for found in network(iter(pictures)))

    def find(scan: imaging.Scan) -> np.ndarray:
        return lungs.find(probabilities, list(scan.pictures()), network.thresholds["lung"])

    name = f"network, run {network.identity['run']}, weights {network.identity['weights']}"
    return find, name


def given_maps(path: Path, what: str, *, alone: bool = False, resample: bool = False) -> Finder:
    """Returns a function from a scan to the label map of its name in a file or folder.

    `what` is the option that gave the path, for messages; `alone` and `resample` are those of
    `choose_lungs`.
    """
    maps = imaging.by_name(path)

    def look_up(scan: imaging.Scan) -> np.ndarray:
        found = imaging.partner(scan.name, maps, what, alone=alone)
        return imaging.read_labels(found.files[0], scan, resample=resample)

    return look_up


def score(
    verb: str,
    sources: Iterable[imaging.Source],
    read_case: Callable[[imaging.Source], case.Case],
    out: Path,
    *,
    model: Mapping[str, str],
    patient: str | None,
) -> int:
    """Writes `severity.csv`, `severity.json` and `report.html`; returns 0, or 1 if a scan failed.

    Args:
      verb: its name, for messages; sources: the scans, in order.
      read_case: makes the case of one; ValueError, OSError or ImportError there is one line on
        stderr and does not stop the others.
      out: folder, which must exist; model: identifies model and config, {} for given masks.
      patient: whose scans they all are, scored together; None: each is a patient of its own.
    """
    failed = 0
    patients: list[case.Patient] = []

    def readable() -> Iterator[tuple[str, list[case.Case]]]:
        nonlocal failed
        for source in sources:
            try:
                yield source.name, [read_case(source)]
            except (ValueError, OSError, ImportError) as error:
                failed += 1
                start = "\r\x1b[K" if sys.stderr.isatty() else ""  # clears the line of progress
                line = f"infnet-jax {verb}: {' '.join(str(error).split())}"
                print(start + line, file=sys.stderr, flush=True)

    with page.Page(out / "report.html", model=model) as report:
        found: Iterable[tuple[str, list[case.Case]]] = readable()
        if patient is not None:
            together = [one for _, (one,) in found]
            found = [(patient, together)] if together else []
        for name, cases in found:
            patients.append(case.pool(name, cases))
            report.add(name, cases, patients[-1].scores)
    case.write_tables(out, patients, model=model)
    for one in patients:
        ct_ss = "not known" if one.scores.ct_ss is None else f"{one.scores.ct_ss:g} of 40"
        share = f"{100 * one.scores.infected_share:.1f} % of the lung infected"
        print(f"{one.name}: {share}, CT-SS {ct_ss}")
    n_scans = sum(len(one.scans) for one in patients)
    print(f"{n_scans} scored, {failed} failed: {out / 'report.html'}")
    return 1 if failed else 0

"""What several verbs share: arguments, the lungs of a scan, and scans scored one by one."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infnet_jax.clinic import case, imaging, lungs, page

if TYPE_CHECKING:
    from infnet_jax.evaluation.predictor import Predictor

RUN = "the --workdir of a finished run of main.py, or an export of it"
MORPHOLOGY = "morphology"

Finder = Callable[[imaging.Scan], np.ndarray]  # a scan to its lungs, > 0 inside, [D, H, W]


def existing(text: str) -> Path:
    """A path that must exist; argparse turns the error into the usage line."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return path


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the required `--checkpoint`."""
    parser.add_argument("--checkpoint", type=existing, required=True, metavar="DIR", help=RUN)


def add_tta(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds `--tta` and `--no-tta`; `tta` is None without either."""
    parser.add_argument("--tta", action=argparse.BooleanOptionalAction, default=None, help=text)


def add_lungs(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds `--lungs`, read by `choose_lungs`."""
    parser.add_argument("--lungs", default=MORPHOLOGY, metavar="WAY", help=text)


def choose_lungs(way: str, *, alone: bool = False) -> tuple[Finder, str]:
    """Returns a function that finds the lungs of a scan, and what to call it.

    Args:
      way: `morphology`; the workdir of a run of configs/lung.py; or a file or folder with the
        user's own lung masks, by the scans' names.
      alone: there is one scan only; then a single file need not bear its name.

    Raises:
      ValueError: none of these, or a run that finds something else.
    """
    path = Path(way)
    if way == MORPHOLOGY:
        return (lambda scan: lungs.segment(scan.pictures())), MORPHOLOGY
    if (path / "config.json").is_file():
        from infnet_jax.evaluation.predictor import Predictor

        network = Predictor.load(path, lungs=True)
        name = f"network, run {network.identity['run']}, weights {network.identity['weights']}"
        return (lambda scan: learned_lungs(network, scan)), name
    if not path.exists():
        raise ValueError(
            f"--lungs {way}: give morphology, the workdir of a run of "
            "configs/lung.py, or a file or folder with lung masks"
        )
    return given_maps(path, "lungs", alone=alone), "given masks"


def given_maps(path: Path, what: str, *, alone: bool = False) -> Finder:
    """Returns a function from a scan to the label map of its name in a file or folder.

    `what` is the option that gave the path, for messages; `alone` is that of `choose_lungs`.
    """
    maps = imaging.by_name(path)

    def look_up(scan: imaging.Scan) -> np.ndarray:
        found = imaging.partner(scan.name, maps, what, alone=alone)
        return imaging.read_labels(found.files[0], scan)

    return look_up


def learned_lungs(network: "Predictor", scan: imaging.Scan) -> np.ndarray:
    """Returns the lungs that a network finds, bool [D, H, W], by `lungs.find`."""

    def run(pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return (found.probs.reshape(found.mask.shape) for found in network(iter(pictures)))

    return lungs.find(run, list(scan.pictures()), network.thresholds["lung"])


def score(
    verb: str,
    sources: Iterable[imaging.Source],
    read_case: Callable[[imaging.Source], case.Case],
    out: Path,
    *,
    model: Mapping[str, str],
    patient: str | None,
) -> int:
    """Writes `severity.csv`, `severity.json` and `report.html`; prints a line a patient.

    Args:
      verb: its name, for messages.
      sources: the scans, in order.
      read_case: makes the case of one; ValueError, OSError or ImportError there is one line on
        stderr and does not stop the others.
      out: folder, which must exist.
      model: what identifies model and config; {} for masks from elsewhere.
      patient: whose scans they all are, scored together; None: each is a patient of its own.

    Returns:
      0, or 1 if a scan failed.
    """
    failed = 0
    patients: list[case.Patient] = []
    together: list[case.Case] = []
    with page.Page(out / "report.html", model=model) as report:

        def add(name: str, cases: list[case.Case]) -> None:
            patients.append(case.pool(name, cases))
            report.add(name, cases, patients[-1].scores)

        for source in sources:
            try:
                found = read_case(source)
            except (ValueError, OSError, ImportError) as error:
                failed += 1
                start = "\r\x1b[K" if sys.stderr.isatty() else ""  # clears the line of progress
                line = f"infnet-jax {verb}: {' '.join(str(error).split())}"
                print(start + line, file=sys.stderr, flush=True)
                continue
            if patient is None:
                add(source.name, [found])
            else:
                together.append(found)
        if patient is not None and together:
            add(patient, together)
    case.write_tables(out, patients, model=model)
    for one in patients:
        scores = one.scores
        ct_ss = "not known" if scores.ct_ss is None else f"{scores.ct_ss:g} of 40"
        share = f"{100 * scores.infected_share:.1f} % of the lung infected"
        print(f"{one.name}: {share}, CT-SS {ct_ss}")
    n_scans = sum(len(one.scans) for one in patients)
    print(f"{n_scans} scored, {failed} failed: {out / 'report.html'}")
    return 1 if failed else 0

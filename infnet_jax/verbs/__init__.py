"""One file a verb of `infnet-jax`, named as it is typed; here is what they share."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infnet_jax.clinic import case, imaging, lungs, page
from infnet_jax.verbs import inputs

if TYPE_CHECKING:
    from infnet_jax.evaluation.predictor import Predictor

RUN = "the --workdir of a finished run of main.py, or an export of it"
MORPHOLOGY = "morphology"
NO_CT = {"phantom": "drawings", "covid_chestxray": "X-rays"}  # builders whose pictures are no CT
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

    use_device()
    return Predictor.load(workdir, **options)


def choose_lungs(way: str, *, alone: bool = False, resample: bool = False) -> tuple[Finder, str]:
    """Returns a function that finds the lungs of a scan, and what to call it.

    Args:
      way: `morphology`; the workdir of a run of configs/lung.py; or a file or folder with the
        user's own lung masks, by the scans' names. ValueError for anything else.
      alone: there is one scan only; then a single file need not bear its name.
      resample: the user's masks may lie on other grids than the scans.

    What to call a network of which `caution` has something to say ends with that, after "; ".
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
    doubt = caution(network.identity)
    return find, f"{name}; {doubt}" if doubt else name


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


def caution(identity: Mapping[str, str]) -> str:
    """What must be known before masks of a network are believed; empty if nothing is to be said."""
    builder = identity.get("trained on", "").partition(",")[0].partition("/")[0]
    seen = NO_CT.get(builder)
    if not seen:
        return ""
    return f"the network was trained on {seen} ({builder}), not on CT; do not rely on its results"


def use_device(kind: str = "") -> None:
    """ValueError if jax has no device of this kind, `cpu`, `gpu` or `tpu`, or "" of any kind."""
    import jax

    wanted = f"--device {kind}" if kind else f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}"
    try:
        if kind in {"", *(device.platform for device in jax.devices())}:
            return
    except (RuntimeError, AssertionError):  # both are what jax raises for a platform it lacks
        jax.config.update("jax_platforms", "")
    there = " and ".join(sorted({device.platform for device in jax.devices()}))
    more = "; pip install 'infnet-jax[cuda]'" if kind == "gpu" else ""
    raise ValueError(f"{wanted}: jax finds {there} only{more}")


class Voice:
    """Says lines on stderr for a verb, each once."""

    def __init__(self, verb: str):
        """`verb` is put in front of each line."""
        self._verb, self._said = verb, set[str]()

    def __call__(self, text: str) -> None:
        """Says one line, above the line of progress."""
        line = " ".join(text.split())
        if line not in self._said:
            self._said.add(line)
            start = "\r\x1b[K" if sys.stderr.isatty() else ""  # clears the line of progress
            print(f"{start}infnet-jax {self._verb}: {line}", file=sys.stderr, flush=True)


def score(
    voice: Voice,
    sources: Iterable[imaging.Source],
    read_case: Callable[[imaging.Source], case.Case],
    out: Path,
    *,
    model: Mapping[str, str],
    patient: str | None,
    caution: str = "",
    passed: Sequence[str] = (),
    earlier: Sequence[case.Patient] = (),
) -> int:
    """Writes `severity.csv`, `severity.json` and `report.html`; returns 0; 1 for a failure.

    It is one if a scan failed, if none was scored, or if something was damaged.

    Args:
      voice: says failures and warnings; sources: the scans, in order.
      read_case: makes the case of one; any Exception there is one line and stops no other;
        `inputs.NoScan` is said, and no failure.
      out: folder, which must exist; model: identifies model and config, {} for given masks.
      patient: whose scans they all are, scored together; None: each is a patient of its own.
      caution: what must be known before any score is believed.
      passed: lines on what was passed over; earlier: patients in `out` that stay as they are.
    """
    failures: list[str] = []
    patients: list[case.Patient] = []
    for line in filter(None, [caution, *(f"passed over: {one}" for one in passed)]):
        voice(line)
    readable = _readable(voice, sources, read_case, failures, {*passed})
    with page.Page(out / "report.html", model=model, caution=caution) as report:
        report.keep({one.name: one.scores for one in earlier})
        groups: Iterable[tuple[str, list[case.Case]]] = ((one.name, [one]) for one in readable)
        if patient is not None:
            groups = _together(voice, patient, list(readable), failures)
        for name, cases in groups:
            cases[0].warnings[:0] = [caution] if caution else []
            patients.append(case.pool(name, cases))
            report.add(name, cases, patients[-1].scores)
    case.write_tables(out, [*earlier, *patients], model=model)
    _sum_up(out, patients, len(failures), len(earlier))
    return 1 if failures or not patients or inputs.damaged(passed) else 0


def _readable(
    voice: Voice,
    sources: Iterable[imaging.Source],
    read_case: Callable[[imaging.Source], case.Case],
    failures: list[str],
    said: Collection[str],
) -> Iterator[case.Case]:
    """The cases of the sources, with their warnings but those already `said`; `failures` grows."""
    no_scans: dict[tuple[Path, str], list[imaging.Source]] = {}
    for source in sources:
        try:
            found = read_case(source)
        except inputs.NoScan as error:
            no_scans.setdefault((source.files[0].parent, str(error)), []).append(source)
        except Exception as error:
            failures.append(_failure(source, error))
            voice(failures[-1])
        else:
            _warn(voice, found, said)
            yield found
    for (folder, reason), alike in no_scans.items():
        more = f" and {len(alike) - 1} more there" if len(alike) > 1 else ""
        line = f"{alike[0].files[0]}{more}: {reason}"
        # Blank files beside label maps are blank masks; elsewhere nobody can have meant them.
        bad = reason == inputs.BLANK_FILE and (folder, inputs.MAP) not in no_scans
        failures += [line] * len(alike) * bad
        voice(line if bad else f"passed over: {line}")


def _failure(source: imaging.Source, error: Exception) -> str:
    """One line for what stopped a scan; the traceback too where INFNET_DEBUG is set."""
    if os.environ.get("INFNET_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, ValueError | OSError | ImportError) and str(error):
        return str(error)
    return f"{source.files[0]}: {type(error).__name__}: {error} (INFNET_DEBUG=1 shows where)"


def _warn(voice: Voice, found: case.Case, said: Collection[str]) -> None:
    """Says the warnings of a scan in one line, with its name, without those already `said`."""
    notes = dict.fromkeys(note for note in found.warnings if note not in said)
    if notes:
        text = "; ".join(note.removeprefix(f"{found.name}: ") for note in notes)
        voice(f"warning: {found.name}: {text}")


def _together(
    voice: Voice, patient: str, cases: list[case.Case], failures: list[str]
) -> list[tuple[str, list[case.Case]]]:
    """All scans under one name; where they cannot be pooled each of its own, and a failure."""
    if not cases:
        return []
    if failures:
        cases[-1].warnings.append(f"{patient}: {len(failures)} scans failed and are missing")
    try:
        case.pool(patient, cases)
    except ValueError:
        failures.append(f"{patient}: scans of several spacings or kinds; each is scored alone")
        voice(failures[-1])
        return [(one.name, [one]) for one in cases]
    return [(patient, cases)]


def _sum_up(out: Path, patients: Sequence[case.Patient], failed: int, earlier: int) -> None:
    for one in patients:
        scores = one.scores.as_dict()  # None where a number is not known
        share, ct_ss = scores["infected_share"], scores["ct_ss"]
        infected = "infected share not known"
        if share is not None:
            infected = f"{100 * share:.1f} % of the lung infected"
        print(
            f"{one.name}: {infected}, CT-SS {'not known' if ct_ss is None else f'{ct_ss:g} of 40'}"
        )
    n_scans = sum(len(one.scans) for one in patients)
    more = f"; {earlier} patients of earlier runs kept" if earlier else ""
    print(f"{n_scans} scored, {failed} failed{more}: {out / 'report.html'}")

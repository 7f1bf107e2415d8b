"""The lungs of a scan, three ways behind one call: morphology, a trained network, your own maps."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infnet_jax.clinic import imaging, lung_network, lungs

if TYPE_CHECKING:
    from infnet_jax.evaluation.predictor import Predictor

MORPHOLOGY = "morphology"

Finder = Callable[[imaging.Scan], np.ndarray]


def choose(way: str, *, alone: bool = False) -> tuple[Finder, str]:
    """Returns a function from a scan to its lungs (> 0 inside, [D, H, W]), and what to call it.

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
        return (lambda scan: learned(network, scan)), name
    if not path.exists():
        raise ValueError(
            f"--lungs {way}: give morphology, the workdir of a run of "
            "configs/lung.py, or a file or folder with lung masks"
        )
    return given(path, "lungs", alone=alone), "given masks"


def given(path: Path, what: str, *, alone: bool = False) -> Finder:
    """Returns a function from a scan to the label map of its name in a file or folder.

    Args:
      path: the file or folder; what: the option that gave it, for messages.
      alone: as in `choose`.
    """
    maps = imaging.by_name(path)

    def look_up(scan: imaging.Scan) -> np.ndarray:
        found = imaging.partner(scan.name, maps, what, alone=alone)
        return imaging.read_labels(found.files[0], scan)

    return look_up


def learned(network: "Predictor", scan: imaging.Scan) -> np.ndarray:
    """Bool [D, H, W], by `lung_network.find`."""

    def run(pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return (found.probs.reshape(found.mask.shape) for found in network(iter(pictures)))

    return lung_network.find(run, list(scan.pictures()), network.thresholds["lung"])

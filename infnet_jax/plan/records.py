"""What a run is: its data, networks and stages, as plain records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

LESIONS = ("ggo", "consolidation")


class Data(NamedTuple):
    """Which slices a run may look at, learn from, and is tested on.

    Attributes:
      name: of the dataset, `builder` or `builder/config`; folder: its version folder, prepared.
      train, test: names of its splits.
      target: what masks mark: `infection` or `lung`.
      labels: label budgets in slices, each within the next; empty for all.
      folds, fold: of a cross-validated run, the fold of the training split that is its test; 0
        folds: the test split is.
      seed: of budgets and folds.
    """

    name: str
    folder: Path
    train: str
    test: str
    target: str
    labels: tuple[int, ...] = ()
    folds: int = 0
    fold: int = 0
    seed: int = 0


class Net(NamedTuple):
    """A network by name.

    Attributes:
      decoder: `infnet`, `unet` or `fcn8s`.
      trunk: an entry of `models.TRUNKS`.
      classes: channels of its maps: 1, or 3 with the background first.
      channels: of its input: those of the slice, twice as many with a prior beside it.
      dtype: in which it computes.
      options: further keyword arguments of its module, such as `width`.
    """

    decoder: str
    trunk: str
    classes: int
    channels: int
    dtype: str
    options: Mapping[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `models.make`."""
        found = self._asdict()
        return {**found.pop("options"), **found}

    def __str__(self) -> str:
        decoder = {"infnet": "Inf-Net", "unet": "U-Net", "fcn8s": "FCN8s"}.get(self.decoder)
        trunk = "" if self.trunk == "plain" else f" on {self.trunk}"
        return f"{decoder or self.decoder}{trunk}, width {self.options['width']}"


class Network(NamedTuple):
    """One network of a stage.

    Attributes:
      folder: gets its checkpoints, log and curves.
      seed: of its weights, batches and steps.
      fold: the fold of the training slices that it leaves out; None holds out `validation` slices.
      start: the checkpoints that it starts from; None for fresh or imported weights.
    """

    folder: Path
    seed: int
    fold: int | None
    start: Path | None


class Stage(NamedTuple):
    """One stage of a run.

    Attributes:
      name: of its folder below the workdir, in the log and in messages.
      runs: what runs it, a key of `training.run.STEPS`: `train`, `out_of_fold`,
        `pseudo_labels` or `evaluate`.
      learns: what its networks learn: `infection`, `lung`, `lesions` (three classes), `inpaint`
        or `rotation`.
      section: the keys that it trains by; key: their name in the config.
      folder: below the workdir.
      net: of its networks.
      coach: keyword arguments of the coach; None where there is none.
      norm: name of the input scale; channels: of the slice alone, 1 or 3.
      prior: what a single-class map is to it: `none`, `input` (fed beside the slice) or `average`
        (averaged with its answer).
      splits: it trains on; the last gives the held-out slices.
      mix: the datasets that it trains on instead, see `data.splits.parse_mix`; empty for none.
      folds: the training slices are dealt to this many folds; 0 deals none.
      networks: one a fold and repeat; of several the mean of their maps counts.
      paired: each network starts from the one of the prior that left out the same slices.
      origin: the earlier stage or the imported weights that it starts from; empty: fresh weights.
      transfer: which arrays of those it takes.
      semi: `config.semi` for the stages that learn from unlabelled slices, else None.
    """

    name: str
    runs: str
    learns: str
    section: ConfigDict
    key: str
    folder: Path
    net: Net
    coach: Mapping[str, Any] | None
    norm: str
    channels: int
    prior: str
    splits: tuple[str, ...]
    mix: str
    folds: int
    networks: tuple[Network, ...]
    paired: bool
    origin: str
    transfer: str
    semi: ConfigDict | None

    @property
    def fields(self) -> tuple[str, ...]:
        """The pictures in its batches."""
        return ("image", "mask") if self.prior == "none" else ("image", "mask", "prior")

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that its masks tell apart, as labels 1, 2, ..."""
        return LESIONS if self.learns == "lesions" else (self.learns,)

    @property
    def supervised(self) -> bool:
        """Whether it learns from masks; a pretext looks at images alone."""
        return self.runs != "evaluate" and self.learns in ("infection", "lung", "lesions")

    @property
    def averages(self) -> bool:
        """Whether the mean over several networks counts."""
        return len(self.networks) > 1


class Plan(NamedTuple):
    """A config resolved.

    Attributes:
      stages: in the order in which they run.
      final: the stage whose networks are evaluated.
      prior: the stage whose networks make priors; None where there is none. `prior_kind`:
        `crossfit`, or `truth` for true masks in place of predictions; `prior_splits`: further
        splits that get one.
      data: which slices.
      evaluate: `config.evaluate`; weights: imported ones, or empty.
      workdir: everything is written below it; seed: of the run.
    """

    stages: tuple[Stage, ...]
    final: Stage
    prior: Stage | None
    prior_kind: str
    prior_splits: tuple[str, ...]
    data: Data
    evaluate: ConfigDict
    weights: str
    workdir: Path
    seed: int

    @property
    def views(self) -> dict[str, Any]:
        """Over which views maps are averaged: arguments of `supervised.average_views`."""
        return dict(tta=self.evaluate.tta, scales=tuple(self.evaluate.scales))

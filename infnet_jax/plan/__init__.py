"""What a run is: its data, networks and stages, as plain records that `resolve` makes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

LESIONS = ("ggo", "consolidation")


class Data(NamedTuple):
    """Which slices a run may look at, learn from, and is tested on."""

    name: str  # of the dataset, `builder` or `builder/config`
    folder: Path  # its version folder, prepared
    train: str  # names of its splits
    test: str
    target: str  # what masks mark: `infection` or `lung`
    labels: tuple[int, ...] = ()  # label budgets in slices, each within the next; empty for all
    # Of a cross-validated run, the fold of the training split that is its test; with 0 folds the
    # test split is.
    folds: int = 0
    fold: int = 0
    seed: int = 0  # of budgets and folds


class Net(NamedTuple):
    """A network by name."""

    decoder: str  # `infnet`, `unet` or `fcn8s`
    trunk: str  # an entry of `models.TRUNKS`
    classes: int  # channels of its maps: 1, or 3 with the background first
    channels: int  # of its input: those of the slice, twice as many with a prior beside it
    dtype: str  # in which it computes
    options: Mapping[str, Any]  # further keyword arguments of its module, such as `width`

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
    """One network of a stage."""

    folder: Path  # gets its checkpoints, log and curves
    seed: int  # of its weights, batches and steps
    fold: int | None  # of the slices, which it leaves out; None holds out `validation` slices
    start: Path | None  # the checkpoints that it starts from; None: fresh or imported weights


class Stage(NamedTuple):
    """One stage of a run."""

    name: str  # of its folder below the workdir, in the log and in messages
    runs: str  # what runs it: `train`, `out_of_fold`, `pseudo_labels` or `evaluate`
    # What its networks learn: `infection`, `lung`, `lesions` (three classes), `inpaint` or
    # `rotation`.
    learns: str
    section: ConfigDict  # the keys that it trains by
    key: str  # their name in the config
    folder: Path  # below the workdir
    net: Net  # of its networks
    coach: Mapping[str, Any] | None  # keyword arguments of the coach; None where there is none
    norm: str  # name of the input scale
    channels: int  # of the slice alone, 1 or 3
    # What a single-class map is to it: `none`, `input` (fed beside the slice) or `average`
    # (averaged with its answer).
    prior: str
    splits: tuple[str, ...]  # it trains on; the last gives the held-out slices
    mix: str  # datasets that it trains on instead, see `data.sources.parse_mix`; empty for none
    folds: int  # the training slices are dealt to this many; 0 deals none
    networks: tuple[Network, ...]  # one a fold and repeat; of several the mean of their maps counts
    paired: bool  # each network starts from the one of the prior that left out the same slices
    origin: str  # an earlier stage or imported weights that it starts from; empty: fresh weights
    transfer: str  # which arrays of those it takes
    semi: ConfigDict | None  # `config.semi` for those that learn from unlabelled slices

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
    """A config resolved."""

    stages: tuple[Stage, ...]  # in the order in which they run
    final: Stage  # whose networks are evaluated
    prior: Stage | None  # whose networks make priors; None where there is none
    prior_kind: str  # `crossfit`, or `truth` for true masks in place of predictions
    prior_splits: tuple[str, ...]  # further splits that get a prior
    data: Data
    evaluate: ConfigDict  # `config.evaluate`
    weights: str  # imported ones, or empty
    workdir: Path  # everything is written below it
    seed: int

    @property
    def views(self) -> dict[str, Any]:
        """Over which views maps are averaged: arguments of `supervised.average_views`."""
        return dict(tta=self.evaluate.tta, scales=tuple(self.evaluate.scales))

"""A config resolved into plain records, once; nothing below compares a stage's name.

What a config asks for that cannot work is refused here, before anything is written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

SUPERVISED = ("prior", "cross_validation", "semi", "segment", "multi")
STAGES = ("pretrain", *SUPERVISED[:-1], "pretrain_multi", "multi", "evaluate")
# Stage -> the stages whose weights it may start from; the first of these that is run counts.
_STARTS = {
    "prior": ("pretrain",),
    "semi": ("pretrain",),
    "segment": ("semi", "pretrain"),
    "multi": ("pretrain_multi", "semi"),
}
LESIONS = ("ggo", "consolidation")


class Data(NamedTuple):
    """Which slices a run may look at, learn from, and is tested on.

    Attributes:
      folder: the version folder of a prepared dataset.
      train, test: names of its splits.
      target: what masks mark: `infection` or `lung`.
      labels: label budgets in slices, each within the next; empty for all.
      folds, fold: of a cross-validated run, the fold of the training split that is its test; 0
        folds: the test split is.
      seed: of budgets and folds.
    """

    folder: Path
    train: str
    test: str
    target: str
    labels: tuple[int, ...]
    folds: int
    fold: int
    seed: int


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
      section: the keys that it trains by, its own and nobody else's.
      folder: below the workdir.
      net: of its networks.
      coach: keyword arguments of the coach; None where there is none.
      norm: name of the input scale; channels: of the slice alone, 1 or 3.
      prior: what a single-class map is to it: `none`, `input` (fed beside the slice) or `average`
        (averaged with its answer).
      splits: it trains on; the last gives the held-out slices.
      folds: the training slices are dealt to this many folds; 0 deals none.
      networks: one a fold and repeat; of several the mean of their maps counts.
      origin: the earlier stage or the imported weights that it starts from; empty: fresh weights.
      transfer: which arrays of those it takes.
      semi: `config.semi` for the stages that learn from unlabelled slices, else None.
    """

    name: str
    runs: str
    learns: str
    section: ConfigDict
    folder: Path
    net: Net
    coach: Mapping[str, Any] | None
    norm: str
    channels: int
    prior: str
    splits: tuple[str, ...]
    folds: int
    networks: tuple[Network, ...]
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
      data: which slices; mix: what pre-training uses instead, see `data.mix`.
      evaluate: `config.evaluate`; weights: imported ones, or empty.
      workdir: everything is written below it; seed: of the run.
    """

    stages: tuple[Stage, ...]
    final: Stage
    prior: Stage | None
    prior_kind: str
    prior_splits: tuple[str, ...]
    data: Data
    mix: str
    evaluate: ConfigDict
    weights: str
    workdir: Path
    seed: int

    @property
    def views(self) -> dict[str, Any]:
        """Over which views of a slice maps are averaged: arguments of `supervised.average_views`."""
        return dict(tta=self.evaluate.tta, scales=tuple(self.evaluate.scales))


def resolve(config: ConfigDict, workdir: Path, dataset: Path | None = None) -> Plan:
    """The stages of a config, of a file in `configs/` or of a workdir's `config.json`.

    Args:
      config: all keys present.
      workdir: where the run is, or will be.
      dataset: the version folder of its prepared dataset; None where no slice is read.

    Raises:
      ValueError: names the key, its value and what would be right.
    """
    _check_age(config)
    for name in config.stages:
        if name not in STAGES or name not in config:
            raise ValueError(f"stages: {name!r} is none of this config's stages")
    _check(config)
    stages = {name: _stage(name, config, workdir) for name in config.stages}
    final = "multi" if "multi" in stages else "segment"
    d = config.data
    return Plan(
        stages=tuple(stages.values()),
        final=stages.get(final) or _stage(final, config, workdir),
        prior=stages.get("prior"),
        prior_kind=config.prior.kind if "prior" in config else "",
        prior_splits=tuple(config.prior.splits) if "prior" in config else (),
        data=Data(
            Path(dataset or ""),
            d.train,
            d.test,
            d.target,
            tuple(d.labels),
            d.folds,
            d.fold,
            config.seed,
        ),
        mix=d.pretrain,
        evaluate=config.evaluate,
        weights=config.weights,
        workdir=workdir,
        seed=config.seed,
    )


def _stage(name: str, config: ConfigDict, workdir: Path) -> Stage:
    """The record of one stage."""
    multi = name.endswith("multi")
    section = config["segment" if name in ("prior", "cross_validation", "semi") else name]
    ensemble = config[name] if name in SUPERVISED and name != "semi" else ConfigDict()
    prior = config.multi.prior_use if multi else "none"
    pretext = section.get("pretext", "")
    origin, starts = _origin(name, config, workdir)
    splits = section.get("splits", ())
    if name in ("prior", "cross_validation"):
        splits = (config.data.train,)
    return Stage(
        name=name,
        runs={
            "prior": "out_of_fold",
            "cross_validation": "out_of_fold",
            "semi": "pseudo_labels",
            "evaluate": "evaluate",
        }.get(name, "train"),
        learns=pretext or ("lesions" if multi else config.data.target),
        section=section,
        folder=workdir / name,
        net=_net(config, multi, "none" if pretext and prior == "average" else prior),
        coach=config.coach.to_dict() if pretext == "inpaint" else None,
        norm=config.data.norm,
        channels=config.data.channels,
        prior="none" if pretext and prior == "average" else prior,
        splits=tuple(splits),
        folds=ensemble.get("folds", 0),
        networks=_networks(name, config, ensemble, workdir / name, starts),
        origin=origin,
        transfer="matching" if origin == config.weights else section.get("transfer", ""),
        semi=_semi(name, config),
    )


def _networks(
    name: str, config: ConfigDict, ensemble: ConfigDict, folder: Path, start: Path | None
) -> tuple[Network, ...]:
    """The networks of a stage.

    With `folds` one a fold, else one of all slices; with `repeats` as many again by the next seed,
    which deals the slices anew: those of repeat r are the networks of a run with `seed + r`.
    """
    folds, repeats, seed = ensemble.get("folds", 0), ensemble.get("repeats", 1), config.seed
    if not folds and repeats == 1:
        return (Network(folder, seed, None, start),)
    found = []
    for k in range(repeats * max(folds, 1)):
        part = f"fold{k}" if folds else f"seed{k}"
        own = start
        if name == "multi" and config.multi.from_prior:
            own = folder.parent / "prior" / part / "checkpoints"
        fold = k % folds if folds else None
        found.append(Network(folder / part, seed + k // max(folds, 1), fold, own))
    return tuple(found)


def _net(config: ConfigDict, multi: bool, prior: str) -> Net:
    """The single-class or the multi-class network."""
    options = dict(config.multi.net if multi else config.model)
    decoder, trunk = options.pop("decoder"), options.pop("trunk")
    channels = config.data.channels * (2 if prior == "input" else 1)
    return Net(decoder, trunk, 3 if multi else 1, channels, config.dtype, options)


def _origin(name: str, config: ConfigDict, workdir: Path) -> tuple[str, Path | None]:
    """What a stage starts from: an earlier stage and its checkpoints, or imported weights."""
    if name == "multi" and config.multi.from_prior:
        return "prior", None
    stage = next((s for s in _STARTS.get(name, ()) if s in config.stages), "")
    if stage == "semi":
        part = "pool" if config.semi.kind == "pseudo" else "teacher"
        return stage, workdir / stage / part / "checkpoints"
    if stage:
        return stage, workdir / stage / "checkpoints"
    fits = not name.endswith("multi") or config.multi.net.trunk == "efficientnet_lite0"
    return (config.weights if fits and name != "evaluate" else ""), None


def _semi(name: str, config: ConfigDict) -> ConfigDict | None:
    """`config.semi` for the stage itself, and for one with a mean teacher."""
    teaches = "semi" in config.stages and config.semi.kind == "mean_teacher"
    return config.semi if name == "semi" or (name == "segment" and teaches) else None


def _check_age(config: ConfigDict) -> None:
    """Refuses configs of version 0.1.0, whose keys were others."""
    if "decoder" not in config.get("model", {}):
        raise ValueError(
            "model.decoder is missing: this config is of version 0.1.0, whose networks had "
            "model.kind; train the run again, or read it with that version"
        )


def _check(config: ConfigDict) -> None:
    """Whether the keys and the stages of a config fit each other.

    Raises:
      ValueError: names the key, its value and what would be right.
    """
    _check_choice("data.target", config.data.target, ("infection", "lung"))
    for name in ("prior", "cross_validation", "segment", "multi"):
        if name in config.stages:
            _check_ensemble(name, config[name])
    for name in ("prior", "cross_validation"):
        if name in config.stages and config[name].get("kind", "crossfit") == "crossfit":
            if config[name].folds < 2:
                raise ValueError(f"{name}.folds={config[name].folds}: choose 2 or more")
    if "prior" in config.stages:
        _check_choice("prior.kind", config.prior.kind, ("crossfit", "truth"))
    if "semi" in config.stages:
        _check_semi(config)
    if "multi" in config.stages:
        _check_multi(config)
    scales = tuple(config.evaluate.scales)
    if not scales or min(scales) <= 0:
        raise ValueError(
            f"evaluate.scales={scales}: choose factors of the size such as (0.75, 1.0, 1.25)"
        )
    final = "multi" if "multi" in config.stages else "segment"
    held_out = config[final].folds or config[final].validation
    if "evaluate" in config.stages and config.evaluate.choose_threshold and not held_out:
        raise ValueError(
            f"evaluate.choose_threshold=True needs {final}.validation or {final}.folds above 0"
        )


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value!r}: choose {' or '.join(choices)}")


def _check_ensemble(name: str, section: ConfigDict) -> None:
    """Whether the networks of a stage can be averaged."""
    if section.repeats < 1:
        raise ValueError(f"{name}.repeats={section.repeats}: choose 1 or more")
    held = section.get("validation", 0)  # an out-of-fold stage holds out its folds alone
    if section.folds and held:
        raise ValueError(
            f"{name}.validation={held} with {name}.folds={section.folds}: "
            "the fold is what is held out, set one of them to 0"
        )
    if section.repeats > 1 and held:
        raise ValueError(
            f"{name}.validation={held} with {name}.repeats={section.repeats}: "
            "networks that are averaged are taken as they end, set the first to 0"
        )


def _check_semi(config: ConfigDict) -> None:
    """Whether the next stage can start from what `semi` leaves."""
    semi = config.semi
    _check_choice("semi.kind", semi.kind, ("pseudo", "mean_teacher"))
    if semi.group_size < 1:
        raise ValueError(
            f"semi.group_size={semi.group_size}: choose 1 or more (Semi-Inf-Net has 5)"
        )
    if "segment" in config.stages and config.segment.folds and semi.kind == "mean_teacher":
        raise ValueError(
            f"segment.folds={config.segment.folds} with semi.kind='mean_teacher': each fold would "
            "start from a teacher that has learned from it, choose pseudo or 0 folds"
        )
    if "multi" in config.stages and semi.kind != "pseudo":
        raise ValueError(
            f"semi.kind={semi.kind!r} with stage multi, which takes no unlabelled slices: "
            "choose pseudo"
        )
    if "multi" in config.stages:
        _check_same_net(config, "semi")


def _check_multi(config: ConfigDict) -> None:
    """Whether the multi-class networks get what they are fed and start from."""
    multi, use = config.multi, config.multi.prior_use
    _check_choice("multi.prior_use", use, ("none", "input", "average"))
    crossfit = "prior" in config.stages and config.prior.kind == "crossfit"
    if use != "none" and "prior" not in config.stages:
        raise ValueError(f"multi.prior_use={use!r} needs stage prior: add it, or choose none")
    if use == "input" and config.weights and multi.net.trunk == "efficientnet_lite0":
        raise ValueError(
            f"multi.prior_use='input' with weights={config.weights!r}: those have no channel "
            "for a prior, choose average or none"
        )
    if not multi.from_prior:
        return
    if not crossfit:
        raise ValueError(
            "multi.from_prior=True: nothing to start from, choose stage prior with "
            "prior.kind='crossfit'"
        )
    for other in ("semi", "pretrain_multi"):
        if other in config.stages:
            raise ValueError(f"multi.from_prior=True with stage {other}: choose one start")
    if use == "input":
        raise ValueError(
            "multi.from_prior=True with multi.prior_use='input': a network of prior has no channel "
            "for a prior, choose average or none"
        )
    _check_same_net(config, "prior")


def _check_same_net(config: ConfigDict, origin: str) -> None:
    """Whether `multi` has the network of the stage from which it starts."""
    for key in ("decoder", "trunk", "width"):
        single, multi = config.model[key], config.multi.net[key]
        if single != multi:
            raise ValueError(
                f"model.{key}={single!r}: multi starts from what {origin} has learned, choose that "
                f"of multi.net.{key}, {multi!r}"
            )

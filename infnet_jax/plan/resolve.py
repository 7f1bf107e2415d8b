"""From a config to a plan, or to what is wrong with it; nothing above compares a stage's name."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from infnet_jax.plan import Data, Net, Network, Plan, Stage

_RUNS = {  # stage -> what runs it
    "pretrain": "train",
    "prior": "out_of_fold",
    "cross_validation": "out_of_fold",
    "semi": "pseudo_labels",
    "segment": "train",
    "pretrain_multi": "train",
    "multi": "train",
    "evaluate": "evaluate",
}
_STARTS = {  # stage -> whose weights it may start from; the first of these that is run counts
    "prior": ("pretrain",),
    "semi": ("pretrain",),
    "segment": ("semi", "pretrain"),
    "multi": ("pretrain_multi", "semi"),
}


def resolve(config: ConfigDict, workdir: Path, dataset: Path | None = None) -> Plan:
    """The stages of a config, of a file in `configs/` or of a workdir's `config.json`.

    `dataset` is the version folder of its prepared dataset, None where no slice is read.

    Raises:
      ValueError: names the key, its value and what would be right.
    """
    _check(config)
    reader, d = _Reader(config, workdir), config.data
    stages = {name: reader.stage(name) for name in config.stages}
    final = "multi" if "multi" in stages else "segment"
    data = Data(d.name, Path(dataset or ""), d.train, d.test, d.target, tuple(d.labels))
    return Plan(
        stages=tuple(stages.values()),
        final=stages.get(final) or reader.stage(final),
        prior=stages.get("prior"),
        prior_kind=config.prior.kind if "prior" in config else "",
        prior_splits=tuple(config.prior.splits) if "prior" in config else (),
        data=data._replace(folds=d.folds, fold=d.fold, seed=config.seed),
        evaluate=config.evaluate,
        weights=config.weights,
        workdir=workdir,
        seed=config.seed,
    )


class _Reader(NamedTuple):
    """Reads the stages of a config."""

    config: ConfigDict
    workdir: Path

    def stage(self, name: str) -> Stage:
        """The record of one stage."""
        config, multi = self.config, name.endswith("multi")
        key = "segment" if name in ("prior", "cross_validation", "semi") else name
        section, runs = config[key], _RUNS[name]
        pretext = section.get("pretext", "")
        prior = config.multi.prior_use if multi else "none"
        prior = "none" if pretext and prior == "average" else prior
        options = dict(config.multi.net if multi else config.model)
        channels = config.data.channels * (2 if prior == "input" else 1)
        decoder, trunk = options.pop("decoder"), options.pop("trunk")
        splits = [config.data.train] if runs == "out_of_fold" else section.get("splits", ())
        origin, start = self.origin(name)
        teaches = "semi" in config.stages and config.semi.kind == "mean_teacher"
        return Stage(
            name=name,
            runs=runs,
            learns=pretext or ("lesions" if multi else config.data.target),
            section=section,
            key=key,
            folder=self.workdir / name,
            net=Net(decoder, trunk, 3 if multi else 1, channels, config.dtype, options),
            coach=config.coach.to_dict() if pretext == "inpaint" else None,
            norm=config.data.norm,
            channels=config.data.channels,
            prior=prior,
            splits=tuple(splits),
            mix=config.data.pretrain if name == "pretrain" else "",
            folds=0 if name == "semi" else config[name].get("folds", 0),
            networks=self.networks(name, start),
            paired=name == "multi" and config.multi.from_prior,
            origin=origin,
            transfer="matching" if start is None else section.get("transfer", ""),
            semi=config.semi if name == "semi" or (name == "segment" and teaches) else None,
        )

    def networks(self, name: str, start: Path | None) -> tuple[Network, ...]:
        """The networks of a stage.

        With `folds` one a fold, else one of all slices; with `repeats` as many again by the next
        seed, which deals the slices anew: those of repeat r are those of a run with `seed + r`.
        """
        own = {} if name == "semi" else self.config[name]
        folds, repeats, seed = own.get("folds", 0), own.get("repeats", 1), self.config.seed
        folder, found = self.workdir / name, []
        if not folds and repeats == 1:
            return (Network(folder, seed, None, start),)
        for k in range(repeats * max(folds, 1)):
            part, fold = (f"fold{k}", k % folds) if folds else (f"seed{k}", None)
            if name == "multi" and self.config.multi.from_prior:
                start = self.workdir / "prior" / part / "checkpoints"
            found.append(Network(folder / part, seed + k // max(folds, 1), fold, start))
        return tuple(found)

    def origin(self, name: str) -> tuple[str, Path | None]:
        """What a stage starts from: an earlier stage and its checkpoints, or imported weights."""
        config = self.config
        if name == "multi" and config.multi.from_prior:
            return "prior", self.workdir / "prior"
        stage = next((s for s in _STARTS.get(name, ()) if s in config.stages), "")
        if stage:
            part = ""
            if stage == "semi":
                part = "pool" if config.semi.kind == "pseudo" else "teacher"
            return stage, self.workdir / stage / part / "checkpoints"
        fits = not name.endswith("multi") or config.multi.net.trunk == "efficientnet_lite0"
        return (config.weights if fits and name != "evaluate" else ""), None


def _check(config: ConfigDict) -> None:
    """Raises a ValueError unless the keys and the stages of a config fit each other."""
    if "decoder" not in config.get("model", {}):
        raise ValueError(
            "model.decoder is missing: this config is of version 0.1.0, whose networks had "
            "model.kind; train the run again, or read it with that version"
        )
    stages, pretrain = config.stages, config.data.pretrain
    for name in stages:
        if name not in _RUNS or name not in config:
            raise ValueError(f"stages: {name!r} is none of this config's stages")
    _check_choice("data.target", config.data.target, "infection", "lung")
    for name in ("prior", "cross_validation", "segment", "multi"):
        if name in stages:
            _check_ensemble(name, config[name])
    if pretrain and "pretrain" not in stages:
        raise ValueError(
            f"data.pretrain={pretrain!r}, but no stage is `pretrain`: use configs/selfsup.py, "
            "or leave it empty"
        )
    if "prior" in stages:
        _check_choice("prior.kind", config.prior.kind, "crossfit", "truth")
    if "semi" in stages:
        _check_semi(config.semi, stages, config.segment.folds)
    if "multi" in stages:
        crossfit = "prior" in stages and config.prior.kind == "crossfit"
        _check_multi(config.multi, stages, config.weights, crossfit)
        origin = "semi" if "semi" in stages else "prior"
        if origin == "semi" or config.multi.from_prior:
            _check_same_net(config.model, config.multi.net, origin)
    if min(config.evaluate.scales, default=0) <= 0:
        raise ValueError(
            f"evaluate.scales={tuple(config.evaluate.scales)}: choose factors of the size such as "
            "(0.75, 1.0, 1.25)"
        )
    final = "multi" if "multi" in stages else "segment"
    held_out = config[final].folds or config[final].validation
    if "evaluate" in stages and config.evaluate.choose_threshold and not held_out:
        raise ValueError(
            f"evaluate.choose_threshold=True needs {final}.validation or {final}.folds above 0"
        )


def _check_choice(key: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value!r}: choose {' or '.join(choices)}")


def _check_ensemble(name: str, section: ConfigDict) -> None:
    """Whether there are folds where there must be, and the networks can be averaged."""
    folds, repeats = section.folds, section.repeats
    if repeats < 1:
        raise ValueError(f"{name}.repeats={repeats}: choose 1 or more")
    if _RUNS[name] == "out_of_fold":
        if section.get("kind", "crossfit") == "crossfit" and folds < 2:
            raise ValueError(f"{name}.folds={folds}: choose 2 or more")
        return
    if folds and section.validation:
        raise ValueError(
            f"{name}.validation={section.validation} with {name}.folds={folds}: "
            "the fold is what is held out, set one of them to 0"
        )
    if repeats > 1 and section.validation:
        raise ValueError(
            f"{name}.validation={section.validation} with {name}.repeats={repeats}: "
            "networks that are averaged are taken as they end, set the first to 0"
        )


def _check_semi(semi: ConfigDict, stages: Sequence[str], folds: int) -> None:
    """Whether the next stage can start from what `semi` leaves; `folds` are those of `segment`."""
    _check_choice("semi.kind", semi.kind, "pseudo", "mean_teacher")
    if semi.group_size < 1:
        raise ValueError(
            f"semi.group_size={semi.group_size}: choose 1 or more (Semi-Inf-Net has 5)"
        )
    if "segment" in stages and folds and semi.kind == "mean_teacher":
        raise ValueError(
            f"segment.folds={folds} with semi.kind='mean_teacher': each fold would start from a "
            "teacher that has learned from it, choose pseudo or 0 folds"
        )
    if "multi" in stages and semi.kind != "pseudo":
        raise ValueError(
            f"semi.kind={semi.kind!r} with stage multi, which takes no unlabelled slices: "
            "choose pseudo"
        )


def _check_multi(multi: ConfigDict, stages: Sequence[str], weights: str, crossfit: bool) -> None:
    """Whether the multi-class networks get what they are fed and start from."""
    use = multi.prior_use
    _check_choice("multi.prior_use", use, "none", "input", "average")
    if use != "none" and "prior" not in stages:
        raise ValueError(f"multi.prior_use={use!r} needs stage prior: add it, or choose none")
    if use == "input" and weights and multi.net.trunk == "efficientnet_lite0":
        raise ValueError(
            f"multi.prior_use='input' with weights={weights!r}: those have no channel "
            "for a prior, choose average or none"
        )
    if multi.from_prior and not crossfit:
        raise ValueError(
            "multi.from_prior=True: nothing to start from, choose stage prior with "
            "prior.kind='crossfit'"
        )
    for other in ("semi", "pretrain_multi"):
        if multi.from_prior and other in stages:
            raise ValueError(f"multi.from_prior=True with stage {other}: choose one start")
    if multi.from_prior and use == "input":
        raise ValueError(
            "multi.from_prior=True with multi.prior_use='input': a network of prior has no channel "
            "for a prior, choose average or none"
        )


def _check_same_net(model: ConfigDict, net: ConfigDict, origin: str) -> None:
    """Whether `multi` has the network of the stage from which it starts."""
    for key in ("decoder", "trunk", "width"):
        if model[key] != net[key]:
            raise ValueError(
                f"model.{key}={model[key]!r}: multi starts from what {origin} has learned, choose "
                f"that of multi.net.{key}, {net[key]!r}"
            )

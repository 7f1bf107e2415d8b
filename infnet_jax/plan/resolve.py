"""From a config to a plan; nothing above compares a stage's name."""

from pathlib import Path

from ml_collections import ConfigDict

from infnet_jax.plan import checks
from infnet_jax.plan.records import Data, Net, Network, Plan, Stage

SUPERVISED = ("prior", "cross_validation", "semi", "segment", "multi")
STAGES = ("pretrain", *SUPERVISED[:-1], "pretrain_multi", "multi", "evaluate")
# Stage -> the stages whose weights it may start from; the first of these that is run counts.
_STARTS = {
    "prior": ("pretrain",),
    "semi": ("pretrain",),
    "segment": ("semi", "pretrain"),
    "multi": ("pretrain_multi", "semi"),
}


def resolve(config: ConfigDict, workdir: Path, dataset: Path | None = None) -> Plan:
    """The stages of a config, of a file in `configs/` or of a workdir's `config.json`.

    Args:
      config: all keys present.
      workdir: where the run is, or will be.
      dataset: the version folder of its prepared dataset; None where no slice is read.

    Raises:
      ValueError: names the key, its value and what would be right.
    """
    checks.check_age(config)
    for name in config.stages:
        if name not in STAGES or name not in config:
            raise ValueError(f"stages: {name!r} is none of this config's stages")
    checks.check(config)
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
            d.name,
            Path(dataset or ""),
            d.train,
            d.test,
            d.target,
            tuple(d.labels),
            d.folds,
            d.fold,
            config.seed,
        ),
        evaluate=config.evaluate,
        weights=config.weights,
        workdir=workdir,
        seed=config.seed,
    )


def _stage(name: str, config: ConfigDict, workdir: Path) -> Stage:
    """The record of one stage."""
    multi = name.endswith("multi")
    key = "segment" if name in ("prior", "cross_validation", "semi") else name
    section = config[key]
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
        key=key,
        folder=workdir / name,
        net=_net(config, multi, "none" if pretext and prior == "average" else prior),
        coach=config.coach.to_dict() if pretext == "inpaint" else None,
        norm=config.data.norm,
        channels=config.data.channels,
        prior="none" if pretext and prior == "average" else prior,
        splits=tuple(splits),
        mix=config.data.pretrain if name == "pretrain" else "",
        folds=ensemble.get("folds", 0),
        networks=_networks(name, config, ensemble, workdir / name, starts),
        paired=name == "multi" and config.multi.from_prior,
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

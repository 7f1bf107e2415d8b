"""From a config to a plan; nothing above compares a stage's name."""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from infnet_jax.plan import checks
from infnet_jax.plan.records import Data, Net, Network, Plan, Stage

STAGES = (
    *("pretrain", "prior", "cross_validation", "semi", "segment", "pretrain_multi", "multi"),
    "evaluate",
)
_RUNS = {  # what runs a stage, `train` unless said here
    "prior": "out_of_fold",
    "cross_validation": "out_of_fold",
    "semi": "pseudo_labels",
    "evaluate": "evaluate",
}
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
        section = config[key]
        pretext = section.get("pretext", "")
        prior = config.multi.prior_use if multi else "none"
        prior = "none" if pretext and prior == "average" else prior
        splits = section.get("splits", ())
        origin, start = self.origin(name)
        return Stage(
            name=name,
            runs=_RUNS.get(name, "train"),
            learns=pretext or ("lesions" if multi else config.data.target),
            section=section,
            key=key,
            folder=self.workdir / name,
            net=self.net(multi, prior),
            coach=config.coach.to_dict() if pretext == "inpaint" else None,
            norm=config.data.norm,
            channels=config.data.channels,
            prior=prior,
            splits=(config.data.train,) if _RUNS.get(name) == "out_of_fold" else tuple(splits),
            mix=config.data.pretrain if name == "pretrain" else "",
            folds=config[name].get("folds", 0) if name != "semi" else 0,
            networks=self.networks(name, start),
            paired=name == "multi" and config.multi.from_prior,
            origin=origin,
            transfer="matching" if start is None else section.get("transfer", ""),
            semi=self.semi(name),
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

    def net(self, multi: bool, prior: str) -> Net:
        """The single-class or the multi-class network."""
        options = dict(self.config.multi.net if multi else self.config.model)
        decoder, trunk = options.pop("decoder"), options.pop("trunk")
        channels = self.config.data.channels * (2 if prior == "input" else 1)
        return Net(decoder, trunk, 3 if multi else 1, channels, self.config.dtype, options)

    def origin(self, name: str) -> tuple[str, Path | None]:
        """What a stage starts from: an earlier stage and its checkpoints, or imported weights."""
        config = self.config
        if name == "multi" and config.multi.from_prior:
            return "prior", self.workdir / "prior"
        stage = next((s for s in _STARTS.get(name, ()) if s in config.stages), "")
        if stage == "semi":
            part = "pool" if config.semi.kind == "pseudo" else "teacher"
            return stage, self.workdir / stage / part / "checkpoints"
        if stage:
            return stage, self.workdir / stage / "checkpoints"
        fits = not name.endswith("multi") or config.multi.net.trunk == "efficientnet_lite0"
        return (config.weights if fits and name != "evaluate" else ""), None

    def semi(self, name: str) -> ConfigDict | None:
        """`config.semi` for the stage itself, and for one with a mean teacher."""
        config = self.config
        teaches = "semi" in config.stages and config.semi.kind == "mean_teacher"
        return config.semi if name == "semi" or (name == "segment" and teaches) else None

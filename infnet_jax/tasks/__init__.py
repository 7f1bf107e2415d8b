"""From a config to the task of one stage."""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from infnet_jax import models
from infnet_jax.models.coach import Coach
from infnet_jax.tasks import game, inpaint, mean_teacher, multi, normalise, optim, rotation, segment
from infnet_jax.tasks.state import Task

_UNETS = {"unet": "plain", "unet_lite0": "efficientnet_lite0"}  # kind -> backbone


def make_net(config: ConfigDict) -> Any:
    """The single-class network; its inpainting heads exist only where pre-training runs."""
    arguments, channels = dict(config.model), config.data.channels
    kind = arguments.pop("kind", "infnet")  # runs of before have none
    if kind not in ("infnet", *_UNETS):
        raise ValueError(f"model.kind={kind!r}: choose infnet, unet or unet_lite0")
    backbone, of_net = arguments.pop("backbone"), dict(classes=1, channels=channels)
    if kind == "infnet":
        return models.make(kind, backbone, dtype=config.dtype, **of_net, **arguments)
    shared = {name: arguments[name] for name in ("width", "inpaint_head")}
    return models.make("unet", _UNETS[kind], dtype=config.dtype, **of_net, **shared)


def make_multi_net(config: ConfigDict) -> Any:
    """The multi-class network, fed the slice and, if `prior_use` is `input`, the prior."""
    arguments = dict(config.multi.net)
    kind = arguments.pop("kind")
    if kind not in (*_UNETS, "fcn8s"):
        raise ValueError(f"multi.net.kind={kind!r}: choose unet, unet_lite0 or fcn8s")
    channels = config.data.channels * (2 if prior_use(config) == "input" else 1)
    of_net = dict(classes=3, channels=channels, dtype=config.dtype)
    if kind in _UNETS:
        return models.make("unet", _UNETS[kind], **of_net, **arguments)
    return models.make("fcn8s", "vgg16", **of_net, width=arguments["width"])


def last_trained(config: ConfigDict) -> str:
    """The stage whose network is evaluated: `multi` where it is one of the stages."""
    return "multi" if "multi" in config.stages else "segment"


def section_of(stage: str) -> str:
    """The section of the config by which a stage trains; single-class networks share theirs."""
    return "segment" if stage in ("prior", "semi") else stage


class Member(NamedTuple):
    """One network of a stage: its folder in the stage's, its seed, and the fold it leaves out."""

    folder: str
    seed: int
    fold: int | None


def members(config: ConfigDict, stage: str) -> list[Member]:
    """The networks of a stage; of several the mean counts.

    With `folds` one a fold, else one of all slices; with `repeats` as many again by the next seed,
    which deals the slices anew. So those of repeat r are the networks of a run with `seed + r`.
    """
    section = config[stage] if stage in ("prior", "segment", "multi") else {}
    folds, repeats = section.get("folds", 0), section.get("repeats", 1)  # none in runs of before
    if not folds and repeats == 1:
        return [Member("", config.seed, None)]
    numbers = range(repeats * max(folds, 1))
    if not folds:
        return [Member(f"seed{k}", config.seed + k, None) for k in numbers]
    return [Member(f"fold{k}", config.seed + k // folds, k % folds) for k in numbers]


def prior_use(config: ConfigDict) -> str:
    """What the single-class prior is to the multi-class network: `none`, or see `multi.views`.

    Raises:
      ValueError: an unknown `multi.prior_use`.
    """
    use = config.multi.get("prior_use", "input")  # runs of before have none
    if use not in ("input", "average"):
        raise ValueError(f"multi.prior_use={use!r}: choose input or average")
    return use if config.multi.with_prior else "none"


def starts_from_prior(config: ConfigDict) -> bool:
    """Whether each network of `multi` starts from the one of `prior` that left out its fold."""
    return "multi" in config.stages and config.multi.get("from_prior", False)


def target(config: ConfigDict) -> str:
    """What the single-class network finds: `mask` (infection), or `lung` in configs/lung.py."""
    return config.data.get("target", "mask")


def make_norm(config: ConfigDict, statistics: tuple[float, float]) -> normalise.Norm:
    """Input and target scale; `statistics` are those of the training split."""
    return normalise.make_norm(config.data.norm, config.data.channels, statistics)


def views_of(config: ConfigDict) -> dict[str, Any]:
    """Over which views of a slice maps are averaged: arguments of `average_views`."""
    scales = tuple(config.evaluate.get("scales", (1.0,)))  # none in runs of before
    return dict(tta=config.evaluate.tta, scales=scales)


def has_mean_teacher(config: ConfigDict) -> bool:
    """Whether `segment` learns from unlabelled slices too."""
    return "semi" in config.stages and config.semi.kind == "mean_teacher"


def make_segment(
    config: ConfigDict, section: ConfigDict, statistics: tuple[float, float], soft: bool = False
) -> Task:
    """The single-class task by a section like `config.segment`; `soft` as `segment.make` says."""
    norm = make_norm(config, statistics)
    return segment.make(net=make_net(config), soft=soft, **_supervised(section, norm))


def _supervised(section: ConfigDict, norm: normalise.Norm) -> dict[str, Any]:
    """What the supervised tasks take alike."""
    schedule = optim.make_schedule(total_steps=section.steps, **section.schedule)
    return dict(
        norm=norm,
        size=section.size,
        scales=tuple(section.scales),
        steps=section.steps,
        loss=section.loss,
        augmentation=section.augmentation,
        schedule=schedule,
        tx=optim.make_optimizer(schedule, **section.optim),
        ema_decay=section.ema_decay,
    )


def make(
    stage: str, config: ConfigDict, statistics: tuple[float, float], steps_per_epoch: int
) -> Task:
    """The task of stage `pretrain`, `prior`, `segment`, `pretrain_multi` or `multi`.

    Args:
      stage: one of them.
      config: the whole config; each section below that of the stage is the keyword arguments of
        one function, so that a key nobody reads is an error.
      statistics: mean and sd of the training images on the 0..1 scale.
      steps_per_epoch: batches in one pass over the stage's data.
    """
    norm, section = make_norm(config, statistics), config[section_of(stage)]
    if stage == "segment" and has_mean_teacher(config):
        return mean_teacher.make(
            net=make_net(config), **config.semi.consistency, **_supervised(section, norm)
        )
    if section_of(stage) == "segment":
        return make_segment(config, section, statistics)
    if stage == "multi":
        net = make_multi_net(config)
        return multi.make(net=net, prior_use=prior_use(config), **_supervised(section, norm))
    net, head = make_net(config), config.model.inpaint_head
    if stage == "pretrain_multi":
        net, head = make_multi_net(config), config.multi.net.inpaint_head
    if section.pretext not in ("inpaint", "rotation"):
        raise ValueError(f"{stage}.pretext={section.pretext!r}: choose inpaint or rotation")
    rounds, n_random = game.make_rounds(steps_per_epoch=steps_per_epoch, **section.rounds)
    totals = {who: sum(n for phase, n in rounds if phase == who) for who in ("net", "coach")}
    net_schedule = optim.make_schedule(total_steps=totals["net"], **section.net_schedule)
    with_prior = stage == "pretrain_multi" and prior_use(config) == "input"
    if section.pretext == "rotation":  # trained for the network's share of the rounds
        return rotation.make(
            net=net,
            norm=norm,
            size=section.size,
            steps=totals["net"],
            schedule=net_schedule,
            tx=optim.make_optimizer(net_schedule, **section.net_optim),
            augmentation=section.augmentation,
            with_prior=with_prior,
        )
    coach_schedule = optim.make_schedule(total_steps=totals["coach"], **section.coach_schedule)
    activation = "tanh" if head == "tanh_parallel" else "linear"
    return inpaint.make(
        net=net,
        coach=Coach(dtype=config.dtype, **config.coach),
        norm=norm,
        size=section.size,
        rounds=rounds,
        n_random=n_random,
        random_share=section.random_share,
        sample_use=section.sample_use,
        masks=section.masks,
        loss=dict(section.loss, activation=activation),
        augmentation=section.augmentation,
        net_tx=optim.make_optimizer(net_schedule, **section.net_optim),
        coach_tx=optim.make_optimizer(coach_schedule, **section.coach_optim),
        kld_weight=section.kld_weight,
        coach_grad=section.coach_grad,
        with_prior=with_prior,
    )

"""What is refused before any training, because it would only fail after it."""

from ml_collections import ConfigDict

from infnet_jax import tasks
from infnet_jax.training import prior as crossfit, pseudo_labels as semi


def check(config: ConfigDict) -> None:
    """Whether the stages of a config fit each other.

    Raises:
      ValueError: names the key, its value and what would be right.
    """
    for stage in ("prior", "segment", "multi"):
        if stage in config.stages:
            _check_ensemble(config, stage)
    if "prior" in config.stages:
        if config.prior.kind not in crossfit.KINDS:
            choices = " or ".join(crossfit.KINDS)
            raise ValueError(f"prior.kind={config.prior.kind!r}: choose {choices}")
        if config.prior.folds < 2 and config.prior.kind == "crossfit":
            raise ValueError(f"prior.folds={config.prior.folds}: choose 2 or more")
    if "semi" in config.stages:
        _check_semi(config)
    scales = tasks.views_of(config)["scales"]
    if not scales or min(scales) <= 0:
        raise ValueError(
            f"evaluate.scales={scales}: choose factors of the size such as (0.75, 1.0, 1.25)"
        )
    if "multi" in config.stages and tasks.prior_use(config) == "input":
        if config.weights and config.multi.net.kind == "unet_lite0":
            raise ValueError(
                f"multi.prior_use='input' with weights={config.weights!r}: those have no channel "
                "for a prior, choose average, or multi.with_prior=False"
            )
    if tasks.starts_from_prior(config):
        _check_from_prior(config)
    stage = tasks.last_trained(config)
    held_out = config[stage].folds or config[stage].validation
    if "evaluate" in config.stages and config.evaluate.choose_threshold and not held_out:
        raise ValueError(
            f"evaluate.choose_threshold=True needs {stage}.validation or {stage}.folds above 0"
        )


def _check_ensemble(config: ConfigDict, stage: str) -> None:
    """Whether the networks of a stage can be averaged."""
    section = config[stage]
    if section.repeats < 1:
        raise ValueError(f"{stage}.repeats={section.repeats}: choose 1 or more")
    if stage == "prior":  # holds out its folds alone
        return
    if section.folds and section.validation:
        raise ValueError(
            f"{stage}.validation={section.validation} with {stage}.folds={section.folds}: "
            "the fold is what is held out, set one of them to 0"
        )
    if section.repeats > 1 and section.validation:
        raise ValueError(
            f"{stage}.validation={section.validation} with {stage}.repeats={section.repeats}: "
            "networks that are averaged are taken as they end, set the first to 0"
        )


def _check_semi(config: ConfigDict) -> None:
    """Whether the next stage can start from what `semi` leaves."""
    kind = config.semi.kind
    if kind not in semi.KINDS:
        raise ValueError(f"semi.kind={kind!r}: choose {' or '.join(semi.KINDS)}")
    if config.semi.group_size < 1:
        raise ValueError(
            f"semi.group_size={config.semi.group_size}: choose 1 or more (Semi-Inf-Net has 5)"
        )
    if "segment" in config.stages and config.segment.folds and tasks.has_mean_teacher(config):
        raise ValueError(
            f"segment.folds={config.segment.folds} with semi.kind='mean_teacher': each fold would "
            "start from a teacher that has learned from it, choose pseudo or 0 folds"
        )
    if "multi" not in config.stages:
        return
    if kind != "pseudo":
        raise ValueError(
            f"semi.kind={kind!r} with stage multi, which takes no unlabelled slices: choose pseudo"
        )
    _check_one_kind(config, "semi")


def _check_from_prior(config: ConfigDict) -> None:
    """Whether the networks of `multi` can start from those of `prior`."""
    if "prior" not in config.stages or config.prior.kind != "crossfit":
        raise ValueError(
            "multi.from_prior=True: nothing to start from, choose stage prior with "
            "prior.kind='crossfit'"
        )
    for other in ("semi", "pretrain_multi"):
        if other in config.stages:
            raise ValueError(f"multi.from_prior=True with stage {other}: choose one start")
    if tasks.prior_use(config) == "input":
        raise ValueError(
            "multi.from_prior=True with multi.prior_use='input': a network of prior has no channel "
            "for a prior, choose average, or multi.with_prior=False"
        )
    _check_one_kind(config, "prior")


def _check_one_kind(config: ConfigDict, origin: str) -> None:
    """Whether `multi` has the network of the stage from which it starts."""
    single, multi = (config.model.kind, config.model.width), config.multi.net
    if single != (multi.kind, multi.width):
        raise ValueError(
            f"model.kind={single[0]!r} and model.width={single[1]}: multi starts from what "
            f"{origin} has learned, choose those of multi.net, {multi.kind!r} and {multi.width}"
        )

"""What a config may not ask for; refused before anything is written."""

from collections.abc import Sequence

from ml_collections import ConfigDict


def check_age(config: ConfigDict) -> None:
    """Refuses configs of version 0.1.0, whose keys were others."""
    if "decoder" not in config.get("model", {}):
        raise ValueError(
            "model.decoder is missing: this config is of version 0.1.0, whose networks had "
            "model.kind; train the run again, or read it with that version"
        )


def check(config: ConfigDict) -> None:
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
    if config.data.pretrain and "pretrain" not in config.stages:
        raise ValueError(
            f"data.pretrain={config.data.pretrain!r}, but no stage is `pretrain`: use "
            "configs/selfsup.py, or leave it empty"
        )
    if "prior" in config.stages:
        _check_choice("prior.kind", config.prior.kind, ("crossfit", "truth"))
    crossfit = "prior" in config.stages and config.prior.kind == "crossfit"
    if "semi" in config.stages:
        _check_semi(config.semi, config.stages, config.segment.folds)
    if "multi" in config.stages:
        _check_multi(config.multi, config.stages, config.weights, crossfit)
        origin = "semi" if "semi" in config.stages else "prior"
        if origin == "semi" or config.multi.from_prior:
            _check_same_net(config.model, config.multi.net, origin)
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


def _check_semi(semi: ConfigDict, stages: Sequence[str], folds: int) -> None:
    """Whether the next stage can start from what `semi` leaves; `folds` are those of `segment`."""
    _check_choice("semi.kind", semi.kind, ("pseudo", "mean_teacher"))
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
    _check_choice("multi.prior_use", use, ("none", "input", "average"))
    if use != "none" and "prior" not in stages:
        raise ValueError(f"multi.prior_use={use!r} needs stage prior: add it, or choose none")
    if use == "input" and weights and multi.net.trunk == "efficientnet_lite0":
        raise ValueError(
            f"multi.prior_use='input' with weights={weights!r}: those have no channel "
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
        if other in stages:
            raise ValueError(f"multi.from_prior=True with stage {other}: choose one start")
    if use == "input":
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

"""From a config to the task of one stage."""

from ml_collections import ConfigDict

from infnet_jax import normalise, optim
from infnet_jax.models.coach import Coach
from infnet_jax.models.infnet import InfNet
from infnet_jax.state import Task
from infnet_jax.tasks import inpaint, segment


def make_net(config: ConfigDict) -> InfNet:
    """The segmentation network; its inpainting heads exist only where pre-training runs."""
    return InfNet(image_channels=config.data.channels, dtype=config.dtype, **config.model)


def make_norm(config: ConfigDict, statistics: tuple[float, float]) -> normalise.Norm:
    """Input and target scale; `statistics` are those of the training split."""
    return normalise.make_norm(config.data.norm, config.data.channels, statistics)


def make(
    stage: str, config: ConfigDict, statistics: tuple[float, float], steps_per_epoch: int
) -> Task:
    """The task of stage `pretrain` or `segment`.

    Args:
      stage: one of the two.
      config: the whole config; each section below `config.<stage>` is the keyword arguments of
        one function, so that a key nobody reads is an error.
      statistics: mean and sd of the training images on the 0..1 scale.
      steps_per_epoch: batches in one pass over the stage's data.
    """
    net, norm = make_net(config), make_norm(config, statistics)
    section = config[stage]
    if stage == "segment":
        schedule = optim.make_schedule(total_steps=section.steps, **section.schedule)
        return segment.make(
            net=net, norm=norm, size=section.size, scales=tuple(section.scales),
            steps=section.steps, loss=section.loss, augmentation=section.augmentation,
            tx=optim.make_optimizer(schedule, **section.optim), schedule=schedule,
            ema_decay=section.ema_decay,
        )
    rounds, n_random = inpaint.make_rounds(steps_per_epoch=steps_per_epoch, **section.rounds)
    totals = {who: sum(n for phase, n in rounds if phase == who) for who in ("net", "coach")}
    net_schedule = optim.make_schedule(total_steps=totals["net"], **section.net_schedule)
    coach_schedule = optim.make_schedule(total_steps=totals["coach"], **section.coach_schedule)
    activation = "tanh" if config.model.inpaint_head == "tanh_parallel" else "linear"
    return inpaint.make(
        net=net, coach=Coach(dtype=config.dtype, **config.coach), norm=norm, size=section.size,
        rounds=rounds, n_random=n_random, random_share=section.random_share,
        sample_use=section.sample_use,
        masks=section.masks, loss=dict(section.loss, activation=activation),
        augmentation=section.augmentation,
        net_tx=optim.make_optimizer(net_schedule, **section.net_optim),
        coach_tx=optim.make_optimizer(coach_schedule, **section.coach_optim),
        kld_weight=section.kld_weight, coach_grad=section.coach_grad,
    )

"""From a stage of the plan to its task: pure functions of state, batch and key."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from infnet_jax import models
from infnet_jax.plan import Stage
from infnet_jax.tasks import (
    inpaint,
    losses,
    losses_multi,
    mean_teacher,
    normalise,
    optim,
    rotation,
    supervised,
)
from infnet_jax.tasks.normalise import Norm
from infnet_jax.tasks.state import Task
from infnet_jax.tasks.supervised import Target

PRETEXTS = {"inpaint": inpaint.from_stage, "rotation": rotation.from_stage}


def make(stage: Stage, norm: Norm, steps_per_epoch: int, soft: bool = False) -> Task:
    """The task of a stage that trains.

    Args:
      stage: each section of its keys is the keyword arguments of one function, so that a key
        nobody reads is an error.
      norm: input scale.
      steps_per_epoch: batches in one pass over the stage's data.
      soft: the truth is the batch's `prior`, a soft label, in place of its `mask`.
    """
    if stage.learns in PRETEXTS:
        return PRETEXTS[stage.learns](stage, norm, steps_per_epoch)
    section = stage.section
    schedule = optim.make_schedule(total_steps=section.steps, **section.schedule)
    shared: dict[str, Any] = dict(
        net=models.make(**stage.net.arguments),
        target=make_target(stage, soft),
        norm=norm,
        size=section.size,
        scales=tuple(section.scales),
        steps=section.steps,
        augmentation=section.augmentation,
        schedule=schedule,
        tx=optim.make_optimizer(schedule, **section.optim),
        ema_decay=section.ema_decay,
    )
    if stage.semi is not None and stage.runs == "train":
        return mean_teacher.make(**stage.semi.consistency, **shared)
    return supervised.make(**shared)


def make_norm(stage: Stage, statistics: tuple[float, float]) -> Norm:
    """Input and target scale; `statistics` are mean and sd of the training split, 0..1."""
    return normalise.make_norm(stage.norm, stage.channels, statistics)


def make_target(stage: Stage, soft: bool = False) -> Target:
    """What a supervised stage learns; `soft` as in `make`."""
    loss = stage.section.loss
    if stage.learns == "lesions":
        return Target(
            stage.classes,
            stage.prior,
            truth=lambda batch: batch["mask"],
            loss=losses_multi.make_lesion_loss(**loss),
            probs=lambda outputs: losses_multi.class_probs(outputs["logits"], loss.head),
        )

    return infection_target(stage.classes, loss, soft)


def infection_target(
    classes: tuple[str, ...], loss: Mapping[str, Any], soft: bool = False
) -> Target:
    """One class: any label of the mask, or a soft label, on all maps of a network.

    Args:
      classes: its name; loss: keyword arguments of `losses.make_infection_loss`; soft: as in
        `make`.
    """

    def truth(batch: supervised.Batch) -> jax.Array:
        if soft:
            return batch["prior"].astype(jnp.float32) / 255.0
        return (batch["mask"] > 0).astype(jnp.float32)

    return Target(
        classes,
        "none",
        truth=truth,
        loss=losses.make_infection_loss(**loss),
        probs=lambda outputs: jax.nn.sigmoid(models.final_map(outputs)),
    )

"""From a stage of a plan to its task: pure steps, and how they are scored."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from infnet_jax import models
from infnet_jax.models import final_map
from infnet_jax.plan import Stage
from infnet_jax.tasks import inpaint, losses, normalise, optim, rotation
from infnet_jax.tasks.mean_teacher import MeanTeacher
from infnet_jax.tasks.state import Batch, Task
from infnet_jax.tasks.supervised import Supervised, Target

PRETEXTS = {"inpaint": inpaint, "rotation": rotation}


def make_norm(stage: Stage, statistics: tuple[float, float]) -> normalise.Norm:
    """Input and target scale; `statistics` are mean and sd of the training images in 0..1."""
    return normalise.make_norm(stage.norm, stage.channels, statistics)


def make_target(stage: Stage, soft: bool = False) -> Target:
    """What the networks of a supervised stage learn to find.

    With `soft` the truth of a single class is the batch's `prior`, an 8-bit probability, in place
    of its `mask`, where any class but 0 is marked.
    """
    options, names = dict(stage.section.loss), stage.classes
    if stage.learns == "lesions":
        head = options.get("head", "softmax")
        loss = losses.make_lesion_loss(**options)
        probs = lambda outputs: losses.class_probs(outputs["logits"], head)  # noqa: E731
        return Target(names, 1 + len(names), stage.prior, lambda batch: batch["mask"], loss, probs)
    loss = losses.make_infection_loss(**options)
    probs = lambda outputs: jax.nn.sigmoid(final_map(outputs))  # noqa: E731
    return Target(names, 1, stage.prior, partial(_marked, soft=soft), loss, probs)


def _marked(batch: Batch, soft: bool) -> jax.Array:
    """The probability that a pixel is marked, float32 [B, S, S, 1] in 0..1."""
    if soft:
        return batch["prior"].astype(jnp.float32) / 255.0
    return (batch["mask"] > 0).astype(jnp.float32)


def make(stage: Stage, norm: normalise.Norm, steps_per_epoch: int, soft: bool = False) -> Task:
    """The task of a stage.

    Below `stage.section` each section is the keyword arguments of one function, so that a key
    that nobody reads is an error.

    Args:
      norm: of `make_norm`.
      steps_per_epoch: batches in one pass over the stage's data.
      soft: as `make_target` takes it.

    Raises:
      ValueError: an unknown pretext or option, or a key that a pretext does not read.
    """
    section, net = stage.section, models.make(**stage.net.arguments)
    if "pretext" in section:
        return _make_pretext(stage, net, norm, steps_per_epoch)
    schedule = optim.make_schedule(total_steps=section.steps, **section.schedule)
    tx = optim.make_optimizer(schedule, **section.optim)
    own = {key: section[key] for key in ("size", "scales", "steps", "augmentation", "ema_decay")}
    settings = dict(own, target=make_target(stage, soft), net=net, norm=norm, tx=tx)
    if stage.semi is not None and stage.runs == "train":
        return MeanTeacher(**settings, schedule=schedule, **stage.semi.consistency).task()
    return Supervised(**settings, schedule=schedule).task()


def _make_pretext(stage: Stage, net: Any, norm: normalise.Norm, steps_per_epoch: int) -> Task:
    """The task of a stage that pre-trains."""
    if stage.learns not in PRETEXTS:
        raise ValueError(f"{stage.name}.pretext={stage.learns!r}: choose {' or '.join(PRETEXTS)}")
    pretext = PRETEXTS[stage.learns]
    if unread := sorted(set(stage.section) - pretext.KEYS):
        raise ValueError(f"{stage.name}.{unread[0]}: {stage.learns} does not read this key")
    if missing := sorted(pretext.KEYS - set(stage.section)):
        raise ValueError(f"{stage.name}.{missing[0]} is missing: {stage.learns} reads this key")
    return pretext.from_stage(stage, net, norm, steps_per_epoch)

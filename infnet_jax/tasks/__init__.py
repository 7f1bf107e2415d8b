"""From a stage of a plan to its task: pure steps, and how they are scored."""

from functools import partial

import jax
import jax.numpy as jnp

from infnet_jax import models
from infnet_jax.plan import Stage
from infnet_jax.tasks import inpaint, losses, rotation, state as state_lib
from infnet_jax.tasks.augment import Norm
from infnet_jax.tasks.mean_teacher import MeanTeacher
from infnet_jax.tasks.state import Batch, Task
from infnet_jax.tasks.supervised import Supervised, Target

PRETEXTS = {"inpaint": inpaint, "rotation": rotation}
_MEANS = (85.5517787014 / 255, 92.6691667083 / 255, 86.8147645556 / 255)
_SDS = (32.8860206505 / 255, 31.7342205253 / 255, 31.5361127226 / 255)
RGB = {
    "imagenet": Norm((0.485, 0.456, 0.406), *[(0.229, 0.224, 0.225)] * 2),
    "aerial_bgr": Norm(_MEANS, _SDS, (1 / 255,) * 3),
}


def make_norm(stage: Stage, statistics: tuple[float, float]) -> Norm:
    """The normalisation of 1 channel, or of 3 when the grey slice is repeated.

    `stage.norm` is `dataset` (`statistics`, mean and sd of the training images in 0..1), `tf`
    (-1..1, as the EfficientNet-lite0 weights take it) or, for 3 channels, `imagenet` (RGB
    constants of the torchvision weights) or `aerial_bgr` (the aerial photo constants that the
    public pre-training inherited; input only mean-shifted, on the 0..255 scale); else ValueError.
    """
    kind, channels = stage.norm, stage.channels
    if kind in ("dataset", "tf"):
        mean, sd = statistics if kind == "dataset" else (127 / 255, 128 / 255)
        return Norm((mean,) * channels, (sd,) * channels, (sd,) * channels)
    if kind not in RGB:
        raise ValueError(f"data.norm={kind!r}: choose dataset, imagenet, aerial_bgr or tf")
    if channels != 3:
        raise ValueError(f"data.norm={kind!r} needs data.channels=3, not {channels}")
    return RGB[kind]


def make_target(stage: Stage, soft: bool = False) -> Target:
    """What the networks of a supervised stage learn to find.

    The truth of a single class is every marked pixel, or with `soft` its `prior`, in 8 bits.
    """
    options, names = dict(stage.section.loss), stage.classes
    if stage.learns == "lesions":
        head = options.get("head", "softmax")
        loss = losses.make_lesion_loss(**options)
        probs = lambda outputs: losses.class_probs(outputs["logits"], head)  # noqa: E731
        return Target(names, 1 + len(names), stage.prior, lambda batch: batch["mask"], loss, probs)
    loss = losses.make_infection_loss(**options)
    probs = lambda outputs: jax.nn.sigmoid(models.final_map(outputs))  # noqa: E731
    return Target(names, 1, stage.prior, partial(_marked, soft=soft), loss, probs)


def _marked(batch: Batch, soft: bool) -> jax.Array:
    """The probability that a pixel is marked, float32 [B, S, S, 1] in 0..1."""
    if soft:
        return batch["prior"].astype(jnp.float32) / 255.0
    return (batch["mask"] > 0).astype(jnp.float32)


def make(stage: Stage, norm: Norm, steps_per_epoch: int, soft: bool = False) -> Task:
    """The task of a stage; `steps_per_epoch` are the batches in one pass over its data.

    Below `stage.section` each section is the keyword arguments of one function. ValueError for an
    unknown pretext or option, or a key that nobody reads; `soft` is that of `make_target`.
    """
    section, net = stage.section, models.make(**stage.net.arguments)
    if "pretext" in section:
        _check_pretext(stage)
        return PRETEXTS[stage.learns].from_stage(stage, net, norm, steps_per_epoch)
    schedule = state_lib.make_schedule(total_steps=section.steps, **section.schedule)
    tx = state_lib.make_optimizer(schedule, **section.optim)
    own = {key: section[key] for key in ("size", "scales", "steps", "augmentation", "ema_decay")}
    settings = dict(own, target=make_target(stage, soft), net=net, norm=norm, tx=tx)
    if stage.semi is not None and stage.runs == "train":
        return MeanTeacher(**settings, schedule=schedule, **stage.semi.consistency).task()
    return Supervised(**settings, schedule=schedule).task()


def _check_pretext(stage: Stage) -> None:
    if stage.learns not in PRETEXTS:
        raise ValueError(f"{stage.name}.pretext={stage.learns!r}: choose {' or '.join(PRETEXTS)}")
    given, read = set(stage.section), PRETEXTS[stage.learns].KEYS
    if unread := sorted(given - read):
        raise ValueError(f"{stage.name}.{unread[0]}: {stage.learns} does not read this key")
    if missing := sorted(read - given):
        raise ValueError(f"{stage.name}.{missing[0]} is missing: {stage.learns} reads this key")

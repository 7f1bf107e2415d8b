"""`infnet-jax bench`: speed of the bare training steps, without input pipeline and checkpoints."""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet_jax import models
from infnet_jax.models.coach import Coach
from infnet_jax.tasks import RGB, inpaint, losses, state as state_lib, supervised
from infnet_jax.tasks.state import Task, TrainState
from infnet_jax.training import loop

_LABELS = {"coach": "pretrain coach", "net": "pretrain net"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    text = "default: %(default)s"
    parser.add_argument("--backbone", default="resnet50", help=text)
    for name, default in (("batch", 4), ("size", 352), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)


def run(options: argparse.Namespace) -> int:
    """Prints a line for each training step as it is measured; returns exit code 0."""
    backbone, batch, size = options.backbone, options.batch, options.size
    device = jax.devices()[0].device_kind
    print(f"{backbone}, batch {batch}, {size} x {size}, float32, {device}, jax {jax.__version__}")
    for name, rate, seconds in measure(backbone, batch, size, options.steps):
        images = f"{batch * rate:9.2f} images/s   compiled in {seconds:.1f} s"
        print(f"{name:<15}{rate:8.3f} steps/s {images}", flush=True)
    return 0


def measure(backbone: str, batch: int, size: int, steps: int) -> Iterator[tuple[str, float, float]]:
    """Yields (name, steps per second, seconds to compile) of the three training steps in turn.

    `size` is the side of the square images in pixels; of each kind `steps` count, after one that
    does not. ValueError: unknown backbone, a size that does not fit, less than 1 step or example.
    """
    if min(batch, steps) < 1:
        raise ValueError(f"batch and steps must be at least 1, got {batch} and {steps}")
    for task in make_tasks(backbone, size):
        for phase in task.steps:
            step, state, seconds = compile_step(task, phase, batch, size)
            state = step(state)
            began = time.perf_counter()
            for _ in range(steps):
                state = step(state)
            rate = steps / (time.perf_counter() - began)
            yield _LABELS.get(phase, "segment"), rate, seconds


def compile_step(
    task: Task, phase: str, batch: int, size: int
) -> tuple[Callable[[TrainState], TrainState], TrainState, float]:
    """Returns a step on a batch of noise, which uses up its state, a state, and compile seconds."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (batch, size, size, 1), np.uint8)
    mask = np.zeros_like(image)
    mask[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    example = jax.device_put({"image": image, "mask": mask})
    key, state = jax.random.key(0), task.start(loop.init_variables(task, seed=0))
    began = time.perf_counter()
    program = jax.jit(task.steps[phase], donate_argnums=0).lower(state, example, key).compile()
    compile_seconds = time.perf_counter() - began

    def step(state: TrainState) -> TrainState:
        return jax.block_until_ready(program(state, example, key))[0]

    return step, state, compile_seconds


def make_tasks(backbone: str, size: int) -> tuple[Task, Task]:
    """Returns the segmentation and the inpainting task, as published, without augmentation."""
    still = dict(flip_h=0.0, flip_v=0.0, quarter_turns=False)
    common: dict[str, Any] = dict(norm=RGB["imagenet"], size=size, augmentation=still)
    schedule = state_lib.make_schedule(lr=1e-4, total_steps=1, schedule="constant")
    adam = state_lib.make_optimizer(schedule, name="adam", clip_value=0.5)
    sgd = state_lib.make_optimizer(schedule, name="sgd", weight_decay=5e-4)
    fields: dict[str, Any] = dict(classes=1, channels=3, dtype="float32", width=64)
    make = partial(models.make, "infnet", backbone, **fields)
    target = supervised.Target(
        classes=("infection",),
        channels=1,
        prior="none",
        truth=lambda batch: (batch["mask"] > 0).astype(jnp.float32),
        loss=losses.make_infection_loss(),
        probs=lambda outputs: jax.nn.sigmoid(models.final_map(outputs)),
    )
    once = dict(scales=(1.0,), steps=1, tx=adam, schedule=schedule, ema_decay=0.0)
    first = supervised.Supervised(make(), target, **once, **common)
    net = make(inpaint_head="tanh_parallel")
    players: dict[str, Any] = dict(net=net, coach=Coach(), net_tx=sgd, coach_tx=adam, loss={})
    game: dict[str, Any] = dict(rounds=[("coach", 1), ("net", 1)], n_random=0, random_share=0.0)
    game |= dict(masks=inpaint.Masks(), sample_use=True, kld_weight=1e-6, coach_grad="through_net")
    return first.task(), inpaint.Inpainting(**players, **game, **common).task()

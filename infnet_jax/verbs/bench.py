"""Speed of the bare training steps: no input pipeline, no logs, no checkpoints."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infnet_jax.models import final_map
from infnet_jax.models.coach import Coach
from infnet_jax.models.infnet import InfNet
from infnet_jax.tasks import game, inpaint, losses, normalise, optim, supervised
from infnet_jax.tasks.state import Task, TrainState
from infnet_jax.training import loop

_CHANNELS = 3  # as published: the grey slice repeated
_LABELS = {"coach": "pretrain coach", "net": "pretrain net"}


class Row(NamedTuple):
    """One kind of training step.

    Attributes:
      name: `segment`, `pretrain coach` or `pretrain net`.
      rate: steps per second, over `steps` steps after one that does not count.
      compile_seconds: tracing and compilation; short when a compilation cache serves it.
      updates: steps that the state has had, the uncounted one included.
    """

    name: str
    rate: float
    compile_seconds: float
    updates: int


class Step:
    """A compiled training step and the `state` it carries on, on one batch of noise."""

    def __init__(self, task: Task, phase: str, batch: int, size: int) -> None:
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (batch, size, size, 1), np.uint8)
        mask = np.zeros_like(image)
        mask[:, size // 4 : size // 2, size // 4 : size // 2] = 1
        self._batch = jax.device_put({"image": image, "mask": mask})
        self._key = jax.random.key(0)
        self.state: TrainState = task.start(loop.init_variables(task, seed=0))
        began = time.perf_counter()
        step = jax.jit(task.steps[phase], donate_argnums=0)
        self._step = step.lower(self.state, self._batch, self._key).compile()
        self.compile_seconds = time.perf_counter() - began

    def __call__(self) -> float:
        """Makes one update; returns its seconds."""
        began = time.perf_counter()
        self.state, metrics = self._step(self.state, self._batch, self._key)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - began


def make_tasks(backbone: str, size: int) -> tuple[Task, Task]:
    """The segmentation and the inpainting task, sized as published, without augmentation."""
    common: dict[str, Any] = dict(
        norm=normalise.make_norm("imagenet", _CHANNELS, (0.0, 1.0)),
        size=size,
        augmentation=dict(flip_h=0.0, flip_v=0.0, quarter_turns=False),
    )
    schedule = optim.make_schedule(lr=1e-4, total_steps=1, schedule="constant")
    adam = optim.make_optimizer(schedule, name="adam", clip_value=0.5)
    sgd = optim.make_optimizer(schedule, name="sgd", weight_decay=5e-4)
    target = supervised.Target(
        classes=("infection",),
        channels=1,
        prior="none",
        truth=lambda batch: (batch["mask"] > 0).astype(jnp.float32),
        loss=losses.make_infection_loss(),
        probs=lambda outputs: jax.nn.sigmoid(final_map(outputs)),
    )
    first = supervised.make(
        InfNet(backbone=backbone),
        target,
        scales=(1.0,),
        steps=1,
        tx=adam,
        schedule=schedule,
        ema_decay=0.0,
        **common,
    )
    second = inpaint.Inpainting(
        net=InfNet(backbone=backbone, inpaint_head="tanh_parallel", image_channels=_CHANNELS),
        coach=Coach(),
        rounds=[("coach", 1), ("net", 1)],
        n_random=0,
        random_share=0.0,
        sample_use=True,
        masks=game.make_masks(),
        loss={},
        net_tx=sgd,
        coach_tx=adam,
        kld_weight=1e-6,
        coach_grad="through_net",
        **common,
    ).task()
    return first, second


def run(backbone: str, batch: int, size: int, steps: int) -> Iterator[Row]:
    """Measures the three training steps in turn, each in memory alone.

    Args:
      backbone: one of `infnet.BACKBONES`.
      batch: examples in a batch.
      size: side of the square images, pixels; a multiple of the trunk's stride.
      steps: counted steps of each kind.

    Raises:
      ValueError: unknown backbone, a size that does not fit, fewer than one step or example.
    """
    if min(batch, steps) < 1:
        raise ValueError(f"batch and steps must be at least 1, got {batch} and {steps}")
    for task in make_tasks(backbone, size):
        for phase in task.steps:
            step = Step(task, phase, batch, size)
            step()
            rate = steps / sum(step() for _ in range(steps))
            name = _LABELS.get(phase, "segment")
            yield Row(name, rate, step.compile_seconds, int(step.state.step))


def report(backbone: str, batch: int, size: int, steps: int) -> int:
    """Prints the rows of `run` as they come; returns exit code 0."""
    device = jax.devices()[0].device_kind
    print(f"{backbone}, batch {batch}, {size} x {size}, float32, {device}, jax {jax.__version__}")
    for row in run(backbone, batch, size, steps):
        print(
            f"{row.name:<15}{row.rate:8.3f} steps/s {batch * row.rate:9.2f} images/s"
            f"   compiled in {row.compile_seconds:.1f} s",
            flush=True,
        )
    return 0

"""Pre-training by rotation, the paper's other pretext: which quarter turn was a slice given?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from infnet_jax.plan import Stage
from infnet_jax.tasks import augment, state as state_lib
from infnet_jax.tasks.state import Batch, Metrics, Task, TrainState, Tree, Update

TURNS = 4
HEAD = nn.Dense(TURNS)
KEYS = frozenset(  # what a section holds, for the task and for the training loop
    ("pretext", "splits", "validation", "size", "batch_size", "eval_every", "steps")
    + ("augmentation", "net_optim", "net_schedule")
)


def turn(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Each square example [B, S, S, C] turned like `np.rot90` by its number, int [B] in 0..3."""
    every = jnp.stack([jnp.rot90(x, k, axes=(1, 2)) for k in range(TURNS)])
    return every[turns, jnp.arange(len(x))]


@dataclass(frozen=True)
class Rotation:
    """The four-class task (Gidaris et al. 2018): a linear head on the trunk's deepest features.

    Only the `trunk` of `net` is trained and can be transferred. The upside-down mirror images and
    quarter turns of `augmentation` are left out: after them the right answer cannot be seen.
    """

    net: Any
    norm: augment.Norm
    size: int
    steps: int
    augmentation: Mapping[str, Any]
    tx: optax.GradientTransformation
    schedule: optax.Schedule  # for the log
    with_prior: bool = False

    def task(self) -> Task:
        """The task that the training loop runs."""
        return Task(
            variables=self.variables,
            start=self.start,
            steps={"rotation": self.step},
            phase=lambda step: "rotation",
            evaluate=self.evaluate,
            total_steps=self.steps,
            metric="accuracy",
            metric_mode="max",
            summarise=lambda rows: {"accuracy": float(state_lib.join(rows)["told"].mean())},
        )

    def variables(self, key: jax.Array) -> dict[str, Tree]:
        """Fresh weights of trunk and head."""
        x = augment.blank_input(self.norm, self.size, self.with_prior)
        keys = jax.random.split(key)
        pooled, of_trunk = self.net.init_with_output(keys[0], x, False, method=_pooled)
        head = HEAD.init(keys[1], pooled)["params"]
        return {"net": {**of_trunk, "params": {**of_trunk["params"], "out_rotation": head}}}

    def start(self, trees: dict[str, Tree]) -> TrainState:
        """The state at step 0."""
        return state_lib.make_state(state_lib.make_player(trees["net"], self.tx), None, "max")

    def prepare(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Network input, [B, S, S, C]."""
        upright = {**self.augmentation, "flip_v": 0.0, "quarter_turns": False}
        names = ("image", "prior") if self.with_prior else ("image",)
        fields = augment.prepare(key, {name: batch[name] for name in names}, upright)
        return augment.network_input(fields["image"], self.norm, fields.get("prior"))

    def logits(self, params: Tree, stats: Tree, x: jax.Array, train: bool) -> tuple:
        """Scores of the four turns, [B, 4], and the trunk's batch statistics."""
        variables = {"params": {"trunk": params["trunk"]}, "batch_stats": stats}
        mutable = ["batch_stats"] if train else []
        pooled, new = self.net.apply(variables, x, train, method=_pooled, mutable=mutable)
        scores = HEAD.apply({"params": params["out_rotation"]}, pooled.astype(jnp.float32))
        return scores, new.get("batch_stats", stats)

    def step(self, state: TrainState, batch: Batch, key: jax.Array) -> Update:
        """The trunk learns to tell a random turn of each slice."""
        keys = jax.random.split(key)
        x = self.prepare(batch, keys[0])
        turns = jax.random.randint(keys[1], (len(x),), 0, TURNS)

        def forward(params: Tree) -> tuple[jax.Array, Tree]:
            return self.logits(params, state.net.batch_stats, turn(x, turns), True)

        def objective(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
            entropy = optax.softmax_cross_entropy_with_integer_labels(scores, turns).mean()
            return entropy, (scores.argmax(-1) == turns).mean()

        player, loss, right, norm = state_lib.gradient_step(state.net, forward, objective, self.tx)
        metrics = {"loss": loss, "train_accuracy": right.astype(jnp.float32), "grad": norm}
        metrics["lr"] = jnp.asarray(self.schedule(state.step), jnp.float32)
        return state.replace(step=state.step + 1, net=player), metrics

    def evaluate(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        """Whether each slice's four turns are told, [B, 4]; chance is 0.25."""
        x = self.prepare(batch, None)

        def told(k: jax.Array) -> jax.Array:
            turned = turn(x, jnp.full(len(x), k))
            scores, _ = self.logits(state.net.params, state.net.batch_stats, turned, False)
            return (scores.argmax(-1) == k).astype(jnp.float32)

        return {"told": jax.lax.map(told, jnp.arange(TURNS)).T}


def _pooled(module: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    taps = module.trunk(x, train=train)
    return (taps["f32"] if isinstance(taps, Mapping) else taps[-1]).mean((1, 2))


def from_stage(stage: Stage, net: Any, norm: augment.Norm, steps_per_epoch: int) -> Task:
    """The task of a stage; `steps_per_epoch` does not matter."""
    section = stage.section
    schedule = state_lib.make_schedule(total_steps=section.steps, **section.net_schedule)
    tx = state_lib.make_optimizer(schedule, **section.net_optim)
    own = {key: section[key] for key in ("size", "steps", "augmentation")}
    shared = dict(net=net, norm=norm, with_prior=stage.prior == "input")
    return Rotation(tx=tx, schedule=schedule, **own, **shared).task()

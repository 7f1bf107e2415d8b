"""Pre-training: the coach proposes masks, the network fills them (Algorithm 1, eq. 1-3)."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infnet_jax.models import coach as coach_lib, final_map
from infnet_jax.plan import Stage
from infnet_jax.tasks import augment, inpaint_losses, state as state_lib
from infnet_jax.tasks.game import Masks, cell_means, make_rounds
from infnet_jax.tasks.state import Batch, Metrics, Rows, Task, TrainState, Tree, Update

DRAWS = 4  # masks of each kind that a held-out slice is judged under
KEYS = frozenset(  # what a section holds, for the task and for the training loop
    "pretext splits validation size batch_size eval_every rounds masks sample_train sample_use "
    "loss kld_weight coach_grad random_share augmentation net_optim net_schedule coach_optim "
    "coach_schedule".split()
)


@dataclass(frozen=True)
class Inpainting:
    """The settings of the two-player task, and its steps; ValueError for a wrong `coach_grad`."""

    net: Any  # a module with an inpainting head
    coach: Any  # a `Coach`
    norm: augment.Norm  # input and target scale
    size: int  # side of the square training images, pixels
    rounds: Sequence[tuple[str, int]]  # of `make_rounds`, like `n_random`
    n_random: int
    masks: Masks
    loss: Mapping[str, Any]  # keyword arguments of `inpaint_losses.inpaint_loss`
    augmentation: Mapping[str, Any]  # and of `augment.augment`
    net_tx: optax.GradientTransformation
    coach_tx: optax.GradientTransformation
    # Share of each batch that gets random masks all along (paper: 0), so that the network does not
    # forget all masks but those of the present coach.
    random_share: float
    sample_use: bool  # the serving coach samples z (as coded), else it takes the mean
    kld_weight: float  # of the KL term in the coach's loss (eq. 1 has none: 0)
    # `through_net`: the coach's gradient flows through the frozen network's input; `weights_only`:
    # it stops at the network's output.
    coach_grad: str
    sample_train: bool = True  # the learning coach samples z (as coded), else it takes the mean
    with_prior: bool = False  # batches hold a `prior` too, moved and erased with its slice

    def __post_init__(self) -> None:
        if self.coach_grad not in ("through_net", "weights_only"):
            given = f"pretrain.coach_grad={self.coach_grad!r}"
            raise ValueError(f"{given}: choose through_net or weights_only")

    def task(self) -> Task:
        """The task that the training loop runs."""
        phases, lengths = zip(*self.rounds, strict=True)
        ends = list(accumulate(lengths))
        return Task(
            variables=self.variables,
            start=self.start,
            steps={"coach": self.coach_step, "net": self.net_step},
            phase=lambda step: phases[min(bisect_right(ends, step), len(ends) - 1)],
            evaluate=self.evaluate,
            total_steps=ends[-1],
            metric="rec_random",
            metric_mode="min",
            summarise=summarise,
            panel=panel,
        )

    def variables(self, key: jax.Array) -> dict[str, Tree]:
        """Fresh weights of both players."""
        image = augment.blank_input(self.norm, self.size, self.with_prior)
        keys = jax.random.split(key)
        net = self.net.init(keys[0], image, train=False)
        return {"net": net, "coach": self.coach.init(keys[1], image, train=False)}

    def start(self, trees: dict[str, Tree]) -> TrainState:
        """The state at step 0."""
        net = state_lib.make_player(trees["net"], self.net_tx)
        coach = state_lib.make_player(trees["coach"], self.coach_tx)
        return state_lib.make_state(net, coach, "min")

    def prepare(self, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Network input and target, [B, S, S, C] each: of the slice, then of any prior."""
        names = ("image", "prior") if self.with_prior else ("image",)
        fields = augment.prepare(key, {name: batch[name] for name in names}, self.augmentation)
        prior = fields.get("prior")
        x = augment.network_input(fields["image"], self.norm, prior)
        target = inpaint_losses.inpainting_target(fields["image"], self.norm)
        if prior is None:
            return x, target
        levels = prior.astype(jnp.float32) / 127.5 - 1.0  # -1..1, as the head's range is
        return x, jnp.concatenate([target, jnp.repeat(levels, len(self.norm.mean), axis=-1)], -1)

    def propose(self, variables: Mapping[str, Tree], x: jax.Array, key: jax.Array) -> jax.Array:
        """The masks [B, S, S, 1] of the serving coach, 1 = visible."""
        out = self.coach.apply(variables, x, train=False, key=key if self.sample_use else None)
        return self.masks.use(out["score"], x.shape[1:3])

    def coach_step(self, state: TrainState, batch: Batch, key: jax.Array) -> Update:
        """The coach learns to erase what the frozen network fills worst."""
        keys, coach = jax.random.split(key), state.rival
        x, target = self.prepare(batch, keys[0])
        fill = partial(self.net.apply, train=False, head="inpaint")

        def objective(out: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            visible = self.masks.train(out["score"], x.shape[1:3])
            outputs = fill(state.net.variables, x * visible)
            if self.coach_grad == "weights_only":
                outputs = jax.lax.stop_gradient(outputs)
            _, parts = inpaint_losses.inpaint_loss(outputs, target, visible, **self.loss)
            rec = parts["rec"]
            return inpaint_losses.coach_loss(rec, out["mu"], out["logvar"], self.kld_weight), rec

        noise = keys[1] if self.sample_train else None
        forward = state_lib.training_pass(self.coach, coach, x, key=noise)
        player, value, rec, norm = state_lib.gradient_step(coach, forward, objective, self.coach_tx)
        metrics = {"coach_loss": value, "coach_rec": rec, "coach_grad": norm}
        return state.replace(step=state.step + 1, coach=player), metrics

    def net_step(self, state: TrainState, batch: Batch, key: jax.Array) -> Update:
        """The network learns to fill masks of the frozen coach and random ones."""
        keys, net = jax.random.split(key, 3), state.net
        x, target = self.prepare(batch, keys[0])
        drawn = self.masks.random(keys[1], x.shape[0], x.shape[1:3])
        proposed = self.propose(state.rival.variables, x, keys[2])
        chosen = jnp.arange(x.shape[0]) < self.random_share * x.shape[0]
        chosen = jnp.logical_or(chosen, state.step < self.n_random)
        visible = jnp.where(chosen[:, None, None, None], drawn, proposed)
        loss_of = partial(inpaint_losses.inpaint_loss, target=target, visible=visible, **self.loss)
        forward = state_lib.training_pass(self.net, net, x * visible, head="inpaint")
        player, loss, parts, norm = state_lib.gradient_step(net, forward, loss_of, self.net_tx)
        metrics = {"loss": loss, "rec": parts["rec"], "net_grad": norm}
        return state.replace(step=state.step + 1, net=player), metrics

    def evaluate(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        """Errors per slice over erased pixels, under masks of the coach and random ones.

        `error_*` are mean squared errors of the final map, `trained_*` the reconstruction error
        that is trained, each the mean of DRAWS masks: which cells a random one hits decides much of
        it. `trained_oracle` is under a mask of the cells with the worst error under 2 DRAWS other
        random masks: what a coach could reach that sees how the network fails.
        """
        x, target = self.prepare(batch, None)
        shown = slice(0, len(self.norm.mean))  # the slice, not its prior
        fill = partial(self.net.apply, train=False, head="inpaint")
        out = {"image": inpaint_losses.grey(target[..., shown], self.norm)}

        def trained(outputs: Mapping[str, jax.Array], mask: jax.Array) -> jax.Array:
            def of_slice(outputs: Mapping[str, jax.Array], *at: jax.Array) -> jax.Array:
                outputs, (target, mask) = jax.tree.map(lambda a: a[None], (outputs, at))
                _, parts = inpaint_losses.inpaint_loss(outputs, target, mask, **self.loss)
                return parts["rec"]

            return jax.vmap(of_slice)(outputs, target, mask)

        def failures(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            mask = self.masks.random(key, x.shape[0], x.shape[1:3])
            outputs = fill(state.net.averaged, x * mask)
            error = inpaint_losses.pixel_errors(outputs, target, **self.loss)
            return cell_means(error * (1 - mask[..., 0])), cell_means(1 - mask[..., 0])

        sums, erased_sums = jax.lax.map(
            failures, jax.random.split(jax.random.fold_in(key, 1), 2 * DRAWS)
        )
        worst = sums.sum(0) / jnp.maximum(erased_sums.sum(0), 1e-6)
        oracle = self.masks.use(-worst[..., None], x.shape[1:3])
        out["trained_oracle"] = trained(fill(state.net.averaged, x * oracle), oracle)

        def measure(key: jax.Array) -> Metrics:
            keys, found = jax.random.split(key, 2), {}
            visible = {
                "coach": self.propose(state.rival.averaged, x, keys[0]),
                "random": self.masks.random(keys[1], x.shape[0], x.shape[1:3]),
            }
            for name, mask in visible.items():
                outputs = fill(state.net.averaged, x * mask)
                found[f"trained_{name}"], filled = trained(outputs, mask), final_map(outputs)
                error = ((filled - target) ** 2).mean(axis=-1) * (1.0 - mask[..., 0])
                erased = jnp.maximum((1 - mask).sum((1, 2, 3)), 1)
                found[f"error_{name}"] = error.sum((1, 2)) / erased
                found[f"visible_{name}"] = mask[..., 0]
                found[f"filled_{name}"] = inpaint_losses.grey(filled[..., shown], self.norm)
            return found

        for name, draws in jax.lax.map(measure, jax.random.split(key, DRAWS)).items():
            out[name] = draws.mean(0) if name.startswith(("error", "trained")) else draws[0]
        return out


def summarise(rows: Sequence[Rows]) -> dict[str, float]:
    """Mean errors over all slices, and how much the coach's masks differ between slices.

    `mask_difference` is the mean share of pixels in which two slices' coach masks disagree, over
    all pairs: 0 if the coach ignores the image, or of one slice. In the error that is trained,
    `harder_share` is the share of slices on which the coach's masks are harder than random ones;
    `coach_ratio` and `oracle_ratio` are the medians over slices of the error under the coach's and
    the oracle's masks, divided by that under random ones; `coach_ratio_low` and `_high` are
    its 95 % bootstrap interval over slices.
    """
    joined = state_lib.join(rows)
    cells = joined["visible_coach"][:, ::16, ::16].reshape(len(joined["image"]), -1)
    pairs, n = np.abs(cells[:, None] - cells[None]).mean(-1), len(cells)
    random = np.maximum(joined["trained_random"], 1e-12)
    ratio, oracle = joined["trained_coach"] / random, joined["trained_oracle"] / random
    picks = np.random.default_rng(0).integers(0, n, (1000, n))
    low, high = np.percentile(np.median(ratio[picks], 1), (2.5, 97.5))
    return {
        "rec_coach": float(joined["error_coach"].mean()),
        "rec_random": float(joined["error_random"].mean()),
        "harder_share": float((ratio > 1).mean()),
        "coach_ratio": float(np.median(ratio)),
        "coach_ratio_low": float(low),
        "coach_ratio_high": float(high),
        "oracle_ratio": float(np.median(oracle)),
        "mask_difference": float(pairs.sum() / max(1, n * (n - 1))),
    }


def panel(rows: Rows) -> np.ndarray:
    """Slices, what the coach leaves visible, and the network's filling."""
    shown = rows["image"] * rows["visible_coach"]
    return state_lib.grid(rows["image"], shown, rows["filled_coach"])


def from_stage(stage: Stage, net: Any, norm: augment.Norm, steps_per_epoch: int) -> Task:
    """The task of a stage; `steps_per_epoch` are the batches in one pass over its data."""
    section = stage.section
    rounds, n_random = make_rounds(steps_per_epoch=steps_per_epoch, **section.rounds)
    own = "size augmentation random_share sample_train sample_use kld_weight coach_grad".split()
    settings: dict[str, Any] = {name: section[name] for name in own}
    for player in ("net", "coach"):
        steps = sum(n for phase, n in rounds if phase == player)
        schedule = state_lib.make_schedule(total_steps=steps, **section[f"{player}_schedule"])
        settings[f"{player}_tx"] = state_lib.make_optimizer(schedule, **section[f"{player}_optim"])
    tanh = stage.net.options["inpaint_head"] == "tanh_parallel"
    settings["loss"] = {**section.loss, "activation": "tanh" if tanh else "linear"}
    settings["masks"], settings["with_prior"] = Masks(**section.masks), stage.prior == "input"
    coach = coach_lib.Coach(dtype=stage.net.dtype, **(stage.coach or {}))
    return Inpainting(net, coach, norm, rounds=rounds, n_random=n_random, **settings).task()

"""Pre-training: the coach proposes masks, Inf-Net fills them (Algorithm 1, eq. 1-3)."""

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infnet_jax.models import final_map
from infnet_jax.tasks import augment, game, losses, normalise
from infnet_jax.tasks.normalise import network_input
from infnet_jax.tasks.state import Task, make_player, make_state, update_player

DRAWS = 4  # masks of each kind that a held-out slice is judged under


def make(
    *,
    net: Any,
    coach: Any,
    norm: normalise.Norm,
    size: int,
    rounds: list[tuple[str, int]],
    n_random: int,
    random_share: float,
    sample_use: bool,
    masks: Mapping[str, Any],
    loss: Mapping[str, Any],
    augmentation: Mapping[str, Any],
    net_tx: optax.GradientTransformation,
    coach_tx: optax.GradientTransformation,
    kld_weight: float,
    coach_grad: str,
    with_prior: bool = False,
) -> Task:
    """The two-player task.

    Args:
      net: an `InfNet`, or a `UNet`, with an inpainting head; coach: a `Coach`.
      norm: input and target scale.
      size: side of the square training images, pixels.
      rounds, n_random: order of play, and the first steps with random masks (`game.make_rounds`).
      random_share: share of each batch that gets random masks all along (paper: 0), meant to
        keep the network from forgetting all masks but those of the present coach.
      sample_use: the serving coach samples z (as coded), else it takes the mean.
      masks, loss: keyword arguments of `game.make_masks` and of `losses.inpaint_loss`.
      augmentation: keyword arguments of `augment.augment`.
      kld_weight: weight of the KL term in the coach's loss (eq. 1 has none: 0).
      coach_grad: `through_net` lets the coach's gradient flow through the frozen network's
        input; `weights_only` stops it at the network's output.
      with_prior: batches hold a `prior` too, moved and erased with its slice; input and target
        are slice and prior, concatenated, the prior's target on -1..1 as the head's range is.

    Raises:
      ValueError: unknown `coach_grad`.
    """
    if coach_grad not in ("through_net", "weights_only"):
        raise ValueError(f"pretrain.coach_grad={coach_grad!r}: choose through_net or weights_only")
    mask_train, mask_use, mask_random = game.make_masks(**masks)
    channels = len(norm.mean) * (2 if with_prior else 1)

    def variables(key: jax.Array):
        image = jnp.zeros((1, size, size, channels))
        keys = jax.random.split(key)
        net_vars = net.init(keys[0], image, train=False)
        return {"net": net_vars, "coach": coach.init(keys[1], image, train=False)}

    def start(trees: Mapping[str, Any]):
        players = (
            make_player(trees["net"], net_tx, False),
            make_player(trees["coach"], coach_tx, False),
        )
        return make_state(*players, "min")

    def prepare(batch: Mapping[str, jax.Array], key: jax.Array | None):
        fields = {"image": batch["image"].astype(jnp.float32) / 255.0}
        if with_prior:
            fields["prior"] = batch["prior"].astype(jnp.float32)
        if key is not None:
            fields = augment.augment(key, fields, **augmentation)
        x = network_input(fields["image"], norm, fields.get("prior"))
        target = normalise.inpainting_target(fields["image"], norm)
        if with_prior:
            prior = jnp.repeat(fields["prior"] / 127.5 - 1.0, len(norm.mean), axis=-1)
            target = jnp.concatenate([target, prior], -1)
        return x, target

    def fill(variables: Mapping, masked: jax.Array):
        return net.apply(variables, masked, train=False, head="inpaint")

    def propose(variables: Mapping, x: jax.Array, key: jax.Array) -> jax.Array:
        out = coach.apply(variables, x, train=False, key=key if sample_use else None)
        return mask_use(out, x.shape[1:3])

    def coach_step(state, batch, key):
        keys = jax.random.split(key)
        x, target = prepare(batch, keys[0])

        def objective_of(params):
            out, new = coach.apply(
                {"params": params, "batch_stats": state.coach.batch_stats},
                x,
                train=True,
                key=keys[1],
                mutable=["batch_stats"],
            )
            visible = mask_train(out, x.shape[1:3])
            outputs = fill(state.net.variables, x * visible)
            if coach_grad == "weights_only":
                outputs = jax.lax.stop_gradient(outputs)
            _, parts = losses.inpaint_loss(outputs, target, visible, **loss)
            rec = parts["rec"]
            value = losses.coach_loss(rec, out["mu"], out["logvar"], kld_weight)
            return value, (rec, new["batch_stats"])

        grad = jax.value_and_grad(objective_of, has_aux=True)
        (value, (rec, stats)), grads = grad(state.coach.params)
        player = update_player(state.coach, grads, stats, coach_tx)
        metrics = {"coach_loss": value, "coach_rec": rec, "coach_grad": optax.tree.norm(grads)}
        return state.replace(step=state.step + 1, coach=player), metrics

    def net_step(state, batch, key):
        keys = jax.random.split(key, 3)
        x, target = prepare(batch, keys[0])
        drawn = mask_random(keys[1], x.shape[0], x.shape[1:3])
        proposed = propose(state.coach.variables, x, keys[2])
        chosen = jnp.arange(x.shape[0]) < random_share * x.shape[0]
        chosen = jnp.logical_or(chosen, state.step < n_random)
        visible = jnp.where(chosen[:, None, None, None], drawn, proposed)

        def objective_of(params):
            outputs, new = net.apply(
                {"params": params, "batch_stats": state.net.batch_stats},
                x * visible,
                train=True,
                head="inpaint",
                mutable=["batch_stats"],
            )
            total, parts = losses.inpaint_loss(outputs, target, visible, **loss)
            return total, (parts["rec"], new["batch_stats"])

        grad = jax.value_and_grad(objective_of, has_aux=True)
        (total, (rec, stats)), grads = grad(state.net.params)
        player = update_player(state.net, grads, stats, net_tx)
        metrics = {"loss": total, "rec": rec, "net_grad": optax.tree.norm(grads)}
        return state.replace(step=state.step + 1, net=player), metrics

    def evaluate(state, batch, key):
        """Mean squared error of the final map per slice over erased pixels, coach and random.

        Each is the mean of DRAWS masks: which cells a random one hits decides much of it.
        """
        x, target = prepare(batch, None)
        shown = slice(0, len(norm.mean))  # the slice, not its prior
        out = {"image": normalise.grey(target[..., shown], norm)}

        def measure(key):
            keys, found = jax.random.split(key, 2), {}
            visible = {
                "coach": propose(state.coach.averaged, x, keys[0]),
                "random": mask_random(keys[1], x.shape[0], x.shape[1:3]),
            }
            for name, mask in visible.items():
                filled = final_map(fill(state.net.averaged, x * mask))
                error = ((filled - target) ** 2).mean(axis=-1) * (1.0 - mask[..., 0])
                erased = jnp.maximum((1 - mask).sum((1, 2, 3)), 1)
                found[f"error_{name}"] = error.sum((1, 2)) / erased
                found[f"visible_{name}"] = mask[..., 0]
                found[f"filled_{name}"] = normalise.grey(filled[..., shown], norm)
            return found

        for name, draws in jax.lax.map(measure, jax.random.split(key, DRAWS)).items():
            out[name] = draws.mean(0) if name.startswith("error") else draws[0]
        return out

    ends = list(accumulate(n for _, n in rounds))
    return Task(
        variables=variables,
        start=start,
        steps={"coach": coach_step, "net": net_step},
        phase=lambda step: rounds[min(bisect_right(ends, step), len(rounds) - 1)][0],
        batch_index=lambda step: step,
        evaluate=evaluate,
        total_steps=ends[-1],
        summarise=summarise,
        metric="rec_random",
        metric_mode="min",
        panel=panel,
    )


def summarise(rows: list[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Mean errors over all slices, and how much the coach's masks differ between slices.

    `mask_difference` is the mean share of pixels in which two slices' coach masks disagree,
    over all pairs; 0 says that the coach ignores the image. One slice alone gives 0.
    `harder_share` is the share of slices whose error is larger under the coach's mask.
    """
    joined = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
    cells = joined["visible_coach"][:, ::16, ::16].reshape(len(joined["image"]), -1)
    pairs = np.abs(cells[:, None] - cells[None]).mean(-1)
    n = len(cells)
    return {
        "rec_coach": float(joined["error_coach"].mean()),
        "rec_random": float(joined["error_random"].mean()),
        "harder_share": float((joined["error_coach"] > joined["error_random"]).mean()),
        "mask_difference": float(pairs.sum() / max(1, n * (n - 1))),
    }


def panel(rows):
    columns = rows["image"], rows["image"] * rows["visible_coach"], rows["filled_coach"]
    return np.concatenate([np.concatenate(list(c)) for c in columns], axis=1)


def from_stage(stage, norm, steps_per_epoch):
    from infnet_jax import models
    from infnet_jax.models.coach import Coach
    from infnet_jax.tasks import optim

    section, net = stage.section, models.make(**stage.net.arguments)
    rounds, n_random = game.make_rounds(steps_per_epoch=steps_per_epoch, **section.rounds)
    totals = {who: sum(n for phase, n in rounds if phase == who) for who in ("net", "coach")}
    net_schedule = optim.make_schedule(total_steps=totals["net"], **section.net_schedule)
    coach_schedule = optim.make_schedule(total_steps=totals["coach"], **section.coach_schedule)
    activation = "tanh" if stage.net.options["inpaint_head"] == "tanh_parallel" else "linear"
    return make(
        net=net,
        coach=Coach(dtype=stage.net.dtype, **stage.coach),
        norm=norm,
        size=section.size,
        rounds=rounds,
        n_random=n_random,
        random_share=section.random_share,
        sample_use=section.sample_use,
        masks=section.masks,
        loss=dict(section.loss, activation=activation),
        augmentation=section.augmentation,
        net_tx=optim.make_optimizer(net_schedule, **section.net_optim),
        coach_tx=optim.make_optimizer(coach_schedule, **section.coach_optim),
        kld_weight=section.kld_weight,
        coach_grad=section.coach_grad,
        with_prior=stage.prior == "input",
    )

"""Losses of trained networks on the test slices, for Table I."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet_jax import models
from infnet_jax.data.batches import eval_batches
from infnet_jax.data.sources import Source
from infnet_jax.plan import Stage
from infnet_jax.tasks import losses, normalise

MAPS = ("coarse", "s32", "s16", "s8")  # of an Inf-Net; other networks have `logits` alone


def measure(
    stage: Stage, norm: normalise.Norm, ensemble: Sequence[Mapping[str, Any]], source: Source
) -> dict[str, list[float]]:
    """Returns losses on each slice at the network's own size; of an ensemble the mean.

    Args:
      stage: whose networks they are, a supervised one; norm: its input scale.
      ensemble: the variables of each network.
      source: examples with masks, and priors if the networks are fed them.

    Returns:
      One value a slice for each definition. One class: `total` (eq. 5, boundary-weighted), its
      parts `coarse`, `s32`, `s16`, `s8` (eq. 4 of each map; a U-Net has `region` alone) and `edge`.
      Lesions: `total`, and its parts `entropy` and `dice`, of the network before a prior is
      averaged with it. Both: `distance`, the mean of |logit - truth| over pixels and maps, which
      is what one evaluator of the paper's authors calls the loss.
    """
    step = jax.jit(_make_step(stage, norm))
    fields = ("image", "mask", "prior") if stage.prior == "input" else ("image", "mask")
    found: dict[str, list[float]] = {}
    size, process = stage.section.size, (0, 1)  # each process measures all slices
    for batch in eval_batches(source, batch_size=1, size=size, fields=fields, process=process):
        each = [step(weights, {field: batch[field] for field in fields}) for weights in ensemble]
        for name in each[0]:
            found.setdefault(name, []).append(float(np.mean([one[name] for one in each])))
    return found


def _make_step(stage: Stage, norm: normalise.Norm) -> Any:
    """The losses of one batch as a function of variables and batch."""
    net, lesions = models.make(**stage.net.arguments), stage.learns == "lesions"
    # The rows of a table must share their definition, whatever each was trained with.
    objective = (
        losses.make_lesion_loss(head=stage.section.loss.head)
        if lesions
        else losses.make_infection_loss()
    )

    def step(variables: Mapping, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        image = batch["image"].astype(jnp.float32) / 255.0
        x = normalise.network_input(image, prior=batch.get("prior"), norm=norm)
        outputs: Any = net.apply(variables, x, train=False)
        mask = batch["mask"] if lesions else (batch["mask"] > 0).astype(jnp.float32)
        truth = jax.nn.one_hot(mask[..., 0], stage.net.classes) if lesions else mask
        total, parts = objective(outputs, mask)
        maps = [outputs[name] for name in MAPS if name in outputs] or [outputs["logits"]]
        distance = jnp.stack([jnp.abs(logits - truth).mean() for logits in maps]).mean()
        return {"total": total, **parts, "distance": distance}

    return step

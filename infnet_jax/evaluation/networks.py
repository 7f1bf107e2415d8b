"""The networks that a run trained: their weights, and their maps of a source."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from infnet_jax import tasks
from infnet_jax.data.batches import eval_batches
from infnet_jax.data.sources import Source
from infnet_jax.evaluation import metrics
from infnet_jax.runs import mesh as mesh_lib
from infnet_jax.runs.checkpoint import load_parameters
from infnet_jax.tasks import multi, segment

EXPORTED = "weights.safetensors"


def classes(config: ConfigDict) -> dict[str, int | None]:
    """What the last network finds: name -> channel of its maps, None where they have none."""
    if tasks.last_trained(config) == "multi":
        return dict(multi.LESIONS)
    return {"lung" if tasks.target(config) == "lung" else "infection": None}


def mark(probs: np.ndarray, thresholds: Mapping[str, float]) -> np.ndarray:
    """The mask of a map: uint8 [H, W], 0, then 1 for the first class, 2 for the second.

    A pixel gets the class whose probability exceeds its threshold by the largest factor, or none.

    Args:
      probs: [H, W], or [H, W, 3] with the background first.
      thresholds: class -> probability from which it is marked, above 0.
    """
    values = np.asarray(list(thresholds.values()), np.float32)
    ratio = (probs[..., None] if probs.ndim == 2 else probs[..., 1:]) / values
    return np.where(ratio.max(-1) >= 1, ratio.argmax(-1) + 1, 0).astype(np.uint8)


def full_size(probs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map, [S, S] or [S, S, 3], at the size (H, W) of its slice."""
    if probs.ndim == 2:
        return metrics.resize_map(probs, size)
    return np.stack([metrics.resize_map(p, size) for p in np.moveaxis(probs, -1, 0)], axis=-1)


def load_evaluated(config: ConfigDict, workdir: Path) -> tuple[str, list[dict[str, Any]]]:
    """The network, or the networks of an ensemble, that a run is judged by.

    Returns:
      `best` (of the held-out slices), `latest`, where nothing was held out, or `exported`; and the
      variables of each network, averaged if the stage keeps an average.

    Raises:
      FileNotFoundError: it is not trained yet.
    """
    stage = tasks.last_trained(config)
    if (workdir / EXPORTED).exists():
        return "exported", _read_exported(workdir, stage)
    folders = [member.folder for member in tasks.members(config, stage)]
    if len(folders) > 1:
        return "latest", _load_all(workdir / stage, folders)
    part = "best" if config[stage].validation else "latest"
    return part, [load_weights(workdir / stage / "checkpoints", part)]


def _load_all(directory: Path, folders: Sequence[str]) -> list[dict[str, Any]]:
    """The variables of several networks of a stage.

    Raises:
      FileNotFoundError: one is missing.
    """
    trained = sum((directory / folder / "checkpoints").exists() for folder in folders)
    if trained < len(folders):
        raise FileNotFoundError(f"{directory}: {trained} of {len(folders)} networks are trained")
    return [load_weights(directory / folder / "checkpoints", "latest") for folder in folders]


def load_priors(config: ConfigDict, workdir: Path) -> list[dict[str, Any]]:
    """The single-class networks whose mean map a multi-class network is fed; none for the others.

    Raises:
      FileNotFoundError: one is missing.
      ValueError: the prior is the truth.
    """
    if tasks.last_trained(config) != "multi" or not config.multi.with_prior:
        return []
    if config.prior.kind != "crossfit":
        raise ValueError(
            f"{workdir}: its prior is the truth (an upper bound), which no new scan has"
        )
    if (workdir / EXPORTED).exists():
        return _read_exported(workdir, "prior")
    return _load_all(workdir / "prior", [m.folder for m in tasks.members(config, "prior")])


def _read_exported(folder: Path, stage: str) -> list[dict[str, Any]]:
    """A stage's networks from what `export.export` wrote.

    Raises:
      ValueError: the file is damaged or has none of that stage.
    """
    try:
        flat = load_file(folder / EXPORTED)
    except SafetensorError as error:
        raise ValueError(f"{folder / EXPORTED}: not readable ({error})") from error
    found = unflatten_dict({tuple(k.split("/")): v for k, v in flat.items()}).get(stage, {})
    if not found:
        raise ValueError(f"{folder / EXPORTED}: has no network of stage {stage}")
    return [found[str(number)] for number in range(len(found))]


def load_weights(checkpoints: Path, part: str) -> dict[str, Any]:
    """The variables of the network in a stage's checkpoint, averaged if the stage averages."""
    player = load_parameters(checkpoints, part=part)["net"]
    return player["ema"] or {k: player[k] for k in ("params", "batch_stats")}


def make_sweep(
    stage: str, config: ConfigDict, statistics: tuple[float, float]
) -> Callable[[dict, Source], list[np.ndarray]]:
    """A function of weights and source, compiled once for all its calls.

    Returns:
      (variables, source) -> the probability map of every example in order: float32 [S, S] each for
      `segment`, [S, S, 3] for `multi`, whose examples need a `prior` if its config has one.
    """
    norm = tasks.make_norm(config, statistics)
    mesh, views = mesh_lib.make_mesh(), tasks.views_of(config)
    batch_size, size = config.evaluate.batch_size, config[stage].size
    mesh_lib.check_batch(batch_size, mesh, "evaluate.batch_size")
    if stage == "segment":
        net, fields = tasks.make_net(config), ("image",)

        def probs(variables: dict, batch: Mapping) -> jax.Array:
            return segment.predict(net, variables, batch["image"], norm, **views)[..., 0]
    else:
        net, use = tasks.make_multi_net(config), tasks.prior_use(config)
        fields = ("image",) if use == "none" else ("image", "prior")

        def probs(variables: dict, batch: Mapping) -> jax.Array:
            return multi.predict(
                net,
                variables,
                batch["image"],
                batch.get("prior"),
                norm,
                **views,
                head=config.multi.loss.head,
                prior_use=use,
            )

    step = jax.jit(probs, out_shardings=mesh_lib.replicated(mesh))

    def run(weights: dict, source: Source) -> list[np.ndarray]:
        weights, maps = mesh_lib.replicate(weights, mesh), []
        for batch in eval_batches(source, batch_size=batch_size, size=size, fields=fields):
            sharded = mesh_lib.shard_batch({name: batch[name] for name in fields}, mesh)
            maps.extend(np.asarray(step(weights, sharded)))
        return maps[: len(source)]

    return run

"""The weights that a run trained, from its checkpoints or from an export of it."""

from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from infnet_jax.plan import Plan, Stage
from infnet_jax.runs.checkpoint import load_parameters

EXPORTED = "weights.safetensors"
Weights = dict[str, Any]  # `params` and `batch_stats`, as `Module.apply` takes them


def load_final(plan: Plan) -> tuple[str, list[Weights]]:
    """The weights used for evaluation: of one network or of an ensemble.

    Returns:
      `best` (on the held-out slices), `latest`, where nothing was held out, or `exported`; and the
      weights of each network, averaged over steps where the stage keeps an average.

    Raises:
      FileNotFoundError: a network is not trained yet.
      ValueError: an export is damaged.
    """
    stage = plan.final
    if (plan.workdir / EXPORTED).exists():
        return "exported", _read_exported(plan.workdir, stage)
    if stage.averages:
        return "latest", load_all(stage)
    part = "best" if stage.section.validation else "latest"
    return part, [load_weights(stage.folder / "checkpoints", part)]


def load_priors(plan: Plan) -> list[Weights]:
    """The weights of the networks whose mean map is the prior; none where there is no prior.

    Raises:
      FileNotFoundError: a network is not trained yet.
      ValueError: the prior is the truth, or an export is damaged.
    """
    if plan.final.prior == "none" or plan.prior is None:
        return []
    if plan.prior_kind != "crossfit":
        raise ValueError(
            f"{plan.workdir}: its prior is the truth (an upper bound), which no new scan has"
        )
    if (plan.workdir / EXPORTED).exists():
        return _read_exported(plan.workdir, plan.prior)
    return load_all(plan.prior)


def load_all(stage: Stage) -> list[Weights]:
    """The weights at the end of training of each network of a stage.

    Raises:
      FileNotFoundError: one is missing.
    """
    folders = [network.folder / "checkpoints" for network in stage.networks]
    trained = sum(folder.exists() for folder in folders)
    if trained < len(folders):
        raise FileNotFoundError(f"{stage.folder}: {trained} of {len(folders)} networks are trained")
    return [load_weights(folder, "latest") for folder in folders]


def load_weights(checkpoints: Path, part: str) -> Weights:
    """The weights of a checkpoint, `latest` or `best`, averaged over steps if it has an average."""
    player = load_parameters(checkpoints, part=part)["net"]
    return player["ema"] or {k: player[k] for k in ("params", "batch_stats")}


def _read_exported(folder: Path, stage: Stage) -> list[Weights]:
    """A stage's networks in an export.

    Raises:
      ValueError: the file is damaged or has none of that stage.
    """
    try:
        flat = load_file(folder / EXPORTED)
    except SafetensorError as error:
        raise ValueError(f"{folder / EXPORTED}: not readable ({error})") from error
    tree = unflatten_dict({tuple(name.split("/")): value for name, value in flat.items()})
    if stage.name not in tree:
        raise ValueError(f"{folder / EXPORTED}: has no network of stage {stage.name}")
    networks = tree[stage.name]
    return [networks[str(number)] for number in range(len(networks))]

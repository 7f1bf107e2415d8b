"""The `export` verb: a trained network as a small folder that `predict` takes in place of a run."""

import shutil
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from infnet_jax import tasks
from infnet_jax.evaluation import networks
from infnet_jax.runs.workdir import read_config

BESIDE = ("config.json", "statistics.json", "thresholds.json")  # the last one only where chosen


def export(workdir: Path | str, out: Path | str) -> Path:
    """Writes the weights that a run is judged by, without optimiser and history.

    The folder gets `weights.safetensors` (arrays by `<stage>/<number>/<collection>/<path>`, those
    of a multi-class network's priors among them) and the run's `config.json`, `statistics.json`
    and `thresholds.json`. `inference.Segmenter` reads it as it reads the run.

    Returns:
      The path of the weights.

    Raises:
      FileNotFoundError: no run there, or it has not trained its last network yet.
      ValueError: `out` is not empty, or the prior is the truth, which no new scan has.
    """
    workdir, out = Path(workdir), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder; name a new one")
    config = read_config(workdir)
    found = {
        tasks.last_trained(config): networks.load_evaluated(config, workdir)[1],
        "prior": networks.load_priors(config, workdir),
    }
    flat = {
        f"{name}/{number}/{key}": np.ascontiguousarray(value)
        for name, several in found.items()
        for number, weights in enumerate(several)
        for key, value in flatten_dict(weights, sep="/").items()
    }
    fresh = out.with_name(out.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / networks.EXPORTED).write_bytes(save(flat))  # save_file would hide it from others
    for name in BESIDE:
        if (workdir / name).is_file():
            shutil.copy(workdir / name, fresh / name)
    if out.exists():
        out.rmdir()
    fresh.rename(out)
    return out / networks.EXPORTED

"""`infnet-jax export`: a trained network as a small folder, which `predict` takes like a run."""

import argparse
import shutil
from pathlib import Path

import numpy as np

from infnet_jax.verbs import RUN, existing

BESIDE = ("config.json", "statistics.json", "thresholds.json")  # the last one only where chosen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("workdir", type=existing, metavar="WORKDIR", help=RUN)
    parser.add_argument("out", type=Path, metavar="OUT", help="what predict --checkpoint takes too")


def run(options: argparse.Namespace) -> int:
    """Exports a run, prints the size of the weights, and returns 0."""
    path = export(options.workdir, options.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def export(workdir: Path, out: Path) -> Path:
    """Writes the weights used for evaluation, without optimiser and history; returns their path.

    `Predictor` reads the folder like the run: `weights.safetensors` (arrays by `<stage>/<number>/
    <collection>/<path>`, those of priors too) and the files of `BESIDE`. FileNotFoundError: no run,
    or not trained to its end; ValueError: `out` is not empty, or the prior is the truth.
    """
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save

    from infnet_jax.evaluation import predictor as networks
    from infnet_jax.plan.resolve import resolve
    from infnet_jax.runs import read_config

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder; name a new one")
    plan = resolve(read_config(workdir), workdir)
    found = {plan.final.name: networks.load_final(plan)[1]}
    if plan.prior is not None:
        found[plan.prior.name] = networks.load_priors(plan)
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

"""`infnet-jax study`: trains and compares systems, see `infnet_jax.study`."""

import argparse
import shlex
from pathlib import Path

CONFIG = "such as configs/study.py; --config.KEY=VALUE changes a value of it"
WORKDIR = "default: runs/<file>[-<preset>]; the same one resumes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments; `overrides` are the words `--config.KEY=VALUE`."""
    parser.add_argument("--config", required=True, metavar="FILE[:PRESET]", help=CONFIG)
    parser.add_argument("--workdir", type=Path, metavar="DIR", help=WORKDIR)
    parser.set_defaults(overrides=())


def run(options: argparse.Namespace) -> int:
    """Runs the study; returns 0, or 1 if a cell failed."""
    from infnet_jax import study
    from infnet_jax.config import load

    words = ["infnet-jax", "study", f"--config={options.config}", *options.overrides]
    words += [f"--workdir={options.workdir}"] if options.workdir else []
    file, _, preset = options.config.partition(":")
    workdir = options.workdir or Path("runs") / "-".join(filter(None, [Path(file).stem, preset]))
    config = load(options.config, options.overrides)
    return study.run(config, command=shlex.join(words), workdir=workdir)

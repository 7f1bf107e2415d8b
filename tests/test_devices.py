"""One device, eight devices and two processes: the same run, the same numbers.

The program is played in double precision. In single precision a unit now and then falls on the
other side of its ReLU's kink for a difference of rounding, and within twenty steps the losses are
percents apart, as they are between any two machines; see "Several devices" in docs/results.md. In
double precision that does not happen, and whatever differs is the program's doing.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infnet_jax.runs.logs import load_rows

pytestmark = [pytest.mark.slow, pytest.mark.long]

ROOT = Path(__file__).parents[1]
STEPS = 20
RUN = """
import runpy, sys
import jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
jnp.float32 = jnp.float64  # before Flax and our modules take it as their default
runpy.run_path("main.py", run_name="__main__")
"""
CONFIG = (
    "--config=configs/selfsup.py:tiny",
    "--config.stages=('pretrain','segment')",
    "--config.dtype=float64",
    "--config.pretrain.size=32",
    "--config.segment.size=32",
    "--config.pretrain.rounds.epochs=5",
    f"--config.segment.steps={STEPS}",
    "--config.pretrain.validation=0",
    "--config.segment.validation=0",
    "--config.pretrain.eval_every=100",
    "--config.segment.eval_every=100",
)


def play(folder, data_dir, devices=1, processes=({},)):
    """Runs the config in one or more processes, each with the variables given for it."""
    flags = re.sub(r"--xla_force_host\S+", "", os.environ.get("XLA_FLAGS", ""))
    flags += f" --xla_force_host_platform_device_count={devices}"
    paths = f"--config.data.data_dir={data_dir}", f"--workdir={folder}"
    with contextlib.ExitStack() as stack:
        said = stack.enter_context(open(f"{folder}.log", "w+"))
        words = [sys.executable, "-c", RUN, *CONFIG, *paths]
        envs = [{**os.environ, "XLA_FLAGS": flags, **variables} for variables in processes]
        started = [subprocess.Popen(words, cwd=ROOT, stdout=said, stderr=said, env=e) for e in envs]
        runs = [stack.enter_context(run) for run in started]
        codes = [run.wait() for run in runs]
        said.seek(0)
        assert not any(codes), said.read()


def losses(folder):
    """Every number that the two stages logged, end to end."""
    tables = []
    for stage in ("pretrain", "segment"):
        rows = load_rows(folder / stage / "metrics.jsonl")
        assert len(rows) >= STEPS
        tables += [[v for v in row.values() if isinstance(v, float)] for row in rows]
    return np.concatenate(tables)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    play(folder / "one", folder / "tfds")
    return folder


def compare(one, other):
    expected, found = losses(one / "one"), losses(one / other)
    assert len(np.unique(expected)) > 5 * STEPS  # it trains, and no constant passes for a loss
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_eight_devices_train_as_one_does(one):
    play(one / "eight", one / "tfds", devices=8)
    compare(one, "eight")


def test_two_processes_train_as_one_does(one):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
    processes = [{**shared, "JAX_PROCESS_ID": index} for index in "01"]
    play(one / "two", one / "tfds", processes=processes)
    compare(one, "two")

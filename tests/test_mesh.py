"""Placing arrays on the mesh, and refusing batches it cannot share."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from infnet_jax.runs import mesh as meshes

EIGHT = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")


@EIGHT
def test_the_mesh_has_one_automatic_axis_over_all_devices():
    mesh = meshes.make_mesh()
    assert dict(mesh.shape) == {"data": jax.device_count()}
    assert mesh.axis_types == (AxisType.Auto,)
    assert dict(meshes.make_mesh(jax.devices()[:2]).shape) == {"data": 2}


@EIGHT
def test_rows_are_split_and_weights_are_copied():
    mesh = meshes.make_mesh(jax.devices()[:4])
    rows = np.arange(8 * 3).reshape(8, 3)
    batch = meshes.shard_batch({"image": rows, "valid": rows[:, 0] > 5}, mesh)
    assert [s.data.shape for s in batch["image"].addressable_shards] == [(2, 3)] * 4
    np.testing.assert_array_equal(batch["image"], rows)
    np.testing.assert_array_equal(batch["valid"], rows[:, 0] > 5)
    weights = meshes.replicate({"w": np.ones((4, 2), np.float32)}, mesh)["w"]
    assert weights.is_fully_replicated and len(weights.addressable_shards) == 4


@EIGHT
def test_a_step_over_eight_devices_equals_one():
    rows = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    weights = np.linspace(-1, 1, 5, dtype=np.float32)
    grad = jax.jit(jax.grad(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)))
    answers = []
    for count in (1, 8):
        mesh = meshes.make_mesh(jax.devices()[:count])
        batch = meshes.shard_batch({"x": rows}, mesh)
        answers.append(np.asarray(grad(meshes.replicate(weights, mesh), batch["x"])))
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-5)


@EIGHT
@pytest.mark.parametrize(
    ("size", "legal"), [(12, "8 or 16"), (3, "8"), (0, "8"), (-4, "8"), (17, "16 or 24")]
)
def test_an_uneven_batch_is_refused_with_the_nearest_sizes(size, legal):
    mesh = meshes.make_mesh(jax.devices()[:8])
    text = f"batch_size = {size} does not divide over 8 devices: use {legal}$"
    with pytest.raises(ValueError, match=text):
        meshes.check_batch(size, mesh)
    meshes.check_batch(16, mesh)


@pytest.mark.parametrize(
    ("values", "culprit"),
    [
        (("", "", ""), None),
        (("", "1", ""), None),
        (("", "2", "0"), "JAX_COORDINATOR_ADDRESS"),
        (("localhost", "2", "0"), "JAX_COORDINATOR_ADDRESS"),
        (("localhost:1234", "", "0"), "JAX_NUM_PROCESSES"),
        (("localhost:1234", "two", "0"), "JAX_NUM_PROCESSES"),
        (("localhost:1234", "2", "2"), "JAX_PROCESS_ID"),
        (("localhost:1234", "2", ""), "JAX_PROCESS_ID"),
    ],
)
def test_alone_nothing_starts_and_an_incomplete_environment_is_named(monkeypatch, values, culprit):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a: pytest.fail("initialised"))
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    for name, value in zip(names, values, strict=True):
        monkeypatch.setenv(name, value)
    refused = pytest.raises(ValueError, match=f"environment {culprit} = ")
    with refused if culprit else contextlib.nullcontext():
        meshes.initialise_distributed()


_PROCESS = """
import jax, numpy as np
from infnet_jax.runs import mesh as meshes
from infnet_jax.runs.checkpoint import Checkpoints
from infnet_jax.data import Batches
meshes.initialise_distributed()
n = jax.process_count()
source = [{"image": np.full((4, 4, 1), i, np.uint8)} for i in range(7)]
class Source:
    __len__ = lambda self: len(source)
    __getitem__ = lambda self, i: source[i]
batches = Batches([Source()], batch_size=4, size=4, seed=3)
mesh = meshes.make_mesh()
image = meshes.shard_batch(batches[2], mesh)["image"]
whole = jax.jit(lambda x: x[:, 0, 0, 0], out_shardings=meshes.replicated(mesh))(image)
state = meshes.replicate({"w": np.asarray(whole.addressable_data(0))}, mesh)
with Checkpoints(FOLDER, save_every=1) as checkpoints:
    assert checkpoints.offer(1, state, metric=0.5)
    checkpoints.wait()
    back, step = checkpoints.restore(state)
rows = np.asarray(back["w"].addressable_data(0)).tolist()
print("ROWS", n, len(jax.devices()), step, rows, flush=True)
"""


@pytest.mark.slow
def test_two_processes_see_one_batch_and_share_a_checkpoint(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[1]

    def start(index: int, count: int) -> subprocess.Popen:
        env = os.environ | {
            "PYTHONPATH": str(root),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}" if count > 1 else "",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        code = f"FOLDER = {str(tmp_path / str(count))!r}\n{_PROCESS}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, "-c", code], env=env, **pipes)

    said = {}
    for count in (1, 2):
        running = [start(index, count) for index in range(count)]
        for index, process in enumerate(running):
            text = process.communicate(timeout=120)[0]
            lines = [line for line in text.splitlines() if line.startswith("ROWS")]
            assert process.returncode == 0 and lines, text
            said[count, index] = lines[0]
    rows = said[1, 0].split(" 1 ", 2)[-1]
    assert said[1, 0].startswith("ROWS 1 2 1 [")
    assert said[2, 0] == said[2, 1] == f"ROWS 2 4 1 {rows[rows.index('[') :]}"

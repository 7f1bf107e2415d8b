"""Eight devices and one: the same batches, the same losses, in every kind of step."""

import jax
import numpy as np
import pytest

import tfds_builders
from configs import selfsup
from infnet_jax import data, mesh as mesh_lib, tasks


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("tfds"))


def small():
    c = selfsup.get_config("tiny")
    c.pretrain.size = c.segment.size = 32
    c.pretrain.rounds.epochs, c.segment.steps = 5, 30
    return c


def play(stage, dataset, devices, n):
    """Losses of the first `n` steps, compiled and fed as the training loop does."""
    config, mesh = small(), mesh_lib.make_mesh(devices)
    section = config[stage]
    batches = data.Batches(
        data.open_split(dataset, "train"), batch_size=section.batch_size, size=section.size, seed=0
    )
    # The statistics of a real run: they are constants of the compiled step, which is kept.
    statistics = data.statistics(data.open_split(dataset, "train"))
    task, whole = tasks.make(stage, config, statistics, 5), mesh_lib.replicated(mesh)
    steps = {
        name: jax.jit(fn, donate_argnums=0, out_shardings=(whole, whole))
        for name, fn in task.steps.items()
    }
    trees = jax.jit(task.variables)(jax.random.key(0, impl="rbg"))
    state, root = mesh_lib.replicate(task.start(trees), mesh), jax.random.key(0)
    losses = []
    for step in range(n):
        batch = mesh_lib.shard_batch(batches[task.batch_index(step)], mesh)
        assert len(batch["image"].sharding.device_set) == len(devices)
        state, out = steps[task.phase(step)](state, batch, jax.random.fold_in(root, step))
        losses.append(float(out["coach_loss" if task.phase(step) == "coach" else "loss"]))
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "segment"])
def test_eight_devices_train_as_one_does(stage, dataset):
    one, eight = (play(stage, dataset, jax.devices()[:n], 20) for n in (1, 8))
    print(stage, one, np.abs(one / eight - 1))
    assert len(set(one)) == 20
    np.testing.assert_allclose(eight, one, rtol=1e-5)

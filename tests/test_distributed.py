"""Eight devices and one: the same batches, the same losses, in every kind of step.

Rounding differs between the two, and training magnifies it: with Adam at its usual rates about
threefold a step, as it would between any two machines. So the comparison is made at rates where
twenty steps are no chaos yet; a wrong gradient, key or row would show all the same.
"""

import jax
import numpy as np
import pytest

import tfds_builders
from configs import common, selfsup
from infnet_jax import data, loop, mesh as mesh_lib, tasks

EIGHT = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("tfds"))


def gentle():
    c = selfsup.get_config("tiny")
    c.pretrain.rounds.epochs, c.segment.steps = 5, 20
    for section, players in ((c.pretrain, ("net_", "coach_")), (c.segment, ("",))):
        for player in players:
            section[f"{player}optim"] = common.optimizer("sgd", momentum=0.0)
            section[f"{player}schedule"] = common.schedule("constant", 1e-3)
    return c


def play(stage, dataset, devices):
    """Losses of the first twenty steps, compiled and fed as the training loop does."""
    config, mesh = gentle(), mesh_lib.make_mesh(devices)
    section, train = config[stage], data.open_split(dataset, "train")
    batches = data.Batches(train, batch_size=section.batch_size, size=section.size, seed=0)
    task, whole = tasks.make(stage, config, data.statistics(train), 5), mesh_lib.replicated(mesh)
    steps = {
        name: jax.jit(fn, donate_argnums=0, out_shardings=(whole, whole))
        for name, fn in task.steps.items()
    }
    state = mesh_lib.replicate(task.start(loop.init_variables(task, 0)), mesh)
    root, losses = jax.random.key(0), []
    for step in range(20):
        batch = mesh_lib.shard_batch(batches[task.batch_index(step)], mesh)
        assert len(batch["image"].sharding.device_set) == len(devices)
        state, out = steps[task.phase(step)](state, batch, jax.random.fold_in(root, step))
        losses.append(float(out["coach_loss" if task.phase(step) == "coach" else "loss"]))
    return np.array(losses)


@EIGHT
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "segment"])
def test_eight_devices_train_as_one_does(stage, dataset):
    one, eight = (play(stage, dataset, jax.devices()[:n]) for n in (1, 8))
    print(stage, one, np.abs(eight / one - 1))
    assert len(set(one)) == 20
    np.testing.assert_allclose(eight, one, rtol=1e-5)

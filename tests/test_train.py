"""The loop with a toy task (faults, resuming, early stopping), and the real tasks' steps."""

import json
import os
import signal
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

import tfds_builders
from configs import multi, multi_semisup, selfsup, supervised
from infnet_jax import tasks
from infnet_jax.data import batches as data
from infnet_jax.runs import mesh as mesh_lib, workdir
from infnet_jax.runs.checkpoint import Checkpoints
from infnet_jax.runs.logs import load_rows
from infnet_jax.runs.transfer import load_parameters
from infnet_jax.tasks.state import Task, make_player, make_state
from infnet_jax.training import data as stage_data, loop, run as train

STATISTICS = (0.3, 0.25)
TOTAL, EVERY = 12, 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tfds_builders.prepare("phantom/tiny", data_dir=tmp_path_factory.mktemp("tfds"))


def toy(total=TOTAL, dice=None, hook=lambda step: None, lr=0.1):
    """One weight that moves by noise and by the batch, so that each step leaves its mark."""
    tx = optax.sgd(lr)

    def step(state, batch, key):
        w = state.net.params["w"]
        pull = batch["image"][0].astype(jnp.float32).mean() / 255.0  # one row: order matters
        loss = (w - pull) ** 2
        w = w - lr * (2 * (w - pull) + 0.1 * jax.random.normal(key))
        return state.replace(step=state.step + 1, net=state.net.replace(params={"w": w})), {
            "loss": loss
        }

    def evaluate(state, batch, key):
        mask = (batch["mask"] > 0).astype(jnp.float32)[..., 0]
        updates = jnp.full(mask.shape[0], state.step)
        return {"probs": mask * state.net.params["w"], "mask": mask, "updates": updates}

    def summarise(rows):
        updates = int(rows[0]["updates"][0])
        assert all(len(row["updates"]) == 2 for row in rows)  # padding is dropped
        return {"dice": (dice or {}).get(updates, float(updates))}

    def phase(step):
        hook(step)
        return "toy"

    def start(trees):
        return make_state(make_player(trees["net"], tx, False), None, "max")

    return Task(
        variables=lambda key: {"net": {"params": {"w": jnp.float32(3.0)}, "batch_stats": {}}},
        start=start,
        steps={"toy": step},
        phase=phase,
        batch_index=lambda step: step // 3,
        evaluate=evaluate,
        total_steps=total,
        summarise=summarise,
        metric="dice",
        metric_mode="max",
    )


@pytest.fixture
def play(dataset, monkeypatch):
    """play(folder, patience, **toy) trains the toy as stage `segment`."""

    def run(folder, patience=0, **kwargs):
        monkeypatch.setattr(tasks, "make", lambda *_: toy(**kwargs))
        config = supervised.get_config("tiny")
        config.segment.update(size=32, eval_every=EVERY, patience=patience)
        return train.train_stage(
            "segment", config, folder, dataset, mesh_lib.make_mesh(), STATISTICS
        )

    return run


def weight(folder, part="latest"):
    tree = load_parameters(folder / "segment" / "checkpoints", part=part)
    return int(tree["step"]), tree["net"]["params"]["w"].tobytes()


def rows_of(folder):
    return load_rows(folder / "segment" / "metrics.jsonl")


class Crash(BaseException):
    """No error that anything in the loop may catch."""


def crash_at(*steps):
    def hook(step):
        if step in steps:
            raise Crash

    return hook


def test_a_crash_at_any_step_changes_nothing(play, tmp_path):
    assert play(tmp_path / "whole")["steps"] == TOTAL
    rows = rows_of(tmp_path / "whole")
    trained = [row["step"] for row in rows if "loss" in row]
    judged = [row["step"] for row in rows if "dice" in row]
    assert trained == list(range(TOTAL)) and judged == [4, 8, 12]
    for step in (1, 4, 6, 8, 11):  # before the first checkpoint, right after one, between
        with pytest.raises(Crash):
            play(tmp_path / "cut", hook=crash_at(step))
    play(tmp_path / "cut")
    assert weight(tmp_path / "cut") == weight(tmp_path / "whole")
    assert rows_of(tmp_path / "cut") == rows


def test_a_stage_cut_after_its_last_checkpoint_repeats_nothing(play, tmp_path):
    play(tmp_path)
    before, rows = weight(tmp_path), rows_of(tmp_path)
    assert play(tmp_path)["steps"] == 0
    assert weight(tmp_path) == before and rows_of(tmp_path) == rows


def test_sigterm_saves_at_once_and_the_run_resumes(play, tmp_path):
    def terminate(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert play(tmp_path / "cut", hook=terminate) is None  # asked to stop, and no timing
    assert signal.getsignal(signal.SIGTERM) == before
    assert weight(tmp_path / "cut")[0] == 7  # no regular interval
    play(tmp_path / "cut")
    play(tmp_path / "whole")
    assert weight(tmp_path / "cut") == weight(tmp_path / "whole")
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_the_stage(play, tmp_path):
    # |w - pull| grows by 2e5 - 1 a step; the square leaves float32 at the fourth loss.
    with pytest.raises(FloatingPointError, match=r"segment: loss not finite at step 4 \(phase toy"):
        play(tmp_path, lr=1e5)
    step, kept = weight(tmp_path)
    assert step == 4 and np.isfinite(np.frombuffer(kept, np.float32)).all()
    assert [row["step"] for row in rows_of(tmp_path) if "loss" in row] == [0, 1, 2, 3]


@pytest.mark.parametrize(("start", "right"), [(0, [0, 0, 0, 1, 1, 1, 2]), (4, [1, 1, 2])])
def test_each_step_gets_the_batch_of_its_index(start, right):
    class Numbers:
        def iterate(self, index):
            return ({"x": np.full(8, i)} for i in count(index))

    stream = loop._batches(toy(total=7), Numbers(), mesh_lib.make_mesh(), start)
    assert [int(batch["x"][0]) for batch in stream] == right


def test_early_stopping_counts_evaluations_without_a_better_one(play, tmp_path):
    dice = {4: 0.5, 8: 0.7, 12: 0.7, 16: 0.6, 20: 0.9}  # an equal one is not better
    play(tmp_path / "whole", patience=2, total=24, dice=dice)
    assert weight(tmp_path / "whole")[0] == 16
    assert weight(tmp_path / "whole", "best")[0] in (8, 12)
    rows = rows_of(tmp_path / "whole")
    # Cut after its last checkpoint, it must stop at the same step again.
    play(tmp_path / "whole", patience=2, total=24, dice=dice)
    assert weight(tmp_path / "whole")[0] == 16 and rows_of(tmp_path / "whole") == rows
    with pytest.raises(Crash):
        play(tmp_path / "cut", patience=2, total=24, dice=dice, hook=crash_at(13))
    play(tmp_path / "cut", patience=2, total=24, dice=dice)
    assert weight(tmp_path / "cut") == weight(tmp_path / "whole")
    play(tmp_path / "never", patience=0, total=24, dice=dice)
    assert weight(tmp_path / "never")[0] == 24


def test_three_classes_start_from_what_pseudo_labels_have_taught(tmp_path):
    config = multi_semisup.get_config("tiny")
    config.weights = "imagenet_lite0"  # of an earlier stage: not of this one
    single, task = (tasks.make(stage, config, STATISTICS, 1) for stage in ("segment", "multi"))
    learned = loop.init_variables(single, 7)
    with Checkpoints(tmp_path / "semi" / "pool" / "checkpoints", save_every=4) as pool:
        pool.offer(4, single.start(learned))
    state = train._start(task, "multi", config, tmp_path, tmp_path / "multi" / "fold0", 0)
    start, fresh = state.net.params, loop.init_variables(task, 0)["net"]["params"]
    for part in ("trunk", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, start[part], learned["net"]["params"][part])
    jax.tree.map(np.testing.assert_array_equal, start["out_seg"], fresh["out_seg"])


def test_a_multi_class_network_without_prior_needs_none_in_its_test_slices(tmp_path, dataset):
    config = multi.get_config("tiny")
    config.multi.with_prior = False
    assert "prior" not in stage_data.open_test(config, tmp_path, dataset)[0]


def test_another_config_is_refused_before_anything_is_written(tmp_path, dataset):
    config = selfsup.get_config("tiny")
    workdir.claim(tmp_path, config)
    workdir.claim(tmp_path, config)  # its own may come again
    before = (tmp_path / "config.json").read_bytes()
    config.segment.optim.momentum = 0.5
    with pytest.raises(ValueError, match=r"segment.optim.momentum = 0.9 \(now 0.5\)"):
        train.run(config, workdir=tmp_path, dataset=dataset, name="x", command="x")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_starts_from_imported_weights(tmp_path, dataset):
    def imported(folder, value):
        folder.mkdir()
        save_file({"params/w": np.asarray(value, np.float32)}, folder / "variables.safetensors")
        (folder / "report.json").write_text("{}")
        return str(folder)

    config = supervised.get_config("tiny")
    config.weights = imported(tmp_path / "good", 5.0)
    state = train._start(toy(), "segment", config, tmp_path, tmp_path / "segment", 0)
    assert float(state.net.params["w"]) == 5.0
    listing = json.loads((tmp_path / "segment" / "transfer.json").read_text())
    assert listing["loaded"] == ["params/w"] and listing["from"] == config.weights
    config.weights = imported(tmp_path / "wide", [5.0, 6.0])
    with pytest.raises(ValueError, match=r"wide.*no leaf to load; shapes differ at params/w"):
        train._start(toy(), "segment", config, tmp_path, tmp_path / "segment", 0)
    config.weights = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        train.run(config, workdir=tmp_path / "run", dataset=dataset, name="x", command="x")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["pretrain", "segment", "evaluate"])
def test_each_stages_batch_is_checked_before_the_first_stage(tmp_path, stage, dataset):
    config = selfsup.get_config("tiny")
    config[stage].batch_size = 12
    with pytest.raises(ValueError, match="12 does not divide over 8 devices: use 8 or 16"):
        train.run(config, workdir=tmp_path / "w", dataset=dataset, name="x", command="x")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("stages", [("pretran",), ("pretrain", "segment"), ("data",)])
def test_a_stage_that_the_config_does_not_have(tmp_path, stages, dataset):
    config = supervised.get_config("tiny")
    config.stages = stages
    with pytest.raises(ValueError, match=f"stages: '{stages[0]}' is none"):
        train.run(config, workdir=tmp_path / "w", dataset=dataset, name="x", command="x")


def small(preset="tiny"):
    """What these tests and those of main.py and of devices share, so that it compiles once."""
    c = selfsup.get_config(preset)
    c.pretrain.size = c.segment.size = 32
    c.pretrain.rounds.epochs, c.pretrain.eval_every = 5, 6
    c.segment.steps, c.segment.eval_every = 30, 6
    return c


def statistics_of(dataset):
    """Those of a real run: they are constants of the compiled step, which is kept."""
    return data.statistics(data.open_split(dataset, "train"))


def batch_of(config, stage, dataset, index=0):
    section = config[stage]
    sources = [data.open_split(dataset, split) for split in section.splits]
    return data.Batches(sources, batch_size=section.batch_size, size=section.size, seed=0)[index]


def compiled(task, mesh):
    """The steps as the training loop compiles them."""
    whole = mesh_lib.replicated(mesh)
    return {
        name: jax.jit(fn, donate_argnums=0, out_shardings=(whole, whole))
        for name, fn in task.steps.items()
    }


def begin(task, mesh):
    return mesh_lib.replicate(task.start(loop.init_variables(task, seed=0)), mesh)


def changed(before, after):
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return [a.tobytes() != np.asarray(b).tobytes() for a, b in pairs]


@pytest.mark.slow
def test_each_player_moves_alone(dataset):
    config, mesh = small(), mesh_lib.make_mesh(jax.devices()[:1])
    task = tasks.make("pretrain", config, statistics_of(dataset), 5)
    steps, state = compiled(task, mesh), begin(task, mesh)
    batch = mesh_lib.shard_batch(batch_of(config, "pretrain", dataset), mesh)
    for mover, still in (("coach", "net"), ("net", "coach")):
        for turn in range(2):  # the first update of the net has learning rate 0: it warms up
            before = jax.device_get(state)
            state, _ = steps[mover](state, batch, jax.random.key(turn))
            assert not any(changed(getattr(before, still), getattr(state, still)))
        moved = changed(getattr(before, mover).params, getattr(state, mover).params)
        assert sum(moved) > 0.5 * len(moved)  # segmentation heads of the net have no gradient
        assert (
            all(changed(getattr(before, mover).batch_stats, getattr(state, mover).batch_stats))
            or mover == "net"
        )
    assert int(state.step) == 4

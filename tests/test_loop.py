"""The loop with a toy task: faults, resuming, early stopping."""

import os
import signal
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from configs import supervised
from infnet_jax.data import Batches, Subset
from infnet_jax.data.sources import open_split
from infnet_jax.runs import mesh as meshes
from infnet_jax.runs.checkpoint import load_parameters
from infnet_jax.runs.logs import load_rows
from infnet_jax.training import loop
from tests.toy import Crash, crash_at, make_toy


@pytest.fixture
def play(phantom):
    """play(folder, patience, **toy) trains the toy on ten slices; two are held out."""

    def run(folder, patience=0, **kwargs):
        source = open_split(phantom, "train")
        section = supervised.get_config("tiny").segment
        section.update(size=32, eval_every=4, patience=patience)
        batches = Batches([Subset(source, range(8))], batch_size=8, size=32, seed=0)
        task = make_toy(**kwargs)
        fresh = lambda: task.start(loop.init_variables(task, 0))  # noqa: E731
        rest = dict(directory=folder, name="segment", seed=0, mesh=meshes.make_mesh(), fresh=fresh)
        return loop.fit(task, section, batches, Subset(source, (8, 9)), **rest)

    return run


def weight(folder, part="latest"):
    tree = load_parameters(folder / "checkpoints", part=part)
    return int(tree["step"]), np.asarray(tree["net"]["params"]["w"]).tobytes()


def left(folder):
    """What a training leaves: its last step and weight, and its rows."""
    return *weight(folder), load_rows(folder / "metrics.jsonl")


@pytest.mark.slow
def test_a_crash_at_any_step_changes_nothing(play, tmp_path):
    assert play(tmp_path / "whole")["steps"] == 12
    *_, rows = left(tmp_path / "whole")
    assert [row["step"] for row in rows if "loss" in row] == list(range(12))
    assert [row["step"] for row in rows if "dice" in row] == [4, 8, 12]
    for step in (1, 4, 6, 8, 11):  # before the first checkpoint, right after one, between
        with pytest.raises(Crash):
            play(tmp_path / "cut", hook=crash_at(step))
    play(tmp_path / "cut")
    assert left(tmp_path / "cut") == left(tmp_path / "whole")
    assert play(tmp_path / "cut")["steps"] == 0  # cut after its last checkpoint: nothing to repeat
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


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
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_the_training(play, tmp_path):
    # |w - pull| grows by 2e5 - 1 a step; the square leaves float32 at the fourth loss.
    with pytest.raises(FloatingPointError, match=r"segment: loss not finite at step 4 \(phase toy"):
        play(tmp_path, lr=1e5)
    step, kept, rows = left(tmp_path)
    assert step == 4 and np.isfinite(np.frombuffer(kept, np.float32)).all()
    assert [row["step"] for row in rows if "loss" in row] == [0, 1, 2, 3]


@pytest.mark.parametrize(("start", "right"), [(0, [0, 0, 0, 1, 1, 1, 2]), (4, [1, 1, 2])])
def test_each_step_gets_the_batch_of_its_index(start, right):
    class Numbers:
        def iterate(self, index):
            return ({"x": np.full(8, i)} for i in count(index))

    job = SimpleNamespace(task=make_toy(total=7), batches=Numbers(), mesh=meshes.make_mesh())
    assert [int(batch["x"][0]) for batch in loop._stream(job, start)] == right


@pytest.mark.slow
def test_early_stopping_counts_evaluations_without_a_better_one(play, tmp_path):
    dice = {4: 0.5, 8: 0.7, 12: 0.7, 16: 0.6, 20: 0.9}  # an equal one is not better
    options, whole, cut = (
        dict(patience=2, total=24, dice=dice),
        tmp_path / "whole",
        tmp_path / "cut",
    )
    play(whole, **options)
    before = left(whole)
    assert before[0] == 16 and weight(whole, "best")[0] in (8, 12)
    play(whole, **options)  # cut after its last checkpoint, it must stop at the same step again
    assert left(whole) == before
    with pytest.raises(Crash):
        play(cut, **options, hook=crash_at(13))
    play(cut, **options)
    assert left(cut) == before
    play(tmp_path / "never", **{**options, "patience": 0})
    assert weight(tmp_path / "never")[0] == 24

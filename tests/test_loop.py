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

TOTAL = 12


@pytest.fixture
def play(phantom):
    """play(folder, patience, **toy) trains the toy on ten slices; two are held out."""

    def run(folder, patience=0, **kwargs):
        source = open_split(phantom, "train")
        section = supervised.get_config("tiny").segment
        section.update(size=32, eval_every=4, patience=patience)
        batches = Batches([Subset(source, range(8))], batch_size=8, size=32, seed=0)
        task = make_toy(total=kwargs.pop("total", TOTAL), **kwargs)
        return loop.fit(
            task,
            section,
            batches,
            Subset(source, (8, 9)),
            directory=folder,
            name="segment",
            fresh=lambda: task.start(loop.init_variables(task, 0)),
            seed=0,
            mesh=meshes.make_mesh(),
        )

    return run


def weight(folder, part="latest"):
    tree = load_parameters(folder / "checkpoints", part=part)
    return int(tree["step"]), np.asarray(tree["net"]["params"]["w"]).tobytes()


def rows_of(folder):
    return load_rows(folder / "metrics.jsonl")


def test_a_crash_at_any_step_changes_nothing(play, tmp_path):
    assert play(tmp_path / "whole")["steps"] == TOTAL
    rows = rows_of(tmp_path / "whole")
    assert [row["step"] for row in rows if "loss" in row] == list(range(TOTAL))
    assert [row["step"] for row in rows if "dice" in row] == [4, 8, 12]
    for step in (1, 4, 6, 8, 11):  # before the first checkpoint, right after one, between
        with pytest.raises(Crash):
            play(tmp_path / "cut", hook=crash_at(step))
    play(tmp_path / "cut")
    assert weight(tmp_path / "cut") == weight(tmp_path / "whole")
    assert rows_of(tmp_path / "cut") == rows


def test_a_network_cut_after_its_last_checkpoint_repeats_nothing(play, tmp_path):
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


def test_a_loss_that_is_not_finite_stops_the_training(play, tmp_path):
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

    job = SimpleNamespace(task=make_toy(total=7), batches=Numbers(), mesh=meshes.make_mesh())
    assert [int(batch["x"][0]) for batch in loop._stream(job, start)] == right


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

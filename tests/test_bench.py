"""The benchmark really takes the steps that it counts."""

import re

import jax
import numpy as np
import optax
import pytest

from infnet_jax import cli
from infnet_jax.tasks.state import Task, make_player, make_state
from infnet_jax.verbs import bench


@pytest.mark.slow
def test_the_three_steps_of_a_real_network_keep_the_state_s_shapes():
    seen, picture = [], jax.ShapeDtypeStruct((2, 64, 64, 1), np.uint8)
    batch = {"image": picture, "mask": picture}
    for task in bench.make_tasks("resnet18", 64):
        state = jax.eval_shape(lambda k, t=task: t.start(t.variables(k)), jax.random.key(0))
        for phase, step in task.steps.items():
            after, _ = jax.eval_shape(step, state, batch, jax.random.key(0))
            same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), after, state)
            assert jax.tree.all(same)
            seen.append(phase)
    assert seen == ["size64", "coach", "net"]


def test_a_step_carries_its_state_on():
    def add(state, batch, key):
        shown = batch["mask"].sum() / batch["image"].size
        return state.replace(step=state.step + 1), {"lesion": shown}

    tx = optax.sgd(0.1)
    net = {"params": {"w": np.zeros(1, np.float32)}, "batch_stats": {}}
    start = lambda trees: make_state(make_player(trees["net"], tx, False), None, "max")  # noqa: E731
    task = Task(lambda key: {"net": net}, start, {"add": add}, *[None] * 7)
    step, state, compile_seconds = bench.compile_step(task, "add", batch=3, size=8)
    assert compile_seconds > 0 and int(step(step(state)).step) == 2


def test_the_verb_prints_a_line_a_step(monkeypatch, capsys):
    row, seen = ("segment", 2.0, 7.0), []
    monkeypatch.setattr(bench, "measure", lambda *words: seen.append(words) or iter([row]))
    assert cli.main(["bench", "--backbone", "resnet18", "--batch", "3", "--size", "64"]) == 0
    assert seen == [("resnet18", 3, 64, 5)]
    said = capsys.readouterr().out.splitlines()
    assert "resnet18, batch 3, 64 x 64" in said[0]
    assert re.search(r"segment +2\.000 steps/s +6\.00 images/s +compiled in 7\.0 s", said[1])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--backbone", "resnet34"], "resnet34"),
        (["--size", "50"], "divisible by 32, got 50 x 50"),
        (["--steps", "0"], "at least 1, got 4 and 0"),
    ],
)
def test_a_wrong_setting_is_one_line(words, named, capsys):
    assert cli.main(["bench", *words]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error

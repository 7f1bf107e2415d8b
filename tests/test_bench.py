"""The benchmark really takes the steps that it counts."""

import re

import numpy as np
import pytest

from infnet_jax import bench, cli


@pytest.mark.slow
def test_rows_name_the_three_steps_and_count_their_updates():
    rows = list(bench.run("resnet18", 1, 64, 2))
    assert [row.name for row in rows] == ["segment", "pretrain coach", "pretrain net"]
    assert [row.updates for row in rows] == [3, 3, 3]  # one that does not count, then two
    assert all(row.rate > 0 and row.compile_seconds > 0 for row in rows)


def test_the_rate_is_steps_over_their_time(monkeypatch):
    class FakeStep:
        compile_seconds = 7.0

        def __init__(self, task, phase, batch, size):
            self.state, self.calls = type("State", (), {"step": np.int32(9)}), 0

        def __call__(self):
            self.calls += 1
            return 100.0 if self.calls == 1 else 0.5  # the first one must not count

    monkeypatch.setattr(bench, "Step", FakeStep)
    rows = list(bench.run("resnet18", 1, 64, 4))
    assert rows[0] == ("segment", 2.0, 7.0, 9)
    assert [row.name for row in rows[1:]] == ["pretrain coach", "pretrain net"]


def test_the_verb_prints_a_line_a_step(monkeypatch, capsys):
    row = bench.Row("segment", 2.0, 7.0, 9)
    seen = []
    monkeypatch.setattr(bench, "run", lambda *words: seen.append(words) or iter([row]))
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

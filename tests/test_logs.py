"""Rows survive resume without doubles, speed leaves compilation out, terminals get one line."""

import io
import os
import struct
import sys

import numpy as np
import pytest

from infnet_jax.runs import logs


@pytest.fixture
def tick_clock(monkeypatch):
    """A clock that only moves when told to."""
    now = [100.0]
    monkeypatch.setattr(logs.time, "perf_counter", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def _open(directory, total_steps=10, **kwargs):
    return logs.RunLog(directory, name="segment", total_steps=total_steps, batch_size=4, **kwargs)


def _events(directory):
    """The TensorBoard events, read without TensorFlow: length, crc, bytes, crc."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((directory / "tensorboard").iterdir()):
        blob, at = path.read_bytes(), 0
        while at < len(blob):
            (size,) = struct.unpack_from("<Q", blob, at)
            yield Event.FromString(blob[at + 12 : at + 12 + size])
            at += size + 16


def test_rows_hold_stage_step_and_numbers_and_stay_json(tmp_path):
    with _open(tmp_path) as log:
        log.scalars(1, {"loss": np.float32(0.5), "dice": float("nan")})
        lines = log.metrics_path.read_text().splitlines()  # readable while the run goes on
    assert lines == ['{"stage": "segment", "step": 1, "loss": 0.5, "dice": null}']


def test_resume_drops_the_rows_that_come_again(tmp_path):
    with _open(tmp_path) as log:
        for step in range(6):
            log.scalars(step, {"loss": step})
    with _open(tmp_path, start_step=3) as log:
        log.scalars(3, {"loss": 30})
    rows = logs.load_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    starts = [e.step for e in _events(tmp_path) if e.HasField("session_log")]
    assert starts[-1] == 3  # TensorBoard hides what the first run wrote from here on


def test_a_fresh_start_forgets_the_old_run(tmp_path):
    old = tmp_path / "tensorboard/events.out.tfevents.1.old"
    for loss in (1, 2):
        with _open(tmp_path) as log:
            log.scalars(0, {"loss": loss})
        assert [row["loss"] for row in logs.load_rows(log.metrics_path)] == [loss]
        assert not old.exists()
        old.touch()


def test_a_torn_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert logs.load_rows(path) == []
    path.write_text('{"stage": "segment", "step": 1, "loss": 1.0}\n{"stage": "segment", "st')
    with _open(tmp_path, start_step=2) as log:
        log.scalars(2, {"loss": 2.0})
    assert [row["step"] for row in logs.load_rows(path)] == [1, 2]
    assert len(path.read_text().splitlines()) == 2


def test_speed_leaves_out_first_steps_and_pauses(tmp_path, tick_clock):
    ticks = [("net", 30.0), ("net", 0.5), ("coach", 20.0), ("coach", 0.5), ("net", 0.5)]
    with _open(tmp_path) as log:
        for step, (phase, seconds) in enumerate(ticks, start=1):
            tick_clock(seconds)
            log.tick(step, phase)
            with log.paused():
                tick_clock(7.0)
        timing = log.timing()
    speed = {"steps_per_second": 2.0, "images_per_second": 8.0, "compile_seconds": 50.0}
    total = 30 + 20 + 1.5 + 5 * 7
    assert timing == {"name": "segment", "seconds": total, "steps": 5, **speed}


def test_a_terminal_gets_one_line_at_most_five_times_a_second(tmp_path, tick_clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := io.StringIO())
    terminal.isatty = lambda: True
    monkeypatch.setattr(logs.shutil, "get_terminal_size", lambda: os.terminal_size((200, 24)))
    log = _open(tmp_path, total_steps=100)
    opening = len(terminal.getvalue())
    log.scalars(0, {"loss": 0.25})
    for step in range(1, 21):
        tick_clock(0.125)
        log.tick(step, "net")
    drawn = terminal.getvalue()[opening:].split("\r")[1:]
    assert "\n" not in "".join(drawn) and len(drawn) == 10
    assert drawn[-1] == "segment 19/100 19%  8 steps/s 32 images/s  ETA 0:10  loss 0.25\x1b[K"
    log.close()


def test_a_pipe_gets_an_opening_and_a_closing_line_and_one_a_minute(tmp_path, tick_clock, capsys):
    with _open(tmp_path, total_steps=100, start_step=2) as log:
        log.scalars(2, {"loss": 0.25})
        for step in range(3, 33):
            tick_clock(5)
            log.tick(step, "net")
    log.close()  # a second time
    opening, *lines, closing = capsys.readouterr().err.splitlines()
    assert opening == "segment: from step 2 of 100 steps, batch 4"
    assert lines == [
        "segment 14/100 14%  0.2 steps/s 0.8 images/s  ETA 7:10  loss 0.25",
        "segment 26/100 26%  0.2 steps/s 0.8 images/s  ETA 6:10  loss 0.25",
    ]
    assert closing.startswith("segment: stopped at step 32, 30 steps in ")


def test_an_inactive_log_writes_nothing(tmp_path, capsys):
    with _open(tmp_path / "stage", active=False) as log:
        log.scalars(1, {"loss": 1.0})
        log.image("slice", np.zeros((2, 2, 3), np.uint8), 1)
        log.tick(1)
    assert not (tmp_path / "stage").exists()
    assert capsys.readouterr().err == ""


def test_images_reach_tensorboard_and_wrong_ones_are_named(tmp_path):
    with _open(tmp_path) as log:
        log.image("overlay", np.zeros((5, 7, 3), np.uint8), 4)
        for wrong in (np.zeros((5, 7), np.uint8), np.zeros((5, 7, 3), np.float32)):
            with pytest.raises(ValueError, match="overlay: want"):
                log.image("overlay", wrong, 4)
    ((step, picture),) = [(e.step, v) for e in _events(tmp_path) for v in e.summary.value]
    assert (step, picture.tag) == (4, "segment/overlay")
    assert (picture.image.height, picture.image.width) == (5, 7)


def test_a_start_beyond_the_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"start_step 11 is not in 0\.\.10"):
        _open(tmp_path, start_step=11)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (59.6, "1:00"), (3723, "1:02:03")]
)
def test_clock(seconds, text):
    assert logs.clock(seconds) == text

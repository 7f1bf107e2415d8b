"""The front door: whole runs that are killed, damaged and repeated, and what a wrong call says."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import selfsup
from infnet_jax.runs.checkpoint import load_parameters
from infnet_jax.runs.logs import load_rows

ROOT = Path(__file__).parents[1]
STAGES = ("pretrain", "segment")
# A smaller network than that of `tiny`, and longer: seconds once compiled, with room for a kill in
# every stage.
SMALL = [
    "--config=configs/selfsup.py:tiny",
    "--config.model.decoder=unet",
    "--config.model.trunk=plain",
    "--config.pretrain.size=32",
    "--config.segment.size=32",
    "--config.pretrain.rounds.epochs=5",
    "--config.pretrain.eval_every=6",
    "--config.segment.steps=30",
    "--config.segment.eval_every=6",
    "--config.data.pretrain=phantom/tiny:unlabeled + 2 * phantom/tiny",
]


def start(args, devices=1):
    """`python main.py ...` in a process of its own."""
    count = f"--xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": f"--xla_backend_optimization_level=0 {count}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "main.py", *args], cwd=ROOT, env=env, **pipes)


def finish(process):
    """(exit code, stdout, stderr)"""
    try:
        out, err = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def contents(*folders):
    """The bytes of each file, and when it was written."""
    files = [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def rows(workdir, stage):
    return load_rows(workdir / stage / "metrics.jsonl")


def result(workdir):
    """All that must not differ between runs."""
    trees = [load_parameters(workdir / stage / "checkpoints", "latest") for stage in STAGES]
    files = ("evaluation.json", "evaluation.csv", "table.txt", "pretrain/mix.json")
    return (
        [rows(workdir, stage) for stage in STAGES],
        [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trees)],
        [(workdir / name).read_bytes() for name in files],
    )


@pytest.fixture(scope="module")
def small(phantom):
    """small(workdir): the arguments of a small run."""
    data = f"--config.data.data_dir={phantom.parents[2]}"
    return lambda workdir: [*SMALL, data, f"--workdir={workdir}"]


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """The workdir of a run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    code, out, err = finish(start(small(workdir)))
    assert code == 0, err
    assert out.splitlines()[-1] == f"summary: {workdir / 'summary.md'}"
    assert (workdir / "summary.md").read_text().startswith("# selfsup:tiny\n")
    assert "slices, without 6 that are near-copies" in (workdir / "summary.md").read_text()
    for stage, n_steps in zip(STAGES, (23, 30), strict=True):
        trained = [r["step"] for r in rows(workdir, stage) if {"loss", "coach_loss"} & {*r}]
        assert trained == list(range(n_steps))
    return workdir


def stop_at(args, workdir, stage, n_rows, sign, pause):
    """Sends a signal once a stage has written so many rows; returns what `finish` does."""
    process = start(args)
    path = workdir / stage / "metrics.jsonl"
    end = time.monotonic() + 400
    while process.poll() is None and time.monotonic() < end:
        if path.exists() and path.read_bytes().count(b"\n") >= n_rows:
            break
        time.sleep(0.01)
    time.sleep(pause)
    process.send_signal(sign)
    return finish(process)


@pytest.mark.slow
def test_three_kills_and_a_sigterm_leave_the_result_bit_identical(whole, small, tmp_path):
    seed = random.randrange(1000)
    print("moments drawn with seed", seed)  # shown where the test fails
    draw = random.Random(seed)
    workdir = tmp_path / "run"
    args = small(workdir)
    for stage, n_rows in (
        ("pretrain", draw.randrange(1, 6)),  # before its first checkpoint
        ("pretrain", draw.randrange(8, 18)),
        ("segment", draw.randrange(1, 24)),
    ):
        code, _, err = stop_at(args, workdir, stage, n_rows, signal.SIGKILL, draw.random() / 4)
        assert code == -signal.SIGKILL, err
    done = len(rows(workdir, "segment"))
    code, _, err = stop_at(args, workdir, "segment", min(done + 1, 26), signal.SIGTERM, 0)
    assert code == 1 and "Traceback" not in err
    assert err.splitlines()[-1] == "segment: stopped on request; the same command resumes it"
    code, _, err = finish(start(args))
    assert code == 0 and "pretrain:" not in err, err  # it had finished
    assert "segment: from step" in err
    assert result(workdir) == result(whole)


@pytest.mark.slow
def test_a_flipped_byte_costs_one_interval_and_nothing_else(whole, small, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "evaluate")
    (workdir / "segment" / "done.json").unlink()
    newest = workdir / "segment" / "checkpoints" / "30"
    files = (p for p in (newest / "state").rglob("*") if p.is_file() and "/d/" in str(p))
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    code, _, err = finish(start(small(workdir)))
    assert code == 0 and str(newest) in err and "segment: from step 24 of 30" in err, err
    assert (newest.parent / "damaged-30").is_dir()
    assert result(workdir) == result(whole)


@pytest.mark.slow
def test_finished_stages_are_not_run_again(whole, small):
    folders = [whole / stage for stage in (*STAGES, "evaluate")]
    before = contents(*folders)
    code, out, err = finish(start(small(whole)))
    assert code == 0 and out.splitlines()[-1] == f"summary: {whole / 'summary.md'}"
    assert contents(*folders) == before
    assert sum(path.name == "done.json" for path in before) == 3
    assert not any(line.startswith(STAGES) for line in err.splitlines()), err


SELFSUP = "--config=configs/selfsup.py"
WRONG = {  # arguments -> what the one line must name
    "": "--config is missing",
    "--config=configs/selfsupp.py": "configs/selfsupp.py",
    f"{SELFSUP}:huge": "'huge'",
    f"{SELFSUP} --config.segment.stepz=3": "segment.stepz",
    f"{SELFSUP} --config.segment.steps=many": "many",
    f"{SELFSUP} steps=3": "'steps=3'",
    f"--config.seed=5 {SELFSUP} steps=3": "'steps=3'",
    "--config.seed=5": "--config is missing",
}


@pytest.mark.parametrize("args", WRONG)
def test_a_wrong_call_is_one_line(args, tmp_path):
    code, out, err = finish(start([*args.split(), f"--workdir={tmp_path / 'run'}"]))
    assert code == 2 and not out and WRONG[args] in err, err
    assert len(err.splitlines()) == 1 and err.startswith("main.py: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        "--config=F --config.seed=5 --workdir=W",
        "--workdir=W --config=F --config.seed=5",
        "--config.seed=5 --workdir W --config F",
        "--config.seed=5 -config=F --workdir W",
    ],
)
def test_the_order_of_flags_does_not_matter(words):
    code = "import main as m, sys; m._parse(sys.argv); "
    code += "print(m._CONFIG.value.seed, m._WORKDIR.value, m._name())"
    words = words.replace("F", "configs/supervised.py:tiny").split()
    command = [sys.executable, "-c", code, *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split() == ["5", "W", "supervised:tiny"], run.stderr


@pytest.mark.slow
def test_what_only_a_started_run_can_see_is_one_line_too(tmp_path, small):
    """Missing source files, a batch for eight devices, a workdir of another config."""
    used, fresh = tmp_path / "used", tmp_path / "fresh"
    used.mkdir()
    other = selfsup.get_config("tiny")
    other.seed = 5
    (used / "config.json").write_text(json.dumps(json.loads(other.to_json())))
    (used / "precious.txt").write_text("weights")
    before = contents(used)
    data = [f"--config.data.data_dir={tmp_path / 'tfds'}", f"--workdir={fresh}"]
    runs = [  # all at once
        (start([f"{SELFSUP}:semiseg", *data]), ("covid_semiseg", "manual_dir")),
        (start([*small(fresh), "--config.segment.batch_size=12"], 8), ("size = 12", "8 or 16")),
        (start(small(used)), (str(used), "belongs to another config", "and more")),
    ]
    for process, words in runs:
        code, out, err = finish(process)
        assert code == 1 and not out, (out, err)
        assert len(err.splitlines()) == 1 and all(word in err for word in words), err
    assert not fresh.exists() and contents(used) == before

"""Wrong calls get one clear line and exit 2; right ones reach their verb."""

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import infnet_jax
from infnet_jax import cli, weights

FOLDERS = ["--predictions", ".", "--truth", "."]


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.endswith("\n"), err
    return err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["evalaute"], "did you mean evaluate?"),
        (["xyz"], "evaluate, parity, import-torch"),
        ([], "VERB"),
        (["parity"], "DIR"),
        (["parity", "no/such/folder"], "no/such/folder does not exist"),
        (["import-torch", "no.pth", "out"], "no.pth does not exist"),
        (["evaluate", "--predictions", ".", "--truth", "gone"], "gone does not exist"),
        (["evaluate", *FOLDERS, "--label", "cyst"], "consolidation"),
        (["evaluate", *FOLDERS, "--cvs", "x"], "--cvs"),
        (["evaluate", *FOLDERS, "--config.a=1"], "--config.a=1"),
        (["study", "--config=a.py", "--confg.a=1"], "--confg.a=1"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(words, named, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert named in one_line(capsys)


@pytest.mark.parametrize("words", [["--version"], ["--help"], *([v, "--help"] for v in cli.VERBS)])
def test_version_and_help_exit_0(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    said = capsys.readouterr().out
    assert caught.value.code == 0
    assert (infnet_jax.__version__ if words == ["--version"] else "usage: infnet-jax") in said


def test_a_study_takes_values_of_its_config():
    options = cli.parse(["study", "--config=a.py:b", "--config.x=1", "--workdir", "w"])
    assert (options.verb, options.config, options.workdir) == ("study", "a.py:b", Path("w"))
    assert options.overrides == ["--config.x=1"]


@pytest.fixture
def verb(monkeypatch):
    """Adds a verb `act` that runs a function; what a new verb needs is this file and this line."""

    def add(run):
        module = SimpleNamespace(run=run, add_arguments=lambda parser: parser.add_argument("word"))
        monkeypatch.setitem(sys.modules, "infnet_jax.verbs.act", module)
        monkeypatch.setitem(cli.VERBS, "act", "do something")

    return add


def fail(error):
    def run(options):
        raise error

    return run


def test_the_exit_code_is_the_verb_s(verb):
    verb(lambda options: len(options.word))
    assert cli.main(["act", "seven77"]) == 7


@pytest.mark.parametrize("error", [ValueError("mask 7.png:\n  2 x 2"), FileNotFoundError("7.png")])
def test_a_failing_verb_is_one_line_and_exit_1(error, verb, capsys):
    verb(fail(error))
    assert cli.main(["act", "x"]) == 1
    line = one_line(capsys)
    assert line.startswith("infnet-jax act: ") and "7.png" in line


def test_a_bug_in_a_verb_keeps_its_traceback(verb):
    verb(fail(TypeError("a bug")))
    with pytest.raises(TypeError):
        cli.main(["act", "x"])


def test_import_torch_tells_what_was_not_used(monkeypatch, tmp_path, capsys):
    report = {"network": "coach", "matched": {"a": "b"}, "unused": {"fc.bias": "no classifier"}}
    monkeypatch.setattr(weights, "import_torch", lambda file, out: report)
    (tmp_path / "a.pth").touch()
    assert cli.main(["import-torch", str(tmp_path / "a.pth"), "out"]) == 0
    said = capsys.readouterr().out
    assert "out: coach, 1 tensors converted" in said and "fc.bias (no classifier)" in said


def test_the_device_is_set_before_jax_is_imported(tmp_path):
    folder = str(tmp_path)
    words = ["predict", folder, "--checkpoint", folder, "--out", "o", "--device", "gpu"]
    code = f"""if True:
        import os, sys
        from infnet_jax import cli
        cli.parse({words})
        print("jax" in sys.modules, cli.main({words}), os.environ["JAX_PLATFORMS"])
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["False", "1", "cuda"], run.stderr
    assert "no picture, NIfTI, DICOM, NRRD, MHA or TIFF file in it" in run.stderr


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    words = ["evaluate"]
    for name in ("predictions", "truth"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / name / "a.png")
        words += [f"--{name}", str(tmp_path / name)]
    read, write = os.pipe()
    os.close(read)
    code = f"import sys; from infnet_jax import cli; sys.exit(cli.main({words}))"
    run = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=-1, text=True)
    os.close(write)
    assert (run.returncode, run.stderr) == (1, "")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_option_says_what_it_is(verb):
    parser = argparse.ArgumentParser()
    module = importlib.import_module(f"infnet_jax.verbs.{verb.replace('-', '_')}")
    module.add_arguments(parser)
    silent = [action.dest for action in parser._actions if not action.help]
    assert not silent

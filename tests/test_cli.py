"""Wrong calls get one clear line and exit 2; right ones reach their function."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import infnet_jax
from infnet_jax import cli


def _one_line(capsys) -> str:
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
        (["evaluate", "--predictions", ".", "--truth", ".", "--label", "cyst"], "consolidation"),
        (["evaluate", "--predictions", ".", "--truth", ".", "--cvs", "x"], "--cvs"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(words, named, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert named in _one_line(capsys)


def test_version_and_help_exit_0(capsys):
    for words in (["--version"], ["--help"], ["evaluate", "--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 0
    assert infnet_jax.__version__ in capsys.readouterr().out


@pytest.fixture
def calls(monkeypatch):
    """Replaces the functions behind the verbs by ones that note their arguments."""
    seen = []

    def note(result):
        def call(*args, **kwargs):
            seen.append((args, kwargs))
            return result

        return call

    report = {"network": "coach", "matched": {"a": "b"}, "unused": {"fc.bias": "no classifier"}}
    for module, function, result in (
        ("evaluation", "run", 0),
        ("parity", "report", 1),
        ("convert", "import_torch", report),
    ):
        fake = SimpleNamespace(**{function: note(result)})
        monkeypatch.setattr(infnet_jax, module, fake, raising=False)
    return seen


def test_verbs_reach_their_functions(calls, tmp_path, capsys):
    d, file = str(tmp_path), tmp_path / "a.pth"
    file.touch()
    assert cli.main(["evaluate", "--predictions", d, "--truth", d, "--csv", "o.csv"]) == 0
    assert cli.main(["evaluate", "--predictions", d, "--truth", d, "--label", "ggo"]) == 0
    assert cli.main(["parity", d]) == 1  # what the verb returns
    assert cli.main(["import-torch", str(file), "out"]) == 0
    assert calls == [
        ((tmp_path, tmp_path), {"csv": Path("o.csv"), "label": None}),
        ((tmp_path, tmp_path), {"csv": None, "label": "ggo"}),
        ((tmp_path,), {}),
        ((file, Path("out")), {}),
    ]
    said = capsys.readouterr().out
    assert "coach, 1 tensors converted" in said and "fc.bias (no classifier)" in said


def test_the_functions_behind_the_verbs_take_these_arguments():
    from infnet_jax.verbs import evaluate as evaluation, parity
    from infnet_jax.weights import convert

    inspect.signature(evaluation.run).bind("p", "t", csv=None, label=None)
    inspect.signature(parity.report).bind("d")
    inspect.signature(convert.import_torch).bind("f", "o")


@pytest.mark.parametrize("error", [ValueError("mask 7.png:\n  2 x 2"), FileNotFoundError("7.png")])
def test_a_failing_verb_is_one_line_and_exit_1(error, monkeypatch, tmp_path, capsys):
    def fail(directory):
        raise error

    monkeypatch.setattr(infnet_jax, "parity", SimpleNamespace(report=fail), raising=False)
    assert cli.main(["parity", str(tmp_path)]) == 1
    line = _one_line(capsys)
    assert line.startswith("infnet-jax parity: ") and "7.png" in line


def test_a_bug_in_a_verb_keeps_its_traceback(monkeypatch, tmp_path):
    def fail(directory):
        raise TypeError("a bug")

    monkeypatch.setattr(infnet_jax, "parity", SimpleNamespace(report=fail), raising=False)
    with pytest.raises(TypeError):
        cli.main(["parity", str(tmp_path)])


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    for name in ("predictions", "truth"):
        (tmp_path / name).mkdir()
        picture = np.full((8, 8), 255, np.uint8)
        Image.fromarray(picture).save(tmp_path / name / "a.png")
    read, write = os.pipe()
    os.close(read)
    call = f"sys.exit(cli.main(['evaluate', '--predictions', {str(tmp_path / 'predictions')!r}, "
    call += f"'--truth', {str(tmp_path / 'truth')!r}]))"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; from infnet_jax import cli; {call}"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert (run.returncode, run.stderr) == (1, "")

"""The house rules: import arrows run down only, the front door is light, no machine's paths."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_MODELS = {"conv", "ops", "models"}
_LOSSES = {"losses", "losses_multi"}
_TASKS = _MODELS | _LOSSES | {"augment", "metrics", "counts", "normalise", "optim", "state"}
_DISK = {"data", "mix", "checkpoint", "transfer", "mesh", "figures", "logs", "summary", "workdir"}
_FRONT = _TASKS | _DISK | {"tasks", "evaluation", "splits"}
# A room of infnet_jax -> the rooms it may import. A new room needs a row: say what it may know.
ARROWS: dict[str, set[str]] = {
    "__init__": set(),
    "conv": set(),
    "ops": set(),
    "normalise": set(),
    "soft_metrics": set(),
    "optim": set(),
    "state": set(),
    "sources": set(),
    "manifest": set(),
    "torch_names": set(),
    "torch_files": set(),
    "mesh": set(),
    "workdir": set(),
    "figures": set(),
    "logs": set(),
    "mix": set(),
    "data": {"mix", "sources"},
    "transfer": {"manifest"},
    "checkpoint": {"manifest"},
    "summary": {"logs"},
    "augment": {"ops"},
    "losses": {"ops"},
    "losses_multi": set(),
    "metrics": {"soft_metrics"},
    "compare": set(),
    "splits": {"data", "tasks"},
    "counts": {"metrics"},
    "models": _MODELS,
    "tasks": _TASKS | {"tasks"},
    "evaluation": {"metrics", "soft_metrics"},
    "convert": _MODELS | {"torch_names", "torch_files"},
    "parity": _MODELS | {"losses", "convert"},
    "networks": _FRONT,
    "export": {"networks", "tasks"},
    "thresholds": {"data", "metrics", "networks", "workdir"},
    "predict": _FRONT | {"imaging", "networks", "thresholds"},
    "run_figures": {
        "augment", "data", "figures", "logs", "lung_scores", "splits", "summary", "workdir",
    },
    "present": {"logs", "run_figures", "summary", "tasks"},
    "loop": _FRONT | {"present"},
    "lung_scores": {"data", "lung_network"},
    "crossfit": {"data", "lung_scores", "metrics", "networks", "splits", "tasks", "workdir"},
    "semi": _FRONT | {"loop", "networks"},
    "stage_data": _FRONT | {"crossfit", "mix", "semi"},
    "checks": {"crossfit", "semi", "tasks"},
    "train": _FRONT | {
        "checks", "convert", "crossfit", "loop", "networks", "predict", "present", "semi",
        "stage_data", "thresholds",
    },
    "study_figures": {"figures"},
    "study_cells": set(),
    "study_results": set(),
    "study_tables": {
        "compare", "evaluation", "study_figures", "study_results", "summary", "workdir",
    },
    "study": {
        "convert", "logs", "predict", "splits", "stage_data", "study_cells", "study_tables",
        "train", "workdir",
    },
    "bench": {"tasks", "loop", "models", "normalise", "optim", "state"},
    "severity": set(),
    "detection": set(),
    "sides": set(),
    "regions": {"sides"},
    "imaging": {"imaging"},
    "lungs": {"sides"},
    "lung_network": {"lungs", "sides"},
    "agreement": set(),
    "clinical": {"agreement", "detection"},
    "outlines": set(),
    "report": {"outlines", "severity"},
    "scoring": {"imaging", "lungs", "regions", "severity", "sides"},
    "inference": _FRONT | {"networks"},
    "scan_files": {
        "__init__", "find_lungs", "imaging", "inference", "logs", "report", "score_files",
        "scoring",
    },
    "screening": {
        "data", "detection", "evaluation", "find_lungs", "imaging", "inference", "scan_files",
    },
    "score_files": {"imaging", "report", "scoring", "severity"},
    "find_lungs": {"imaging", "inference", "lung_network", "lungs"},
    "truth": {"clinical", "data", "imaging", "score_files"},
    "study_page": {"agreement", "clinical", "figures", "summary"},
    "severity_rows": {
        "agreement", "find_lungs", "imaging", "scan_files", "scoring", "severity", "truth",
    },
    "severity_study": {
        "clinical", "evaluation", "find_lungs", "imaging", "inference", "scan_files",
        "score_files", "severity_rows", "study_page", "truth",
    },
    "cli": {
        "__init__", "evaluation", "export", "parity", "convert", "predict", "train", "bench",
        "score_files", "scan_files", "screening", "severity_study", "study",
    },
}
_MAIN = {"train", "predict", "mesh", "mix"}


def _sources(folder: str) -> list[Path]:
    """The Python files of a top-level folder, in order."""
    return sorted((ROOT / folder).rglob("*.py"))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of each import, those inside functions too."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def _room(name: str) -> str:
    """The room of infnet_jax that a dotted name is in; a name of the package itself: __init__."""
    word = (name.split(".") + ["__init__"])[1]
    folder = ROOT / "infnet_jax"
    return word if (folder / word).is_dir() or (folder / f"{word}.py").exists() else "__init__"


def _upward_arrows(path: Path, room: str) -> list[str]:
    """The imports of infnet_jax's rooms that this room may not have."""
    wrong = []
    for line, name in _imports(path):
        top = name.split(".")[0]
        inside = top == "infnet_jax" and _room(name) not in ARROWS[room]
        if inside or top in ("configs", "tfds_builders", "main", "tests"):
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return wrong


def test_arrows_inside_the_package_run_down():
    files = _sources("infnet_jax")
    rooms = [path.relative_to(ROOT / "infnet_jax").with_suffix("").parts[0] for path in files]
    unknown = sorted(set(rooms) - set(ARROWS))
    assert not unknown, f"rooms without a row in ARROWS: {unknown}"
    wrong = [a for path, room in zip(files, rooms, strict=True) for a in _upward_arrows(path, room)]
    assert not wrong, "\n".join(wrong)


def test_the_table_of_arrows_has_no_circle():
    def below(room: str, above: tuple[str, ...]) -> None:
        assert room not in above, f"circle: {' -> '.join([*above, room])}"
        for other in ARROWS[room] - {room}:
            below(other, (*above, room))

    for room in ARROWS:
        below(room, ())


def test_an_upward_arrow_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "infnet_jax" / "tasks").mkdir(parents=True)
    source = tmp_path / "infnet_jax" / "losses.py"
    source.write_text("def f():\n    from infnet_jax.tasks import segment\nfrom . import ops\n")
    (tmp_path / "infnet_jax" / "ops.py").touch()
    wrong = "infnet_jax/losses.py:2 imports infnet_jax.tasks.segment"
    assert _upward_arrows(source, "losses") == [wrong]


@pytest.mark.parametrize("folder", ["configs", "tfds_builders"])
def test_no_arrow_between_the_package_and(folder):
    for path in _sources(folder):
        for line, name in _imports(path):
            tops = {"infnet_jax", "configs", "tfds_builders", "main"} - {folder}
            assert name.split(".")[0] not in tops, f"{path.relative_to(ROOT)}:{line}: {name}"


def test_main_knows_only_the_front_rooms():
    for line, name in _imports(ROOT / "main.py"):
        if name.split(".")[0] == "infnet_jax":
            assert _room(name) in _MAIN, f"main.py:{line} imports {name}"


def test_only_the_front_rooms_compile():
    """Everything below can be run and tested as plain numpy-like code."""
    compiles = re.compile(r"\bjax\.jit\b|\bimport jit\b")
    files = [path for path in _sources("infnet_jax") if compiles.search(path.read_text())]
    known = {"loop", "networks", "predict", "inference", "parity", "bench"}
    assert {path.stem for path in files} <= known


def test_no_tensorflow_and_no_module_that_pulls_it_in():
    banned = re.compile(r"(tensorflow|clu\.(metric_writers|periodic_actions))(\.|$)")
    files = [
        ROOT / "main.py",
        *(p for f in ("infnet_jax", "configs", "tfds_builders") for p in _sources(f)),
    ]
    found = [f"{p.name}:{n} {name}" for p in files for n, name in _imports(p) if banned.match(name)]
    assert not found, found


def test_the_front_door_is_light():
    code = "import infnet_jax.cli, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = set(run.stdout.split())
    assert "infnet_jax.cli" in loaded, run.stderr
    heavy = {"jax", "flax", "numpy", "matplotlib", "cv2", "scipy", "tensorflow_datasets", "orbax"}
    assert not loaded & heavy


def test_no_source_names_a_folder_of_one_machine():
    path = re.compile(r"(?<![\w.$}])/(work|home|root|Users|mnt|scratch)/\w")
    kinds = {".py", ".md", ".toml", ".cfg", ".txt", ".json", ""}
    folders = ["infnet_jax", "tfds_builders", "configs", "tests", "docs", ".ci"]
    files = [p for p in ROOT.iterdir() if p.is_file() and p.name != ".git"]  # of a worktree
    files += [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    found = [
        f"{source.relative_to(ROOT)}:{number}"
        for source in files
        if source.suffix in kinds
        for number, line in enumerate(source.read_text(errors="ignore").splitlines(), start=1)
        if path.search(line)
    ]
    assert not found, found


@pytest.mark.parametrize("room", [
    "severity", "detection", "agreement", "clinical", "sides", "regions", "lungs", "imaging",
    "outlines", "report", "scoring", "score_files"])
def test_rooms_for_scans_know_nothing_of_jax(room):
    folder = ROOT / "infnet_jax"
    files = [folder / f"{room}.py"] if (folder / f"{room}.py").exists() else sorted(
        (folder / room).glob("*.py"))
    names = [name.split(".")[0] for path in files for _, name in _imports(path)]
    assert names and not set(names) & {"jax", "flax", "optax", "orbax"}

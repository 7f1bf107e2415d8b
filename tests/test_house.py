"""The house rules: arrows between rooms run down, every file has a visitor, the door is light."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infnet_jax import cli

ROOT = Path(__file__).parents[1]

# A room of infnet_jax -> the rooms it may import, from the bottom up. A new room needs a row.
ARROWS: dict[str, set[str]] = {
    "__init__": set(),
    "dice": set(),
    "files": set(),
    "models": set(),
    "plan": set(),
    "clinic": {"files"},
    "runs": {"files"},
    "weights": {"models"},
    "data": {"plan"},
    "config": {"data", "plan"},
    "tasks": {"dice", "models", "plan"},
    "evaluation": {"clinic", "data", "dice", "files", "models", "plan", "runs", "tasks"},
    "training": {
        *("data", "dice", "evaluation", "files", "models", "plan", "runs", "tasks", "weights")
    },
    "study": {
        *("config", "data", "evaluation", "files", "models", "plan", "runs", "tasks", "training"),
        "weights",
    },
    "verbs": {
        *("__init__", "clinic", "config", "data", "evaluation", "files", "models", "plan", "runs"),
        *("study", "tasks", "training", "weights"),
    },
    "cli": {"__init__"},  # it imports the file of the verb that was typed
}
ENTRY_POINTS = {"infnet_jax.cli"} | {
    f"infnet_jax.verbs.{verb.replace('-', '_')}" for verb in cli.VERBS
}
COMPILES = {"loop", "study", "predictor", "parity", "bench"}
READS_BUILDERS = {
    "infnet_jax/config.py",
    "infnet_jax/clinic/imaging/nifti.py",  # one decoder of files for builders and clinic
    "infnet_jax/clinic/imaging/pictures.py",
}


def sources(folder: str) -> list[Path]:
    """The Python files of a top-level folder, in order."""
    return sorted((ROOT / folder).rglob("*.py"))


@functools.cache
def imports(path: Path) -> list[tuple[int, str]]:
    """Line and full dotted name of each import, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[:-1]
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *filter(None, [node.module])])
            found += [(node.lineno, f"{prefix}.{alias.name}") for alias in node.names]
    return found


def room_of(path: Path) -> str:
    """The room that a file of infnet_jax is in: its folder, or itself at the top."""
    return path.relative_to(ROOT / "infnet_jax").with_suffix("").parts[0]


def room_named(name: str) -> str:
    """The room of a dotted name; a name of the package itself is `__init__`."""
    word = (name.split(".") + ["__init__"])[1]
    folder = ROOT / "infnet_jax"
    return word if (folder / word).is_dir() or (folder / f"{word}.py").exists() else "__init__"


def arrows() -> dict[tuple[str, str], str]:
    """(room, room it imports) -> one place where it does."""
    found = {}
    for path in sources("infnet_jax"):
        for line, name in imports(path):
            pair = room_of(path), room_named(name)
            if name.split(".")[0] == "infnet_jax" and pair[0] != pair[1]:
                found[pair] = f"{path.relative_to(ROOT)}:{line} imports {name}"
    return found


def modules() -> dict[str, set[str]]:
    """Each file of infnet_jax by its dotted name -> the other files of it that it imports."""
    names = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in sources("infnet_jax")
    }
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for _, target in imports(path):
            target = target if target in names else target.rpartition(".")[0]
            found[name] |= {target} & set(names) - {name}
    return found


def test_arrows_between_rooms_are_those_of_the_table():
    table = {(room, other) for room, others in ARROWS.items() for other in others}
    found = arrows()
    assert {room_of(path) for path in sources("infnet_jax")} == set(ARROWS)
    assert not (new := set(found) - table), "\n".join(found[pair] for pair in sorted(new))
    assert not (stale := table - set(found)), f"arrows that nobody uses: {sorted(stale)}"


def test_no_circle_and_at_most_seven_floors():
    floors: dict[str, int] = {}
    while len(floors) < len(ARROWS):
        ready = [r for r, below in ARROWS.items() if r not in floors and below <= set(floors)]
        assert ready, f"circle among {sorted(set(ARROWS) - set(floors))}"
        floors |= {r: 1 + max((floors[b] for b in ARROWS[r]), default=0) for r in ready}
    assert max(floors.values()) <= 7, floors


def test_files_of_a_room_import_each_other_without_a_circle():
    left = modules()
    while ready := [name for name, below in left.items() if not below & set(left)]:
        left = {name: below for name, below in left.items() if name not in ready}
    assert not left, f"circle among {sorted(left)}"


def test_every_file_has_a_visitor():
    found = modules()
    visited = ENTRY_POINTS | set().union(*found.values())
    main = {name for _, name in imports(ROOT / "main.py")}
    visited |= main | {name.rpartition(".")[0] for name in main}
    rooms = {name for name in found if (ROOT / name.replace(".", "/")).is_dir()}
    assert not (alone := set(found) - visited - rooms), f"imported by nothing: {sorted(alone)}"


def test_no_long_file_and_no_long_function():
    for path in sources("infnet_jax"):
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{path}:{node.name} has {lines} lines"


def test_an_arrow_that_is_not_in_the_table_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for room in ("tasks", "models"):
        (tmp_path / "infnet_jax" / room).mkdir(parents=True)
    source = tmp_path / "infnet_jax" / "models" / "coach.py"
    source.write_text("def f():\n    from infnet_jax.tasks import losses\nfrom . import conv\n")
    where = "infnet_jax/models/coach.py:2 imports infnet_jax.tasks.losses"
    assert arrows() == {("models", "tasks"): where}


@pytest.mark.parametrize("folder", ["configs", "tfds_builders"])
def test_no_arrow_between_the_package_and(folder):
    for path in sources(folder):
        for line, name in imports(path):
            tops = {"infnet_jax", "configs", "tfds_builders", "main"} - {folder}
            assert name.split(".")[0] not in tops, f"{path.relative_to(ROOT)}:{line}: {name}"


def test_few_files_read_the_builders():
    found = {
        str(path.relative_to(ROOT))
        for path in sources("infnet_jax")
        for _, name in imports(path)
        if name.split(".")[0] in ("configs", "tfds_builders", "main", "tests")
    }
    assert found == READS_BUILDERS


def test_only_the_plan_compares_names_of_stages():
    compares = re.compile(r"""\bstage(\.name)? (==|!=|in) \(?["']|["'] in (\w+\.)*stages\b""")
    files = [path for path in sources("infnet_jax") if room_of(path) != "plan"]
    found = [(p, line) for p in files for line in p.read_text().splitlines()]
    assert not (found := [pair for pair in found if compares.search(pair[1])]), found
    assert compares.search('if stage == "multi"') and compares.search('"semi" in config.stages')


def test_few_functions_take_a_whole_config():
    text = "".join(path.read_text() for path in sources("infnet_jax"))
    assert text.count("config: ConfigDict") <= 10


def test_only_these_files_compile():
    """Everything else can be run and tested as plain numpy-like code."""
    compiles = re.compile(r"\bjax\.jit\b|\bimport jit\b")
    files = [p for p in sources("infnet_jax") if compiles.search(p.read_text())]
    found = {p.parent.name if p.stem == "__init__" else p.stem for p in files}
    assert found <= COMPILES


def test_no_tensorflow_and_no_module_that_pulls_it_in():
    banned = re.compile(r"(tensorflow|clu\.(metric_writers|periodic_actions))(\.|$)")
    files = [p for f in ("infnet_jax", "configs", "tfds_builders") for p in sources(f)]
    files.append(ROOT / "main.py")
    found = [f"{p.name}:{n} {name}" for p in files for n, name in imports(p) if banned.match(name)]
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
    kinds = {".py", ".md", ".toml", ".cfg", ".txt", ".json", ".csv", ""}
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


def test_the_clinic_knows_nothing_of_jax():
    names = {name.split(".")[0] for p in sources("infnet_jax/clinic") for _, name in imports(p)}
    assert names and not names & {"jax", "flax", "optax", "orbax"}

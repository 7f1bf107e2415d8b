"""The `study` verb: rows x seeds x label budgets, each cell an ordinary run, then the tables.

A cell is one call of `train.run` in a folder of its own, so it resumes, and what it leaves is what
any run leaves. Cells whose first stages are set alike share them: the later cell gets a link.
"""

import importlib.util
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from infnet_jax.data import splits
from infnet_jax.evaluation import test_split as predict
from infnet_jax.runs.logs import clock
from infnet_jax.runs.workdir import claim, read_statistics, write_json, write_text
from infnet_jax.study import tables as study_tables
from infnet_jax.study.cells import Cell, borrow, make_cells
from infnet_jax.training import data as stage_data, run as train
from infnet_jax.weights import convert


def load(config: str, overrides: Sequence[str]) -> ConfigDict:
    """Reads `FILE[:PRESET]` as main.py does, with `--config.KEY=VALUE` overrides.

    Raises:
      ValueError: no such file, preset, key or value; one line.
    """
    name, _, preset = config.partition(":")
    file = Path(name)
    if not file.is_file():
        raise ValueError(f"--config={file}: there is no such file; try --config=configs/study.py")
    sys.path.insert(0, str(file.resolve().parent.parent))  # it imports its neighbours
    words, values = ["study", *overrides], flags.FlagValues()
    try:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.get_config(*filter(None, [preset]))
        config_flags.DEFINE_config_dict("config", found, flag_values=values, sys_argv=words)
        values(words)
        return found
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"{config}: {lines[-1] if lines else error}") from error
    finally:
        sys.path.pop(0)


def run(
    config: ConfigDict,
    *,
    workdir: Path,
    command: str,
    prepare: Callable[[ConfigDict], Path] | None = None,
    run_cell: Callable[[Cell, Path, str], None] | None = None,
) -> int:
    """Walks the cells, those that are finished aside, and writes the tables.

    A cell that fails is listed and the others run; the same command tries it again.

    Args:
      config: from `configs/study.py`.
      workdir: everything is written below it.
      command: the line that repeats the study.
      prepare: config of a run -> folder of its prepared dataset.
      run_cell: (cell, dataset, command) runs one cell to its end, `cell.json` apart.

    Returns:
      0, or 1 if a cell failed.

    Raises:
      ValueError: a wrong config, weights or data that cannot be had.
      SystemExit: asked to stop; the same command resumes.
    """
    prepare, run_cell = prepare or prepare_dataset, run_cell or run_to_the_end
    cells = make_cells(config, workdir)
    _check_weights(cells)
    datasets = {cell.config.data.name: cell.config for cell in cells}
    datasets = {name: prepare(one) for name, one in datasets.items()}
    if not jax.config.jax_compilation_cache_dir:  # most cells compile the same programs
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    failures: dict[str, str] = {}
    here: list[tuple[str, float]] = []
    for number, cell in enumerate(cells, start=1):
        head = f"study: cell {number} of {len(cells)}: {cell}"
        began = time.perf_counter()
        try:
            claim(cell.folder, cell.config)
            if not (cell.folder / "cell.json").exists():
                print(f"{head}; {_remaining(cells, here)}", file=sys.stderr)
                borrow(cell, cells)
                run_cell(cell, datasets[cell.config.data.name], command)
                here.append((cell.row, time.perf_counter() - began))
                write_json(cell.folder / "cell.json", {"cell": str(cell), "seconds": here[-1][1]})
                (cell.folder / "failed.txt").unlink(missing_ok=True)
                jax.clear_caches()  # programs of a hundred cells would fill the memory
        except Exception as error:  # whatever it is, the other cells can still run
            failures[str(cell)] = " ".join(str(error).split()) or type(error).__name__
            write_text(cell.folder / "failed.txt", traceback.format_exc())
            print(f"{head} failed: {failures[str(cell)]}", file=sys.stderr)
        last = number == len(cells)
        if last or (here and cells[number].seed != cell.seed):  # tables of what there is so far
            page = study_tables.write(
                config,
                [c for c in cells[:number] if str(c) not in failures],
                workdir=workdir,
                failures=failures,
                command=command,
            )
    print(f"study: {len(cells) - len(failures)} of {len(cells)} cells finished: {page}")
    return 1 if failures else 0


def _check_weights(cells: Sequence[Cell]) -> None:
    """Refuses at once what a late row would only miss after hours of the others."""
    for row, weights in dict((cell.row, cell.config.weights) for cell in cells).items():
        try:
            if weights:
                convert.load_imported(weights)
        except (ValueError, OSError) as error:
            raise ValueError(f"row {row}: {error}; or leave it out of config.run") from error


def run_to_the_end(cell: Cell, dataset: Path, command: str) -> None:
    """Runs a cell's stages, then measures its losses on the test slices into `losses.json`."""
    train.run(cell.config, workdir=cell.folder, dataset=dataset, name=str(cell), command=command)
    test = stage_data.open_test(cell.config, cell.folder, dataset)
    write_json(
        cell.folder / "losses.json",
        predict.losses(
            cell.config, workdir=cell.folder, test=test, statistics=read_statistics(cell.folder)
        ),
    )
    data = splits.of_config(cell.config, dataset)
    source = splits.open_whole(data.train, data)
    write_json(cell.folder / "labelled.json", len(splits.labelled(source, data)))


def prepare_dataset(config: ConfigDict) -> Path:
    """The folder of a cell's dataset; its builders are a program of their own.

    Raises:
      ValueError: it cannot be prepared; with the builder's last line.
    """
    words = [sys.executable, "-m", "tfds_builders", "build", config.data.name]
    for key in ("data_dir", "manual_dir"):
        words += [f"--{key}", config.data[key]] if config.data[key] else []
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise ValueError(f"dataset {config.data.name}: {said[-1].removeprefix('error: ')}")
    return Path(done.stdout.strip().splitlines()[-1])


def _remaining(cells: Sequence[Cell], here: Sequence[tuple[str, float]]) -> str:
    """How long the unfinished cells will take, from what their rows, or all, took here."""
    if not here:
        return "ETA unknown"
    total = 0.0
    for cell in cells:
        if not (cell.folder / "cell.json").exists():
            alike = [s for row, s in here if row == cell.row] or [s for _, s in here]
            total += sum(alike) / len(alike)
    return f"ETA {clock(total)}"

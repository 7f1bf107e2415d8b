"""The `study` verb: rows x seeds x label budgets, each cell an ordinary run, then the tables.

A cell is one call of `training.run.run` in a folder of its own, so it resumes, and what it leaves
is what any run leaves. Cells with equal stages share them: the later cell gets a link.
"""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from infnet_jax import config as configs, tasks
from infnet_jax.data import splits
from infnet_jax.evaluation import networks
from infnet_jax.plan import resolve
from infnet_jax.runs import workdir as workdirs
from infnet_jax.runs.logs import clock
from infnet_jax.study import losses, tables
from infnet_jax.study.cells import Cell, borrow, make_cells
from infnet_jax.training import data, run as training
from infnet_jax.weights import convert


def run(
    study: ConfigDict,
    *,
    workdir: Path,
    command: str,
    prepare: Callable[[ConfigDict], Path] | None = None,
    run_cell: Callable[[Cell, Path, str], None] | None = None,
) -> int:
    """Walks the cells, finished ones aside, and writes the tables.

    A cell that fails is listed and the others run; the same command tries it again.

    Args:
      study: from `configs/study.py`.
      workdir: everything is written below it.
      command: the line that repeats the study.
      prepare: config of a run -> folder of its prepared dataset; None: `config.prepare`.
      run_cell: (cell, dataset, command) runs one cell to its end; None: `run_to_the_end`.

    Returns:
      0, or 1 if a cell failed.

    Raises:
      ValueError: a wrong config, weights or data that cannot be had.
      SystemExit: asked to stop; the same command resumes.
    """
    prepare, run_cell = prepare or _prepare, run_cell or run_to_the_end
    cells = make_cells(study, workdir)
    _check_weights(cells)
    named = {cell.config.data.name: cell.config for cell in cells}
    datasets = {name: prepare(one) for name, one in named.items()}
    if not jax.config.values["jax_compilation_cache_dir"]:  # most cells compile the same programs
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    failures: dict[str, str] = {}
    here: list[tuple[str, float]] = []
    for number, cell in enumerate(cells, start=1):
        head = f"study: cell {number} of {len(cells)}: {cell}"
        try:
            workdirs.claim(cell.folder, cell.config)
            if not cell.finished:
                print(f"{head}; {_remaining(cells, here)}", file=sys.stderr)
                borrow(cell, cells)
                seconds = _finish(cell, datasets[cell.config.data.name], command, run_cell)
                here.append((cell.row, seconds))
        except Exception as error:  # whatever it is, the other cells can still run
            failures[str(cell)] = " ".join(str(error).split()) or type(error).__name__
            workdirs.write_text(cell.folder / "failed.txt", traceback.format_exc())
            print(f"{head} failed: {failures[str(cell)]}", file=sys.stderr)
        last = number == len(cells)
        if last or (here and cells[number].seed != cell.seed):  # tables of what there is so far
            whole = [c for c in cells[:number] if str(c) not in failures]
            page = tables.write(study, whole, workdir=workdir, failures=failures, command=command)
    print(f"study: {len(cells) - len(failures)} of {len(cells)} cells finished: {page}")
    return 1 if failures else 0


def run_to_the_end(cell: Cell, dataset: Path, command: str) -> None:
    """Runs a cell's stages, then measures its losses on the test slices into `losses.json`."""
    training.run(cell.config, workdir=cell.folder, dataset=dataset, name=str(cell), command=command)
    plan = resolve(cell.config, cell.folder, dataset)
    norm = tasks.make_norm(plan.final, workdirs.read_statistics(cell.folder))
    _, ensemble = networks.load_final(plan)
    found = losses.measure(plan.final, norm, ensemble, data.open_test(plan))
    workdirs.write_json(cell.folder / "losses.json", found)
    labelled = splits.labelled(splits.open_whole(plan.data.train, plan.data), plan.data)
    workdirs.write_json(cell.folder / "labelled.json", len(labelled))


def _prepare(config: ConfigDict) -> Path:
    """Prepares the dataset of a cell; returns its folder."""
    return configs.prepare(config)[0]


def _check_weights(cells: Sequence[Cell]) -> None:
    """Refuses at once what a late row would only miss after hours of the others."""
    for row, weights in dict((cell.row, cell.config.weights) for cell in cells).items():
        try:
            if weights:
                convert.load_imported(weights)
        except (ValueError, OSError) as error:
            raise ValueError(f"row {row}: {error}; or leave it out of study.run") from error


def _finish(
    cell: Cell, dataset: Path, command: str, run_cell: Callable[[Cell, Path, str], None]
) -> float:
    """Runs a cell and marks it as finished; returns the seconds that it took."""
    began = time.perf_counter()
    run_cell(cell, dataset, command)
    seconds = time.perf_counter() - began
    workdirs.write_json(cell.folder / "cell.json", {"cell": str(cell), "seconds": seconds})
    (cell.folder / "failed.txt").unlink(missing_ok=True)
    jax.clear_caches()  # programs of a hundred cells would fill the memory
    return seconds


def _remaining(cells: Sequence[Cell], here: Sequence[tuple[str, float]]) -> str:
    """How long the unfinished cells will take, from what their rows, or all, took here."""
    if not here:
        return "ETA unknown"
    total = 0.0
    for cell in cells:
        if not cell.finished:
            alike = [s for row, s in here if row == cell.row] or [s for _, s in here]
            total += sum(alike) / len(alike)
    return f"ETA {clock(total)}"

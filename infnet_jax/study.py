"""The `study` verb: rows x seeds x label budgets, each cell an ordinary run, then the tables.

A cell is one call of `train.run` in a folder of its own, so it resumes, and what it leaves is what
any run leaves. Cells whose first stages are set alike share them: the later cell gets a link.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from infnet_jax import data, predict, splits, study_tables, train
from infnet_jax.logs import clock
from infnet_jax.workdir import claim, write_json, write_text

# Stages that may be handed on -> the sections that decide what they make, beside those of the
# stages before them.
_DECIDES = {
    "pretrain": ("pretrain", "coach", "model"),
    "prior": ("segment", "prior", "evaluate", "model"),
    "pretrain_multi": ("pretrain_multi", "coach"),
}


class Cell(NamedTuple):
    """One run of a study.

    Attributes:
      row: its key in `config.rows`.
      seed: of the run; labels: the budget in slices, 0 for all.
      fold: of the cross-validation; None where the test split is the test.
      config: of the run; folder: its workdir.
    """

    row: str
    seed: int
    labels: int
    fold: int | None
    config: ConfigDict
    folder: Path

    def __str__(self) -> str:
        words = [self.row, f"{self.labels} labels" if self.labels else "all labels"]
        words += [f"seed {self.seed}"] + ([] if self.fold is None else [f"fold {self.fold}"])
        return ", ".join(words)


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


def make_cells(config: ConfigDict, workdir: Path) -> list[Cell]:
    """The cells in the order in which they run: seed by seed, so that early tables are whole.

    Raises:
      ValueError: a row with an unknown base or key, or with no seed or budget.
    """
    for name in config.run:
        if name not in config.rows:
            raise ValueError(f"run: {name!r} is none of the rows {', '.join(config.rows)}")
        row = config.rows[name]
        if not row.seeds or not row.labels:
            raise ValueError(f"rows.{name}: give at least one of seeds and of labels")
        if row.against and row.against not in config.rows:
            raise ValueError(f"rows.{name}.against={row.against!r} is none of the rows")
    cells = []
    for seed in dict.fromkeys(s for name in config.run for s in config.rows[name].seeds):
        for name in config.run:
            row = config.rows[name]
            # All labels first: what may be handed on to smaller budgets is then there.
            for labels in sorted(row.labels, key=lambda n: n or 1 << 30, reverse=True):
                for fold in range(config.folds) if config.folds else (None,):
                    if seed in row.seeds:
                        cells.append(_make_cell(config, name, seed, labels, fold, workdir))
    return cells


def _make_cell(
    config: ConfigDict, name: str, seed: int, labels: int, fold: int | None, workdir: Path
) -> Cell:
    """Derives the config of a cell from the base of its row."""
    row = config.rows[name]
    if row.base not in config.bases:
        known = ", ".join(config.bases)
        raise ValueError(f"rows.{name}.base={row.base!r}: choose one of {known}")
    derived = config.bases[row.base].copy_and_resolve_references().lock()
    ladder = tuple(sorted({n for n in row.labels if 0 < n <= labels}))
    own = dict(seed=seed, data=dict(config.data, labels=ladder))
    if fold is not None:
        own["data"].update(folds=config.folds, fold=fold, test=derived.data.train)
    try:
        derived.update(row.set)
        derived.update(own)
    except (KeyError, TypeError) as error:
        raise ValueError(f"rows.{name}.set: {str(error).strip(chr(34))}") from error
    place = f"labels{labels or '-all'}-seed{seed}" + ("" if fold is None else f"-fold{fold}")
    folder = workdir.absolute() / "cells" / name / place
    return Cell(name, seed, labels, fold, derived, folder)


def run(
    config: ConfigDict, *, workdir: Path, command: str,
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
      ValueError: a wrong config, or data that cannot be prepared.
      SystemExit: asked to stop; the same command resumes.
    """
    prepare, run_cell = prepare or prepare_dataset, run_cell or run_to_the_end
    cells = make_cells(config, workdir)
    datasets = {cell.config.data.name: cell.config for cell in cells}
    datasets = {name: prepare(one) for name, one in datasets.items()}
    if not jax.config.jax_compilation_cache_dir:  # most cells compile the same programs
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    failures, here = {}, []
    for number, cell in enumerate(cells, start=1):
        head = f"study: cell {number} of {len(cells)}: {cell}"
        began = time.perf_counter()
        try:
            claim(cell.folder, cell.config)
            if (cell.folder / "cell.json").exists():
                continue
            print(f"{head}; {_remaining(cells, here)}", file=sys.stderr)
            _borrow(cell, cells)
            run_cell(cell, datasets[cell.config.data.name], command)
        except Exception as error:  # whatever it is, the other cells can still run
            failures[str(cell)] = " ".join(str(error).split()) or type(error).__name__
            write_text(cell.folder / "failed.txt", traceback.format_exc())
            print(f"{head} failed: {failures[str(cell)]}", file=sys.stderr)
            continue
        (cell.folder / "failed.txt").unlink(missing_ok=True)
        seconds = time.perf_counter() - began
        write_json(cell.folder / "cell.json", {
            "row": cell.row, "seed": cell.seed, "labels": cell.labels, "fold": cell.fold,
            "seconds": seconds,
        })  # fmt: skip
        here.append((cell.row, seconds))
        jax.clear_caches()  # programs of a hundred cells would fill the memory
    page = study_tables.write(
        config, [cell for cell in cells if str(cell) not in failures], workdir=workdir,
        failures=failures, command=command,
    )
    print(f"study: {len(cells) - len(failures)} of {len(cells)} cells finished: {page}")
    return 1 if failures else 0


def run_to_the_end(cell: Cell, dataset: Path, command: str) -> None:
    """Runs a cell's stages, then measures its losses on the test slices into `losses.json`."""
    train.run(
        cell.config, workdir=cell.folder, dataset=dataset, name=str(cell), command=command
    )
    statistics = json.loads((cell.folder / "statistics.json").read_text())
    test = train.open_test(cell.config, cell.folder, dataset)
    write_json(cell.folder / "losses.json", predict.losses(
        cell.config, workdir=cell.folder, test=test,
        statistics=(statistics["mean"], statistics["sd"]),
    ))  # fmt: skip
    source = data.open_split(dataset, cell.config.data.train)
    write_json(cell.folder / "labelled.json", len(splits.labelled(source, cell.config)))


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


def _borrow(cell: Cell, cells: Sequence[Cell]) -> None:
    """Links the first stages of a cell to those of a finished one that was set alike."""
    mine = json.loads(cell.config.to_json())
    for stage in cell.config.stages:
        if stage not in _DECIDES:
            return
        place = cell.folder / stage
        if place.is_symlink() and not place.exists():
            place.unlink()  # the cell that lent it is gone
        for other in cells:
            lent = other.folder / stage
            if place.exists() or other.folder == cell.folder or not (lent / "done.json").exists():
                continue
            theirs = json.loads((other.folder / "config.json").read_text())
            if _deciding(theirs, stage) == _deciding(mine, stage):
                place.symlink_to(os.path.relpath(lent.resolve(), cell.folder.resolve()))


def _deciding(config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """All that a stage's result hangs on, of a config as `config.json` holds it."""
    stages = config["stages"][: config["stages"].index(stage) + 1]
    keys = {"seed", "dtype", "weights", "data"}.union(*(_DECIDES[s] for s in stages))
    found = {key: config[key] for key in sorted(keys)} | {"stages": stages}
    if stages == ["pretrain"]:  # it looks at all images and at no mask
        found["data"] = {k: v for k, v in config["data"].items() if k != "labels"}
    if "pretrain_multi" in stages:
        found["multi"] = [config["multi"]["net"], config["multi"]["with_prior"]]
    return found


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

"""The `study` verb: rows x seeds x label budgets, each cell an ordinary run, then the tables."""

import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from infnet_jax import config as configs, models, runs, tasks, training
from infnet_jax.data import Source, eval_batches, sources
from infnet_jax.evaluation import predictor as networks
from infnet_jax.plan import Stage
from infnet_jax.plan.resolve import resolve
from infnet_jax.runs.logs import clock
from infnet_jax.study import tables
from infnet_jax.study.cells import Cell, borrow, make_cells
from infnet_jax.tasks import augment, losses
from infnet_jax.training.stage import open_test
from infnet_jax.weights import load_imported

MAPS = ("coarse", "s32", "s16", "s8")  # of an Inf-Net; other networks have `logits` alone


def run(study: ConfigDict, *, workdir: Path, command: str) -> int:
    """Walks the cells, finished ones aside, and writes the tables; returns 1 if one failed, or 0.

    A cell that fails is listed and the others run; the same `command` tries it again, and resumes
    a study that was asked to stop (SystemExit). A wrong config, or weights or data that cannot be
    had, are a ValueError.
    """
    cells = make_cells(study, workdir)
    _check_weights(cells)
    named = {cell.config.data.name: cell.config for cell in cells}
    datasets = {name: configs.prepare(one)[0] for name, one in named.items()}
    if not jax.config.values["jax_compilation_cache_dir"]:  # most cells compile the same programs
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    failures: dict[str, str] = {}
    here: list[tuple[str, float]] = []
    for number, cell in enumerate(cells, start=1):
        head = f"study: cell {number} of {len(cells)}: {cell}"
        try:
            runs.claim(cell.folder, cell.config)
            if not cell.finished:
                print(f"{head}; {_remaining(cells, here)}", file=sys.stderr)
                borrow(cell, cells)
                began = time.perf_counter()
                run_to_the_end(cell, datasets[cell.config.data.name], command)
                here.append((cell.row, time.perf_counter() - began))
                done = {"cell": str(cell), "seconds": here[-1][1]}
                runs.write_json(cell.folder / "cell.json", done)
                (cell.folder / "failed.txt").unlink(missing_ok=True)
                jax.clear_caches()  # programs of a hundred cells would fill the memory
        except Exception as error:  # whatever it is, the other cells can still run
            failures[str(cell)] = " ".join(str(error).split()) or type(error).__name__
            runs.write_text(cell.folder / "failed.txt", traceback.format_exc())
            print(f"{head} failed: {failures[str(cell)]}", file=sys.stderr)
        last = number == len(cells)
        if last or (here and cells[number].seed != cell.seed):  # tables of what there is so far
            whole = [c for c in cells[:number] if str(c) not in failures]
            page = tables.write(study, whole, workdir, failures, command)
    print(f"study: {len(cells) - len(failures)} of {len(cells)} cells finished: {page}")
    return 1 if failures else 0


def run_to_the_end(cell: Cell, dataset: Path, command: str) -> None:
    """Runs a cell's stages, then measures its losses on the test slices into `losses.json`."""
    training.run(cell.config, workdir=cell.folder, dataset=dataset, name=str(cell), command=command)
    plan = resolve(cell.config, cell.folder, dataset)
    norm = tasks.make_norm(plan.final, runs.read_statistics(cell.folder))
    found = measure(plan.final, norm, networks.load_final(plan)[1], open_test(plan))
    runs.write_json(cell.folder / "losses.json", found)
    labelled = sources.labelled(sources.open_whole(plan.data.train, plan.data), plan.data)
    runs.write_json(cell.folder / "labelled.json", len(labelled))


def measure(
    stage: Stage, norm: augment.Norm, ensemble: Sequence[Mapping[str, Any]], source: Source
) -> dict[str, list[float]]:
    """Returns losses on each slice at the network's own size, for Table I; of an ensemble the mean.

    `ensemble` has the variables of each network of `stage`, and `source` masks, and priors if the
    networks are fed them. One class: `total` (eq. 5, boundary-weighted), its parts `coarse`, `s32`,
    `s16`, `s8` (eq. 4 of each map; a U-Net has `region` alone) and `edge`. Lesions: `total`, and
    its parts `entropy` and `dice`, before a prior is averaged with the network. Both: `distance`,
    the mean of |logit - truth| over pixels and maps, the loss of one of the authors' evaluators.
    """
    step = jax.jit(_make_step(stage, norm))
    fields = ("image", "mask", "prior") if stage.prior == "input" else ("image", "mask")
    found: dict[str, list[float]] = {}
    size, process = stage.section.size, (0, 1)  # each process measures all slices
    for batch in eval_batches(source, batch_size=1, size=size, fields=fields, process=process):
        each = [step(weights, {field: batch[field] for field in fields}) for weights in ensemble]
        for name in each[0]:
            found.setdefault(name, []).append(float(np.mean([one[name] for one in each])))
    return found


def _make_step(stage: Stage, norm: augment.Norm) -> Any:
    """(variables, batch) -> losses of the batch."""
    net, lesions = models.make(**stage.net.arguments), stage.learns == "lesions"
    # The rows of a table must share their definition, whatever each was trained with.
    objective = losses.make_infection_loss()
    if lesions:
        objective = losses.make_lesion_loss(head=stage.section.loss.head)

    def step(variables: Mapping, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        image = batch["image"].astype(jnp.float32) / 255.0
        x = augment.network_input(image, prior=batch.get("prior"), norm=norm)
        outputs: Any = net.apply(variables, x, train=False)
        mask = batch["mask"] if lesions else (batch["mask"] > 0).astype(jnp.float32)
        truth = jax.nn.one_hot(mask[..., 0], stage.net.classes) if lesions else mask
        total, parts = objective(outputs, mask)
        maps = [outputs[name] for name in MAPS if name in outputs] or [outputs["logits"]]
        distance = jnp.stack([jnp.abs(logits - truth).mean() for logits in maps]).mean()
        return {"total": total, **parts, "distance": distance}

    return step


def _check_weights(cells: Sequence[Cell]) -> None:
    """Refuses at once what a late row would only miss after hours of the others."""
    for row, weights in {cell.row: cell.config.weights for cell in cells}.items():
        try:
            if weights:
                load_imported(weights)
        except (ValueError, OSError) as error:
            raise ValueError(f"row {row}: {error}; or leave it out of study.run") from error


def _remaining(cells: Sequence[Cell], here: Sequence[tuple[str, float]]) -> str:
    """How long the unfinished cells will take, from what their rows, or all, took here."""
    total = 0.0
    for row in (cell.row for cell in cells if here and not cell.finished):
        alike = [s for of, s in here if of == row] or [s for _, s in here]
        total += sum(alike) / len(alike)
    return f"ETA {clock(total) if here else 'unknown'}"

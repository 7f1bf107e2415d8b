"""The `evaluate` stage: the best weights, the test split once, maps and tables on disk."""

import csv
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from infnet_jax import data, evaluation, mesh as mesh_lib, metrics, tasks
from infnet_jax.tasks import segment
from infnet_jax.transfer import load_parameters
from infnet_jax.workdir import write_json


def evaluate(
    config: ConfigDict, *, workdir: Path, dataset: Path, statistics: tuple[float, float]
) -> dict[str, Any]:
    """Evaluates the segmentation network of a workdir on its test split.

    The weights are those of the best evaluation, or the last ones where nothing was held out;
    averaged if the stage keeps an average. Writes `evaluation.json`, `evaluation.csv` (a row a
    slice), `predictions/<id>.png` (8-bit probabilities at the slice's own size) and, for the
    figures, `evaluate/cases.npz`.

    Returns:
      What `evaluation.json` holds: `toolbox` and `empty_aware` summaries and the `floors`.
    """
    section = config.evaluate
    part = "best" if config.segment.validation else "latest"
    player = load_parameters(workdir / "segment" / "checkpoints", part=part)["net"]
    weights = player["ema"] or {k: player[k] for k in ("params", "batch_stats")}
    source = data.open_split(dataset, config.data.test)
    maps = sweep(config, weights, source, statistics)
    cases = list(data.examples(source))
    truths = [case["mask"][..., 0] > 0 for case in cases]
    records = [
        metrics.toolbox(m, t, threshold=section.threshold)
        for m, t in zip(maps, truths, strict=True)
    ]
    train = data.examples(data.open_split(dataset, config.data.train))
    result = {
        reading: metrics.summarise(records, reading) for reading in ("toolbox", "empty_aware")
    }
    result["floors"] = evaluation.floors([c["mask"][..., 0] > 0 for c in train], truths)
    result["weights"] = part
    if jax.process_index() == 0:
        _write(workdir, result, cases, maps, records)
    return result


def sweep(
    config: ConfigDict, weights: dict, source: data.Source, statistics: tuple[float, float]
) -> list[np.ndarray]:
    """Probability maps [S, S] float32 of every example of a source, in its order."""
    net, norm = tasks.make_net(config), tasks.make_norm(config, statistics)
    mesh = mesh_lib.make_mesh()
    batch_size, size = config.evaluate.batch_size, config.segment.size
    mesh_lib.check_batch(batch_size, mesh, "evaluate.batch_size")

    def probs(variables: dict, image: jax.Array) -> jax.Array:
        return segment.predict(net, variables, image, norm, tta=config.evaluate.tta)[..., 0]

    step = jax.jit(probs, out_shardings=mesh_lib.replicated(mesh))
    weights, maps = mesh_lib.replicate(weights, mesh), []
    for batch in data.eval_batches(
        source, None, batch_size=batch_size, size=size,
        process_index=jax.process_index(), process_count=jax.process_count(),
    ):
        image = mesh_lib.shard_batch({"image": batch["image"]}, mesh)["image"]
        maps.extend(np.asarray(step(weights, image)))
    return maps[: len(source)]


def _write(
    workdir: Path, result: dict, cases: list[dict], maps: list[np.ndarray], records: list[dict]
) -> None:
    """The files of the stage; maps are enlarged to the slice's own size, as the toolbox does."""
    import cv2

    (workdir / "predictions").mkdir(exist_ok=True)
    (workdir / "evaluate").mkdir(exist_ok=True)
    dice = [metrics.threshold_scores(r, "none", "empty_aware")["dice"] for r in records]
    rows = []
    for case, prob, record, value in zip(cases, maps, records, dice, strict=True):
        full = metrics.resize_map(prob, case["mask"].shape[:2])
        name = f"{case['id'].replace('/', '_')}.png"
        cv2.imwrite(str(workdir / "predictions" / name), np.round(full * 255).astype(np.uint8))
        toolbox = metrics.threshold_scores(record, "minmax", "toolbox")["dice"]
        rows.append({"id": case["id"], "dice": value, "dice_toolbox": toolbox})
    with (workdir / "evaluation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_json(workdir / "evaluation.json", result)
    order = [i for i in np.argsort(dice) if not np.isnan(dice[i])]
    chosen = [order[-1], order[len(order) // 2], order[0]] if order else [0, 0, 0]
    kept = {}
    for title, i in zip(("best", "median", "worst"), chosen, strict=True):
        kept[f"{title}_image"] = cases[i]["image"][..., 0]
        kept[f"{title}_truth"] = cases[i]["mask"][..., 0] > 0
        kept[f"{title}_prob"] = metrics.resize_map(maps[i], cases[i]["mask"].shape[:2])
        kept[f"{title}_dice"] = np.float32(dice[i])
    np.savez_compressed(workdir / "evaluate" / "cases.npz", **kept)

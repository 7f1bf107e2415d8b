"""What a finished run shows: its panels and summary.md, with the figures of `run_figures`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from infnet_jax import tasks
from infnet_jax.evaluation import run_figures
from infnet_jax.evaluation.markdown import markdown_table, write_summary
from infnet_jax.runs.logs import RunLog


def save_panel(log: RunLog, panel: Mapping[str, np.ndarray], step: int) -> None:
    """Keeps a few evaluated slices for the figures, and shows them in TensorBoard.

    A panel without maps (of the rotation pretext) is not kept.
    """
    if not {"filled_coach", "probs"} & {*panel}:
        return
    folder = log.metrics_path.parent / "panels"
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{step:08d}.npz", **panel)
    if "filled_coach" in panel:
        columns = [panel["image"], panel["image"] * panel["visible_coach"], panel["filled_coach"]]
    elif panel["probs"].ndim == 4:  # consolidation white, ground glass grey
        columns = [panel["mask"] / 2, panel["probs"] @ np.array([0.0, 0.5, 1.0])]
    else:
        columns = [panel["mask"], panel["probs"]]
    grid = np.concatenate([np.concatenate(list(c), axis=0) for c in columns], axis=1)
    grid = np.repeat(np.round(np.clip(grid, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)
    log.image("panel", grid, step)


def write(
    workdir: Path,
    config: ConfigDict,
    *,
    timings: Sequence[Mapping[str, Any]],
    name: str,
    command: str,
    dataset: Path,
) -> Path:
    """Draws `figures/*.png` and writes `summary.md`; the first process only.

    Returns:
      The path of `summary.md`.
    """
    path = workdir / "summary.md"
    if jax.process_index():
        return path
    pictures, tables, notes = [], [], []
    pictures += run_figures.augmentation(workdir, config, dataset)
    for stage in ("pretrain", "pretrain_multi"):
        if stage in config.stages:
            more_pictures, more_tables = run_figures.pretrain(workdir, stage)
            pictures, tables = pictures + more_pictures, tables + more_tables
    if "semi" in config.stages and config.semi.kind == "pseudo":
        pictures += run_figures.pseudo_labels(workdir, config, dataset)
    for stage, panels, caption in (
        ("segment", run_figures.SEGMENT_PANELS, "Fine-tuning."),
        ("multi", run_figures.MULTI_PANELS, "The multi-class network."),
    ):
        if stage in config.stages:
            for folder in [member.folder for member in tasks.members(config, stage)]:
                of, said = (f"{stage}/{folder}", f" {folder}.") if folder else (stage, "")
                pictures += run_figures.curves(workdir, of, panels, caption + said)
    if "prior" in config.stages and config.prior.kind == "crossfit":
        score = json.loads((workdir / "prior" / "cross_validation.json").read_text())
        trained = len(tasks.members(config, "prior"))
        repeats = trained // config.prior.folds
        if tasks.target(config) == "lung":
            tables.append(("Cross-validation", _lung_table(score)))
            pictures += run_figures.lungs(workdir, config, dataset, score)
            notes.append(
                f"Cross-validation: each slice by one of {trained} networks that had not seen it."
            )
        else:
            notes.append(
                "The prior of each training slice comes from "
                f"{'one' if repeats == 1 else repeats} of {trained} "
                "networks that had not seen it (their cross-validated Dice at "
                f"{config.evaluate.threshold:g} is {score['dice']:.3f}); that of any other slice "
                "is the mean of all of them."
            )
    if "evaluate" in config.stages:
        result = json.loads((workdir / "evaluation.json").read_text())
        table = result_table(result)
        (workdir / "table.txt").write_text(table.strip() + "\n")
        tables.insert(0, ("Test split", table))
        cuts = ", ".join(f"{label} {cut:g}" for label, cut in result["thresholds"].items())
        notes.append(
            f"Masks mark a class from this probability on: {cuts}. Their mean over 256 "
            "thresholds is higher than that of the maps for being sharp alone."
        )
        for label, dice in result.get("cross_validated", {}).items():
            notes.append(
                f"Cross-validated Dice of {label}, each training slice by a network that "
                f"had not seen it, empty-aware: {dice:.3f}."
            )
        for label, summaries in result["classes"].items():
            pictures += run_figures.evaluation(workdir, label, summaries)
            if cut := summaries.get("cut"):
                notes.append(
                    f"Cross-validated Dice of the map of {label} cut at "
                    f"{cut['threshold']:g} (best in the toolbox reading), empty-aware: "
                    f"{cut['cross_validated']:.3f}."
                )
    if (listing := workdir / "pretrain" / "mix.json").exists():
        parts = json.loads(listing.read_text())
        dropped = sum(len(part["dropped"]) for part in parts)
        notes.append(
            f"Pre-trained on `{config.data.pretrain}`: "
            f"{sum(part['examples'] for part in parts) - dropped} slices, without {dropped} that "
            "are near-copies of the test split (`pretrain/mix.json`)."
        )
    notes += _readings(workdir, config)
    return write_summary(
        workdir,
        config_name=name,
        command=command,
        stages=timings,
        tables=tables,
        figures=pictures,
        notes=notes,
    )


def result_table(result: Mapping[str, Any]) -> str:
    """The test table in Markdown: per class maps and masks in both readings, and the floors."""
    threshold = next(iter(result["classes"].values()))["toolbox"]["threshold"]
    at = f"at {threshold:.3g}"
    header = [
        "",
        "Dice (mean over 256 thresholds)",
        f"Dice {at}",
        f"IoU {at}",
        "Sen",
        "Spe",
        "S",
        "E",
        "wF",
        "MAE",
        "ROC-AUC",
    ]
    rows = []
    for name, found in result["classes"].items():
        of = "" if len(result["classes"]) == 1 else f"{name}, "
        rows += [
            _row(f"{of}model, toolbox reading", found["toolbox"], "minmax"),
            _row(f"{of}model, empty-aware reading", found["empty_aware"], "none"),
            _row(f"{of}its masks, toolbox reading", found["masks"]["toolbox"], "none"),
            _row(f"{of}its masks, empty-aware reading", found["masks"]["empty_aware"], "none"),
            *(
                _row(
                    f"{of}its map cut at {found['cut']['threshold']:g}, {reading} reading",
                    found["cut"][reading.replace("-", "_")],
                    "none",
                )
                for reading in ("toolbox", "empty-aware")
                if "cut" in found
            ),
            *(
                _row(f"{of}floor: {floor.replace('_', ' ')}", summary["toolbox"], "minmax")
                for floor, summary in found["floors"].items()
            ),
        ]
    return markdown_table(header, rows)


def _row(label: str, summary: Mapping[str, Any], at: str) -> list[str]:
    """One line of the test table; `at` says which map the Dice at a threshold is of."""
    mean, fixed = summary["mean"], summary[at]
    values = [
        mean["dice"],
        fixed["dice"],
        fixed["iou"],
        mean["sensitivity"],
        mean["specificity"],
        summary["s_measure"],
        mean["e_measure"],
        summary["weighted_f"],
        summary["mae"],
        summary["roc_auc"],
    ]
    return [label, *(f"{value:.3f}" for value in values)]


def _lung_table(score: Mapping[str, Any]) -> str:
    """What `lung_scores.measure` found, a row a part of the dataset."""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    return markdown_table(
        [
            "lungs",
            "slices",
            "Dice, mean over slices",
            "infected slices",
            "infected pixels inside, mean",
            "slices with 97 % inside",
        ],
        [
            [
                name,
                str(row["slices"]),
                shown(row["dice"]),
                str(row["infected"]),
                shown(row["kept"]),
                shown(row["kept_slices"]),
            ]
            for name, row in score["parts"].items()
        ],
    )


def _semi(workdir: Path, config: ConfigDict) -> str:
    """What the unlabelled slices did."""
    semi = config.semi
    if semi.kind == "mean_teacher":
        return (
            f"Mean teacher: consistency weight {semi.consistency.weight:g}, ramped up in "
            f"{semi.consistency.ramp_steps} steps, on slices of `{semi.split}`."
        )
    found = json.loads((workdir / "semi" / "pseudo.json").read_text())
    return (
        f"Pseudo-labels: {found['slices']} slices of `{semi.split}` in {found['rounds']} rounds; "
        f"they mark {found['marked']:.1%} of the pixels, the true masks of the labelled slices "
        f"{found['marked_in_masks']:.1%}."
    )


def _readings(workdir: Path, config: ConfigDict) -> list[str]:
    """The choices the numbers rest on."""
    notes = [
        "Dice (mean over 256 thresholds) follows the published toolbox: each map is stretched to "
        "0..1, averaged over slices, then over thresholds; Dice at one threshold "
        "uses the stretched map in the toolbox reading and raw probabilities in the empty-aware "
        "one, which leaves out slices where truth and prediction are both empty.",
        f"Input normalisation `{config.data.norm}`, the same in every stage.",
        f"Single-class loss `{config.segment.loss.kind}`.",
    ]
    if "pretrain" in config.stages:
        p = config.pretrain
        notes.append(
            "Pre-training: rotation prediction; the trunk alone is transferred."
            if p.pretext == "rotation"
            else f"Pre-training: `{p.rounds.schedule}` schedule, reconstruction loss "
            f"`{p.loss.kind}` reduced by `{p.loss.reduction}`, `{config.model.inpaint_head}` "
            f"heads, KL weight {p.kld_weight:g}, coach gradient `{p.coach_grad}`; "
            f"`{config.segment.transfer}` weights transferred."
        )
    if "semi" in config.stages:
        notes.append(_semi(workdir, config))
    if config.evaluate.choose_threshold:
        notes.append(
            "The masks' thresholds are those with the best Dice on training slices that "
            "the network had not seen."
        )
    count = len(tasks.members(config, stage := tasks.last_trained(config)))
    if config[stage].folds:
        notes.append(
            f"The mean of {count} networks is evaluated, each trained on all folds of the "
            "training slices but its own."
        )
        if "semi" in config.stages:
            notes.append(
                "They share a start that a teacher of all training slices taught, through "
                "its maps of other slices: figures of unseen training slices may be a "
                "little too high. The test split is untouched by this."
            )
    elif count > 1:
        notes.append(
            f"The mean of {count} networks is evaluated, each trained on all training "
            "slices by a seed of its own."
        )
    elif held := config[stage].validation:
        notes.append(
            f"{held} training slices (whole groups) were held out to choose the checkpoint."
        )
    else:
        notes.append("No slice was held out: the last averaged weights are evaluated.")
    return notes

"""What a finished run shows: figures and summary.md, from the files that its stages left."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from infnet_jax import augment, data, figures, splits, tasks
from infnet_jax.logs import RunLog, load_rows
from infnet_jax.summary import markdown_table, write_summary

PRETRAIN_PANELS = (
    ("Inpainter", {"rec": "erased pixels, training", "loss": "total loss"}),
    ("Coach", {"coach_rec": "reconstruction error", "coach_loss": "coach loss, 1 - error"}),
    ("Held-out error", {"rec_coach": "under coach masks", "rec_random": "under random masks"}),
)
ROTATION_PANELS = (
    ("Which quarter turn: training", {"loss": "cross-entropy"}),
    ("Held-out slices, chance 0.25", {"accuracy": "share of turns told"}),
)
MULTI_PANELS = (
    ("Training loss", {"loss": "total"}),
    ("Dice at 0.5, held-out slices", {"dice_ggo": "ground glass",
                                      "dice_consolidation": "consolidation"}),
    ("Learning rate", {"lr": "rate"}),
)
SEGMENT_PANELS = (
    ("Training loss (eq. 5)", {"loss": "total"}),
    ("Dice at 0.5, held-out slices", {"dice": "averaged weights"}),
    ("Learning rate", {"lr": "rate"}),
)


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
    workdir: Path, config: ConfigDict, *, timings: Sequence[Mapping[str, Any]], name: str,
    command: str, dataset: Path,
) -> Path:
    """Draws `figures/*.png` and writes `summary.md`; the first process only.

    Returns:
      The path of `summary.md`.
    """
    path = workdir / "summary.md"
    if jax.process_index():
        return path
    pictures, tables, notes = [], [], []
    pictures += _augmentation(workdir, config, dataset)
    for stage in ("pretrain", "pretrain_multi"):
        if stage in config.stages:
            more_pictures, more_tables = _pretrain(workdir, stage)
            pictures, tables = pictures + more_pictures, tables + more_tables
    for stage, panels, caption in (
        ("segment", SEGMENT_PANELS, "Fine-tuning."),
        ("multi", MULTI_PANELS, "The multi-class network."),
    ):
        if stage in config.stages:
            pictures += _curves(workdir, stage, panels, caption)
    if "prior" in config.stages and config.prior.kind == "crossfit":
        score = json.loads((workdir / "prior" / "cross_validation.json").read_text())["dice"]
        said = (
            f"one of {config.prior.folds} networks that had not seen it (their cross-validated "
            f"Dice at {config.evaluate.threshold:g} is {score:.3f})"
        )
        notes.append(
            f"Cross-validation: each training slice by the {said}; see prior/cross_validation.json."
            if tasks.target(config) == "lung" else
            f"The prior of each training slice comes from the {said}; that of any other slice is "
            "the mean of all of them."
        )
    if "evaluate" in config.stages:
        result = json.loads((workdir / "evaluation.json").read_text())
        table = result_table(result)
        (workdir / "table.txt").write_text(table.strip() + "\n")
        tables.insert(0, ("Test split", table))
        for label, summaries in result["classes"].items():
            at = summaries["toolbox"]["threshold"]
            pictures += _evaluation(workdir, label, summaries, at)
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
        workdir, config_name=name, command=command, stages=timings, tables=tables,
        figures=pictures, notes=notes,
    )


def result_table(result: Mapping[str, Any]) -> str:
    """The test table in Markdown: per class our row in both readings, and the floors."""
    threshold = next(iter(result["classes"].values()))["toolbox"]["threshold"]
    at = f"at {threshold:.3g}"
    header = ["", "Dice (mean over 256 thresholds)", f"Dice {at}", f"IoU {at}", "Sen", "Spe",
              "S", "E", "wF", "MAE", "ROC-AUC"]
    rows = []
    for name, found in result["classes"].items():
        of = "" if len(result["classes"]) == 1 else f"{name}, "
        rows += [
            _row(f"{of}model, toolbox reading", found["toolbox"], "minmax"),
            _row(f"{of}model, empty-aware reading", found["empty_aware"], "none"),
            *(_row(f"{of}floor: {floor.replace('_', ' ')}", summary["toolbox"], "minmax")
              for floor, summary in found["floors"].items()),
        ]
    return markdown_table(header, rows)


def _row(label: str, summary: Mapping[str, Any], at: str) -> list[str]:
    """One line of the test table; `at` says which map the Dice at a threshold is of."""
    mean, fixed = summary["mean"], summary[at]
    values = [mean["dice"], fixed["dice"], fixed["iou"], mean["sensitivity"], mean["specificity"],
              summary["s_measure"], mean["e_measure"], summary["weighted_f"], summary["mae"],
              summary["roc_auc"]]
    return [label, *(f"{value:.3f}" for value in values)]


def _pretrain(workdir: Path, stage: str) -> tuple[list, list]:
    """Curves, the panel of masks over time, and the table that asks if the coach is hard."""
    rows = load_rows(workdir / stage / "metrics.jsonl")
    if any("train_accuracy" in row for row in rows):
        caption = "Rotation as pretext: the trunk learns to tell which quarter turn a slice got."
        return _curves(workdir, stage, ROTATION_PANELS, caption), []
    pictures = _curves(workdir, stage, PRETRAIN_PANELS, (
        "Both players. The coach earns its name where the error under its masks lies above the "
        "error under random masks of the same keep ratio."
    ))
    panels = sorted((workdir / stage / "panels").glob("*.npz"))
    judged = [row for row in rows if "rec_coach" in row]
    if panels:
        picked = sorted({round(i * (len(panels) - 1) / 3) for i in range(4)})
        lines = []
        for path in (panels[i] for i in picked):
            with np.load(path) as z:
                lines.append((f"step {int(path.stem)}", z["image"], z["visible_coach"],
                              z["filled_coach"]))
        name = "inpainting.png" if stage == "pretrain" else "inpainting_multi.png"
        out = figures.inpainting_panel(lines, workdir / "figures" / name)
        pictures.append((out, "Held-out slices at several moments of pre-training: what the coach "
                              "erases (orange) and what Inf-Net paints in."))
    if not judged:
        return pictures, []
    last = judged[-1]
    ratio = last["rec_coach"] / max(last["rec_random"], 1e-12)
    table = markdown_table(
        ["held-out slices, last evaluation", "value"],
        [["error under coach masks", f"{last['rec_coach']:.4f}"],
         ["error under random masks, same keep ratio", f"{last['rec_random']:.4f}"],
         ["ratio", f"{ratio:.2f}"],
         ["share of slices with the larger error under coach masks",
          f"{last['harder_share']:.2f}"],
         ["share of cells in which two slices' coach masks differ",
          f"{last['mask_difference']:.3f}"]],
    )
    of = "" if stage == "pretrain" else " (multi-class)"
    return pictures, [(f"Is the coach hard?{of}", table)]


def _curves(workdir: Path, stage: str, panels: Sequence, caption: str) -> list:
    rows = load_rows(workdir / stage / "metrics.jsonl")
    present = [p for p in panels if any(row.get(k) is not None for row in rows for k in p[1])]
    if not present:
        return []
    path = workdir / "figures" / f"{stage}_curves.png"
    return [(figures.learning_curves(rows, path, present), caption)]


def _augmentation(workdir: Path, config: ConfigDict, dataset: Path) -> list:
    """Three training slices before and after augmentation, as the paper's Fig. 5."""
    section = config.segment
    source = splits.open_whole(dataset, config.data.train, config)
    batch = next(data.eval_batches(
        source, np.linspace(0, len(source) - 1, 3).astype(int), batch_size=3, size=section.size
    ))
    fields = {
        "image": batch["image"].astype(np.float32) / 255.0,
        "mask": (batch["mask"] > 0).astype(np.float32),
    }
    moved = augment.augment(jax.random.key(config.seed), fields, **section.augmentation)
    out = figures.augmentation(
        fields["image"][..., 0], np.asarray(moved["image"])[..., 0],
        workdir / "figures" / "augmentation.png",
        original_masks=fields["mask"][..., 0], augmented_masks=np.asarray(moved["mask"])[..., 0],
    )
    return [(out, "Training slices before and after augmentation; the outline is the mask, which "
                  "must move with its slice.")]


def _evaluation(
    workdir: Path, name: str, summaries: Mapping[str, Any], threshold: float
) -> list:
    """Best, median and worst test slices of one class, and its ROC curve."""
    with np.load(workdir / "evaluate" / f"{name}.npz") as z:
        cases = [
            (f"{title}, Dice {float(z[f'{title}_dice']):.2f}", z[f"{title}_image"],
             z[f"{title}_truth"], z[f"{title}_prob"])
            for title in ("best", "median", "worst")
        ]
    folder, roc = workdir / "figures", summaries["toolbox"]["roc"]
    return [
        (figures.overlays(cases, folder / f"test_{name}.png", threshold),
         f"Test slices with the highest, median and lowest Dice of {name} at "
         f"{threshold:.3g}; truth and prediction as contours."),
        (figures.roc(*(np.asarray(v) for v in roc), summaries["toolbox"]["roc_auc"],
                     folder / f"roc_{name}.png"),
         f"{name.capitalize()}: all test pixels pooled, raw probabilities."),
    ]


def _semi(workdir: Path, config: ConfigDict) -> str:
    """What the unlabelled slices did."""
    semi = config.semi
    if semi.kind == "mean_teacher":
        return (f"Mean teacher: consistency weight {semi.consistency.weight:g}, ramped up in "
                f"{semi.consistency.ramp_steps} steps, on slices of `{semi.split}`.")
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
            if p.pretext == "rotation" else
            f"Pre-training: `{p.rounds.schedule}` schedule, reconstruction loss "
            f"`{p.loss.kind}` reduced by `{p.loss.reduction}`, `{config.model.inpaint_head}` "
            f"heads, KL weight {p.kld_weight:g}, coach gradient `{p.coach_grad}`; "
            f"`{config.segment.transfer}` weights transferred."
        )
    if "semi" in config.stages:
        notes.append(_semi(workdir, config))
    if config.evaluate.choose_threshold:
        notes.append("The threshold is the one with the best Dice on the held-out slices.")
    held = config[tasks.last_trained(config)].validation
    notes.append(
        f"{held} training slices (whole groups) were held out to choose the checkpoint."
        if held else "No slice was held out: the last averaged weights are evaluated."
    )
    return notes

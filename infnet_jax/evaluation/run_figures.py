"""The figures of a finished run, drawn from the files that its stages left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from infnet_jax.data import splits
from infnet_jax.data.batches import eval_batches, resize
from infnet_jax.data.sources import decode, select, text
from infnet_jax.evaluation import figures, lung_scores
from infnet_jax.evaluation.markdown import markdown_table
from infnet_jax.files import read_npz
from infnet_jax.runs.logs import load_rows
from infnet_jax.tasks import augment

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
    (
        "Dice at 0.5, held-out slices",
        {"dice_ggo": "ground glass", "dice_consolidation": "consolidation"},
    ),
    ("Learning rate", {"lr": "rate"}),
)
SEGMENT_PANELS = (
    ("Training loss (eq. 5)", {"loss": "total"}),
    ("Dice at 0.5, held-out slices", {"dice": "averaged weights"}),
    ("Learning rate", {"lr": "rate"}),
)


def pretrain(workdir: Path, stage: str) -> tuple[list, list]:
    """Curves, the panel of masks over time, and the table that asks if the coach is hard."""
    rows = load_rows(workdir / stage / "metrics.jsonl")
    if any("train_accuracy" in row for row in rows):
        caption = "Rotation as pretext: the trunk learns to tell which quarter turn a slice got."
        return curves(workdir, stage, ROTATION_PANELS, caption), []
    pictures = curves(
        workdir,
        stage,
        PRETRAIN_PANELS,
        (
            "Both players. The coach earns its name where the error under its masks lies above the "
            "error under random masks of the same keep ratio."
        ),
    )
    panels = sorted((workdir / stage / "panels").glob("*.npz"))
    judged = [row for row in rows if "rec_coach" in row]
    if panels:
        picked = sorted({round(i * (len(panels) - 1) / 3) for i in range(4)})
        lines = []
        for path in (panels[i] for i in picked):
            with np.load(path) as z:
                lines.append(
                    (f"step {int(path.stem)}", z["image"], z["visible_coach"], z["filled_coach"])
                )
        name = "inpainting.png" if stage == "pretrain" else "inpainting_multi.png"
        out = figures.inpainting_panel(lines, workdir / "figures" / name)
        pictures.append(
            (
                out,
                "Held-out slices at several moments of pre-training: what the coach "
                "erases (orange) and what Inf-Net paints in.",
            )
        )
    if not judged:
        return pictures, []
    last = judged[-1]
    ratio = last["rec_coach"] / max(last["rec_random"], 1e-12)
    table = markdown_table(
        ["held-out slices, last evaluation", "value"],
        [
            ["error under coach masks", f"{last['rec_coach']:.4f}"],
            ["error under random masks, same keep ratio", f"{last['rec_random']:.4f}"],
            ["ratio", f"{ratio:.2f}"],
            [
                "share of slices with the larger error under coach masks",
                f"{last['harder_share']:.2f}",
            ],
            [
                "share of cells in which two slices' coach masks differ",
                f"{last['mask_difference']:.3f}",
            ],
        ],
    )
    of = "" if stage == "pretrain" else " (multi-class)"
    return pictures, [(f"Is the coach hard?{of}", table)]


def curves(workdir: Path, stage: str, panels: Sequence, caption: str) -> list:
    rows = load_rows(workdir / stage / "metrics.jsonl")
    present = [p for p in panels if any(row.get(k) is not None for row in rows for k in p[1])]
    if not present:
        return []
    path = workdir / "figures" / f"{stage.replace('/', '_')}_curves.png"
    return [(figures.learning_curves(rows, path, present), caption)]


def augmentation(workdir: Path, config: ConfigDict, dataset: Path) -> list:
    """Three training slices before and after augmentation, as the paper's Fig. 5."""
    section = config.segment
    source = splits.open_whole(config.data.train, splits.of_config(config, dataset))
    chosen = np.linspace(0, len(source) - 1, 3).astype(int)
    batch = next(
        eval_batches(select(source, chosen), batch_size=3, size=section.size, process=(0, 1))
    )
    fields = {
        "image": batch["image"].astype(np.float32) / 255.0,
        "mask": (batch["mask"] > 0).astype(np.float32),
    }
    moved = augment.augment(jax.random.key(config.seed), fields, **section.augmentation)
    out = figures.augmentation(
        fields["image"][..., 0],
        np.asarray(moved["image"])[..., 0],
        workdir / "figures" / "augmentation.png",
        original_masks=fields["mask"][..., 0],
        augmented_masks=np.asarray(moved["mask"])[..., 0],
    )
    return [
        (
            out,
            "Training slices before and after augmentation; the outline is the mask, which "
            "must move with its slice.",
        )
    ]


def pseudo_labels(workdir: Path, config: ConfigDict, dataset: Path) -> list:
    """Unlabelled slices with the soft labels that the rounds of `semi` gave them."""
    maps = read_npz(workdir / "semi", "round*.npz")
    source = splits.open_training(config.semi.split, splits.of_config(config, dataset), masks=False)
    at = {text(source[i]["id"]): i for i in range(len(source))}
    by_share = sorted(maps, key=lambda name: ((maps[name] >= 128).mean(), name))
    cases = []
    for rank in np.unique(np.linspace(0, len(by_share) - 1, 4).astype(int)):
        name = by_share[rank]
        image = decode(source[at[name]], "image")
        image = resize(image, len(maps[name]), labels=False)[..., 0]
        prob, marked = maps[name] / 255, maps[name] >= 128
        label = name if len(name) <= 30 else f"…{name[-29:]}"
        cases.append((f"{label}\n{marked.mean():.1%} marked", image, None, marked, prob))
    return [
        (
            figures.overlays(cases, workdir / "figures" / "pseudo_labels.png"),
            "Unlabelled slices, from the least marked to the most, and their soft pseudo-labels.",
        )
    ]


def lungs(workdir: Path, config: ConfigDict, dataset: Path, score: Mapping[str, Any]) -> list:
    """The cross-validated slices whose lungs fit worst, two of each part of the dataset."""
    import cv2

    source = splits.open_whole(config.data.train, splits.of_config(config, dataset))
    at = {text(source[i]["id"]): i for i in range(len(source))}
    cases = []
    for part in score["parts"]:
        dice = {
            name: row["dice"]
            for name, row in score["slices"].items()
            if row["dice"] is not None and part in ("all", name.partition("/")[0])
        }
        for name in sorted(dice, key=dice.get)[:2]:
            image, truth = (decode(source[at[name]], k)[..., 0] for k in ("image", "lung"))
            path = lung_scores.picture_of(workdir / "prior" / "lungs", name)
            found = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0
            cases.append((f"{name}\nDice {dice[name]:.2f}", image, truth > 0, found, None))
    return [
        (
            figures.overlays(cases, workdir / "figures" / "lungs.png"),
            "The lungs with the lowest Dice of each part, by a network that had not seen them.",
        )
    ]


def evaluation(workdir: Path, name: str, summaries: Mapping[str, Any]) -> list:
    """Best, median and worst test slices of one class, and its ROC curve."""
    with np.load(workdir / "evaluate" / f"{name}.npz") as z:
        cases = [
            (
                f"{title}, Dice {float(z[f'{title}_dice']):.2f}",
                z[f"{title}_image"],
                z[f"{title}_truth"],
                z[f"{title}_found"],
                z[f"{title}_prob"],
            )
            for title in ("best", "median", "worst")
        ]
    folder, roc = workdir / "figures", summaries["toolbox"]["roc"]
    return [
        (
            figures.overlays(cases, folder / f"test_{name}.png"),
            f"Test slices with the highest, median and lowest Dice of {name}; true and predicted "
            "masks as contours.",
        ),
        (
            figures.roc(
                *(np.asarray(v) for v in roc),
                summaries["toolbox"]["roc_auc"],
                folder / f"roc_{name}.png",
            ),
            f"{name.capitalize()}: all test pixels pooled, raw probabilities.",
        ),
    ]

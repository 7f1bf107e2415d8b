"""The pictures of a finished run with their captions, drawn from the files that its stages left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from infnet_jax.data import splits
from infnet_jax.data.batches import resize
from infnet_jax.data.sources import Source, decode, text
from infnet_jax.evaluation import figures, lung_scores
from infnet_jax.evaluation.markdown import Picture
from infnet_jax.files import read_npz
from infnet_jax.plan import Plan, Stage
from infnet_jax.runs.logs import load_rows
from infnet_jax.tasks import augment


def curves(
    folder: Path, workdir: Path, panels: Sequence[figures.Panel], caption: str
) -> list[Picture]:
    """Learning curves of the network in a folder below the workdir; of those panels with values."""
    rows = load_rows(folder / "metrics.jsonl")
    present = [p for p in panels if any(row.get(key) is not None for row in rows for key in p[1])]
    if not present:
        return []
    name = "_".join(folder.relative_to(workdir).parts)
    path = workdir / "figures" / f"{name}_curves.png"
    return [(figures.learning_curves(rows, path, present), caption)]


def inpainting(stage: Stage, workdir: Path) -> list[Picture]:
    """Masks and inpaintings at four moments of a stage; nothing where it kept no panels."""
    panels = sorted((stage.folder / "panels").glob("*.npz"))
    if not panels:
        return []
    lines = []
    for i in sorted({round(i * (len(panels) - 1) / 3) for i in range(4)}):
        with np.load(panels[i]) as z:
            shown = z["image"], z["visible_coach"], z["filled_coach"]
        lines.append((f"step {int(panels[i].stem)}", *shown))
    name = "inpainting.png" if stage.net.classes == 1 else "inpainting_multi.png"
    caption = (
        "Held-out slices at several moments of pre-training: what the coach erases (orange) and "
        "what Inf-Net paints in."
    )
    return [(figures.inpainting_panel(lines, workdir / "figures" / name), caption)]


def augmentation(plan: Plan) -> list[Picture]:
    """Three training slices before and after augmentation, as the paper's Fig. 5."""
    trained = (s for s in plan.stages if s.supervised and s.net.classes == 1)
    section = next(trained, plan.final).section
    source = splits.open_whole(plan.data.train, plan.data)
    chosen = [source[int(i)] for i in np.linspace(0, len(source) - 1, 3)]
    images, masks = (
        np.stack([resize(decode(e, name), section.size, labels=name == "mask") for e in chosen])
        for name in ("image", "mask")
    )
    fields = {"image": jnp.asarray(images, jnp.float32) / 255.0, "mask": jnp.float32(masks > 0)}
    moved = augment.augment(jax.random.key(plan.seed), fields, **section.augmentation)
    before, after = (
        (np.asarray(side["image"])[..., 0], np.asarray(side["mask"])[..., 0])
        for side in (fields, moved)
    )
    path = figures.augmentation(before, after, plan.workdir / "figures" / "augmentation.png")
    caption = (
        "Training slices before and after augmentation; the outline is the mask, which must move "
        "with its slice."
    )
    return [(path, caption)]


def pseudo_labels(stage: Stage, plan: Plan) -> list[Picture]:
    """Unlabelled slices with the soft labels that the rounds of a stage gave them."""
    path = plan.workdir / "figures" / "pseudo_labels.png"
    caption = "Unlabelled slices, from the least marked to the most, and their soft pseudo-labels."
    return [(figures.overlays(pseudo_label_cases(stage, plan), path), caption)]


def pseudo_label_cases(stage: Stage, plan: Plan) -> list[figures.Case]:
    """Four pseudo-labelled slices, from the least marked to the most; none has a truth."""
    assert stage.semi is not None
    maps = read_npz(stage.folder, "round*.npz")
    examples = _by_id(splits.open_training(stage.semi.split, plan.data, masks=False))
    by_share = sorted(maps, key=lambda name: ((maps[name] >= 128).mean(), name))
    cases: list[figures.Case] = []
    for rank in np.unique(np.linspace(0, len(by_share) - 1, 4).astype(int)):
        name = by_share[rank]
        image = resize(decode(examples[name], "image"), len(maps[name]), labels=False)[..., 0]
        prob, marked = maps[name] / 255, maps[name] >= 128
        label = name if len(name) <= 30 else f"…{name[-29:]}"
        cases.append((f"{label}\n{marked.mean():.1%} marked", image, None, marked, prob))
    return cases


def lungs(stage: Stage, plan: Plan, score: Mapping[str, Any]) -> list[Picture]:
    """The cross-validated slices whose lungs fit worst, two of each part of the dataset.

    Args:
      score: what `lung_scores.summarise` returned.
    """
    examples = _by_id(splits.open_whole(plan.data.train, plan.data))
    cases: list[figures.Case] = []
    for part in score["parts"]:
        dice = {
            name: row["dice"]
            for name, row in score["slices"].items()
            if row["dice"] is not None and part in ("all", name.partition("/")[0])
        }
        for name in sorted(dice, key=lambda name: dice[name])[:2]:
            image, truth = (decode(examples[name], k)[..., 0] for k in ("image", "lung"))
            path = lung_scores.picture_of(stage.folder / "lungs", name)
            found = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)) > 0
            cases.append((f"{name}\nDice {dice[name]:.2f}", image, truth > 0, found, None))
    path = figures.overlays(cases, plan.workdir / "figures" / "lungs.png")
    return [
        (path, "The lungs with the lowest Dice of each part, by a network that had not seen them.")
    ]


def evaluation(workdir: Path, name: str, summaries: Mapping[str, Any]) -> list[Picture]:
    """Best, median and worst test slices of one class, and its ROC curve.

    Args:
      summaries: of the class, see `evaluation.json`.
    """
    with np.load(workdir / "evaluate" / f"{name}.npz") as z:
        cases: list[Any] = [
            (
                f"{title}, Dice {float(z[f'{title}_dice']):.2f}",
                *(z[f"{title}_{field}"] for field in ("image", "truth", "found", "prob")),
            )
            for title in ("best", "median", "worst")
        ]
    folder, pooled = workdir / "figures", summaries["toolbox"]
    fpr, tpr = (np.asarray(rates) for rates in pooled["roc"])
    overlay = figures.overlays(cases, folder / f"test_{name}.png")
    roc = figures.roc(fpr, tpr, pooled["roc_auc"], folder / f"roc_{name}.png")
    caption = (
        f"Test slices with the highest, median and lowest Dice of {name}; true and predicted masks "
        "as contours."
    )
    return [
        (overlay, caption),
        (roc, f"{name.capitalize()}: all test pixels pooled, raw probabilities."),
    ]


def _by_id(source: Source) -> dict[str, Any]:
    examples = (source[i] for i in range(len(source)))
    return {text(example["id"]): example for example in examples}

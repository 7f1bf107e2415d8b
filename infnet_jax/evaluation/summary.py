"""The page of a finished run, summary.md: what each of its stages has to tell.

A new pretext needs one entry, in `KINDS`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from infnet_jax.evaluation import figures, run_figures
from infnet_jax.evaluation.markdown import (
    Page,
    Picture,
    lung_table,
    markdown_table,
    result_table,
    write_summary,
)
from infnet_jax.plan import Plan, Stage
from infnet_jax.runs.logs import load_rows
from infnet_jax.runs.workdir import write_text


class Kind(NamedTuple):
    """What networks show by what they learn.

    Attributes:
      caption: of their learning curves; panels: of those, see `figures.learning_curves`.
      page: from stage and plan to what they show beside the curves.
    """

    caption: str
    panels: Sequence[figures.Panel]
    page: Callable[[Stage, Plan], Page] = lambda stage, plan: Page()


def write(plan: Plan, *, timings: Sequence[Mapping[str, Any]], name: str, command: str) -> Path:
    """Draws `figures/*.png` and writes `summary.md` and `table.txt`; the first process only.

    Args:
      plan: of a run whose stages are finished.
      timings: of the stages, see `write_summary`.
      name, command: what ran, and the line that repeats it.

    Returns:
      The path of `summary.md`.
    """
    if jax.process_index():
        return plan.workdir / "summary.md"
    pages = [page(stage, plan) for stage in plan.stages]
    single = [s for s in plan.stages if s.supervised and s.net.classes == 1]
    notes = [f"Input normalisation `{plan.final.norm}`, the same in every stage."]
    notes += dict.fromkeys(f"Single-class loss `{s.section.loss.kind}`." for s in single)
    whole = Page(
        [*run_figures.augmentation(plan), *(picture for one in pages for picture in one.pictures)],
        [table for one in pages[-1:] + pages[:-1] for table in one.tables],  # the result first
        [*notes, *(note for one in pages for note in one.notes)],
    )
    return write_summary(plan.workdir, whole, name=name, command=command, timings=timings)


def page(stage: Stage, plan: Plan) -> Page:
    """What a finished stage has to tell; draws its pictures."""
    return PAGES[stage.runs](stage, plan)


def _train(stage: Stage, plan: Plan) -> Page:
    """Networks that learn: their curves, and what else their kind shows."""
    kind, pictures = KINDS[stage.learns], []
    for network in stage.networks:
        caption = f"{kind.caption} {network.folder.name}." if stage.averages else kind.caption
        pictures += run_figures.curves(network.folder, plan.workdir, kind.panels, caption)
    more, notes = kind.page(stage, plan), []
    if (listing := stage.folder / "mix.json").exists():
        parts = json.loads(listing.read_text())
        dropped = sum(len(part["dropped"]) for part in parts)
        notes.append(
            f"Pre-trained on `{stage.mix}`: {sum(part['examples'] for part in parts) - dropped} "
            f"slices, without {dropped} that are near-copies of the test split "
            f"(`{stage.name}/mix.json`)."
        )
    return Page([*pictures, *more.pictures], more.tables, [*more.notes, *notes])


def _inpaint(stage: Stage, plan: Plan) -> Page:
    """Masks over time, and the table that asks whether the coach is hard."""
    s, of = stage.section, "" if stage.net.classes == 1 else " (multi-class)"
    taken = [other.transfer for other in plan.stages if other.origin == stage.name]
    note = (
        f"Pre-training{of}: `{s.rounds.schedule}` schedule, reconstruction loss `{s.loss.kind}` "
        f"reduced by `{s.loss.reduction}`, `{stage.net.options['inpaint_head']}` heads, KL weight "
        f"{s.kld_weight:g}, coach gradient `{s.coach_grad}`"
    )
    note += f"; `{taken[0]}` weights transferred." if taken else "."
    pictures, tables = run_figures.inpainting(stage, plan.workdir), []
    judged = [r for r in load_rows(stage.folder / "metrics.jsonl") if "rec_coach" in r]
    if judged:
        keys = ("rec_coach", "rec_random", "harder_share", "mask_difference")
        coach, random, harder, differ = (judged[-1][key] for key in keys)
        rows = {
            "error under coach masks": f"{coach:.4f}",
            "error under random masks, same keep ratio": f"{random:.4f}",
            "ratio": f"{coach / max(random, 1e-12):.2f}",
            "share of slices with the larger error under coach masks": f"{harder:.2f}",
            "share of cells in which two slices' coach masks differ": f"{differ:.3f}",
        }
        table = markdown_table(["held-out slices, last evaluation", "value"], [*rows.items()])
        tables.append((f"Is the coach hard?{of}", table))
    return Page(pictures, tables, [note])


def _rotation(stage: Stage, plan: Plan) -> Page:
    return Page(notes=["Pre-training: rotation prediction; the trunk alone is transferred."])


_LEARNING_RATE = ("Learning rate", {"lr": "rate"})
_SINGLE = Kind(
    "Fine-tuning.",
    (
        ("Training loss (eq. 5)", {"loss": "total"}),
        ("Dice at 0.5, held-out slices", {"dice": "averaged weights"}),
        _LEARNING_RATE,
    ),
)
KINDS = {  # by what networks learn
    "infection": _SINGLE,
    "lung": _SINGLE,
    "lesions": Kind(
        "The multi-class network.",
        (
            ("Training loss", {"loss": "total"}),
            (
                "Dice at 0.5, held-out slices",
                {"dice_ggo": "ground glass", "dice_consolidation": "consolidation"},
            ),
            _LEARNING_RATE,
        ),
    ),
    "inpaint": Kind(
        "Both players. The coach earns its name where the error under its masks lies above the "
        "error under random masks of the same keep ratio.",
        (
            ("Inpainter", {"rec": "erased pixels, training", "loss": "total loss"}),
            ("Coach", {"coach_rec": "reconstruction error", "coach_loss": "coach loss, 1 - error"}),
            (
                "Held-out error",
                {"rec_coach": "under coach masks", "rec_random": "under random masks"},
            ),
        ),
        _inpaint,
    ),
    "rotation": Kind(
        "Rotation as pretext: the trunk learns to tell which quarter turn a slice got.",
        (
            ("Which quarter turn: training", {"loss": "cross-entropy"}),
            ("Held-out slices, chance 0.25", {"accuracy": "share of turns told"}),
        ),
        _rotation,
    ),
}


def _out_of_fold(stage: Stage, plan: Plan) -> Page:
    """How well the networks of the folds do on the slices that each has not seen."""
    if stage == plan.prior and plan.prior_kind == "truth":
        return Page()
    score = json.loads((stage.folder / "cross_validation.json").read_text())
    trained = len(stage.networks)
    if stage.learns == "lung":
        note = f"Cross-validation: each slice by one of {trained} networks that had not seen it."
        tables = [("Cross-validation", lung_table(score))]
        return Page(run_figures.lungs(stage, plan, score), tables, [note])
    repeats = trained // stage.folds
    note = (
        f"The prior of each training slice comes from {'one' if repeats == 1 else repeats} of "
        f"{trained} networks that had not seen it (their cross-validated Dice at "
        f"{plan.evaluate.threshold:g} is {score['dice']:.3f}); that of any other slice is the mean "
        "of all of them."
    )
    return Page(notes=[note])


def _pseudo_labels(stage: Stage, plan: Plan) -> Page:
    """What the unlabelled slices did."""
    semi = stage.semi
    assert semi is not None
    if semi.kind == "mean_teacher":
        note = (
            f"Mean teacher: consistency weight {semi.consistency.weight:g}, ramped up in "
            f"{semi.consistency.ramp_steps} steps, on slices of `{semi.split}`."
        )
        return Page(notes=[note])
    found = json.loads((stage.folder / "pseudo.json").read_text())
    note = (
        f"Pseudo-labels: {found['slices']} slices of `{semi.split}` in {found['rounds']} rounds; "
        f"they mark {found['marked']:.1%} of the pixels, the true masks of the labelled slices "
        f"{found['marked_in_masks']:.1%}."
    )
    return Page(run_figures.pseudo_labels(stage, plan), notes=[note])


def _evaluate(stage: Stage, plan: Plan) -> Page:
    """The test split: the table, the pictures of each class and how the numbers came about."""
    result = json.loads((plan.workdir / "evaluation.json").read_text())
    table = result_table(result)
    write_text(plan.workdir / "table.txt", table + "\n")
    cuts = ", ".join(f"{label} {cut:g}" for label, cut in result["thresholds"].items())
    pictures: list[Picture] = []
    notes = [
        "Dice (mean over 256 thresholds) follows the published toolbox: each map is stretched to "
        "0..1, averaged over slices, then over thresholds; Dice at one threshold uses the "
        "stretched map in the toolbox reading and raw probabilities in the empty-aware one, which "
        "leaves out slices where truth and prediction are both empty.",
        f"Masks mark a class from this probability on: {cuts}. The mean of a mask over 256 "
        "thresholds is higher than that of its map only because a mask is sharp.",
    ]
    for label, dice in result.get("cross_validated", {}).items():
        notes.append(
            f"Cross-validated Dice of {label}, each training slice by a network that had not seen "
            f"it, empty-aware: {dice:.3f}."
        )
    for label, summaries in result["classes"].items():
        pictures += run_figures.evaluation(plan.workdir, label, summaries)
        if cut := summaries.get("cut"):
            notes.append(
                f"Cross-validated Dice of the map of {label} cut at {cut['threshold']:g} (best in "
                f"the toolbox reading), empty-aware: {cut['cross_validated']:.3f}."
            )
    if plan.evaluate.choose_threshold:
        notes.append(
            "The thresholds of the masks are those with the best Dice on training slices that the "
            "network had not seen."
        )
    return Page(pictures, [("Test split", table)], [*notes, *what_is_evaluated(plan)])


def what_is_evaluated(plan: Plan) -> list[str]:
    """Whose weights are evaluated: the notes on the final networks."""
    count, held_out = len(plan.final.networks), plan.final.section.get("validation", 0)
    if not plan.final.averages and held_out:
        return [
            f"{held_out} training slices (whole groups) were held out to choose the checkpoint."
        ]
    if not plan.final.averages:
        return ["No slice was held out: the last averaged weights are evaluated."]
    if not plan.final.folds:
        return [
            f"The mean of {count} networks is evaluated, each trained on all training slices by a "
            "seed of its own."
        ]
    notes = [
        f"The mean of {count} networks is evaluated, each trained on all folds of the training "
        "slices but its own."
    ]
    if any(stage.runs == "pseudo_labels" for stage in plan.stages):
        notes.append(
            "They share a start that a teacher of all training slices taught, through its maps of "
            "other slices: figures of unseen training slices may be a little too high. The test "
            "split is untouched by this."
        )
    return notes


PAGES = {  # by what runs a stage
    "train": _train,
    "out_of_fold": _out_of_fold,
    "pseudo_labels": _pseudo_labels,
    "evaluate": _evaluate,
}

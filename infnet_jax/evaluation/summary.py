"""The page of a finished run, summary.md. A new pretext needs one entry, in `KINDS`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infnet_jax.data import decode, resize, sources, text
from infnet_jax.evaluation import figures, out_of_fold, test_split
from infnet_jax.evaluation.figures import Page, Picture, markdown_table
from infnet_jax.files import read_npz, write_text
from infnet_jax.plan import Plan, Stage
from infnet_jax.runs.logs import load_rows
from infnet_jax.tasks import augment


class Kind(NamedTuple):
    """What networks show by what they learn: learning curves, and what `page` makes beside them."""

    caption: str  # of the learning curves
    panels: Sequence[figures.Panel]
    page: Callable[[Stage, Plan], Page] = lambda stage, plan: Page()


def write(plan: Plan, *, timings: Sequence[Mapping[str, Any]], name: str, command: str) -> Path:
    """Draws the `figures/` of a finished run, writes its `summary.md` (in the first process only).

    Returns its path; the other arguments are as in `figures.write_summary`.
    """
    if jax.process_index():
        return plan.workdir / "summary.md"
    pages = [page(stage, plan) for stage in plan.stages]
    losses = {s.section.loss.kind for s in plan.stages if s.supervised and s.net.classes == 1}
    notes = [f"Input normalisation `{plan.final.norm}`, the same in every stage."]
    notes += [f"Single-class loss `{kind}`." for kind in sorted(losses)]
    whole = Page(
        [_augmentation(plan), *(picture for one in pages for picture in one.pictures)],
        [table for one in pages[-1:] + pages[:-1] for table in one.tables],  # the result first
        [*notes, *(note for one in pages for note in one.notes)],
    )
    return figures.write_summary(plan.workdir, whole, name=name, command=command, timings=timings)


def _augmentation(plan: Plan) -> Picture:
    """Three training slices before and after augmentation, as the paper's Fig. 5."""
    trained = (s for s in plan.stages if s.supervised and s.net.classes == 1)
    section = next(trained, plan.final).section
    source = sources.open_whole(plan.data.train, plan.data)
    chosen = [source[int(i)] for i in np.linspace(0, len(source) - 1, 3)]
    side = section.size
    images = np.stack([resize(decode(e, "image"), side, labels=False) for e in chosen])
    masks = np.stack([resize(decode(e, "mask"), side, labels=True) for e in chosen])
    fields = {"image": jnp.asarray(images, jnp.float32) / 255.0, "mask": jnp.float32(masks > 0)}
    moved = augment.augment(jax.random.key(plan.seed), fields, **section.augmentation)
    before, after = ([np.asarray(side[k])[..., 0] for k in fields] for side in (fields, moved))
    path = figures.augmentation(before, after, plan.workdir / "figures" / "augmentation.png")
    caption = "Training slices before and after augmentation; the outline is the mask, which must "
    return path, caption + "move with its slice."


def page(stage: Stage, plan: Plan) -> Page:
    """What a finished stage has to tell; draws its pictures."""
    return PAGES[stage.runs](stage, plan)


def _train(stage: Stage, plan: Plan) -> Page:
    """Networks that learn: their curves, and what else their kind shows."""
    kind, pictures = KINDS[stage.learns], []
    for network in stage.networks:
        rows = load_rows(network.folder / "metrics.jsonl")
        seen = {key for row in rows for key in row if row[key] is not None}
        panels = [panel for panel in kind.panels if not seen.isdisjoint(panel[1])]
        if not panels:
            continue
        name = "_".join(network.folder.relative_to(plan.workdir).parts)
        path = plan.workdir / "figures" / f"{name}_curves.png"
        caption = f"{kind.caption} {network.folder.name}." if stage.averages else kind.caption
        pictures.append((figures.learning_curves(rows, path, panels), caption))
    more, notes = kind.page(stage, plan), []
    if (listing := stage.folder / "mix.json").exists():
        parts = json.loads(listing.read_text())
        dropped = sum(len(part["dropped"]) for part in parts)
        kept = sum(part["examples"] for part in parts) - dropped
        copies = f"{dropped} that are near-copies of the test split (`{stage.name}/mix.json`)."
        notes.append(f"Pre-trained on `{stage.mix}`: {kept} slices, without {copies}")
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
    tables: list[tuple[str, str]] = []
    judged = [r for r in load_rows(stage.folder / "metrics.jsonl") if "rec_coach" in r]
    if not s.rounds.use_coach:
        note += " No coach: all masks are random."
    elif judged:
        last = judged[-1]
        span = f"{last['coach_ratio_low']:.2f} to {last['coach_ratio_high']:.2f}"
        rows = [
            ("slices on which coach masks are harder, share", f"{last['harder_share']:.2f}"),
            ("error under coach / random masks, median slice", f"{last['coach_ratio']:.2f}"),
            ("its 95 % interval over slices", span),
            ("error under oracle / random masks, median slice", f"{last['oracle_ratio']:.2f}"),
            ("mean squared error under coach masks", f"{last['rec_coach']:.4f}"),
            ("mean squared error under random masks", f"{last['rec_random']:.4f}"),
            ("cells in which two slices' coach masks differ", f"{last['mask_difference']:.3f}"),
        ]
        table = markdown_table(["held-out slices, last evaluation", "value"], rows)
        tables.append((f"Is the coach hard?{of}", table))
        return Page(_inpaintings(stage, plan), tables, [note, _verdict(last, of)])
    return Page(_inpaintings(stage, plan), tables, [note])


def _verdict(row: Mapping[str, float], of: str) -> str:
    """In words: whether the coach did its work, against random masks and against the oracle.

    The oracle erases the cells that the network filled worst under other random masks.
    """
    gain, most = row["coach_ratio"] - 1, row["oracle_ratio"] - 1
    share = gain / most if most > 0 else float("nan")
    good = row["harder_share"] >= HARDER and share >= OF_ORACLE
    part = row["harder_share"] > 0.5 and row["coach_ratio_low"] > 1
    word = "did its work" if good else "did part of its work" if part else "did not do its work"
    return (
        f"The coach{of} {word}: in the error that is trained, its masks are harder than random "
        f"ones on {100 * row['harder_share']:.0f} % of the held-out slices, and reach "
        f"{100 * share:.0f} % of the oracle's gain in the median slice (at least "
        f"{100 * HARDER:.0f} % and {100 * OF_ORACLE:.0f} % are expected)."
    )


def _inpaintings(stage: Stage, plan: Plan) -> list[Picture]:
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
    caption = "Held-out slices at several moments of pre-training: what the coach erases (orange) "
    path = figures.inpainting_panel(lines, plan.workdir / "figures" / name)
    return [(path, caption + "and what Inf-Net paints in.")]


HARDER, OF_ORACLE = 0.8, 0.7  # what is expected of a coach; see `_verdict`
_ROTATION = Page(notes=["Pre-training: rotation prediction; the trunk alone is transferred."])
_LEARNING_RATE = ("Learning rate", {"lr": "rate"})
_HELD_OUT = "Dice at 0.5, held-out slices"
_LOSS, _DICE = ("Training loss (eq. 5)", {"loss": "total"}), {"dice": "averaged weights"}
_SINGLE = Kind("Fine-tuning.", (_LOSS, (_HELD_OUT, _DICE), _LEARNING_RATE))
_TYPES = {"dice_ggo": "ground glass", "dice_consolidation": "consolidation"}
_MULTI = (("Training loss", {"loss": "total"}), (_HELD_OUT, _TYPES), _LEARNING_RATE)
_MASKS = {"rec_coach": "under coach masks", "rec_random": "under random masks"}
KINDS = {  # by what networks learn
    "infection": _SINGLE,
    "lung": _SINGLE,
    "lesions": Kind("The multi-class network.", _MULTI),
    "inpaint": Kind(
        "Both players. The coach earns its name where the error under its masks lies above the "
        "error under random masks of the same keep ratio.",
        (
            ("Inpainter", {"rec": "erased pixels, training", "loss": "total loss"}),
            ("Coach", {"coach_rec": "reconstruction error", "coach_loss": "coach loss, 1 - error"}),
            ("Held-out error", _MASKS),
        ),
        _inpaint,
    ),
    "rotation": Kind(
        "Rotation as pretext: the trunk learns to tell which quarter turn a slice got.",
        (
            ("Which quarter turn: training", {"loss": "cross-entropy"}),
            ("Held-out slices, chance 0.25", {"accuracy": "share of turns told"}),
        ),
        lambda stage, plan: _ROTATION,
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
        source = sources.open_whole(plan.data.train, plan.data)
        cases = out_of_fold.worst_lungs(score, source, stage.folder / "lungs")
        path = figures.overlays(cases, plan.workdir / "figures" / "lungs.png")
        how = "by a network that had not seen them."
        picture = path, f"The lungs with the lowest Dice of each part, {how}"
        table = "Cross-validation", out_of_fold.lung_table(score)
        return Page([picture], [table], [note])
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
        weight, ramp = semi.consistency.weight, semi.consistency.ramp_steps
        note = f"Mean teacher: consistency weight {weight:g}, ramped up in {ramp} steps, on slices "
        return Page(notes=[f"{note}of `{semi.split}`."])
    found = json.loads((stage.folder / "pseudo.json").read_text())
    note = (
        f"Pseudo-labels: {found['slices']} slices of `{semi.split}` in {found['rounds']} rounds; "
        f"they mark {found['marked']:.1%} of the pixels, the true masks of the labelled slices "
        f"{found['marked_in_masks']:.1%}."
    )
    path = plan.workdir / "figures" / "pseudo_labels.png"
    caption = "Unlabelled slices, from the least marked to the most, and their soft pseudo-labels."
    return Page([(figures.overlays(pseudo_label_cases(stage, plan), path), caption)], notes=[note])


def pseudo_label_cases(stage: Stage, plan: Plan) -> list[figures.Case]:
    """Four pseudo-labelled slices, from the least marked to the most; none has a truth."""
    assert stage.semi is not None
    maps = read_npz(stage.folder, "round*.npz")
    source = sources.open_training(stage.semi.split, plan.data, masks=False)
    known = {text(source[i]["id"]): source[i] for i in range(len(source))}
    ranks = np.unique(np.linspace(0, len(maps) - 1, 4).astype(int))
    by_share = sorted(maps, key=lambda name: ((maps[name] >= 128).mean(), name))
    cases: list[figures.Case] = []
    for name in (by_share[rank] for rank in ranks):
        image = resize(decode(known[name], "image"), len(maps[name]), labels=False)[..., 0]
        prob, marked = maps[name] / 255, maps[name] >= 128
        label = name if len(name) <= 30 else f"…{name[-29:]}"
        cases.append((f"{label}\n{marked.mean():.1%} marked", image, None, marked, prob))
    return cases


def _evaluate(stage: Stage, plan: Plan) -> Page:
    """The test split: the table, the pictures of each class and how the numbers came about."""
    result = json.loads((plan.workdir / "evaluation.json").read_text())
    table = test_split.result_table(result)
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
    notes += [
        f"Cross-validated Dice of {label}, each training slice by a network that had not seen it, "
        f"empty-aware: {dice:.3f}."
        for label, dice in result.get("cross_validated", {}).items()
    ]
    for label, summaries in result["classes"].items():
        pictures += test_split.draw(plan.workdir, label, summaries)
        if cut := summaries.get("cut"):
            notes.append(
                f"Cross-validated Dice of the map of {label} cut at {cut['threshold']:g} (best in "
                f"the toolbox reading), empty-aware: {cut['cross_validated']:.3f}."
            )
    if plan.evaluate.choose_threshold:
        how = "those with the best Dice on training slices that the network had not seen."
        notes.append(f"The thresholds of the masks are {how}")
    return Page(pictures, [("Test split", table)], [*notes, *test_split.what_is_evaluated(plan)])


PAGES = {  # by what runs a stage
    "train": _train,
    "out_of_fold": _out_of_fold,
    "pseudo_labels": _pseudo_labels,
    "evaluate": _evaluate,
}

"""`infnet-jax detect`: tells infected patients from others by the infected share of their lungs."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infnet_jax import verbs
from infnet_jax.data import Source, Subset, sources
from infnet_jax.evaluation import statistics
from infnet_jax.files import write_csv
from infnet_jax.verbs import cohort

INFECTED = ("covid", "NCP")  # as covid_ct, covid_chestxray and cc_ccii call their patients
DATASET = "the version folder of a prepared dataset with labels, such as covid_ct"
POSITIVE = "labels that mean infected (default: covid or NCP)"
NEGATIVE = "labels that mean not infected (default: all others but unknown)"
LUNGS = "as in predict (default: %(default)s)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add, existing = parser.add_argument, verbs.existing
    add("--checkpoint", type=existing, required=True, metavar="DIR", help=verbs.RUN)
    add("--dataset", type=existing, required=True, metavar="DIR", help=DATASET)
    add("--split", default="test", help="default: %(default)s")
    add("--positive", nargs="+", default=[], metavar="LABEL", help=POSITIVE)
    add("--negative", nargs="+", default=[], metavar="LABEL", help=NEGATIVE)
    add("--csv", type=Path, metavar="OUT", help="also write one row a patient")
    add("--lungs", default=verbs.MORPHOLOGY, metavar="WAY", help=LUNGS)


def run(options: argparse.Namespace) -> int:
    """Prints ROC-AUC and the sensitivity at 95 % specificity, over patients; returns 0.

    A patient (a `group`) is infected if one of the slices is labelled so. The score is the
    infected share of the lung found in all of them together; patients without any are left out.
    """
    source = sources.open_split(options.dataset, options.split)
    names = sources.label_names(options.dataset)
    infected, healthy = choose(names, options.positive, options.negative)
    finder, _ = verbs.choose_lungs(options.lungs)
    truth = {names.index(name): name in infected for name in (*infected, *healthy)}
    rows = patients(verbs.load(options.checkpoint), finder, source, truth)
    print(report(options.split, rows, infected, healthy))
    if options.csv is not None:
        write_csv(options.csv, rows)
    return 0


def choose(
    names: Sequence[str], positive: Sequence[str], negative: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Returns which of the labels `names` mean infected, and which mean not.

    No `positive` stands for those of `INFECTED`, no `negative` for all others but `unknown`.
    ValueError for unknown labels, or none on one side.
    """
    infected = list(positive) or [name for name in names if name in INFECTED]
    healthy = list(negative) or [name for name in names if name not in (*infected, "unknown")]
    both = set(infected) & set(healthy)
    if not infected or not healthy or both or not {*infected, *healthy} <= set(names):
        yes, no = (", ".join(group) or "none" for group in (infected, healthy))
        hint = "name some of them with --positive and --negative"
        has = f"the dataset has {', '.join(names)}; {hint}"
        raise ValueError(f"labels {yes} as infected and {no} as not: {has}")
    return infected, healthy


def patients(
    network: "verbs.Predictor", finder: verbs.Finder, source: Source, truth: Mapping[int, bool]
) -> list[dict[str, Any]]:
    """Returns a row a patient, in the order of first appearance.

    `truth` tells which labels mean infected; slices with any other are passed over. A row has
    `patient` (the group), `infected` bool, `slices`, `lung_pixels`, `infected_pixels` and `share`
    0..1, NaN without lung.
    """
    labels = [int(source[i]["label"]) for i in range(len(source))]
    chosen = [i for i, label in enumerate(labels) if label in truth]
    examples = sources.examples(Subset(source, chosen))
    slices = (cohort.Slice(e["id"], e["group"], e["image"][..., 0]) for e in examples)
    rows: dict[str, dict[str, Any]] = {}
    counts = dict.fromkeys(("slices", "lung_pixels", "infected_pixels"), 0)
    for i, (one, mask) in zip(chosen, cohort.predicted(slices, network), strict=True):
        row = rows.setdefault(one.unit, {"patient": one.unit, "infected": False} | counts)
        row["infected"] |= truth[labels[i]]
        row["slices"] += 1
        kept, lung = cohort.inside_lung(one, mask, finder)
        if lung.any():  # not above or below the lungs, where nothing is an infection of them
            row["lung_pixels"] += int((lung | kept).sum())
            row["infected_pixels"] += int(kept.sum())
    for row in rows.values():
        whole = row["lung_pixels"]
        row["share"] = row["infected_pixels"] / whole if whole else float("nan")
    return list(rows.values())


def report(
    split: str, rows: Sequence[dict[str, Any]], infected: Sequence[str], healthy: Sequence[str]
) -> str:
    """Returns three lines about the rows of `patients`; ValueError if all are of one kind."""
    scored = [row for row in rows if row["lung_pixels"]]
    curve = statistics.roc([r["share"] for r in scored], [r["infected"] for r in scored])
    sensitivity, specificity, threshold = statistics.sensitivity_at(curve, 0.95)
    n_infected = sum(row["infected"] for row in scored)
    return (
        f"{split}: {sum(row['slices'] for row in scored)} slices of {len(scored)} patients, "
        f"{n_infected} infected ({', '.join(infected)}), {len(scored) - n_infected} not "
        f"({', '.join(healthy)}); {len(rows) - len(scored)} left out, as no lung was found\n"
        f"ROC-AUC                          {curve.auc:.3f}\n"
        f"sensitivity at 95 % specificity  {sensitivity:.3f}  (share of {threshold:.4f} or more; "
        f"specificity {specificity:.3f})"
    )

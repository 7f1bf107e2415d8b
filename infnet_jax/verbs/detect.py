"""`infnet-jax detect`: tells infected patients from others by the infected share of their lungs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infnet_jax import verbs
from infnet_jax.data import Subset, sources
from infnet_jax.evaluation import statistics
from infnet_jax.files import write_csv
from infnet_jax.verbs import cohort

INFECTED = ("covid", "NCP")  # as covid_ct, covid_chestxray and cc_ccii call their patients
NOBODY = "unknown"
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
    Raises FileNotFoundError if a dataset or run is missing, else as `choose` and `report` do.
    """
    source = sources.open_split(options.dataset, options.split)
    names = sources.label_names(options.dataset)
    infected, healthy = choose(names, options.positive, options.negative)
    finder, _ = verbs.choose_lungs(options.lungs)
    kinds = [[names.index(name) for name in group] for group in (infected, healthy)]
    rows = patients(verbs.load(options.checkpoint), finder, source, *kinds)
    print(report(options.split, rows, infected, healthy))
    if options.csv is not None:
        write_csv(options.csv, rows)
    return 0


def choose(
    names: Sequence[str], positive: Sequence[str], negative: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Returns those of the labels `names` that mean infected, and those that mean not.

    An empty `positive` stands for those of `INFECTED` that there are, an empty `negative` for all
    others but `unknown`. ValueError for unknown labels, or none on one side.
    """
    infected = list(positive) or [name for name in names if name in INFECTED]
    healthy = list(negative) or [name for name in names if name not in (*infected, NOBODY)]
    both = set(infected) & set(healthy)
    if not infected or not healthy or both or not {*infected, *healthy} <= set(names):
        raise ValueError(
            f"labels {', '.join(infected) or 'none'} as infected and {', '.join(healthy) or 'none'}"
            f" as not: the dataset has {', '.join(names)}; name some of them with --positive and "
            "--negative"
        )
    return infected, healthy


def patients(
    network: "verbs.Predictor",
    finder: verbs.Finder,
    source: sources.Source,
    infected: Sequence[int],
    healthy: Sequence[int],
) -> list[dict[str, Any]]:
    """Returns a row a patient, in the order of first appearance.

    Of `source` (`label`, `group`, `id` and `image`), slices with other labels than those of
    `infected` and `healthy` are passed over. A row has `patient` (the group), `infected` bool,
    `slices`, `lung_pixels`, `infected_pixels` and `share` 0..1, NaN without lung.
    """
    labels = [int(source[i]["label"]) for i in range(len(source))]
    chosen = [i for i, label in enumerate(labels) if label in (*infected, *healthy)]
    examples = sources.examples(Subset(source, chosen))
    slices = (cohort.Slice(e["id"], e["group"], e["image"][..., 0]) for e in examples)
    rows: dict[str, dict[str, Any]] = {}
    counts = dict.fromkeys(("slices", "lung_pixels", "infected_pixels"), 0)
    for i, (one, mask) in zip(chosen, cohort.predicted(slices, network), strict=True):
        row = rows.setdefault(one.unit, {"patient": one.unit, "infected": False} | counts)
        row["infected"] |= labels[i] in infected
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
    """Returns three lines about the rows of `patients`: who was looked at, AUC, sensitivity.

    `infected` and `healthy` are names of labels; ValueError if all patients are of one kind.
    """
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

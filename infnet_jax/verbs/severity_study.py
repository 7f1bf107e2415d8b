"""`infnet-jax severity-study`: predicted severity against true severity (paper, section V.D).

Truth are expert masks; where there are none, a clinical table or the scores that experts gave.
"""

import argparse
import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infnet_jax import verbs
from infnet_jax.clinic import case, severity
from infnet_jax.files import write_csv, write_text
from infnet_jax.verbs import cohort, severity_tables as tables
from infnet_jax.verbs.severity_tables import SIDES, Row

TRUE_LUNGS = "true"
SOURCES = "prepared datasets, or folders with img/, label/ and lung/"
LUNGS = "for the prediction: true, or as in predict (default: %(default)s)"
TTA = "average eight views (default: as the run did)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add, existing = parser.add_argument, verbs.existing
    add("sources", type=existing, nargs="+", metavar="SOURCE", help=SOURCES)
    add("--checkpoint", type=existing, metavar="DIR", help="a run that predicts; or")
    add("--masks", type=existing, metavar="DIR", help="predicted masks")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for tables and plots")
    add("--lungs", default=verbs.MORPHOLOGY, metavar="WAY", help=LUNGS)
    add("--split", default="test", help="of prepared datasets (default: %(default)s)")
    add("--tta", action=argparse.BooleanOptionalAction, default=None, help=TTA)
    add("--clinical", type=existing, metavar="FILE", help="iCTCF's Patients.xlsx")


def run(options: argparse.Namespace, network: "verbs.Predictor | None" = None) -> int:
    """Scores what is predicted and what is true, writes how they agree, and returns 0.

    Into `--out`: `scores.csv` (a row a slice and a row a patient) and `summary.md`; where truth is
    known `agreement.csv` and `bland_altman_<source>.png`; where experts gave scores `experts.csv`;
    with a clinical table `clinical.csv`. `network` None loads that of `--checkpoint`, if given.
    ValueError or FileNotFoundError: a source, mask or table of no use, or nothing to compare.
    """
    if (options.checkpoint is None) == (options.masks is None):
        raise ValueError("give either --checkpoint or --masks")
    if options.checkpoint is not None and network is None:
        network = verbs.load(options.checkpoint, tta=options.tta)
    out, masks = options.out, options.masks
    morbidity = options.clinical and tables.read_morbidity(options.clinical)
    finder, lung_name = None, "true masks"
    if options.lungs != TRUE_LUNGS:
        finder, lung_name = verbs.choose_lungs(options.lungs)
    rows: list[Row] = []
    left_out: list[str] = []
    for name, source in _names(options.sources).items():
        slices = cohort.read(source, options.split)
        pairs = cohort.predicted(slices, network) if network else cohort.given(slices, masks)
        rows += score(name, pairs, finder, left_out)
    groups, judged = tables.group(rows), tables.experts(rows)
    if not groups and not judged and morbidity is None:
        lacks = "no slice has a true mask and a true lung, or an expert's score"
        raise ValueError(f"{lacks}, and there is no --clinical; {'; '.join(left_out[:2])}")
    write_csv(out / "scores.csv", rows)
    model = network.identity if network else {"masks": str(masks)}
    known = model | {"lungs of predicted masks": lung_name}
    items = "\n".join(f"- {name}: {value}" for name, value in known.items())
    parts = ["# Severity: predicted against true", items]
    parts += tables.agreement_section(out, groups) if groups else []
    parts += tables.experts_section(out, judged) if judged else []
    parts += [] if morbidity is None else tables.clinical_section(out, morbidity, rows)
    parts += tables.left_out_section(left_out) if left_out else []
    text = "\n\n".join(parts) + "\n"
    write_text(out / "summary.md", text)
    print(text, end="")
    return 0


def score(
    dataset: str, pairs: Iterable[cohort.Masked], finder: verbs.Finder | None, left_out: list[str]
) -> list[Row]:
    """Scores slices, and patients by their pooled counts.

    Predicted masks meet the lungs of `finder` (None: the true ones). `left_out` gets a line for
    each side of a slice that cannot be scored; a patient's other slices still count.
    Returns rows with `dataset`, `level` (slice, patient), `unit`, `name`, `slices`; share, ct_ss
    and grade, each `true_` and `predicted_`; and `cohort.EXPERT_SCORES`, of slices only; None where
    not known. Patient rows come last, if some patient has several slices, or there is no truth.
    """
    rows: list[Row] = []
    pooled: dict[str, dict[str, severity.Tally]] = {}
    counts: collections.Counter[str] = collections.Counter()
    for one, mask in pairs:
        found = {}
        try:
            if one.mask is not None and one.lung is not None:
                found["true"] = _tally(one, one.mask, one.lung, regions=one.regions)
        except ValueError as error:
            left_out.append(f"{dataset}, truth: {error}")
        try:
            found["predicted"] = _tally(one, *cohort.inside_lung(one, mask, finder))
        except ValueError as error:
            left_out.append(f"{dataset}, predicted: {error}")
        counts[one.unit] += 1
        sums = pooled.setdefault(one.unit, {})
        for side, tally in found.items():
            # True and predicted are compared on the same slices, where truth is known at all.
            key = side if "true" in found else "alone"
            sums[key] = sums[key] + tally if key in sums else tally
        where = {"level": "slice", "unit": one.unit, "name": one.name, "slices": 1}
        rows.append({"dataset": dataset} | where | _graded(found) | one.experts)
    truthless = not any("true" in sums for sums in pooled.values())
    if truthless or any(n > 1 for n in counts.values()):
        for unit, sums in pooled.items():
            sides = sums if "true" in sums or not sums else {"predicted": sums["alone"]}
            where = {"level": "patient", "unit": unit, "name": unit, "slices": counts[unit]}
            rows.append({"dataset": dataset} | where | _graded(sides))
    return rows


def _tally(one: cohort.Slice, mask: np.ndarray, lung: np.ndarray, **maps: Any) -> severity.Tally:
    maps = {name: labels[None] for name, labels in maps.items() if labels is not None}
    return case.assess(one.scan, mask[None], lung[None], **maps, classes=("infection",)).tally


def _graded(sides: Mapping[str, severity.Tally]) -> Row:
    """The scores of both sides, and no expert's."""
    row: Row = {}
    for side in SIDES:
        graded: Any = severity.grade(sides[side]) if side in sides else None
        for key, field in (("share", "infected_share"), ("ct_ss", "ct_ss"), ("grade", "grade")):
            row[f"{side}_{key}"] = getattr(graded, field, None)
    return row | dict.fromkeys(cohort.EXPERT_SCORES)


def _names(sources: Sequence[Path]) -> dict[str, Path]:
    """`phantom_default` for a prepared dataset, else the folder's name."""
    found: dict[str, Path] = {}
    for path in sources:
        whole = path.resolve()
        prepared = (whole / "dataset_info.json").is_file()
        name = "_".join(whole.parts[-3:-1]) if prepared else whole.name
        found[name if name not in found else f"{name}_{len(found) + 1}"] = path
    return found

"""`infnet-jax detect`: tells infected patients from others by the infected share of their lungs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from infnet_jax.clinic import imaging
from infnet_jax.data.sources import Source, examples, label_names, open_split, select, text
from infnet_jax.evaluation import statistics
from infnet_jax.evaluation.predictor import Segmenter
from infnet_jax.files import write_csv
from infnet_jax.verbs import find_lungs
from infnet_jax.verbs.predict import drop_detached

INFECTED = ("covid", "NCP")  # as covid_ct, covid_chestxray and cc_ccii call their patients
NOBODY = ("unknown",)


def run(
    checkpoint: Path,
    dataset: Path,
    split: str,
    *,
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    csv: Path | None = None,
    lung_way: str = find_lungs.MORPHOLOGY,
) -> int:
    """Prints ROC-AUC and the sensitivity at 95 % specificity, over patients; returns 0.

    A patient (a `group`) is infected if one of the slices is labelled so. The score is the
    infected share of the lung found in all of them together; patients without any are left out.

    Args:
      checkpoint: workdir of a finished run.
      dataset: folder of a prepared dataset whose feature `label` has names.
      split: of it, or a slice of one.
      positive: names of labels that mean infected; none: those of `INFECTED` that there are.
      negative: of those that mean not infected; none: all others but `unknown`.
      csv: also writes a row a patient.
      lung_way: as in `find_lungs.choose`.

    Raises:
      FileNotFoundError: nothing prepared in `dataset`, or no run in `checkpoint`.
      ValueError: labels that do not exist, or patients of one kind only.
    """
    source, names = open_split(dataset, split), label_names(dataset)
    infected, healthy = choose(names, positive, negative)
    finder, _ = find_lungs.choose(lung_way)
    rows = patients(
        Segmenter(checkpoint),
        finder,
        source,
        [names.index(n) for n in infected],
        [names.index(n) for n in healthy],
    )
    scored = [row for row in rows if row["lung_pixels"]]
    curve = statistics.roc([r["share"] for r in scored], [r["infected"] for r in scored])
    sensitivity, specificity, threshold = statistics.sensitivity_at(curve, 0.95)
    n_infected = sum(row["infected"] for row in scored)
    print(
        f"{split}: {sum(row['slices'] for row in scored)} slices of {len(scored)} patients, "
        f"{n_infected} infected ({', '.join(infected)}), {len(scored) - n_infected} not "
        f"({', '.join(healthy)}); {len(rows) - len(scored)} left out, as no lung was found"
    )
    print(f"ROC-AUC                          {curve.auc:.3f}")
    print(
        f"sensitivity at 95 % specificity  {sensitivity:.3f}  (share of {threshold:.4f} or more; "
        f"specificity {specificity:.3f})"
    )
    if csv is not None:
        write_csv(csv, rows)
    return 0


def choose(
    names: Sequence[str], positive: Sequence[str], negative: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The labels that mean infected, and those that mean not; see `run`."""
    infected = list(positive) or [name for name in names if name in INFECTED]
    healthy = list(negative) or [n for n in names if n not in (*infected, *NOBODY)]
    unknown = [name for name in (*infected, *healthy) if name not in names]
    if unknown or not infected or not healthy or set(infected) & set(healthy):
        raise ValueError(
            f"labels {', '.join(infected) or 'none'} as infected and {', '.join(healthy) or 'none'}"
            f" as not: the dataset has {', '.join(names)}; name some of them with --positive and "
            "--negative"
        )
    return infected, healthy


def patients(
    segmenter: Segmenter,
    finder: find_lungs.Finder,
    source: Source,
    infected: Sequence[int],
    healthy: Sequence[int],
) -> list[dict]:
    """A row a patient, in the order of first appearance; slices of other labels are passed over.

    Returns:
      Dicts of `patient` (the group), `infected` bool, `slices`, `lung_pixels`, `infected_pixels`
      and `share` 0..1, NaN without lung.
    """
    chosen = [i for i in range(len(source)) if int(source[i]["label"]) in (*infected, *healthy)]

    def pictures() -> Iterator[np.ndarray]:
        return (example["image"][..., 0] for example in examples(select(source, chosen)))

    rows: dict[str, dict] = {}
    for i, picture, found in zip(chosen, pictures(), segmenter(pictures()), strict=True):
        example = source[i]
        name = text(example["group"])
        row = rows.setdefault(
            name,
            {
                "patient": name,
                "infected": False,
                "slices": 0,
                "lung_pixels": 0,
                "infected_pixels": 0,
            },
        )
        row["infected"] |= int(example["label"]) in infected
        row["slices"] += 1
        scan = imaging.scan_of_picture(text(example["id"]), np.ascontiguousarray(picture))
        lung = finder(scan)[0] > 0
        if not lung.any():
            continue  # above or below the lungs: what is marked there is no infection of them
        mask = found.mask[None]
        drop_detached(mask, lung[None])
        row["lung_pixels"] += int((lung | (mask[0] > 0)).sum())
        row["infected_pixels"] += int((mask > 0).sum())
    for row in rows.values():
        lung = row["lung_pixels"]
        row["share"] = row["infected_pixels"] / lung if lung else float("nan")
    return list(rows.values())

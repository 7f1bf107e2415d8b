"""`infnet-jax severity-study`: predicted severity against true severity, per slice and patient.

It fills what the paper leaves empty (section V.D). Truth are expert masks; where there are none,
scores are held against a clinical table (iCTCF) or the scores that experts gave
(covid-chestxray).
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from infnet_jax.clinic import imaging
from infnet_jax.evaluation.predictor import Segmenter
from infnet_jax.files import write_csv
from infnet_jax.verbs import (
    clinical,
    find_lungs,
    severity as score_files,
    severity_rows,
    study_page,
    truth,
)

TRUE_LUNGS = "true"


def run(
    sources: Sequence[Path],
    *,
    out: Path,
    checkpoint: Path | None = None,
    masks: Path | None = None,
    lung_way: str = find_lungs.MORPHOLOGY,
    split: str = "test",
    tta: bool | None = None,
    table: Path | None = None,
) -> int:
    """Scores what is predicted and what is true, and writes how they agree.

    Writes into `out`: `scores.csv` (a row a slice and a row a patient) and `summary.md`; where
    truth is known `agreement.csv` and `bland_altman_<source>.png`; where experts gave scores
    `experts.csv`; with a clinical table `clinical.csv`.

    Args:
      sources: see `truth.read`.
      checkpoint: workdir whose network predicts; or
      masks: folder of predicted masks by the slices' names, such as `predict` writes.
      lung_way: lungs under the predicted masks: `true`, or as in `find_lungs.choose`.
      split: of prepared datasets.
      tta: average over eight views; None as the run did.
      table: iCTCF's Patients.xlsx.

    Returns:
      0.

    Raises:
      ValueError, FileNotFoundError: a source, mask or table that cannot be used, or no slice with
        anything to compare.
    """
    if (checkpoint is None) == (masks is None):
        raise ValueError("give either --checkpoint or --masks")
    known = clinical.read(table) if table is not None else None
    finder, lung_name = (
        (None, "true masks") if lung_way == TRUE_LUNGS else (find_lungs.choose(lung_way))
    )
    segmenter = None if checkpoint is None else Segmenter(checkpoint, tta=tta)
    model = {"masks": str(masks)} if segmenter is None else segmenter.identity
    out.mkdir(parents=True, exist_ok=True)
    rows: list[severity_rows.Row] = []
    left_out: list[str] = []
    for name, source in _names(sources).items():
        slices = truth.read(source, split)
        pairs = _given(slices, masks) if segmenter is None else _predicted(slices, segmenter)
        rows += severity_rows.score(name, pairs, finder, left_out)
    tables = [
        {"dataset": dataset, "level": level} | severity_rows.compare(group)
        for (dataset, level), group in severity_rows.groups(rows)
    ]
    experts = severity_rows.experts(rows)
    if not tables and not experts and known is None:
        raise ValueError(
            "no slice has a true mask and a true lung, or an expert's score, and "
            "there is no --clinical; " + "; ".join(left_out[:2])
        )
    joined = None
    if known is not None:
        patients = {
            f"{r['dataset']}/{r['unit']}": clinical.Scores(
                r["predicted_share"], r["predicted_grade"], r["predicted_ct_ss"]
            )
            for r in rows
            if r["level"] == "patient" and r["predicted_share"] is not None
        }
        joined = clinical.join(known, patients)
        write_csv(
            out / "clinical.csv",
            [
                {"patient": n, "morbidity": word, "class": c, **s._asdict()}
                for n, word, c, s in zip(*joined[:4], strict=True)
            ],
        )
    write_csv(out / "scores.csv", rows)
    for name, table in (("agreement.csv", tables), ("experts.csv", experts)):
        if table:
            write_csv(out / name, table)
    drawn = [
        (name, study_page.draw(out, name, levels))
        for name, levels in severity_rows.by_dataset(rows)
    ]
    page = study_page.write(
        out,
        model=model | {"lungs of predicted masks": lung_name},
        tables=tables,
        experts=experts,
        joined=joined,
        figures=drawn,
        left_out=left_out,
    )
    print(page.read_text(), end="")
    return 0


def _predicted(
    slices: Iterable[truth.Slice], segmenter: Segmenter
) -> Iterator[tuple[truth.Slice, np.ndarray]]:
    ahead, behind = itertools.tee(slices)
    for one, found in zip(behind, segmenter(s.image for s in ahead), strict=True):
        yield one, found.mask > 0


def _given(slices: Iterable[truth.Slice], folder: Path) -> Iterator[tuple[truth.Slice, np.ndarray]]:
    masks = imaging.by_name(folder)
    for one in slices:
        path = imaging.partner(one.name, masks, "masks", alone=False).files[0]
        labels = imaging.read_labels(path, imaging.scan_of_picture(one.name, one.image))
        yield one, score_files.infection(labels, path.name)[0][0] > 0


def _names(sources: Sequence[Path]) -> dict[str, Path]:
    """`phantom_default` for a prepared dataset, else the folder's name."""
    found: dict[str, Path] = {}
    for path in sources:
        whole = path.resolve()
        if (whole / "dataset_info.json").is_file():
            name = "_".join(whole.parts[-3:-1])
        else:
            name = whole.name
        found[name if name not in found else f"{name}_{len(found) + 1}"] = path
    return found

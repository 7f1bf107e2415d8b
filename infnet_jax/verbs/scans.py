"""Scans to scores, one by one, with their page and tables: what `predict` and `severity` share."""

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from infnet_jax.clinic import case, imaging, page


def score(
    verb: str,
    sources: Iterable[imaging.Source],
    read_case: Callable[[imaging.Source], case.Case],
    out: Path,
    *,
    model: Mapping[str, str],
    patient: str | None,
) -> int:
    """Writes `severity.csv`, `severity.json` and `report.html`; prints a line a patient.

    Args:
      verb: its name, for messages.
      sources: the scans, in order.
      read_case: makes the case of one; ValueError, OSError or ImportError there is one line on
        stderr and does not stop the others.
      out: folder, which must exist.
      model: what identifies model and config; {} for masks from elsewhere.
      patient: whose scans they all are, scored together; None: each is a patient of its own.

    Returns:
      0, or 1 if a scan failed.
    """
    failed = 0
    patients: list[case.Patient] = []
    together: list[case.Case] = []
    with page.Page(out / "report.html", model=model) as report:

        def add(name: str, cases: list[case.Case]) -> None:
            patients.append(case.pool(name, cases))
            report.add(name, cases, patients[-1].scores)

        for source in sources:
            try:
                found = read_case(source)
            except (ValueError, OSError, ImportError) as error:
                failed += 1
                start = "\r\x1b[K" if sys.stderr.isatty() else ""  # clears the line of progress
                line = f"infnet-jax {verb}: {' '.join(str(error).split())}"
                print(start + line, file=sys.stderr, flush=True)
                continue
            if patient is None:
                add(source.name, [found])
            else:
                together.append(found)
        if patient is not None and together:
            add(patient, together)
    case.write_tables(out, patients, model=model)
    for one in patients:
        scores = one.scores
        ct_ss = "not known" if scores.ct_ss is None else f"{scores.ct_ss:g} of 40"
        share = f"{100 * scores.infected_share:.1f} % of the lung infected"
        print(f"{one.name}: {share}, CT-SS {ct_ss}")
    n_scans = sum(len(one.scans) for one in patients)
    print(f"{n_scans} scored, {failed} failed: {out / 'report.html'}")
    return 1 if failed else 0

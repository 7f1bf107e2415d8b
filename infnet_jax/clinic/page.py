"""One self-contained page (no network): a patient's slices, contours, regions and scores.

Pictures are JPEG data in script elements that the browser only reads when a slice is shown, so a
volume of 300 slices costs a few megabytes and one picture at a time. Patients are streamed to
disk as they are added.
"""

import html
import json
import os
import shutil
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from infnet_jax.clinic.outlines import Case, describe
from infnet_jax.clinic.severity import CT_SS_CUTOFF, N_REGIONS, Severity

CLASSES = {
    "infection": "Infection (I)",
    "ggo": "Ground glass (G)",
    "consolidation": "Consolidation (C)",
}
GRADES = ("0 (below 1 %)", "1 (1 % to below 50 %)", "2 (50 % and more)")


class Page:
    """Writes a page patient by patient; its final name appears when all is written.

    Use as a context manager; after an exception nothing is left behind.
    """

    def __init__(self, path: Path, *, model: Mapping[str, Any], title: str = "Lung infection"):
        """Prepares a page.

        Args:
          path: the .html file.
          model: name to text, the identity of model and config; {} for masks from elsewhere.
          title: of the page.
        """
        self.path, self._title, self._model = path, title, model
        self._rows: list[str] = []
        self._body_path = path.with_name(f".part-body-{path.name}")
        self._body = self._body_path.open("w", encoding="utf-8")

    def add(self, name: str, cases: Sequence[Case], scores: Severity) -> None:
        """Adds a patient: its name, scans and pooled scores."""
        number = len(self._rows) + 1
        share = _percent(scores.infected_share)
        ct_ss = _number(scores.ct_ss)
        self._rows.append(
            f'<tr><th scope="row"><a href="#p{number}">{html.escape(name)}</a></th>'
            f"<td>{sum(len(c.mask) for c in cases)}</td><td>{share}</td><td>{ct_ss}</td></tr>"
        )
        shares = json.dumps(scores.as_dict()["region_shares"] or [None] * N_REGIONS)
        write = self._body.write
        write(
            f'<section class="patient" id="p{number}" data-shares="{html.escape(shares)}" '
            f'aria-labelledby="h{number}">\n<h2 id="h{number}">{html.escape(name)}</h2>\n'
        )
        classes = min((case.classes for case in cases), key=len)  # one class blurs the others
        write('<div class="columns"><div>')
        write(_viewer(name, cases, classes))
        write(f"</div><div>{_scores(scores)}{_heat(scores)}{_notes(cases)}</div></div>\n")
        index = 0
        for case in cases:
            for i in range(len(case.mask)):
                slice_ = json.dumps(describe(case, i, classes)).replace("</", "<\\/")
                write(f'<script type="application/json" data-slice="{index}">{slice_}</script>\n')
                index += 1
        write("</section>\n")

    def __enter__(self) -> "Page":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts head, overview and patients together, or removes what there is."""
        self._body.close()
        fresh = self.path.with_name(f".part-{self.path.name}")
        try:
            if kind is None:
                self._assemble(fresh)
                os.replace(fresh, self.path)
        finally:
            fresh.unlink(missing_ok=True)
            self._body_path.unlink(missing_ok=True)

    def _assemble(self, fresh: Path) -> None:
        template = string.Template((Path(__file__).parent / "report.html").read_text("utf-8"))
        filled = template.safe_substitute(
            title=html.escape(self._title),
            model=_identity(self._model),
            overview=_overview(self._rows),
        )
        head, foot = filled.split("<!-- patients -->")
        with fresh.open("w", encoding="utf-8") as out:
            out.write(head)
            with self._body_path.open(encoding="utf-8") as body:
                shutil.copyfileobj(body, out)
            out.write(foot)


def _identity(model: Mapping[str, Any]) -> str:
    if not model:
        return "<p>Masks were given; no model was run.</p>"
    items = "".join(
        f"<dt>{html.escape(str(k))}</dt><dd><code>{html.escape(str(v))}</code></dd>"
        for k, v in model.items()
    )
    return f"<details><summary>Model and config</summary><dl>{items}</dl></details>"


def _overview(rows: list[str]) -> str:
    return (
        '<table><caption>Patients</caption><thead><tr><th scope="col">Patient</th>'
        '<th scope="col">Slices</th><th scope="col">Infected share of the lung</th>'
        f'<th scope="col">CT-SS (0 to 40, cut-off {CT_SS_CUTOFF})</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _viewer(name: str, cases: Sequence[Case], classes: Sequence[str]) -> str:
    """Picture, slider, switches; starts at the slice of most infection."""
    infected = np.concatenate([[int((m > 0).sum()) for m in case.mask] for case in cases])
    boxes = [
        *((name, CLASSES[name], True) for name in classes),
        ("lung", "Lung (L)", True),
        ("region", "Regions by share (R)", False),
    ]
    if any(case.uncertainty is not None for case in cases):
        boxes.append(("unsure", "Uncertainty (U)", False))
    switches = "".join(
        f'<label><input type="checkbox" data-kind="{kind}"{" checked" if on else ""}>'
        f'<span class="swatch {kind}" style="border-color:var(--{kind},#dfe6ee)"></span>'
        f"{text}</label>"
        for kind, text, on in boxes
    )
    label = html.escape(name)
    return (
        f'<div class="stage" tabindex="0" role="group" aria-label="Slices of {label}; arrow keys '
        'move through them"><img class="ct" alt="CT slice"><img class="unsure" alt="" hidden>'
        '<svg aria-hidden="true" preserveAspectRatio="none"></svg></div>'
        f'<input class="through" type="range" min="0" max="{len(infected) - 1}" '
        f'value="{int(infected.argmax())}" aria-label="Slice of {label}">'
        f'<p class="said dim" aria-live="polite"></p><div class="controls">{switches}'
        '<label>Opacity <input class="opacity" type="range" min="0" max="100" value="35">'
        "</label></div>"
    )


def _scores(s: Severity) -> str:
    """The table of scores, with their ranges and cut-offs; what is not known is left out."""
    severe = {True: "above the cut-off", False: "not above the cut-off", None: ""}[s.severe]
    rows = [
        ("Infected share of the lung (PO)", _percent(s.infected_share), "0 to 100 %"),
        ("Grade of the share", None if s.grade is None else GRADES[s.grade], "bounds 1 %, 50 %"),
        (
            "CT-SS, 20 regions",
            f"{_number(s.ct_ss)} {severe}".strip() if s.ct_ss is not None else None,
            f"0 to 40, cut-off {CT_SS_CUTOFF}",
        ),
        ("Lobar score", _number(s.lobar_25), "0 to 25"),
        ("Total severity score (lobes)", _number(s.tss), "0 to 20"),
        ("Six zones", _number(s.six_zone), "0 to 24"),
        (
            "Ground glass",
            s.ggo_share if s.ggo_share is None else _percent(s.ggo_share),
            "of the lung",
        ),
        (
            "Consolidation",
            s.consolidation_share
            if s.consolidation_share is None
            else _percent(s.consolidation_share),
            "of the lung",
        ),
        (
            "High opacity above -200 HU (PHO)",
            None if s.pho_percent is None else _percent(s.pho_percent / 100),
            "of the lung",
        ),
        ("Lung volume", None if s.lung_ml is None else f"{s.lung_ml:.0f} ml", ""),
        ("Infected volume", None if s.infected_ml is None else f"{s.infected_ml:.0f} ml", ""),
    ]
    lines = "".join(
        f'<tr><th scope="row">{k}</th><td>{v}</td><td class="dim">{html.escape(note)}</td></tr>'
        for k, v, note in rows
        if v is not None
    )
    return f"<table><caption>Scores, all slices pooled</caption><tbody>{lines}</tbody></table>"


def _heat(s: Severity) -> str:
    """The 20 regions as two rows of cells with their shares and points, readable as text."""
    if s.region_shares is None or s.ct_ss_regions is None:
        return ""
    out = ["<h3>Infected share per region</h3>"]
    for side, first in (("Right lung", 0), ("Left lung", 10)):
        cells = []
        for k in range(first, first + 10):
            share, points = s.region_shares[k], s.ct_ss_regions[k]
            used = points >= 0
            back = _colour(share) if used and share > 0 else "transparent"
            ink = "#14171c" if used and share > 0 else "var(--text)"
            text = _percent(share) if used else "not used"
            cells.append(
                f'<div role="listitem" style="background:{back};color:{ink}">'
                f"<strong>{k + 1}</strong><br>{text}</div>"
            )
        out.append(f'<p class="dim">{side}</p><div class="heat" role="list">{"".join(cells)}</div>')
    return "".join(out)


def _notes(cases: Sequence[Case]) -> str:
    notes = [note for case in cases for note in case.warnings]
    items = "".join(f"<li>{html.escape(n)}</li>" for n in dict.fromkeys(notes))
    return f'<h3>Warnings</h3><ul class="notes">{items}</ul>' if items else ""


def _colour(share: float) -> str:
    """The same scale as the page's script: yellow, over orange, to red."""
    return f"hsl({50 - 50 * min(1, share * 2):.0f} 95% {72 - 27 * share:.0f}%)"


def _percent(share: float | None) -> str:
    return "not known" if share is None or share != share else f"{100 * share:.1f} %"


def _number(value: float | None) -> str | None:
    return None if value is None else "not known" if value != value else f"{value:g}"

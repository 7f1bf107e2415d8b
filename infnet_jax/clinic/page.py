"""One self-contained page (no network): a patient's slices, contours, regions and scores.

Pictures are JPEG data in script elements that the browser only reads when a slice is shown, so a
volume of 300 slices costs a few megabytes and one picture at a time. Patients are streamed to
disk as they are added.
"""

import base64
import hashlib
import html
import json
import math
import shutil
import string
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infnet_jax.clinic.case import Case
from infnet_jax.clinic.severity import CT_SS_CUTOFF, N_REGIONS, Severity
from infnet_jax.files import whole

CLASSES = {
    "infection": "Infection (I)",
    "ggo": "Ground glass (G)",
    "consolidation": "Consolidation (C)",
}
SIDE = 448  # pixels of the longer side of a picture in the page
# How a patient's part of a page begins, each of its slices, and how it ends: lines of their own.
_OPEN, _CLOSE = '<section class="patient" id="p', "</section>\n"
_SLICE = '<script type="application/json" data-slice'
GRADES = ("0 (below 1 %)", "1 (1 % to below 50 %)", "2 (50 % and more)")


class Page:
    """Writes a page patient by patient; its final name appears when all is written.

    Use as a context manager; after an exception nothing is left behind.
    """

    def __init__(self, path: Path, *, model: Mapping[str, Any], caution: str = ""):
        """Prepares the .html file `path`, whose folder must exist.

        `model` identifies model and config, name to text; {} for masks from elsewhere. A `caution`
        that concerns all patients stands in red above them.
        """
        self.path, self._model, self._caution = path, model, caution
        self._rows: list[str] = []
        self._body = tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent)

    def add(self, name: str, cases: Sequence[Case], scores: Severity) -> None:
        """Adds a patient: its name, scans and pooled scores."""
        key, title = _key(name), html.escape(name)
        self._rows.append(_row(name, sum(len(c.mask) for c in cases), scores))
        shares = json.dumps(scores.as_dict()["region_shares"] or [None] * N_REGIONS)
        classes = min((case.classes for case in cases), key=len)  # one class blurs the others
        write = self._body.write
        write(
            f'{_OPEN}{key}" data-shares="{html.escape(shares)}" '
            f'aria-labelledby="h{key}">\n<h2 id="h{key}">{title}</h2>\n'
            f'<div class="columns"><div>{_viewer(title, cases, classes)}</div>'
            f"<div>{_scores(scores)}{_heat(scores)}{_notes(cases)}</div></div>\n"
        )
        slices = [(case, i) for case in cases for i in range(len(case.mask))]
        for index, (case, i) in enumerate(slices):
            data = json.dumps(_slice(case, i, classes)).replace("<", "\\u003c")  # ends no script
            write(f'{_SLICE}="{index}">{data}</script>\n')
        write(_CLOSE)

    def keep(self, patients: Mapping[str, Severity]) -> None:
        """Takes patients over, by name, from the page that this one will replace."""
        wanted, copying, slices = {_key(name): name for name in patients}, "", 0
        if not wanted:
            return
        with self.path.open(encoding="utf-8", newline="") as before:
            for line in before:
                if line.startswith(_OPEN):
                    copying, slices = line[len(_OPEN) :].partition('"')[0], 0
                if copying in wanted:
                    self._body.write(line)
                    slices += line.startswith(_SLICE)
                if copying in wanted and line == _CLOSE:
                    name = wanted.pop(copying)
                    self._rows.append(_row(name, slices, patients[name]))

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Puts head, overview and patients together, if all went well."""
        with self._body as body:  # which removes it
            if kind is not None:
                return
            template = string.Template((Path(__file__).parent / "report.html").read_text("utf-8"))
            model, overview = _identity(self._model), _overview(self._rows)
            caution = f'<p class="caution" role="alert">{html.escape(self._caution)}</p>'
            banner = caution if self._caution else ""
            filled = template.safe_substitute(model=model, overview=overview, caution=banner)
            head, foot = filled.split("<!-- patients -->")
            body.seek(0)
            with whole(self.path) as fresh, fresh.open("w", encoding="utf-8") as out:
                out.write(head)
                shutil.copyfileobj(body, out)
                out.write(foot)


def names(path: Path, among: Iterable[str]) -> list[str]:
    """Those of the patients' names `among` these that a page has; none where there is no page."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        found = {line[len(_OPEN) :].partition('"')[0] for line in lines if line.startswith(_OPEN)}
    return [name for name in among if _key(name) in found]


def _key(name: str) -> str:
    """Of a patient, for ids on the page: the same in every run."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _row(name: str, slices: int, scores: Severity) -> str:
    """A patient's line in the table of all."""
    unknown = "not known"
    return (
        f'<tr><th scope="row"><a href="#p{_key(name)}">{html.escape(name)}</a></th>'
        f"<td>{slices}</td><td>{_percent(scores.infected_share) or unknown}</td>"
        f"<td>{_text(scores.ct_ss) or unknown}</td></tr>"
    )


def _identity(model: Mapping[str, Any]) -> str:
    if not model:
        return "<p>Masks were given; no model was run.</p>"
    pairs = ((html.escape(str(k)), html.escape(str(v))) for k, v in model.items())
    items = "".join(f"<dt>{k}</dt><dd><code>{v}</code></dd>" for k, v in pairs)
    return f"<details><summary>Model and config</summary><dl>{items}</dl></details>"


def _overview(rows: list[str]) -> str:
    return (
        '<table><caption>Patients</caption><thead><tr><th scope="col">Patient</th>'
        '<th scope="col">Slices</th><th scope="col">Infected share of the lung</th>'
        f'<th scope="col">CT-SS (0 to 40, cut-off {CT_SS_CUTOFF})</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _viewer(title: str, cases: Sequence[Case], classes: Sequence[str]) -> str:
    """Picture, slider, switches; starts at the slice of most infection. The title is escaped."""
    infected = [int((m > 0).sum()) for case in cases for m in case.mask]
    kinds = {name: CLASSES[name] for name in classes}
    kinds |= {"lung": "Lung (L)", "region": "Regions by share (R)"}
    if any(case.uncertainty is not None for case in cases):
        kinds["unsure"] = "Uncertainty (U)"
    switches = "".join(
        f'<label><input type="checkbox" data-kind="{kind}"'
        f"{'' if kind in ('region', 'unsure') else ' checked'}>"
        f'<span class="swatch {kind}" style="border-color:var(--{kind},#dfe6ee)"></span>'
        f"{text}</label>"
        for kind, text in kinds.items()
    )
    return (
        f'<div class="stage" tabindex="0" role="group" aria-label="Slices of {title}; arrow keys '
        'move through them"><img class="ct" alt="CT slice"><img class="unsure" alt="" hidden>'
        '<svg aria-hidden="true" preserveAspectRatio="none"></svg></div>'
        f'<input class="through" type="range" min="0" max="{len(infected) - 1}" '
        f'value="{infected.index(max(infected))}" aria-label="Slice of {title}">'
        f'<p class="said dim" aria-live="polite"></p><div class="controls">{switches}'
        '<label>Opacity <input class="opacity" type="range" min="0" max="100" value="35">'
        "</label></div>"
    )


def _scores(s: Severity) -> str:
    """The table of scores, with their ranges and cut-offs; what is not known is left out."""
    severe = {True: " above the cut-off", False: " not above the cut-off", None: ""}[s.severe]
    pho = None if s.pho_percent is None else s.pho_percent / 100
    rows = [
        ("Infected share of the lung (PO)", _percent(s.infected_share), "0 to 100 %"),
        ("Grade of the share", None if s.grade is None else GRADES[s.grade], "bounds 1 %, 50 %"),
        ("CT-SS, 20 regions", _text(s.ct_ss, "{:g}" + severe), f"0 to 40, cut-off {CT_SS_CUTOFF}"),
        ("Lobar score", _text(s.lobar_25), "0 to 25"),
        ("Total severity score (lobes)", _text(s.tss), "0 to 20"),
        ("Six zones", _text(s.six_zone), "0 to 24"),
        ("Ground glass", _percent(s.ggo_share), "of the lung"),
        ("Consolidation", _percent(s.consolidation_share), "of the lung"),
        ("High opacity above -200 HU (PHO)", _percent(pho), "of the lung"),
        ("Lung volume", _text(s.lung_ml, "{:.0f} ml"), ""),
        ("Infected volume", _text(s.infected_ml, "{:.0f} ml"), ""),
    ]
    lines = "".join(
        f'<tr><th scope="row">{k}</th><td>{v}</td><td class="dim">{html.escape(note)}</td></tr>'
        for k, v, note in rows
        if v is not None
    )
    return f"<table><caption>Scores, all slices pooled</caption><tbody>{lines}</tbody></table>"


def _heat(s: Severity) -> str:
    """The 20 regions as two rows of cells with their shares, readable as text."""
    if s.region_shares is None or s.ct_ss_regions is None:
        return ""
    cells = []
    for k, (share, points) in enumerate(zip(s.region_shares, s.ct_ss_regions, strict=True), 1):
        back, front, text = "transparent", "var(--text)", _percent(share)
        if points < 0:
            text = "not used"
        elif share > 0:  # the same scale as the page's script: yellow, over orange, to red
            hue, light = 50 - 50 * min(1, share * 2), 72 - 27 * share
            back, front = f"hsl({hue:.0f} 95% {light:.0f}%)", "#14171c"
        cells.append(
            f'<div role="listitem" style="background:{back};color:{front}">'
            f"<strong>{k}</strong><br>{text}</div>"
        )
    return "<h3>Infected share per region</h3>" + "".join(
        f'<p class="dim">{side}</p><div class="heat" role="list">{"".join(ten)}</div>'
        for side, ten in (("Right lung", cells[:10]), ("Left lung", cells[10:]))
    )


def _notes(cases: Sequence[Case]) -> str:
    notes = [note for case in cases for note in case.warnings]
    items = "".join(f"<li>{html.escape(n)}</li>" for n in dict.fromkeys(notes))
    return f'<h3>Warnings</h3><ul class="notes">{items}</ul>' if items else ""


def _text(value: float | None, form: str = "{:g}") -> str | None:
    """A score as text; None where it is not there at all, words where it is NaN."""
    if value is None:
        return None
    return "not known" if math.isnan(value) else form.format(value)


def _percent(share: float | None) -> str | None:
    return None if share is None else _text(100 * share, "{:.1f} %")


def _slice(case: Case, i: int, classes: Sequence[str]) -> dict[str, Any]:
    """What the page holds of slice `i`, ready for JSON; with one class, it is all infection."""
    maps = (case.pictures, case.mask, case.lung, case.regions)
    picture, mask, lung, regions = (of_all[i] for of_all in maps)
    scale = min(1.0, SIDE / max(picture.shape))
    width, height = (max(round(n * scale), 1) for n in picture.shape[::-1])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    inside, infected = int(lung.sum()), int((mask > 0).sum())
    labels = mask if len(classes) > 1 else (mask > 0).astype(np.uint8)
    return {
        "name": case.name,
        "number": i + 1,
        "of": len(case.mask),
        "text": f"{100 * infected / inside:.1f} % of the lung infected" if inside else "no lung",
        "w": width,
        "h": height,
        "image": _data(small, "jpeg", [cv2.IMWRITE_JPEG_QUALITY, 82]),
        "classes": [[name, _path(labels == k, scale)] for k, name in enumerate(classes, start=1)],
        "lung": _path(lung, scale),
        "regions": [[int(r), _path(regions == r, scale)] for r in np.unique(regions) if r],
        "unsure": None if case.uncertainty is None else _unsure(case.uncertainty[i], small.shape),
    }


def _path(mask: np.ndarray, scale: float) -> str:
    """The outlines of a mask, bool [H, W], as an SVG path, in pixels of the shown picture."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    path = ""
    for line in lines:
        points = (cv2.approxPolyDP(line, 0.4 / scale, True)[:, 0].astype(float) + 0.5) * scale
        if len(points) > 1:
            path += f"M{'L'.join(f'{x:.1f} {y:.1f}' for x, y in points)}Z"
    return path


def _unsure(values: np.ndarray, shape: tuple[int, int]) -> str:
    """Uncertainty, float [H, W] 0..1, as a green picture, the more opaque the more uncertain."""
    small = cv2.resize(values.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
    out = np.full((*shape, 4), (120, 255, 120, 0), np.uint8)
    out[..., 3] = np.round(np.clip(small, 0, 1) * 255)
    return _data(out, "png", [])


def _data(picture: np.ndarray, kind: str, options: Sequence[int]) -> str:
    _, encoded = cv2.imencode(f".{kind}", picture, options)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"

"""The page: self-contained, light, escaped, whole or absent, and driven in a browser."""

import base64
import dataclasses
import functools
import html.parser
import json
import operator
import os
import re
import shutil

import cv2
import numpy as np
import pytest

from infnet_jax.clinic import severity
from infnet_jax.clinic.case import Case
from infnet_jax.clinic.page import SIDE, Page


def _case(depth=12, size=64, name="scan", **changes):
    grey = np.random.default_rng(0).integers(60, 90, (depth, size, size)).astype(np.uint8)
    lung = np.zeros(grey.shape, bool)
    lung[:, 8:-8, 8:-8] = True
    regions = np.where(lung, 1 + (np.arange(size) * 20 // size), 0).astype(np.uint8)
    mask = np.zeros(grey.shape, np.uint8)
    mask[depth // 2, 20:30, 10:20], mask[(depth // 2 + 1) % depth, 20:24, 30:40] = 1, 2
    one_class = len(changes.get("classes", "ab")) == 1
    tally = severity.count(mask > 0 if one_class else mask, lung, regions=regions)
    return dataclasses.replace(Case(name, grey, mask, lung, regions, tally, []), **changes)


def _write(path, *cases, name="patient", model=None):
    tally = functools.reduce(operator.add, (case.tally for case in cases))
    with Page(path, model=model or {}) as page:
        page.add(name, cases, severity.grade(tally))
    return path.read_text()


class _Slices(html.parser.HTMLParser):
    """The slices' JSON, all ids, and the text."""

    def __init__(self, text):
        super().__init__()
        self.slices, self.tags, self.text, self._open = {}, [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = dict(attrs).get("data-slice") if tag == "script" else None

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open is not None:
            self.slices[int(self._open)] = json.loads(data)
        else:
            self.text += data


def test_each_slice_is_there_with_its_outlines(tmp_path):
    page = _Slices(_write(tmp_path / "r.html", _case()))
    assert sorted(page.slices) == list(range(12))
    one = page.slices[6]
    assert (one["w"], one["h"], one["number"], one["of"]) == (64, 64, 7, 12)
    assert one["text"] == "4.3 % of the lung infected"  # 100 of 48 x 48
    drawn, after = dict(one["classes"]), dict(page.slices[7]["classes"])
    corners = [tuple(map(float, p)) for p in re.findall(r"([\d.]+) ([\d.]+)", drawn["ggo"])]
    assert sorted(corners) == [(10.5, 20.5), (10.5, 29.5), (19.5, 20.5), (19.5, 29.5)]
    assert drawn["consolidation"] == "" and after["consolidation"] != ""
    assert [r for r, _ in one["regions"]] == list(range(3, 19))
    raw = base64.b64decode(one["image"].split(",")[1])
    shown = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert shown.shape == (64, 64) and abs(int(shown.mean()) - 75) < 3


def test_it_starts_at_the_slice_of_most_infection_and_says_what_it_is(tmp_path):
    case = _case(warnings=["a warning <here>"])
    page = _Slices(_write(tmp_path / "r.html", case, model={"checkpoint": "abc<1>"}))
    slider = next(a for t, a in page.tags if a.get("class") == "through")
    assert (slider["value"], slider["max"]) == ("6", "11") and "aria-label" in slider
    assert "Research use, not a medical device" in page.text and "cut-off 19.5" in page.text
    assert "abc<1>" in page.text and "a warning <here>" in page.text  # escaped, so text
    html_tag = next(a for t, a in page.tags if t == "html")
    assert html_tag["lang"] == "en" and all("alt" in a for t, a in page.tags if t == "img")


def test_a_single_class_network_finds_infection_and_no_kind_of_it(tmp_path):
    single = _case(classes=("infection",))
    page = _Slices(_write(tmp_path / "r.html", single))
    kinds = [a["data-kind"] for _, a in page.tags if "data-kind" in a]
    assert kinds == ["infection", "lung", "region"] and "Infection (I)" in page.text
    assert [name for name, _ in page.slices[6]["classes"]] == ["infection"]
    shown = re.sub(r"const KEYS.*?;", "", page.text)
    assert "Ground glass" not in shown and "Consolidation" not in shown
    page = _Slices(_write(tmp_path / "r.html", _case(), single))  # what one scan cannot tell
    assert {name for s in page.slices.values() for name, _ in s["classes"]} == {"infection"}
    assert dict(page.slices[7]["classes"])["infection"]  # consolidation is infection too
    page = _Slices(_write(tmp_path / "r.html", _case()))
    assert "Ground glass (G)" in page.text and "Infection (I)" not in page.text


def test_names_cannot_break_the_page(tmp_path):
    name = "</script><script>alert(1)</script>\"'"
    text = _write(tmp_path / "r.html", _case(name=name), name=name)
    page = _Slices(text)
    assert "alert(1)</script>" not in text and name in page.text
    assert page.slices[0]["name"] == name


def test_nothing_leaves_the_page(tmp_path):
    text = _write(tmp_path / "r.html", _case())
    policy = next(a["content"] for t, a in _Slices(text).tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    links = set(re.findall(r"https?://[^\"' ]+", text))
    assert links == {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_a_failed_page_leaves_nothing_behind(tmp_path):
    path, case = tmp_path / "r.html", _case()
    path.write_text("old")
    with pytest.raises(RuntimeError), Page(path, model={}) as page:
        page.add("a", [case], severity.grade(case.tally))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "old"


def test_large_slices_are_shown_smaller(tmp_path):
    one = _Slices(_write(tmp_path / "r.html", _case(depth=2, size=1000))).slices[1]
    assert (one["w"], one["h"]) == (SIDE, SIDE)
    assert max(float(x) for x in re.findall(r"[\d.]+", one["lung"])) < SIDE


def test_several_scans_follow_each_other(tmp_path):
    page = _Slices(_write(tmp_path / "r.html", _case(2, 64, "a"), _case(3, 40, "b")))
    found = [(s["name"], s["number"], s["w"]) for s in page.slices.values()]
    assert found == [("a", 1, 64), ("a", 2, 64), ("b", 1, 40), ("b", 2, 40), ("b", 3, 40)]


@pytest.fixture
def browser():
    """A headless Chromium; CHROMIUM names the program where it is not on the path."""
    api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium (set CHROMIUM)")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_slider_keys_and_switches_in_a_browser(browser, tmp_path):
    case = _case(uncertainty=np.random.default_rng(0).random((12, 64, 64)))
    _write(tmp_path / "r.html", case)
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    noise, asked = [], []
    page.on("console", lambda m: noise.append(m.text))
    page.on("pageerror", lambda e: noise.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    page.goto((tmp_path / "r.html").as_uri())
    said, stage = page.locator(".said"), page.locator(".stage")
    page.wait_for_function("document.querySelector('.said').textContent.includes('slice 7 of 12')")
    stage.focus()
    keys = ("ArrowRight", "End", "ArrowRight", "PageDown", "Home", "ArrowLeft")
    for key, slice_ in zip(keys, (8, 12, 12, 2, 1, 1), strict=True):
        page.keyboard.press(key)
        assert f"slice {slice_} of 12" in said.inner_text(), key
    page.locator(".through").fill("6")
    assert "slice 7 of 12" in said.inner_text()
    assert "slice 7 of 12" in page.locator("img.ct").get_attribute("alt")
    assert page.locator("path.ggo").count() == 1 and page.locator("path.region").count() == 0
    stage.focus()
    page.keyboard.press("g")
    assert page.locator("path.ggo").count() == 0
    page.locator("input[data-kind=region]").check()
    assert page.locator("path.region").count() == 16
    before = page.locator("path.region").first.evaluate("e => e.style.fillOpacity")
    page.locator(".opacity").fill("90")
    assert page.locator("path.region").first.evaluate("e => e.style.fillOpacity") > before
    assert not page.locator("img.unsure").is_visible()
    page.locator("input[data-kind=unsure]").check()
    assert page.locator("img.unsure").is_visible()
    assert not noise and {u.split(":")[0] for u in asked} <= {"file", "data"}
    assert sum(u.startswith("file:") for u in asked) == 1

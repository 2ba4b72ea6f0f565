"""The page as people see it, in Chromium: on a phone and on a desktop, in the light and in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from tests.browser import Page, browsing, chromium
from tests.lab.made_up import result

from holdfast.lab.report.content import sections_of
from holdfast.lab.report.page import html_page

pytestmark = pytest.mark.browser

METHODS = ("joint", "ewc-fisher", "ewc-mas", "ewc-kfac", "wva-signal", "l2", "none")
PHONE, DESKTOP = 390, 1280
VIEWS = [(width, dark) for width in (PHONE, DESKTOP) for dark in (False, True)]

SMALLEST_FONT = "Math.min(...TEXTS.map(each => parseFloat(getComputedStyle(each).fontSize)))"
TEXTS = """[...document.querySelectorAll('body *')].filter(each =>
    !each.closest('script, style, title, .hidden, [hidden]') &&
    [...each.childNodes].some(child => child.nodeType === 3 && child.data.trim()) && each.getClientRects().length)"""
CONTRASTS = """(() => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = rgb => rgb.slice(0, 3).map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = each => {
    for (let at = each; at; at = at.parentElement) {
      const found = rgba(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  return TEXTS.map(each => {
    const [low, high] = [luminance(rgba(getComputedStyle(each).color)), luminance(behind(each))].sort((a, b) => a - b);
    return [(high + .05) / (low + .05), each.textContent.trim().slice(0, 30)];
  }).filter(([contrast]) => contrast < 4.5);
})()"""


def about(expression: str) -> str:
    return expression.replace("TEXTS", f"({TEXTS})")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [
        result(name, seed=seed, kept=0.95 - 0.1 * k - 0.03 * seed, num_tasks=10, strength=None, held_bytes=10**k * 1000)
        for k, name in enumerate(METHODS)
        if name not in ("ewc-fisher", "wva-signal")
        for seed in range(3)
    ]
    runs += [
        result(name, seed=seed, kept=kept + 0.02 * seed, num_tasks=10, strength=strength)
        for name in ("ewc-fisher", "wva-signal")
        for strength, kept in ((0.0, 0.3), (1.0, 0.6), (100.0, 0.9), (1e4, 0.7))
        for seed in range(3)
    ]
    long = {"num_tasks": 25, "stream": "split-of-a-name-that-is-long", "scenario": "class"}
    runs += [result(**long, rather_long_a_setting=letter * 40) for letter in "xy"]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_page(sections_of(runs), places={}, pictures=["a-picture.png"]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = chromium()
    assert program is not None
    with browsing(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize(("width", "dark"), VIEWS)
def test_nothing_to_complain_of_and_nothing_asked_for(browser: Page, report: Path, width: int, dark: bool):
    browser.open(report, width=width, dark=dark)
    assert browser.evaluate("document.readyState") == "complete"
    assert browser.complaints() == []
    assert browser.requests() == [report.as_uri()]
    assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark


@pytest.mark.parametrize(("width", "dark"), VIEWS)
def test_it_fits_its_width(browser: Page, report: Path, width: int, dark: bool):
    browser.open(report, width=width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    beyond = browser.evaluate(
        f"""[...document.querySelectorAll('main *')].filter(each => !each.closest('.scroll, .hidden, svg') &&
            each.getBoundingClientRect().right > {width}).map(each => each.tagName + ' ' + each.className)"""
    )
    assert beyond == []


@pytest.mark.parametrize(("width", "dark"), VIEWS)
def test_every_word_can_be_read(browser: Page, report: Path, width: int, dark: bool):
    browser.open(report, width=width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.evaluate(about("TEXTS.length")) > 500
    assert browser.evaluate(about(SMALLEST_FONT)) >= 11
    assert browser.evaluate(about(CONTRASTS)) == []


@pytest.mark.parametrize(("width", "scripts"), [(PHONE, True), (DESKTOP, True), (DESKTOP, False)])
def test_the_curves_are_there(browser: Page, report: Path, width: int, scripts: bool):
    browser.open(report, width=width, dark=False, scripts=scripts)
    drawn = "e => e.getTotalLength() > 50 && e.getBoundingClientRect().width > 150"
    for part in ("curves", "strengths"):
        lines = f"[...document.querySelectorAll('#section-0-{part} .line')]"
        assert browser.evaluate(f"{lines}.filter({drawn}).length") == len(METHODS)
    assert browser.evaluate("document.querySelectorAll('#section-0-curves .names li').length") == len(METHODS)
    assert browser.evaluate("document.querySelectorAll('#section-0-curves .band').length") == len(METHODS)
    assert browser.evaluate("document.querySelectorAll('#section-0-strengths .best').length") == 2
    assert browser.evaluate("document.querySelectorAll('#section-0 .heat').length") == len(METHODS)
    assert browser.evaluate("document.querySelectorAll('#section-1 .heat svg .stair').length") == 2


@pytest.mark.parametrize("dark", [False, True])
def test_a_method_has_one_colour_in_every_picture(browser: Page, report: Path, dark: bool):
    browser.open(report, width=DESKTOP, dark=dark)
    colours = browser.evaluate(
        """(() => { const found = {};
        for (const each of document.querySelectorAll('#section-0 .line, #section-0 .swatch line, #section-0 .whisker'))
          (found[each.closest('[data-s]').dataset.s] ??= new Set()).add(getComputedStyle(each).stroke);
        return Object.values(found).map(each => [...each]); })()"""
    )
    assert len(colours) == len(METHODS)
    assert all(len(each) == 1 for each in colours)
    assert len({each[0] for each in colours}) >= len(METHODS) - 2  # joint and plain are told by their dashes


def test_no_names_cover_each_other(browser: Page, report: Path):
    browser.open(report, width=DESKTOP, dark=False)
    boxes = browser.evaluate(
        """[...document.querySelectorAll('#section-0-curves .names li')].map(each => each.getBoundingClientRect())
           .map(box => [box.left, box.right, box.top, box.bottom])"""
    )
    ordered = sorted(boxes, key=lambda box: box[2])
    assert all(low[3] <= high[2] + 0.5 for low, high in pairwise(ordered))
    assert all(right <= DESKTOP for _, right, _, _ in boxes)


def test_pointing_at_a_method_makes_the_others_step_back(browser: Page, report: Path):
    browser.open(report, width=DESKTOP, dark=False)
    name = "document.querySelector('#section-0-curves .names li')"
    browser.evaluate(f"{name}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    x, y = browser.evaluate(f"(box => [box.left + 40, box.top + 8])({name}.getBoundingClientRect())")
    browser.point(x, y)
    assert browser.evaluate("document.querySelectorAll('#section-0.pointed').length") == 1
    assert browser.evaluate("new Set([...document.querySelectorAll('.own')].map(e => e.dataset.s)).size") == 1
    browser.point(5, 5)
    assert browser.evaluate("document.querySelectorAll('.pointed').length") == 0


def test_the_table_of_contents_leads_to_its_parts(browser: Page, report: Path):
    browser.open(report, width=PHONE, dark=False)
    broken = "a => !document.querySelector(a.getAttribute('href'))"
    assert browser.evaluate(f"[...document.querySelectorAll('nav a')].filter({broken}).length") == 0
    assert browser.evaluate("document.querySelectorAll('nav a').length") >= 15

"""The page as people see it, in Chromium: on a phone and on a desktop, in the light and in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.browser import Page, browsing, chromium
from tests.lab.made_up import result

from holdfast.lab.frame import runs_table
from holdfast.lab.report import write_report

pytestmark = pytest.mark.browser

METHODS = ("joint", "ewc-fisher", "ewc-mas", "ewc-kfac", "wva-signal", "slow", "none")
PHONE, DESKTOP = 390, 1280
VIEWS = [(width, dark) for width in (PHONE, DESKTOP) for dark in (False, True)]

FONTS = """TEXTS.map(each => parseFloat(getComputedStyle(each).fontSize) * (each.closest('svg') ? 4 / 3 : 1))"""
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
    return [(high + .05) / (low + .05), each.textContent.trim().slice(0, 30), each.closest('svg')];
  }).filter(([, , picture]) => !picture).filter(([contrast]) => contrast < 4.5);
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
    return write_report(runs_table(runs), tmp_path_factory.mktemp("page")).path


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
    assert [each for each in browser.requests() if not each.startswith("data:image/png;")] == [report.as_uri()]
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
    assert browser.evaluate(about(f"Math.min(...{FONTS})")) >= 10
    assert browser.evaluate(about(CONTRASTS)) == []


def test_on_a_desktop_nothing_has_to_be_scrolled(browser: Page, report: Path):
    browser.open(report, width=DESKTOP, dark=False)
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    browser.settle()
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    assert browser.evaluate(f"{wide}.map(each => each.innerText.slice(0, 40))") == []
    assert browser.evaluate(HINTS) == 0


HINTS = """[...document.querySelectorAll('.scroll')]
    .filter(each => getComputedStyle(each, '::before').display !== 'none').length"""


@pytest.mark.parametrize("scripts", [True, False])
def test_on_a_phone_what_goes_on_to_the_right_says_so(browser: Page, report: Path, scripts: bool):
    browser.open(report, width=PHONE, dark=False, scripts=scripts)
    number = "document.querySelectorAll('.scroll').length"
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    told = browser.evaluate(HINTS)
    assert browser.evaluate(wide) <= told <= browser.evaluate(number)
    assert told > 10
    hint = "getComputedStyle(document.querySelector('.scroll'), '::before').content"
    assert "more to the right" in browser.evaluate(hint)


@pytest.mark.parametrize(("width", "scripts"), [(PHONE, True), (DESKTOP, True), (DESKTOP, False)])
def test_the_pictures_are_there(browser: Page, report: Path, width: int, scripts: bool):
    browser.open(report, width=width, dark=False, scripts=scripts)
    assert browser.evaluate("document.querySelectorAll('#section-0 figure svg').length") == 5
    assert browser.evaluate("document.querySelectorAll('#section-1 figure svg').length") == 4
    shapes = "[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect())"
    assert browser.evaluate(f"Math.min(...{shapes}.map(box => Math.min(box.width, 2 * box.height)))") > 250
    broken = "[...document.querySelectorAll('use')].filter(e => !document.querySelector(e.getAttribute('href')))"
    assert browser.evaluate(f"{broken}.length") == 0


def test_the_table_of_contents_leads_to_its_parts(browser: Page, report: Path):
    browser.open(report, width=PHONE, dark=False)
    broken = "a => !document.querySelector(a.getAttribute('href'))"
    assert browser.evaluate(f"[...document.querySelectorAll('nav a')].filter({broken}).length") == 0
    assert browser.evaluate("document.querySelectorAll('nav a').length") >= 15

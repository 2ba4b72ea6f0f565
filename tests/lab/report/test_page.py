from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.lab.made_up import result

from holdfast.lab.report.content import sections_of
from holdfast.lab.report.page import MOST_NUMBERED, html_page

VOID = {"meta", "link", "img", "br", "input"}


class Outline(HTMLParser):
    """The elements of a page: that each is closed, what has which id, and what is linked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if found.get("id") else []
        self.links += [found["href"]] if found.get("href") else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(*results, pictures=()) -> str:
    return html_page(sections_of(results), places={}, pictures=pictures)


def test_it_is_whole_and_every_link_inside_leads_somewhere():
    runs = [result(seed=seed, strength=x, kept=0.5 + 0.1 * seed) for seed in range(3) for x in (1.0, 10.0)]
    text = page(*runs, result("none", strength=None), result(scenario="class"), pictures=["a.png"])
    outline = Outline(text)
    assert len(outline.ids) == len(set(outline.ids))
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    assert {link for link in outline.links if not link.startswith("#")} == {"data:,", "a.png"}
    assert (outline.tags.count("h1"), outline.tags.count("h2")) == (1, 3)


def test_nothing_is_asked_of_the_network():
    text = page(result(), result("none"))
    addresses = set(re.findall(r"https?://[^\"' )]+", text))
    assert not addresses
    assert "default-src 'none'" in text


def test_what_is_said_in_a_sentence():
    text = page(result("joint", kept=1.0), result(kept=0.7), result("none", kept=0.25))
    assert "After 3 tasks EWC Fisher keeps 80.0% on average" in text
    assert "plain training keeps 50.0%; joint training, which sees all data at once, reaches 100.0%." in text
    assert "After 1 task: plain 100.0%." in page(result("none", num_tasks=1))


def test_names_are_text_whatever_they_hold():
    text = page(result("<script>alert(1)</script>", keeper="<b>&amp;"))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;&amp;amp;" in text


@pytest.mark.parametrize("num_tasks", [1, MOST_NUMBERED, MOST_NUMBERED + 1])
def test_heat_maps_of_any_number_of_tasks(num_tasks: int):
    text = page(result(num_tasks=num_tasks), result("none", num_tasks=num_tasks))
    cells = len(re.findall(r'<td class="(?:l\d+|ahead)">', text))
    assert cells == (2 * num_tasks**2 if num_tasks <= MOST_NUMBERED else 0)
    assert text.count('class="stair"') == (0 if num_tasks <= MOST_NUMBERED else 2)
    Outline(text)


def test_parts_come_where_there_is_something_to_show():
    alone = page(result())
    assert "No two methods have two seeds in common" in alone
    assert "did not record what the methods hold" in alone
    assert 'id="section-0-strength"' not in alone
    assert 'id="section-0-samples"' not in alone
    more = page(*(result(method, seed=seed, held_bytes=8) for method in ("none", "l2") for seed in (0, 1)))
    assert "did not record" not in more
    assert "paired t-test after Holm" in more


def test_memory_in_megabytes_and_copies_of_the_weights():
    text = page(result(held_bytes=800_000, num_parameters=100_000), result("none"))
    assert "0.80 (2.0×)" in text
    assert "copies of the weights" in text


def test_every_run_and_every_setting_is_there():
    text = page(result(seed=7, lr=0.25, strength=3.0), result(seed=8, lr=0.25, strength=4.0))
    assert re.search(r"<dt>lr</dt><dd>0.25</dd>", text)
    assert "strength 3" in text
    assert "strength 4" in text
    assert text.count("holdfast 0.1.0, torch 2.13.0, python 3.11.7") == 2


def test_the_page_of_many_methods_stays_small(tmp_path: Path):
    from holdfast.lab.methods import METHODS

    runs = [result(name, num_tasks=10, seed=seed) for name in METHODS for seed in range(5)]
    assert len(page(*runs).encode()) < 400_000

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.lab.made_up import result

from holdfast.lab.frame import runs_table
from holdfast.lab.report.page import html_page, inline_svg
from holdfast.lab.report.pictures import write_pictures
from holdfast.lab.report.sections import sections_of

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


def page(*results, folder: Path | None = None, **options) -> str:
    """With pictures where there is a folder for them."""
    sections = sections_of(runs_table(results))
    for section in sections if folder is not None else ():
        write_pictures(section, folder)
    return html_page(sections, folder=folder, **options)


def test_it_is_whole_and_every_link_inside_leads_somewhere(tmp_path: Path):
    runs = [result(seed=seed, strength=x, kept=0.5 + 0.1 * seed) for seed in range(3) for x in (1.0, 10.0)]
    text = page(*runs, result("none", strength=None), result(scenario="class"), folder=tmp_path, beside=["a.png"])
    outline = Outline(text)
    assert len(outline.ids) == len(set(outline.ids))
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    links = {link for link in outline.links if not link.startswith(("#", "data:image/png;base64,"))}
    assert links == {"data:,", "a.png"}
    assert outline.tags.count("svg") == 5 + 4
    assert (outline.tags.count("h1"), outline.tags.count("h2")) == (1, 3)


def test_nothing_is_asked_of_the_network(tmp_path: Path):
    text = page(result(), result("none"), folder=tmp_path)
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


@pytest.mark.parametrize("num_tasks", [1, 12, 30])
def test_pictures_of_any_number_of_tasks(num_tasks: int, tmp_path: Path):
    text = page(result(num_tasks=num_tasks), result("none", num_tasks=num_tasks), folder=tmp_path)
    assert text.count("<svg") == 4
    Outline(text)


def test_a_picture_brings_no_style_and_no_id_of_another():
    svg = """<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
        width="3pt" id="x"><metadata>m</metadata><defs><style>s</style><path id="a"/></defs>
        <use xlink:href="#a" style="stroke: #a0a0a0; clip-path: url(#b)" clip-path="url(#b)"/></svg>"""
    assert " ".join(inline_svg(svg, prefix="p", label="l").split()) == (
        '<svg width="3pt" role="img" aria-label="l"><defs><path id="p-a" /></defs> '
        '<use href="#p-a" style="stroke: #a0a0a0; clip-path: url(#p-b)" clip-path="url(#p-b)" /></svg>'
    )


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
    assert "<td>0.8</td><td>2.0</td><td>1</td>" in text
    assert "<td>–</td><td>–</td><td>1</td>" in text
    assert "held / weights" in text


def test_every_table_says_of_how_many_seeds():
    text = page(*(result(method, seed=seed) for method in ("none", "l2") for seed in (0, 1)))
    heads = re.findall(r"<thead>.*?</thead>", text)
    assert len(heads) == 5
    assert sum("seeds</th>" in head for head in heads) == 3  # the others: of every run, and of every two methods
    assert "over the seeds that both have" in text


def test_what_a_sweep_gave_up_is_said():
    (section,) = sections_of(runs_table([result()]))
    text = html_page([replace(section, given_up={"WVA <i>": "after task 1 of seed 0, at 9.0%"})])
    assert "<b>WVA &lt;i&gt;</b> has no result: the sweep gave all its settings up, the last one after task 1" in text


def test_what_is_left_out_is_said():
    assert "Left out: 3 runs." in page(result(), left_out="Left out: 3 runs.")


def test_every_run_and_every_setting_is_there():
    text = page(result(seed=7, lr=0.25, strength=3.0), result(seed=8, lr=0.25, strength=4.0))
    assert "<li>lr 0.25</li>" in text
    assert "strength 3" in text
    assert "strength 4" in text
    assert text.count("holdfast 0.1.0, python 3.11.7, torch 2.13.0") == 2


def test_the_page_of_many_methods_stays_small(tmp_path: Path):
    from holdfast.lab.methods import METHODS

    runs = [result(name, num_tasks=10, seed=seed) for name in METHODS for seed in range(5)]
    assert len(page(*runs, folder=tmp_path).encode()) < 2_500_000

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from holdfast.lab.escaping import csv_cell, file_name, markdown_text, one_line, picture_text

NASTY = st.text(st.sampled_from("\\`*_[]()<>#+-=!|~$&;:/.@ \n\r\t\x00\u2028\u202e0aw1x\"'{}"), max_size=30)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("EWC Fisher, strength 15", "EWC Fisher, strength 15"),
        (" a\n\n# b\r\tc ", "a # b c"),
        ("a\x00b\u2028c\u202ed\u200be", "a b c d e"),
        ("x" * 100, "x" * 79 + "…"),
        ("", ""),
    ],
)
def test_one_line(text: str, shown: str):
    assert one_line(text) == shown


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("EWC Fisher, strength 15, lr 0.1", "EWC Fisher, strength 15, lr 0.1"),
        ("<script>", "&lt;script&gt;"),
        ("a|b", "a&#124;b"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("# a", r"\# a"),
        ("1. a", "&#49;. a"),
        ("0.5 a", "0.5 a"),
        ("http://a.b", "http:/&#8203;/a.b"),
        ("WWW.a.b", "WWW&#8203;.a.b"),
    ],
)
def test_markdown(text: str, written: str):
    assert markdown_text(text) == written


def texts_of(tokens) -> str:
    return "".join(token.content for token in tokens if token.type == "text")


@given(NASTY)
def test_markdown_shows_every_letter_and_nothing_else(text: str):
    parser = MarkdownIt("commonmark").enable("table").enable("strikethrough")
    around = f"| method | seeds |\n|:--|--:|\n| {markdown_text(text)} | 1 |\n\n- {markdown_text(text)}: x\n"
    blocks = parser.parse(around)
    kinds = [block.type for block in blocks]
    assert kinds.count("inline") == 5  # four cells and an item
    assert {kind.removesuffix("_open").removesuffix("_close") for kind in kinds} == {
        *("table", "thead", "tbody", "tr", "th", "td", "inline", "bullet_list", "list_item", "paragraph")
    }
    cells = [block for block in blocks if block.type == "inline"]
    assert {child.type for cell in cells for child in cell.children} <= {"text"}
    bare = texts_of(cells[2].children).replace("\u200b", "")
    assert bare == one_line(text)


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "  =1",
        "＝1",
        '=HYPERLINK("http://x","y")',
        "=cmd|' /C'!A0",
    ],
)
def test_no_cell_is_a_formula(text: str):
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["a=b", "EWC: -1", '{"a": 1}', "", "'=1", -1, -0.5, None, True])
def test_other_cells_stay_as_they_are(value: object):
    assert csv_cell(value) is value


@given(st.text(max_size=90))
def test_a_file_stays_in_its_folder(text: str):
    name = file_name(text)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name)
    if text and set(text) <= set(string.ascii_lowercase) and len(text) <= 80:
        assert name == text


def test_names_of_files_that_were_changed_stay_apart():
    assert file_name("permuted-digits-domain") == "permuted-digits-domain"
    assert file_name("../../a").startswith("a-")
    assert len({file_name(text) for text in ("a/b", "a-b", "a b", "a:b", "x" * 90, "x" * 91)}) == 6


def test_no_mathematics_in_pictures():
    assert picture_text(r"$\frac{$") == r"\$\frac{\$"

"""Names that somebody else chose, through everything that a report writes."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import warnings
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pyarrow import parquet
from tests.lab.made_up import result
from tests.lab.report.test_page import page

from holdfast.errors import FileFormatError
from holdfast.lab.frame import runs_table
from holdfast.lab.report import report
from holdfast.lab.report.export import tables_of, write_tables
from holdfast.lab.report.markdown import markdown_page
from holdfast.lab.report.sections import sections_of
from holdfast.lab.report.write import WrittenReport
from holdfast.lab.result import RunResult

NAMES = [
    "<script>alert(1)</script>",
    "</script></style><img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](http://evil.test/a.png)",
    "`code` | a | b",
    "line\n# heading\n\n| a |\n|--|",
    '=HYPERLINK("http://evil.test","x")',
    "@SUM(1)",
    "\t=1+1",
    '" onmouseover="alert(1)',
    r"$\frac{$ and $x^2$",
    "{{ 7 * 7 }}{% raise %}",
    "a\x00b\x1bc",
    "<!-- ",
    "\u202egnp.exe",
    "x" * 5000,
]
DRAWN = [NAMES[number] for number in (0, 2, 5, 10, 15)]
"""Methods: the others are names and values of settings, for pictures take their time."""
STREAM = "javascript:alert(1)//../../<b>"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenReport:
    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(DRAWN):
        run = result(
            name,
            stream=STREAM,
            scenario="<i>task</i>",
            seed=number % 2,
            keeper=name,
            versions={name: name},
            **{f"{each[:20]}?": each for each in NAMES},
            **({name: 1} if number in (0, 5) else {}),
        )
        (folder / "runs" / str(number)).mkdir(parents=True)
        run.save(folder / "runs" / str(number) / "result.json")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        return report([folder / "runs"], folder / "page")


def test_files_stay_in_their_folder_under_plain_names(written: WrittenReport):
    folder = written.path.parent
    assert {path.name for path in folder.parent.iterdir()} == {"runs", "page"}
    assert all(re.fullmatch(r"[\w./-]+", str(path.relative_to(folder))) for path in folder.rglob("*"))
    assert len(written.pictures) == 8
    for path in written.pictures:
        assert path.parent == folder
        if path.suffix == ".svg":
            ElementTree.parse(path)


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.content: dict[str, str] = {}
        self.policy = ""
        self.last = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        self.last = tag
        found = dict(attrs)
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.last in ("script", "style"):
            self.content[self.last] = self.content.get(self.last, "") + data

    def handle_endtag(self, tag: str) -> None:
        self.last = ""


def policy_of(found: Elements) -> dict[str, list[str]]:
    return {name: sources for name, *sources in (part.split() for part in found.policy.split(";"))}


def test_the_page_has_no_element_that_is_not_its_own(written: WrittenReport, tmp_path: Path):
    found = Elements(written.path.read_text(encoding="utf-8"))
    usual = Elements(page(result(), result("none"), folder=tmp_path))
    assert set(found.tags) <= set(usual.tags)
    assert (found.tags["script"], found.tags["style"], found.tags["img"]) == (1, 1, 0)
    names = {name for name, _ in found.attributes}
    assert names <= {name for name, _ in usual.attributes}
    assert not [name for name in names if name.startswith("on")]
    links = {value for name, value in found.attributes if name in ("href", "src")}
    links = {link for link in links if link and not link.startswith("data:image/png;base64,")}
    beside = {path.relative_to(written.path.parent).as_posix() for path in (*written.pictures, *written.tables)}
    assert {link for link in links if link and not link.startswith("#")} == {"data:,", *beside}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written.path.read_text(encoding="utf-8")


def test_the_policy_lets_the_one_script_run_and_no_other(written: WrittenReport):
    for text in (written.path.read_text(encoding="utf-8"), page(result())):
        found = Elements(text)
        policy = policy_of(found)
        for element, sources in (("script", "script-src"), ("style", "style-src-elem")):
            digest = base64.b64encode(hashlib.sha256(found.content[element].encode()).digest()).decode()
            assert policy[sources] == [f"'sha256-{digest}'"]
        assert policy["default-src"] == ["'none'"]
        assert policy["img-src"] == ["data:"]
        assert "unsafe-inline" not in " ".join(policy["script-src"])
        assert "ResizeObserver" in found.content["script"]


def test_markdown_shows_names_as_text(written: WrittenReport):
    blocks = MarkdownIt("commonmark").enable("table").parse(written.markdown.read_text(encoding="utf-8"))
    kinds = Counter(block.type for block in blocks)
    assert not {"html_block", "code_block", "fence", "blockquote_open", "hr"} & set(kinds)
    headings = [after.content for block, after in pairwise(blocks) if block.type == "heading_open"]
    assert len(headings) == 3
    assert headings[-1] == "Settings"
    inside = [child for block in blocks for child in block.children or ()]
    assert {child.type for child in inside} <= {"text", "strong_open", "strong_close", "image", "softbreak"}
    assert {child.attrs["src"] for child in inside if child.type == "image"} == {
        path.name for path in written.pictures if path.suffix == ".png"
    }
    for table in written.markdown.read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_tables_have_no_formulas_and_parquet_has_the_names(tmp_path: Path):
    runs = [result(name, seed=seed, stream=name, keeper=name, lr=name) for name in NAMES for seed in (0, 1)]
    paths = write_tables(sections_of(runs_table(runs)), tmp_path)
    for path in paths[::2]:
        with path.open(newline="", encoding="utf-8") as file:
            read = list(csv.DictReader(file))
        raw = parquet.read_table(path.with_suffix(".parquet")).to_pylist()
        assert {record["method"] for record in raw} == set(NAMES)
        for row, record in zip(read, raw, strict=True):
            for name, value in record.items():
                if isinstance(value, str):
                    assert not re.match(r"\s*[=+\-@]", row[name])
                    assert row[name].removeprefix("'") == value
                else:
                    assert row[name] == ("" if value is None else str(value))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def places(content, path=()) -> list[tuple]:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


WHOLE = json.loads(
    json.dumps(
        result(strength=3.0, hidden=[300, 150], generation={}, held_bytes=8, num_parameters=9).__dict__
        | {"generation": {"frechet_distance": [1.0, 2.0, 3.0], "reverse_accuracy": 0.5, "judge_accuracy": 0.9}}
    )
)
PLACES = places(WHOLE)[1:]


@settings(max_examples=40)
@given(st.data())
def test_a_damaged_result_is_refused_in_a_line_or_can_be_reported(tmp_path_factory, data):
    content = json.loads(json.dumps(WHOLE))
    for place in data.draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=2)):
        at = content
        try:
            for key in place[:-1]:
                at = at[key]
            if data.draw(st.booleans()):
                at[place[-1]] = data.draw(JSON)
            else:
                del at[place[-1]]
        except (KeyError, IndexError, TypeError):  # the first damage has taken it
            continue
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(content))
    found, refusal = None, ""
    try:
        found = RunResult.load(folder / "result.json")
    except FileFormatError as error:
        refusal = str(error)
    if found is None:
        assert str(folder / "result.json") in refusal
        assert len(refusal.splitlines()) == 1
        assert len(refusal) < 1000
        return
    sections = sections_of(runs_table([found, result("none"), result(strength=1.0)]))
    Elements(page(found, result("none"), result(strength=1.0)))
    markdown_page(sections, pictures=[]).encode()
    assert len(tables_of(sections)["runs"]) >= 2
    write_tables(sections, folder / "tables")

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from tests.lab.made_up import result

from holdfast.errors import FileFormatError, OptionError, OutputError
from holdfast.lab.report import report, write_report


def save(folder: Path, *results) -> Path:
    for number, each in enumerate(results):
        (folder / f"run-{number}").mkdir(parents=True)
        each.save(folder / f"run-{number}" / "result.json")
    return folder


def test_a_page_with_its_pictures_and_tables(tmp_path: Path):
    runs = save(tmp_path / "runs", result(seed=0), result(seed=1, kept=0.8), result("none", kept=0.3))
    found = report([runs], tmp_path / "new" / "page")
    assert found.path == tmp_path / "new" / "page" / "report.html"
    assert found.num_runs == 3
    assert [(row.label, row.num_seeds) for row in found.rows] == [("EWC Fisher", 2), ("plain", 1)]
    written = {path for path in found.path.parent.rglob("*") if path.is_file()}
    manifest = found.path.with_name("holdfast.json")
    assert written == {found.path, found.markdown, *found.pictures, *found.tables, manifest}
    assert {path.suffix for path in found.pictures} == {".png", ".svg"}
    assert {path.suffix for path in found.tables} == {".csv", ".parquet"}
    assert found.path.stat().st_size < 100_000


def test_the_markdown_page(tmp_path: Path):
    runs = [result(seed=0), result(seed=1, kept=0.8), result("none", kept=0.3), result("none", seed=1, kept=0.35)]
    found = write_report(runs, tmp_path)
    text = found.markdown.read_text(encoding="utf-8")
    assert "# holdfast: 4 runs" in text
    assert "## permuted-digits, domain-incremental" in text
    assert "| EWC Fisher | **90.0 ± 42.4** |" in text
    assert "| EWC Fisher | plain | 35.0 ± 63.5 | 0.090 | 0.090 | 2 |" in text
    assert "All: num tasks 3, lr 0.1." in text
    assert "| EWC Fisher | none | 0, 1 |" in text
    assert "- EWC Fisher: EWC: 3 tasks held" in text
    assert "holdfast 0.1.0, python 3.11.7, torch 2.13.0" in text
    linked = [tmp_path / name for name in re.findall(r"!\[[^]]+\]\((.+?)\)", text)]
    assert set(linked) == {path for path in found.pictures if path.suffix == ".png"}


def test_other_strengths_are_not_averaged_but_told_apart(tmp_path: Path):
    results = [result(seed=seed, strength=strength) for seed in (0, 1) for strength in (1.0, 15.0)]
    found = write_report([*results, result("none", strength=None)], tmp_path)
    text = found.markdown.read_text(encoding="utf-8")
    assert [(row.label, row.num_seeds) for row in found.rows] == [
        ("EWC Fisher, strength 1", 2),
        ("EWC Fisher, strength 15", 2),
        ("plain", 1),
    ]
    assert "| EWC Fisher | strength 15 | 0, 1 |" in text
    assert "| plain | none | 0 |" in text
    assert "permuted-digits-domain-strength.png" in text


def test_each_stream_has_its_section(tmp_path: Path):
    found = write_report([result(), result(stream="split-mnist", scenario="task")], tmp_path)
    for path in (found.path, found.markdown):
        text = path.read_text(encoding="utf-8")
        assert text.index("permuted-digits, domain-incremental") < text.index("split-mnist, task-incremental")
    assert len(found.pictures) == 2 * 4 * 2


def test_the_same_runs_give_the_same_bytes(tmp_path: Path):
    runs = [result(strength=strength) for strength in (1.0, 15.0)]
    first, second = (write_report(runs, tmp_path / name) for name in ("first", "second"))
    for one, other in zip(
        (first.path, first.markdown, *first.pictures, *first.tables),
        (second.path, second.markdown, *second.pictures, *second.tables),
    ):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_the_same_folder_twice_counts_once(tmp_path: Path):
    runs = save(tmp_path / "runs", result())
    assert report([runs, runs], tmp_path / "page").num_runs == 1


def test_a_report_is_replaced_whole_and_nothing_else(tmp_path: Path):
    first = write_report([result(), result(stream="split-mnist", scenario="task")], tmp_path / "page")
    for name in ("mine.png", "tables/mine.csv"):
        (tmp_path / "page" / name).write_text("precious")
    second = write_report([result()], tmp_path / "page")
    stale = {path for path in first.pictures if "split-mnist" in path.name}
    assert len(stale) == 8
    assert not any(path.exists() for path in stale)
    assert all(path.is_file() for path in (*second.pictures, *second.tables))
    assert (tmp_path / "page" / "mine.png").read_text() == (tmp_path / "page" / "tables" / "mine.csv").read_text()


def test_no_runs(tmp_path: Path):
    with pytest.raises(FileFormatError, match=r"no finished run below .*there is no result.json"):
        report([tmp_path], tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("matplotlib", r"pip install \"torch-holdfast\[plots\]\""),
        ("scipy", r"computed with scipy, .* pip install \"torch-holdfast\[plots\]\""),
        ("jinja2", r"not installed: jinja2\. .*pip install \"torch-holdfast\[report\]\""),
        ("pyarrow", r"not installed: pyarrow\. .*pip install \"torch-holdfast\[report\]\""),
    ],
)
def test_a_missing_package_is_said_before_anything_is_read(
    package: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptionError, match=said):
        report([tmp_path / "nowhere"], tmp_path / "page")


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    runs = save(tmp_path / "runs", result())
    (tmp_path / "page").write_text("")
    with pytest.raises(OutputError, match="page is a file; a folder is to be written there"):
        report([runs], tmp_path / "page")
    report([runs], tmp_path / "another")

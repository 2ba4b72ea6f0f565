from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from tests.lab.made_up import result

from holdfast.errors import FileFormatError, OptionError, OutputError, UnknownNameError
from holdfast.lab import results
from holdfast.lab.frame import runs_table
from holdfast.lab.report import WrittenReport, report
from holdfast.lab.report import write_report as write_report_of


def save(folder: Path, *results) -> Path:
    for number, each in enumerate(results):
        (folder / f"run-{number}").mkdir(parents=True)
        each.save(folder / f"run-{number}" / "result.json")
    return folder


def write_report(runs: list, output: Path) -> WrittenReport:
    return write_report_of(runs_table(runs), output)


def labels(found: WrittenReport) -> list[tuple[str, int]]:
    return [pair for section in found.sections for pair in zip(section.table["configuration"], section.table["seeds"])]


def test_a_page_with_its_pictures_and_tables(tmp_path: Path):
    runs = save(tmp_path / "runs", result(seed=0), result(seed=1, kept=0.8), result("none", kept=0.3))
    found = report([runs], tmp_path / "new" / "page")
    assert found.path == tmp_path / "new" / "page" / "report.html"
    assert found.num_runs == 3
    assert labels(found) == [("EWC Fisher", 2), ("plain", 1)]
    written = {path for path in found.path.parent.rglob("*") if path.is_file()}
    manifest = found.path.with_name("holdfast.json")
    assert written == {found.path, found.markdown, *found.pictures, *found.tables, manifest}
    assert {path.suffix for path in found.pictures} == {".png", ".svg"}
    assert {path.suffix for path in found.tables} == {".csv", ".parquet"}
    assert found.path.stat().st_size < 200_000


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
    runs = [result(seed=seed, strength=strength) for seed in (0, 1) for strength in (1.0, 15.0)]
    found = write_report([*runs, result("none", strength=None)], tmp_path)
    text = found.markdown.read_text(encoding="utf-8")
    assert labels(found) == [
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


def test_runs_of_other_problems_have_sections_of_their_own(tmp_path: Path):
    found = write_report([result(epochs=1), result("none", epochs=4), result("none", epochs=1)], tmp_path)
    titles = [f"permuted-digits, domain-incremental, epochs {epochs}" for epochs in (1, 4)]
    assert [section.title for section in found.sections] == titles
    assert {path.name for path in found.pictures} >= {
        "permuted-digits-domain-epochs-1-accuracy.png",
        "permuted-digits-domain-epochs-4-accuracy.png",
    }
    for path in (found.path, found.markdown):
        assert path.read_text(encoding="utf-8").index(titles[0]) < path.read_text(encoding="utf-8").index(titles[1])


def test_it_is_written_beside_the_runs_unless_told_otherwise(tmp_path: Path):
    runs = save(tmp_path / "runs", result(), result("none"))
    assert report([runs]).path == runs / "report" / "report.html"
    assert report([runs]).num_runs == 2  # itself is no run
    assert report([runs / "run-0" / "result.json", runs]).path == runs / "run-0" / "report" / "report.html"


def test_quick_runs_and_trials_are_left_out_unless_asked_for(tmp_path: Path):
    runs = save(tmp_path / "runs", *(result(seed=seed) for seed in range(3)))
    for number, purpose in ((1, "quick"), (2, "trial")):
        (runs / f"run-{number}" / "config.json").write_text(f'{{"purpose": "{purpose}"}}')
    found = report([runs])
    told = "1 run of a recipe's --quick version (shown with --quick) and 1 run of a sweep (shown with --trials)"
    assert found.num_runs == 1
    assert found.left_out == f"Left out: {told}."
    for path in (found.path, found.markdown):
        assert "of a sweep (shown with --trials)" in path.read_text(encoding="utf-8")
    assert (report([runs], quick=True).num_runs, report([runs], trials=True).num_runs) == (2, 2)
    assert report([runs], quick=True, trials=True).left_out == ""
    with pytest.raises(OptionError, match=r"no run is left to report. Left out: 1 run of a recipe's --quick version"):
        report([runs / "run-1"])
    assert len(results(runs)) == 3


def test_only_runs_that_match(tmp_path: Path):
    runs = save(
        tmp_path / "runs",
        *(result(name, strength=15.0, hidden=[8, 4]) for name in ("ewc-fisher", "ewc-mas", "wva-mas")),
        result("none", seed=3),
    )

    def kept(*where: str) -> list[str]:
        return [label for label, _ in labels(report([runs], where=where))]

    assert kept("method=ewc-*") == ["EWC Fisher", "EWC MAS"]
    assert kept("method=ewc-*", "method=none", "seed=3") == ["plain"]
    assert kept("strength=15", "hidden=8-4", "method=*-mas") == ["EWC MAS", "WVA MAS"]
    assert kept("strength=unset") == ["plain"]
    with pytest.raises(OptionError, match=r"no run is left to report. No run matches what --where asks for"):
        kept("method=nothing")
    with pytest.raises(OptionError, match=r"--where 'ewc-\*'; expected NAME=PATTERN, such as method=ewc-\*"):
        kept("ewc-*")
    with pytest.raises(UnknownNameError, match="unknown column 'methd'. Did you mean 'method'"):
        kept("methd=none")


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
        ("pandas", r"drawn with pandas, .* pip install \"torch-holdfast\[plots\]\""),
        ("scipy", r"drawn with scipy, .* pip install \"torch-holdfast\[plots\]\""),
        ("jinja2", r"written with jinja2, which is not installed.*pip install \"torch-holdfast\[report\]\""),
        ("pyarrow", r"written with pyarrow, which is not installed.*pip install \"torch-holdfast\[report\]\""),
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

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.lab.made_up import result

from holdfast.cli import main


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    found = [
        *(result(seed=seed, kept=0.8 + 0.05 * seed) for seed in range(3)),
        result("none"),
        result(scenario="class"),
    ]
    for number, each in enumerate(found):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        each.save(tmp_path / "runs" / str(number) / "result.json")
    return tmp_path / "runs"


def test_report(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page"
    assert main(["report", str(runs), "--output", str(page)]) == 0
    said = capsys.readouterr().out
    assert said.index("permuted-digits, class-incremental") < said.index("permuted-digits, domain-incremental")
    assert "90.0 ± 8.3" in said
    assert f"5 runs, written to {page / 'report.html'}" in said
    assert f"beside it: report.md, 16 pictures, 8 tables in {page}" in said
    assert len(list(page.glob("*.png"))) == len(list(page.glob("*.svg"))) == 8


def test_what_is_shown_and_what_is_not(runs: Path, capsys: pytest.CaptureFixture[str]):
    (runs / "0" / "config.json").write_text('{"purpose": "trial"}')
    assert main(["report", str(runs), "--where", "scenario=domain"]) == 0
    said = capsys.readouterr().out
    assert "class-incremental" not in said
    assert "Left out: 1 run of a sweep (shown with --trials)." in said
    assert f"3 runs, written to {runs / 'report' / 'report.html'}" in said
    assert main(["report", str(runs), "--trials"]) == 0
    assert "5 runs, written to" in capsys.readouterr().out


def test_a_method_that_a_sweep_gave_up_is_told(runs: Path, capsys: pytest.CaptureFixture[str]):
    content = {"stream": "permuted-digits", "seeds": [0], "settings": {}, "best": []}
    content["all"] = [{"method": "wva-mas", "state": "pruned", "why": "training diverged under seed 0"}]
    (runs / "sweep-permuted-digits.json").write_text(json.dumps(content))
    assert main(["report", str(runs)]) == 0
    told = "WVA MAS has no result: the sweep gave all its settings up, the last one training diverged under seed 0."
    assert told in " ".join(capsys.readouterr().out.split())
    for name in ("report.md", "report.html"):
        assert "training diverged under seed 0" in (runs / "report" / name).read_text(encoding="utf-8")


def test_a_plugin_that_is_not_there_is_told(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(runs), "--plugin", "nowhere_at_all"]) == 2
    assert "plugin 'nowhere_at_all' cannot be imported: ModuleNotFoundError" in capsys.readouterr().err
    assert not (runs / "report").exists()


def test_folders_with_brackets_are_told_as_they_are(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "[bold]page[/]"
    assert main(["report", str(runs / "0"), "--output", str(page), "--quiet"]) == 0
    assert f"written to {page / 'report.html'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["nowhere"], "no such folder; expected one that holds runs, such as runs/."),
        (["."], "no finished run below"),
    ],
)
def test_no_runs(folders: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    argv = ["report", *(str(tmp_path / "empty" / folder) for folder in folders), "--output", str(tmp_path / "page")]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "page").exists()


def test_a_damaged_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (runs / "0" / "result.json").write_text('{"stream": "permuted-digits"}')
    assert main(["report", str(runs), "--output", str(tmp_path / "page")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"holdfast: {runs / '0' / 'result.json'} is no complete result")
    assert not (tmp_path / "page").exists()


def test_an_unwritable_output(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(runs), "--output", str(runs / "0" / "result.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"holdfast: {runs / '0' / 'result.json'} is a file; a folder is to be written there")

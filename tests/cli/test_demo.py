from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdfast.cli import main
from holdfast.lab import demo as experiment


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(**options: Any) -> experiment.Demo:
        return experiment.demo(**options, settings={"num_tasks": 2, "epochs": 1, "hidden": (8,)})

    monkeypatch.setattr("holdfast.cli.demo.demo", tiny)


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["demo", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    order = ["plain", "EWC Fisher", "EWC MAS", "EWC SI", "EWC signal", "EWC Taylor", "WVA Fisher", "joint"]
    places = [said.index(f"\n{label} ") for label in order]
    assert places == sorted(places)
    assert "Plain training keeps" in said
    for name in ("accuracy.png", "matrix.png"):
        assert str(tmp_path / "demo" / name) in said
        assert (tmp_path / "demo" / name).is_file()


def test_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["demo", "--output", str(tmp_path), "--quiet", "--seed", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == f"pictures: {tmp_path}/demo/accuracy.png"


def test_an_unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("holdfast: cannot write")

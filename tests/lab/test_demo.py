from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.files.folders import listing

from holdfast.errors import OptionError, OutputError, UnknownNameError
from holdfast.lab.config import configure
from holdfast.lab.demo import DEMO_METHODS, STREAM, demo
from holdfast.lab.methods import METHODS as KNOWN

TINY = {"num_tasks": 2, "epochs": 1, "hidden": (8,)}


def test_every_kind_of_method_is_shown():
    assert set(DEMO_METHODS) <= set(KNOWN)
    assert {"none", "joint"} < set(DEMO_METHODS)
    assert {KNOWN[name].importance for name in DEMO_METHODS} >= {"fisher", "mas", "si", "signal", "taylor"}
    assert {KNOWN[name].mechanism for name in DEMO_METHODS} == {"", "ewc", "wva"}


def test_tiny(tmp_path: Path):
    events = []
    found = demo(output=tmp_path, settings=TINY, on_event=events.append)
    assert [result.method for result in found.results] == list(DEMO_METHODS)
    assert all(len(result.accuracy_matrix) == 2 for result in found.results)
    assert found.accuracy == tmp_path / "demo" / "accuracy.png"
    assert found.accuracy.read_bytes().startswith(b"\x89PNG")
    assert found.matrix.read_bytes().startswith(b"\x89PNG")
    runs = [event for event in events if event["event"] == "run"]
    assert [(event["number"], event["of"]) for event in runs] == [
        (n, len(DEMO_METHODS)) for n in range(len(DEMO_METHODS))
    ]
    assert [event["event"] for event in events[:3]] == ["run", "start", "epoch"]


def test_a_folder_of_somebody_elses_is_refused_before_any_run(tmp_path: Path):
    name = configure(STREAM, "none", **TINY).name
    for place in ("demo", name):
        (tmp_path / place).mkdir()
        (tmp_path / place / "accuracy.png").write_text("precious")
        before = listing(tmp_path)
        with pytest.raises(OutputError, match=r"holds what holdfast did not write \(accuracy.png\)"):
            demo(output=tmp_path, methods=["joint", "none"], settings=TINY)
        assert listing(tmp_path) == before
        (tmp_path / place / "accuracy.png").unlink()


def test_again_it_reads_back(tmp_path: Path):
    first = demo(output=tmp_path, methods=["none", "ewc-signal"], settings=TINY)
    first.matrix.unlink()
    events = []
    again = demo(output=tmp_path, methods=["none", "ewc-signal"], settings=TINY, on_event=events.append)
    assert again.results == first.results
    assert again.matrix.is_file()
    assert {event["event"] for event in events} == {"run"}


def test_threads_are_put_back(tmp_path: Path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        demo(output=tmp_path, methods=["none"], settings=TINY)
        assert torch.get_num_threads() == 2
        with pytest.raises(OutputError):
            demo(output=_file(tmp_path), methods=["none"], settings=TINY)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_every_setting_is_checked_before_the_first_run(tmp_path: Path):
    with pytest.raises(UnknownNameError, match="Did you mean 'none'"):
        demo(output=tmp_path, methods=["joint", "nome"])
    with pytest.raises(OptionError, match="epochs is 0"):
        demo(output=tmp_path, settings={"epochs": 0})
    assert not list(tmp_path.iterdir())


def test_no_matplotlib_is_said_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(OptionError, match=r"pip install \"torch-holdfast\[plots\]\""):
        demo(output=tmp_path)
    assert not list(tmp_path.iterdir())


def _file(folder: Path) -> Path:
    path = folder / "file"
    path.write_text("")
    return path

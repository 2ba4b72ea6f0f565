from __future__ import annotations

import os
import signal
import sys

import pytest
from tests.lab.tiny import tiny

from holdfast.errors import FailedRunsError
from holdfast.lab import plugins
from holdfast.lab.parallel import run_all
from holdfast.lab.plugins import load_plugins
from holdfast.lab.worker import how_it_died

CONFIGS = [tiny("none", seed=seed, epochs=1) for seed in (0, 1)]
TAKEN = """
from pathlib import Path
Path(__file__).with_suffix(".taken").touch()
raise ImportError("not the real one")
"""
IN_WORKERS = """
import multiprocessing, os, sys, warnings
if multiprocessing.parent_process() is not None:
    {}
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Makes a plug-in that does something in workers alone."""
    monkeypatch.setattr(plugins, "_named", {})
    monkeypatch.chdir(tmp_path)

    def make(name: str, line: str) -> None:
        (tmp_path / f"{name}.py").write_text(IN_WORKERS.format(line))
        load_plugins([name])

    return make


def test_no_file_of_the_working_folder_takes_the_place_of_a_module(tmp_path, monkeypatch):
    for name in ("json", "random", "torch", "queue", "numpy", "holdfast"):
        (tmp_path / f"{name}.py").write_text(TAKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", os.environ.get("PYTHONPATH", "")]))
    before = dict(os.environ)
    assert len(run_all(CONFIGS, output="runs", jobs=2)) == 2
    assert dict(os.environ) == before
    assert not list(tmp_path.glob("*.taken"))


def test_the_plugins_of_this_process_are_loaded_and_what_they_print_is_no_output(plugin, capfd):
    plugin("talks", "print('hello', os.getpid()); os.write(1, b'raw\\n'); warnings.warn('mind', stacklevel=2)")
    with pytest.warns(UserWarning, match="mind"):
        run_all(CONFIGS, output="runs", jobs=2)
    out, err = capfd.readouterr()
    assert not out
    told = [line for line in err.splitlines() if line.startswith("hello ")]
    assert told, err
    assert str(os.getpid()) not in " ".join(told)


def test_the_error_of_a_worker_is_shown_as_it_is(plugin):
    plugin("missing", "import no_such_thing")
    told = "plugin 'missing' .*: missing.py, line 4 raised ModuleNotFoundError: No module named 'no_such_thing'"
    with pytest.raises(FailedRunsError, match=told) as caught:
        run_all(CONFIGS, output="runs", jobs=2)
    assert "memory" not in str(caught.value)


def test_a_foreign_error_of_a_worker_has_its_class_and_its_trace(plugin, capsys):
    plugin("breaks", "import holdfast.lab.worker as w; w.run = lambda *_, **__: {}['key']")
    with pytest.raises(FailedRunsError, match="KeyError: 'key'"):
        run_all(CONFIGS, output="runs", jobs=2)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_worker_that_ends_by_itself_is_not_short_of_memory(plugin):
    plugin("ends", "os._exit(7)")
    told = r"its worker process died 3 times, the last time with exit status 7\. Run it alone, with one job, to see why"
    with pytest.raises(FailedRunsError, match=told) as caught:
        run_all(CONFIGS, output="runs", jobs=2)
    assert "memory" not in str(caught.value)
    assert len(run_all(CONFIGS, output="runs")) == 2


def test_a_run_is_given_up_after_three_deaths_and_the_others_go_on(plugin):
    bad = tiny("none", seed=2, epochs=1)
    plugin("dies", f"import holdfast.lab.running as r; t = r.ActiveRun.finish; r.ActiveRun.finish = {DIES}")
    with pytest.raises(FailedRunsError, match="died 3 times.* exit status -9, killed.*memory") as caught:
        run_all([bad, *CONFIGS], output="runs", jobs=2)
    assert list(caught.value.failures) == [bad.name]
    assert len(run_all([bad, *CONFIGS], output="runs")) == 3


DIES = "lambda self: os.kill(os.getpid(), 9) if self.config.seed == 2 else t(self)"


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (1, "exit status 1. Run it alone, with one job, to see why."),
        (-signal.SIGSEGV, "exit status -11, Segmentation fault. Run it alone, with one job, to see why."),
        (
            -signal.SIGKILL,
            "exit status -9, killed. The system does so where memory is short: give it more, or use fewer jobs.",
        ),
    ],
)
def test_a_death_is_told_by_its_status(status, told):
    assert how_it_died(status) == told


def test_a_process_without_standard_error_has_workers_that_print(plugin, monkeypatch):
    plugin("prints", "print('hello')")
    monkeypatch.setattr(sys, "stderr", None)
    assert len(run_all(CONFIGS, output="runs", jobs=2)) == 2

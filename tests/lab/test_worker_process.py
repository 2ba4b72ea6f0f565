from __future__ import annotations

import os
import queue
import signal
import site
from pathlib import Path

import pytest
from tests.lab.tiny import tiny

import holdfast
from holdfast.errors import FailedRunsError
from holdfast.lab import pool
from holdfast.lab.parallel import run_all
from holdfast.lab.pool import pool_of
from holdfast.lab.worker_process import Inbox, WorkerProcess, environment, how_it_died

CONFIGS = [tiny("none", seed=seed) for seed in (0, 1)]
TAKEN = """
from pathlib import Path
Path(__file__).with_suffix(".taken").touch()
raise ImportError("not the real one")
"""


def test_no_file_of_the_working_folder_takes_the_place_of_a_module(tmp_path, monkeypatch):
    for name in ("json", "random", "torch", "queue", "numpy", "holdfast"):
        (tmp_path / f"{name}.py").write_text(TAKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", os.environ.get("PYTHONPATH", "")]))
    with pool_of(2, output="runs") as workers:
        workers.submit(CONFIGS[0])
        done = workers.wait()
    assert done.result is not None, done.error
    assert not list(tmp_path.glob("*.taken"))


def test_a_worker_that_cannot_import_is_not_short_of_memory(tmp_path, monkeypatch, capsys):
    (tmp_path / "torch.py").write_text("print('hello')\n" + TAKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(pool, "MOST_DEATHS", 1)
    with pytest.raises(FailedRunsError, match="exit status 1. .*ImportError: not the real one") as caught:
        run_all(CONFIGS, output=tmp_path / "runs", jobs=2)
    assert "Run it alone, with one job, to see why." in str(caught.value)
    assert "memory" not in str(caught.value)
    assert "ImportError: not the real one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "lines", "told"),
    [
        (1, [], "exit status 1. Run it alone, with one job, to see why."),
        (3, ["a", "b"], "exit status 3. Its last words: a / b. Run it alone, with one job, to see why."),
        (137, [], "exit status 137. Run it alone, with one job, to see why."),
        (-signal.SIGSEGV, [], "exit status -11, killed by SIGSEGV. Run it alone, with one job, to see why."),
        (-200, [], "exit status -200, killed by signal 200. Run it alone, with one job, to see why."),
        (
            -signal.SIGKILL,
            ["a"],
            "exit status -9, killed by SIGKILL. Its last words: a. The system does so where memory is short: give it "
            "more, or use fewer jobs.",
        ),
    ],
)
def test_a_death_is_told_by_its_status_and_its_last_words(status, lines, told):
    assert how_it_died(status, lines) == told


def test_the_status_of_a_worker_that_ends_by_itself_is_its_own(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import os, sys, time\nos.close(1)\ntime.sleep(0.5)\nos._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    inbox: Inbox = queue.SimpleQueue()
    worker = WorkerProcess({}, inbox)
    assert inbox.get() == (worker, None)
    assert worker.death().startswith("exit status 7.")


def test_empty_entries_of_the_path_are_left_out():
    package = str(Path(holdfast.__file__).parents[1])
    seen = environment({"PYTHONPATH": f"{os.pathsep}/own{os.pathsep}{os.pathsep}", "HOME": "/home"})
    assert seen == {"PYTHONPATH": f"{package}{os.pathsep}/own", "HOME": "/home", "OMP_NUM_THREADS": "1"}


def test_installed_packages_do_not_come_before_the_standard_library(monkeypatch, tmp_path):
    monkeypatch.setattr(holdfast, "__file__", str(tmp_path / "holdfast" / "__init__.py"))
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path)])
    assert environment({}) == {"OMP_NUM_THREADS": "1"}
    assert environment({"PYTHONPATH": ""}) == {"OMP_NUM_THREADS": "1"}

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.files.folders import listing
from tests.lab.tiny import Killed, assert_same, events, outcome, tiny
from tests.programs import read_until, workers_of

from holdfast.errors import FailedRunsError, OptionError, OutputError
from holdfast.lab import pool
from holdfast.lab.parallel import run_all
from holdfast.lab.pool import pool_of
from holdfast.lab.running import run

CONFIGS = [tiny("ewc-fisher", seed=seed, strength=strength) for seed in (0, 1) for strength in (1.0, 10.0)]


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("one-by-one")
    for config in CONFIGS:
        run(config, output=output)
    return output


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_are_those_of_separate_runs_in_the_order_asked_for(one_by_one, tmp_path, jobs):
    order = [CONFIGS[3], CONFIGS[0], CONFIGS[2], CONFIGS[1], CONFIGS[0]]
    found = run_all(order, output=tmp_path, jobs=jobs)
    assert [(result.seed, result.config["strength"]) for result in found] == [
        (config.seed, config.strength) for config in order
    ]
    for config in CONFIGS:
        assert_same(outcome(config, tmp_path), outcome(config, one_by_one))
        assert not (tmp_path / config.name / ".holdfast-lock").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, jobs):
    bad, told = tiny("none", lr=1e5), []
    warned = tiny("wva-fisher", strength=1.0, attenuate="gradients", optimizer="adam")
    with pytest.raises(FailedRunsError) as caught, pytest.warns(UserWarning, match="gradients"):
        run_all([bad, CONFIGS[0], warned], output=tmp_path, jobs=jobs, on_event=told.append)
    assert list(caught.value.failures) == [bad.name]
    assert str(caught.value).startswith(f"1 of 3 runs failed; the others are finished. {bad.name}: train_epoch: the")
    ends = {event["run"]: event for event in told if event["event"] in ("finished", "failed")}
    assert ends[bad.name]["event"] == "failed"
    assert sorted(event["number"] for event in ends.values()) == [1, 2, 3]
    assert all((tmp_path / config.name / "result.json").exists() for config in (CONFIGS[0], warned))


def test_a_folder_of_somebody_elses_is_refused_before_any_run(tmp_path):
    (tmp_path / CONFIGS[1].name).mkdir()
    (tmp_path / CONFIGS[1].name / "precious").write_text("x")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=r"holds what holdfast did not write \(precious\)"):
        run_all(CONFIGS, output=tmp_path)
    assert listing(tmp_path) == before


def test_what_is_finished_is_read_back(one_by_one):
    told = []
    run_all(CONFIGS, output=one_by_one, on_event=told.append)
    assert [event["event"] for event in told] == ["finished"] * len(CONFIGS)


def test_an_interruption_leaves_everything_resumable(one_by_one, tmp_path):
    seen = []

    def interrupt(event) -> None:
        seen.append(event)
        if len(seen) == 4:
            raise Killed

    with pytest.raises(Killed):
        run_all(CONFIGS[:2], output=tmp_path, jobs=2, on_event=interrupt)
    run_all(CONFIGS[:2], output=tmp_path)
    for config in CONFIGS[:2]:
        assert_same(outcome(config, tmp_path), outcome(config, one_by_one))


def test_a_killed_worker_is_replaced_and_its_run_resumed(one_by_one, tmp_path):
    killed = []

    def kill_a_worker(event) -> None:
        if event["event"] == "task" and not killed:
            killed.append(event["run"])
            os.kill(workers_of(os.getpid())[0], signal.SIGKILL)

    run_all(CONFIGS[:3], output=tmp_path, jobs=2, on_event=kill_a_worker)
    assert killed
    for config in CONFIGS[:3]:
        assert_same(outcome(config, tmp_path), outcome(config, one_by_one))


PROGRAM = """
import sys
from tests.lab.test_parallel import CONFIGS
from holdfast.lab import pool
from holdfast.lab.parallel import run_all
run_all(CONFIGS, output=sys.argv[1], jobs=2, on_event=lambda event: print(event["event"], flush=True))
"""


def test_workers_of_a_killed_process_end_and_leave_resumable_runs(one_by_one, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        read_until(parent, "task")
        children = workers_of(parent.pid)
        assert len(children) == 2
        parent.kill()
    deadline = time.monotonic() + 10
    while (left := [child for child in children if _alive(child)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    run_all(CONFIGS, output=tmp_path)
    for config in CONFIGS:
        assert_same(outcome(config, tmp_path), outcome(config, one_by_one))
        starts = [event for event in events(config, tmp_path) if event["event"] == "start"]
        assert len(starts) == 1 + starts[-1]["resumed"]


def _alive(process: int) -> bool:
    """Whether the process runs on; one that nobody has buried does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_the_callback_ends_a_run_and_it_can_be_resumed_by_the_same_worker(one_by_one, tmp_path, jobs):
    told = []

    def stop(event) -> None:
        told.append(event["event"])
        raise Killed

    with pool_of(jobs, output=tmp_path) as do:
        with pytest.raises(Killed):
            list(do(CONFIGS[:1], stop))
        assert told == ["start"]
        ((_, done),) = do(CONFIGS[:1], lambda _: None)
    assert done.result is not None
    assert_same(outcome(CONFIGS[0], tmp_path), outcome(CONFIGS[0], one_by_one))


def test_a_worker_that_dies_again_and_again_is_a_failed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "MOST_DEATHS", 1)

    def kill_the_workers(event) -> None:
        if event["event"] == "start":
            for child in workers_of(os.getpid()):
                os.kill(child, signal.SIGKILL)

    with pytest.raises(FailedRunsError, match=r"process died 1 time, .* status -9, killed\..*memory"):
        run_all(CONFIGS[:2], output=tmp_path, jobs=2, on_event=kill_the_workers)
    run_all(CONFIGS[:2], output=tmp_path)


def test_too_few_jobs(tmp_path):
    with pytest.raises(OptionError, match="jobs is 0; expected the number of processes, at least 1"):
        run_all(CONFIGS, output=tmp_path, jobs=0)
    assert not list(tmp_path.iterdir())

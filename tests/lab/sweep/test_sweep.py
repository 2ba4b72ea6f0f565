from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from tests.lab.idx_files import fake_files, write
from tests.lab.tiny import Killed
from tests.programs import read_until, workers_of

from holdfast.errors import FailedRunsError, OptionError, OutputError
from holdfast.lab import results, run
from holdfast.lab.folder import purpose_of
from holdfast.lab.result import RunResult
from holdfast.lab.streams import fingerprint, load_data
from holdfast.lab.sweep import Space, SweepChoice, sweep
from holdfast.lab.sweep.storage import storage_at

SMALL = {"num_tasks": 2, "epochs": 2, "batch_size": 128, "hidden": (8,), "importance_examples": 32, "slope": 0.2}
SPACE = Space(
    stream="permuted-digits",
    methods=("ewc-fisher", "none"),
    strengths=(1.0, 1000.0),
    optimizers=("sgd",),
    lrs=(0.05, 0.3),
    seeds=(0, 1),
    settings=SMALL,
    prune=False,
)
SETTINGS = 4 + 2


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in what it runs in the background
from tests.lab.sweep.test_sweep import SPACE
from holdfast.lab.sweep import drive, storage, sweep

storage.BEAT, storage.GRACE, drive.PATIENCE = 1, 3, 0.1
sweep(
    SPACE,
    output=sys.argv[1],
    jobs=int(sys.argv[2]),
    on_event=lambda event: print(event["event"], event.get("run", ""), flush=True),
)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.lab.sweep.storage.BEAT", 1)
    monkeypatch.setattr("holdfast.lab.sweep.storage.GRACE", 3)
    monkeypatch.setattr("holdfast.lab.sweep.drive.PATIENCE", 0.1)


def started(output: Path, *, jobs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(output), str(jobs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return sweep(SPACE, output=tmp_path_factory.mktemp("undisturbed"))


def counts(folder: Path) -> dict[str, int]:
    """How many trials of each state."""
    with storage_at(None, folder=folder) as storage:
        studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
        states = [trial.state.name for study in studies for trial in study.trials]
    return {state: states.count(state) for state in set(states)}


class TestWhatIsFound:
    def test_every_setting_is_tried_once_over_all_seeds(self, undisturbed):
        folder = undisturbed.json.parent
        assert len(undisturbed.all) == SETTINGS
        assert counts(folder) == {"COMPLETE": SETTINGS}
        assert len(list(folder.glob("*/result.json"))) == SETTINGS * 2

    def test_the_best_is_that_of_validation_data_whatever_the_test_data_say(self, undisturbed):
        for best in undisturbed.best:
            rivals = [finding for finding in undisturbed.all if finding.method == best.method]
            assert statistics.fmean(best.validation) == max(statistics.fmean(f.validation) for f in rivals)
        assert [best.method for best in undisturbed.best] == ["ewc-fisher", "none"]

    def test_figures_are_those_of_the_runs(self, undisturbed):
        for finding in undisturbed.all:
            for seed, validation, test, name in zip(
                SPACE.seeds, finding.validation, finding.test, finding.runs, strict=True
            ):
                config = SPACE.config(finding.method, finding.choice, seed=seed)
                assert config.name == name
                result = RunResult.load(undisturbed.json.parent / name / "result.json")
                assert (result.validation_accuracy[-1], result.final_accuracy) == (validation, test)

    def test_files_tell_test_accuracy_of_the_best_alone(self, undisturbed):
        content = json.loads(undisturbed.json.read_text())
        assert [entry["method"] for entry in content["best"]] == ["ewc-fisher", "none"]
        assert (
            {"mean", "half_width", "values"} == set(content["best"][0]["test"]) == set(content["best"][0]["validation"])
        )
        assert sum("test" in entry for entry in content["all"]) == 2
        rows = list(csv.DictReader(undisturbed.csv.read_text().splitlines()))
        assert len(rows) == SETTINGS
        assert [row["best"] == "True" for row in rows] == [bool(row["test"]) for row in rows]

    def test_done_again_nothing_is_trained(self, undisturbed):
        told = []
        again = sweep(SPACE, output=undisturbed.json.parent, on_event=told.append)
        assert not told
        assert again.all == undisturbed.all


class TestTrials:
    """Reports leave out what a sweep did not choose, also where it never came to its end."""

    SPACE = replace(SPACE, methods=("none",), seeds=(0,))

    def test_those_of_a_sweep_that_was_killed(self, tmp_path):
        def interrupt(event) -> None:
            if event["event"] == "trial":
                raise Killed

        run(self.SPACE.config("none", SweepChoice("sgd", 0.3), seed=1), output=tmp_path)  # by hand
        with pytest.raises(Killed):
            sweep(self.SPACE, output=tmp_path, on_event=interrupt)
        assert not (tmp_path / "sweep-permuted-digits.json").exists()
        assert list(results(tmp_path)["purpose"]) == ["trial", ""]
        found = sweep(self.SPACE, output=tmp_path)
        table = results(tmp_path)
        assert [folder.name for folder in map(Path, table.loc[table["purpose"] == "", "folder"])] == [
            found.best[0].runs[0],
            self.SPACE.config("none", SweepChoice("sgd", 0.3), seed=1).name,
        ]

    def test_a_run_that_was_there_before_stays_what_it_was(self, tmp_path):
        for lr in self.SPACE.lrs:
            run(self.SPACE.config("none", SweepChoice("sgd", lr), seed=0), output=tmp_path)
        found = sweep(self.SPACE, output=tmp_path)
        assert [purpose_of(tmp_path / name) for finding in found.all for name in finding.runs] == ["", ""]


class TestKilled:
    def test_an_interrupted_sweep_goes_on_at_once(self, undisturbed, tmp_path):
        for number in (3, 20, 41):
            seen = []

            def interrupt(event, number=number, seen=seen) -> None:
                seen.append(event)
                if len(seen) == number:
                    raise Killed

            with pytest.raises(Killed):
                sweep(SPACE, output=tmp_path, on_event=interrupt)
        found = sweep(SPACE, output=tmp_path)
        assert found.all == undisturbed.all
        assert counts(tmp_path)["COMPLETE"] == SETTINGS

    def test_killed_by_the_system_with_its_workers_no_run_is_lost_and_none_done_twice(self, undisturbed, tmp_path):
        with started(tmp_path, jobs=2) as one:
            for _ in range(2):
                read_until(one, "trial", first_word=True)
            read_until(one, "epoch", first_word=True)
            os.kill(workers_of(one.pid)[0], signal.SIGKILL)
            one.kill()
        results = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
        assert len(results) >= 4
        assert counts(tmp_path)["RUNNING"] >= 1
        told = []
        found = sweep(SPACE, output=tmp_path, on_event=told.append)
        assert found.all == undisturbed.all
        assert all(path.stat().st_mtime_ns == written for path, written in results.items())
        begun = [event["run"] for event in told if event["event"] == "start"]
        assert len(begun) == len(set(begun)) == 2 * SETTINGS - len(results)
        assert found.json.read_text() == undisturbed.json.read_text()
        assert counts(tmp_path)["COMPLETE"] == SETTINGS
        assert "RUNNING" not in counts(tmp_path)

    def test_of_two_sweeps_at_once_one_is_killed_and_the_other_ends_as_if_alone(self, undisturbed, tmp_path):
        with started(tmp_path, jobs=1) as first, started(tmp_path, jobs=1) as second:
            read_until(first, "trial", first_word=True)
            read_until(first, "epoch", first_word=True)
            first.kill()
            assert second.stdout is not None
            told = second.stdout.read().split("\n")
        assert second.returncode == 0
        assert (tmp_path / "sweep-permuted-digits.json").read_text() == undisturbed.json.read_text()
        begun = [line for line in told if line.startswith("start ")]
        assert 0 < len(begun) == len(set(begun)) < 2 * SETTINGS
        assert set(counts(tmp_path)) == {"COMPLETE", "FAIL"}
        assert counts(tmp_path)["COMPLETE"] == SETTINGS

    def test_ctrl_c_while_workers_start_is_not_told_by_them(self, tmp_path):
        with started(tmp_path, jobs=2) as one:
            while not workers_of(one.pid):
                time.sleep(0.01)
            time.sleep(0.2)
            os.killpg(one.pid, signal.SIGINT)  # as a terminal does
            assert one.stderr is not None
            said = one.stderr.read()
        assert said.count("KeyboardInterrupt") == 1
        assert "spawn_main" not in said

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_ctrl_c_ends_it_with_its_workers_and_it_goes_on_at_once(self, undisturbed, tmp_path, jobs):
        with started(tmp_path, jobs=jobs) as one:
            read_until(one, "epoch", first_word=True)
            workers = workers_of(one.pid)
            one.send_signal(signal.SIGINT)
        assert one.returncode == -signal.SIGINT
        assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
        assert "RUNNING" not in counts(tmp_path)
        assert sweep(SPACE, output=tmp_path).all == undisturbed.all


class TestGivenUp:
    SPACE = replace(SPACE, methods=("ewc-fisher",), lrs=(0.1, 0.2, 0.3, 0.4, 0.5, 1e-4), strengths=(1.0,), prune=True)

    def test_a_hopeless_setting_is_pruned_in_mid_run_and_said_so(self, tmp_path):
        told = []
        found = sweep(replace(self.SPACE, settings={**SMALL, "epochs": 6}), output=tmp_path, on_event=told.append)
        (pruned,) = [finding for finding in found.all if finding.state == "pruned"]
        assert pruned.choice == SweepChoice("sgd", 1e-4, 1.0)
        assert pruned.why.startswith("after task 1 of seed 0, at ")
        rows = list(csv.DictReader(found.csv.read_text().splitlines()))
        assert [row["why"] for row in rows if row["state"] == "pruned"] == [pruned.why]
        config = self.SPACE.config("ewc-fisher", pruned.choice, seed=1)
        assert not (tmp_path / config.name).exists()
        assert [event["why"] for event in told if event.get("state") == "pruned"] == [pruned.why]

    def test_a_setting_under_which_training_diverges(self, tmp_path):
        space = replace(SPACE, methods=("none",), lrs=(0.1, 1e5))
        found = sweep(space, output=tmp_path)
        states = {finding.choice.lr: (finding.state, finding.why) for finding in found.all}
        assert states == {0.1: ("complete", ""), 1e5: ("pruned", "training diverged under seed 0")}
        assert [best.choice.lr for best in found.best] == [0.1]

    def test_what_fails_for_another_reason_is_named_and_tried_again(self, tmp_path, monkeypatch):
        bad = SPACE.config("none", SweepChoice("sgd", 0.3), seed=1)
        folder = tmp_path / bad.name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        space = replace(SPACE, methods=("none",))
        with pytest.raises(FailedRunsError, match=f"1 of 4 runs failed; .* {bad.name}: .*damaged"):
            sweep(space, output=tmp_path)
        assert json.loads((tmp_path / "sweep-permuted-digits.json").read_text())["best"][0]["lr"] == 0.05
        (folder / "config.json").unlink()
        assert len(sweep(space, output=tmp_path).all) == 2


def test_data_by_name_are_those_of_the_folder_that_is_given(tmp_path, monkeypatch):
    monkeypatch.delenv("HOLDFAST_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr(sys.modules["holdfast.lab.streams.mnist"], "MIRRORS", ())
    folder = write(tmp_path / "data", fake_files(120, 20))
    small = {**SMALL, "epochs": 1, "data": "mnist"}
    space = replace(SPACE, stream="permuted", methods=("none",), lrs=(0.1,), settings=small, data_dir=folder)
    config = space.config("none", space.grid("none")[0], seed=0)
    assert config.fingerprint == fingerprint(load_data("mnist", data_dir=folder))
    assert len(sweep(space, output=tmp_path / "runs").all) == 1
    assert not (tmp_path / "nothing").exists()


def test_refined_around_the_best(tmp_path):
    space = replace(SPACE, methods=("ewc-fisher", "none"), lrs=(0.3,), refine=True, seeds=(0,))
    found = sweep(space, output=tmp_path)
    strengths = [finding.choice.strength for finding in found.all if finding.method == "ewc-fisher"]
    assert {1.0, 1000.0, 31.6} < set(strengths) or {1.0, 1000.0, 0.1} < set(strengths)
    assert len([finding for finding in found.all if finding.method == "none"]) == 1


def test_tpe_draws_between_the_bounds_as_many_settings_as_asked_for(tmp_path):
    space = replace(SPACE, methods=("ewc-fisher",), sampler="tpe", trials=3, optimizers=("adam", "sgd"), seeds=(0,))
    found = sweep(space, output=tmp_path)
    assert len(found.all) == 3
    for finding in found.all:
        assert finding.choice.strength is not None
        assert 1 <= finding.choice.strength <= 1000
        assert 0.05 <= finding.choice.lr <= 0.3
    more = sweep(replace(space, trials=4), output=tmp_path)
    assert len(more.all) == 4
    assert set(found.all) < set(more.all)


@pytest.mark.parametrize(
    ("wrong", "message", "remedy"),
    [
        ({"methods": ()}, r"sweep: no methods\. Give one or more\.", {"methods": ("none",)}),
        ({"seeds": (1, 1)}, r"sweep: seeds are 1 1; give each once\.", {"seeds": (1,)}),
        ({"strengths": (0.0, 1.0)}, r"sweep: strengths are 0.0 1.0; expected numbers above 0, ", {"strengths": (1.0,)}),
        ({"settings": {"budget": 0.1}}, r"sweep: budget takes the strength's place, ", {"settings": {}}),
        ({"sampler": "tpe"}, r"sweep: trials belong to sampler tpe, which needs them\. Give both", {"trials": 3}),
        (
            {"sampler": "tpe", "trials": 3, "refine": True},
            r"sweep: refine goes on next to the best strength of a grid, .* Leave refine out, and give more trials",
            {"refine": False, "trials": 5},
        ),
        ({"trials": 3}, r"sweep: trials belong to sampler tpe", {"sampler": "tpe"}),
        ({"optimizers": ("sdg",)}, r"unknown optimizer 'sdg'\. Did you mean 'sgd'\?", {"optimizers": ("sgd",)}),
    ],
)
def test_a_space_that_cannot_be_swept(wrong, message, remedy):
    with pytest.raises(OptionError, match=message):
        replace(SPACE, **wrong)
    replace(SPACE, **{**wrong, **remedy})


def test_a_storage_that_cannot_be_used(tmp_path):
    with pytest.raises(OptionError, match=r"storage postgresql\+psycopg://me:\*\*\*@localhost\S* cannot be used: "):
        sweep(SPACE, output=tmp_path, storage="postgresql+psycopg://me:secret@localhost:1/none?connect_timeout=1")
    with pytest.raises(OptionError, match=r"storage 'nonsense' cannot be used: .*Expected an address such as sqlite:"):
        sweep(SPACE, output=tmp_path, storage="nonsense")
    space = replace(SPACE, methods=("none",), lrs=(0.1,), seeds=(0,))
    sweep(space, output=tmp_path, storage=f"sqlite:///{tmp_path / 'mine.db'}")
    assert not (tmp_path / "sweep.db").exists()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*sweep-permuted-digits.json: .*file: that is no folder\."):
        sweep(SPACE, output=tmp_path / "file")
    with (
        pytest.raises(OutputError, match=r"cannot write .*file: .*\. Choose a place that can be written\."),
        storage_at("sqlite:///:memory:", folder=tmp_path / "file"),
    ):
        pass


@pytest.mark.parametrize("name", ["optuna", "scipy"])
def test_without_its_packages(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OptionError, match=rf'a sweep is done with {name}, .*: pip install "torch-holdfast\[sweep\]"'):
        sweep(SPACE, output=tmp_path)
    assert not list(tmp_path.iterdir())


KILLED_WRITER = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA cache_size = 1")  # what is not written yet goes into the file all the same
database.execute("BEGIN IMMEDIATE")
for _ in range(2000):
    database.execute(f"INSERT INTO {sys.argv[2]} VALUES ('{'9' * 500}')")
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_writer(database: Path, table: str) -> None:
    """Leave a database as a process leaves it that was killed as it wrote to it: beside its journal."""
    subprocess.run([sys.executable, "-c", KILLED_WRITER, str(database), table], check=False)
    assert Path(f"{database}-journal").stat().st_size


class TestJournals:
    def test_of_a_sweep_that_was_killed_as_it_wrote(self, tmp_path):
        with storage_at(None, folder=tmp_path) as storage:
            optuna.create_study(study_name="kept", storage=storage)
        with closing(sqlite3.connect(tmp_path / "sweep.db")) as database, database:
            database.execute("CREATE TABLE filled (value TEXT)")
        killed_writer(tmp_path / "sweep.db", "filled")
        with storage_at(None, folder=tmp_path) as storage:
            assert optuna.get_all_study_names(storage) == ["kept"]
        with closing(sqlite3.connect(tmp_path / "sweep.db")) as database:
            assert database.execute("SELECT count(*) FROM filled").fetchone() == (0,)

    def test_of_somebody_else_stays_as_it_is(self, tmp_path):
        path = tmp_path / "sweep.db"
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE books (value TEXT)")
        killed_writer(path, "books")
        content = {each: each.read_bytes() for each in tmp_path.iterdir()}
        with pytest.raises(OutputError, match=r"sweep\.db stands there already"), storage_at(None, folder=tmp_path):
            pass
        assert {each: each.read_bytes() for each in tmp_path.iterdir()} == content

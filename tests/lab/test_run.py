from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.lab.tiny import NUM_EVENTS, TASKS, Killed, assert_same, events, killed_at, outcome, tiny

from holdfast.errors import FileFormatError, NotFiniteError, OptionError, OutputError, RunMismatchError
from holdfast.lab import checkpoint, configured, engine, running
from holdfast.lab.config import RunConfig
from holdfast.lab.methods import METHODS
from holdfast.lab.methods.holding import KeeperLearner
from holdfast.lab.result import RunResult
from holdfast.lab.running import run
from holdfast.lab.streams.catalog import build_stream
from holdfast.lab.streams.stream import Stream


def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint between tasks."""
    monkeypatch.setattr(running, "CHECKPOINT_SECONDS", 1e9)


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every epoch."""
    monkeypatch.setattr(running, "CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> RunResult:
    return run(tiny("none"), output=tmp_path_factory.mktemp("runs"))


class TestRun:
    @pytest.mark.parametrize("method", [name for name in METHODS if name != "none" and not METHODS[name].told])
    def test_every_method_runs_and_differs_from_plain_training(self, plain, method, tmp_path):
        config = tiny(method)
        if config.strength is not None:  # a strength that tells in two short tasks
            config = config.changed(strength=1e3 if config.method.startswith("wva") else 30.0)
        result = run(config, output=tmp_path)
        alike = config.adapt is None  # a head that is solved does not answer as the one that is trained
        assert (result.accuracy_matrix[0] == plain.accuracy_matrix[0]) == alike
        assert result.accuracy_matrix[1] != plain.accuracy_matrix[1]
        assert result.baseline_accuracy == plain.baseline_accuracy

    def test_the_result(self, plain, tmp_path):
        config = tiny("none")
        assert (plain.stream, plain.scenario, plain.method, plain.seed) == ("permuted-digits", "domain", "none", 0)
        assert [len(row) for row in plain.accuracy_matrix] == [TASKS] * TASKS
        assert plain.config == config.to_dict()
        assert plain.average_accuracy[1] == pytest.approx(sum(plain.accuracy_matrix[1]) / 2)
        assert plain.accuracy_matrix[0][0] > plain.baseline_accuracy[0] + 0.1
        assert 0 < plain.seconds_training < plain.seconds
        assert (plain.num_parameters, plain.held_bytes) == (64 * 8 + 8 + 8 * 10 + 10, 0)
        result = run(config, output=tmp_path)
        assert RunResult.load(tmp_path / config.name / "result.json") == result
        assert {path.name for path in (tmp_path / config.name).iterdir()} == {
            "config.json",
            "metrics.jsonl",
            "result.json",
            "checkpoint",
        }

    def test_what_is_held_beside_the_model(self, plain, tmp_path):
        weights = 4 * plain.num_parameters
        held = {name: run(tiny(name), output=tmp_path).held_bytes for name in ("ewc-fisher", "wva-fisher", "joint")}
        assert held["ewc-fisher"] == 2 * weights  # anchors and importance
        assert held["wva-fisher"] == weights
        assert held["joint"] > 1000 * 64 * 4  # the first task's images, and the first weights

    def test_it_tells_what_it_writes(self, tmp_path):
        told: list[Mapping[str, Any]] = []
        config = tiny("ewc-fisher")
        run(config, output=tmp_path, on_event=told.append)
        assert told == events(config, tmp_path)
        assert [event["event"] for event in told] == ["start", *["epoch", "epoch", "task"] * TASKS, "done"]
        assert len(told) == NUM_EVENTS
        assert told[0] == {"event": "start", "num_tasks": TASKS, "resumed": False}
        assert [(e["task"], e["epoch"], e["epochs"]) for e in told if e["event"] == "epoch"] == [
            (0, 1, 2),
            (0, 2, 2),
            (1, 1, 2),
            (1, 2, 2),
        ]
        closed = [event for event in told if event["event"] == "task"]
        assert closed[0]["keeper"] == "EWC: off, no task is retained yet"
        assert closed[1]["keeper"].startswith("EWC: 1 task held, 20 steps, strength")
        assert closed[1]["average_accuracy"] == told[-1]["average_accuracy"] == sum(closed[1]["accuracy"]) / 2

    @pytest.mark.parametrize(
        "settings",
        [
            {"method": "none", "optimizer": "adam", "lr": 0.01},
            {"method": "ewc-fisher", "fisher": "sampled"},
            {"method": "wva-signal", "optimizer": "momentum", "lr": 0.02, "schedule": "cosine"},
        ],
        ids=lambda settings: settings["method"],
    )
    def test_twice_the_same_bits_whatever_the_global_state(self, tmp_path, settings):
        config = tiny(**settings)
        run(config, output=tmp_path / "a")
        torch.manual_seed(123)
        torch.rand(5)
        run(config, output=tmp_path / "b")
        assert_same(outcome(config, tmp_path / "a"), outcome(config, tmp_path / "b"))

    def test_another_seed_is_another_run(self, plain, tmp_path):
        assert run(tiny("none", seed=1), output=tmp_path).accuracy_matrix != plain.accuracy_matrix

    def test_iterations_in_place_of_epochs(self, tmp_path, monkeypatch):
        """13 steps of 10 an epoch: a whole epoch and three steps; 20 steps are two epochs to the bit."""
        steps = []
        train = running.train_epoch

        def counted(*args: Any, **kwargs: Any) -> float:
            steps.append(kwargs["num_steps"])
            return train(*args, **kwargs)

        monkeypatch.setattr(running, "train_epoch", counted)
        run(tiny("none", iterations=13, epochs=9), output=tmp_path)
        assert steps == [10, 3] * TASKS
        by_steps, by_epochs = tiny("none", iterations=20, epochs=9), tiny("none", epochs=2)
        results = [run(config, output=tmp_path) for config in (by_steps, by_epochs)]
        assert results[0].accuracy_matrix == results[1].accuracy_matrix

    def test_the_course_of_the_learning_rate(self, tmp_path, monkeypatch):
        rates: list[float] = []
        build = running.build_optimizer

        def spied(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
            optimizer = build(*args, **kwargs)
            optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
            return optimizer

        monkeypatch.setattr(running, "build_optimizer", spied)
        run(tiny("none", schedule="cosine", lr=0.2, iterations=15), output=tmp_path)
        assert len(rates) == 15 * TASKS
        assert rates[:15] == rates[15:]
        assert rates[0] == 0.2
        assert rates[:15] == sorted(rates[:15], reverse=True)
        assert 0 < rates[14] < 0.003
        rates.clear()
        run(tiny("none", lr=0.2), output=tmp_path)
        assert set(rates) == {0.2}

    def test_importances_come_from_the_data_that_were_asked_for(self, tmp_path, monkeypatch):
        lengths = []
        measure = KeeperLearner.close_task

        def spied(self: Any, examples: Any, **kwargs: Any) -> None:
            lengths.append(len(examples))
            measure(self, examples, **kwargs)

        monkeypatch.setattr(KeeperLearner, "close_task", spied)
        run(tiny("ewc-fisher", importance_examples=None, importance_data="validation"), output=tmp_path)
        run(tiny("ewc-fisher", importance_examples=None, importance_data="train"), output=tmp_path)
        run(tiny("ewc-fisher", importance_examples=17), output=tmp_path)
        assert lengths == [300, 300, 1197, 1197, 17, 17]

    def test_the_training_data_of_earlier_tasks_are_not_kept(self, tmp_path, monkeypatch):
        built: dict[int, list[weakref.ref]] = {}

        def spied(*args: Any, **kwargs: Any) -> Stream:
            stream = build_stream(*args, **kwargs)

            def build(k: int) -> Any:
                task = stream.build(k)
                built.setdefault(k, []).append(weakref.ref(task.train.inputs))
                return task

            return replace(stream, build=build)

        alive = []

        def on_event(event: Mapping[str, Any]) -> None:
            if event["event"] in ("epoch", "task"):
                gc.collect()
                # task 0 is the images themselves, which the stream makes the others of
                alive.append({k for k, refs in built.items() if k and any(ref() is not None for ref in refs)})

        monkeypatch.setattr(configured, "build_stream", spied)
        run(tiny("none", num_tasks=4, epochs=1), output=tmp_path, on_event=on_event)
        assert alive == [set(), set(), {1}, {1}, {2}, {2}, {3}, {3}]


class TestScenarios:
    """split-digits: tasks (0, 1), (2, 3), (4, 5)."""

    def spied(self, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
        predicted, trained = [], []
        measure, train = running.accuracy, running.train_epoch

        def accuracy(model: Any, examples: Any, *, classes: Any = None) -> float:
            predicted.append(None if classes is None else tuple(classes))
            return measure(model, examples, classes=classes)

        def train_epoch(*args: Any, **kwargs: Any) -> float:
            columns = kwargs["columns"]
            rows = None if columns is None else columns.any(1).nonzero().flatten().tolist()
            trained.append(rows and {row: tuple(columns[row].nonzero().flatten().tolist()) for row in rows})
            return train(*args, **kwargs)

        monkeypatch.setattr(running, "accuracy", accuracy)
        monkeypatch.setattr(running, "train_epoch", train_epoch)
        return predicted, trained

    def split(self, method: str = "none", **settings: Any) -> RunConfig:
        return tiny(method, stream="split-digits", num_tasks=3, epochs=1, **settings)

    def test_task(self, tmp_path, monkeypatch):
        predicted, trained = self.spied(monkeypatch)
        result = run(self.split(), output=tmp_path)
        own = [(0, 1), (2, 3), (4, 5)]
        assert result.scenario == "task"
        # untrained, then after each task test on all and validation on those so far
        assert predicted == own + own + own[:1] + own + own[:2] + own + own
        assert trained == [dict.fromkeys(classes, classes) for classes in own]

    def test_domain(self, tmp_path, monkeypatch):
        predicted, trained = self.spied(monkeypatch)
        result = run(self.split(scenario="domain"), output=tmp_path)
        assert result.scenario == "domain"
        assert set(predicted) == {None}
        assert trained == [None] * 3

    def test_class(self, tmp_path, monkeypatch):
        predicted, trained = self.spied(monkeypatch)
        result = run(self.split(scenario="class"), output=tmp_path)
        two, four, six = (tuple(range(n)) for n in (2, 4, 6))
        untrained, first, second, last = [two, four, six], [two, four, six], [four, four, six], [six, six, six]
        assert result.scenario == "class"
        assert predicted == untrained + first + first[:1] + second + second[:2] + last * 2
        assert trained == [{0: two, 1: two}, {2: four, 3: four}, {4: six, 5: six}]
        seen = [result.accuracy_matrix[2][j] for j in range(2)]
        assert max(seen) < result.learning_accuracy  # what plain training is known for

    @pytest.mark.parametrize(
        ("mask", "expected"),
        [
            ("task", {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3), 4: (4, 5), 5: (4, 5)}),
            ("seen", dict.fromkeys(range(6), tuple(range(6)))),
            ("all", None),
        ],
    )
    @pytest.mark.parametrize("scenario", ["task", "class"])
    def test_cumulative_training_under_each_mask(self, tmp_path, monkeypatch, mask, expected, scenario):
        _, trained = self.spied(monkeypatch)
        result = run(self.split("cumulative", mask=mask, scenario=scenario), output=tmp_path)
        assert trained[-1] == expected
        assert len(trained) == 3
        assert result.accuracy_matrix[2][0] > (0.7 if scenario == "task" else 0.1)

    @pytest.mark.parametrize("method", ["joint", "cumulative"])
    def test_past_data_are_those_of_all_tasks_so_far(self, tmp_path, monkeypatch, method):
        lengths = []
        train = running.train_epoch

        def train_epoch(model: Any, optimizer: Any, examples: Any, **kwargs: Any) -> float:
            lengths.append((len(examples), examples.targets.unique().tolist()))
            return train(model, optimizer, examples, **kwargs)

        monkeypatch.setattr(running, "train_epoch", train_epoch)
        run(self.split(method), output=tmp_path)
        parts = [len(task.train) for task in build_stream("split-digits", num_tasks=3)]
        assert lengths == [(sum(parts[: n + 1]), list(range(2 * n + 2))) for n in range(3)]

    @pytest.mark.parametrize(("scenario", "mask"), [("task", "task"), ("domain", "all"), ("class", "seen")])
    def test_the_mask_of_a_scenario_unless_another_is_asked_for(self, tmp_path, scenario, mask):
        default = run(self.split(scenario=scenario), output=tmp_path)
        assert run(self.split(scenario=scenario, mask=mask), output=tmp_path).accuracy_matrix == default.accuracy_matrix

    def test_fisher_of_a_head_is_of_its_own_columns(self, tmp_path, monkeypatch):
        classes = []
        close = KeeperLearner.close_task

        def spied(self: Any, *args: Any, **kwargs: Any) -> None:
            classes.append(kwargs["classes"])
            close(self, *args, **kwargs)

        monkeypatch.setattr(KeeperLearner, "close_task", spied)
        run(self.split("ewc-fisher"), output=tmp_path)
        run(self.split("ewc-fisher", mask="seen"), output=tmp_path)
        run(self.split("ewc-fisher", mask="all"), output=tmp_path)
        assert classes == [(0, 1), (2, 3), (4, 5), (0, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5), None, None, None]


RESUMED: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "none, momentum kept": {"method": "none", "optimizer": "momentum", "lr": 0.02, "fresh_optimizer": False},
    "joint": {"method": "joint", "epochs": 1},
    "frozen": {"method": "frozen", "epochs": 1},
    "ewc-fisher": {"method": "ewc-fisher"},
    "ewc-fisher, cosine": {"method": "ewc-fisher", "schedule": "cosine", "fresh_optimizer": False},
    "ewc-fisher, penalty": {"method": "ewc-fisher", "pull": "penalty", "strength": 1.0},
    "ewc-fisher, budget": {"method": "ewc-fisher", "budget": 0.001, "fisher": "sampled"},
    "ewc-si, before": {"method": "ewc-si"},
    "ewc-si, after, kept": {"method": "ewc-si", "si_gradient": "after", "fresh_optimizer": False, "strength": 10.0},
    "ewc-si, kutalev": {"method": "ewc-si", "si_variant": "kutalev", "strength": 10.0},
    "wva-signal, momentum": {"method": "wva-signal", "optimizer": "momentum", "lr": 0.02},
    "er": {"method": "er", "buffer_size": 40},
    "er, balanced": {"method": "er", "buffer_size": 40, "buffer": "balanced", "epochs": 1},
    "der": {"method": "der", "buffer_size": 40, "optimizer": "adam", "lr": 0.01},
    "agem": {"method": "agem", "buffer_size": 40},
    "lwf": {"method": "lwf", "epochs": 1},
    "imm, mean": {"method": "imm", "l2_transfer": 0.1, "optimizer": "momentum", "lr": 0.02, "epochs": 1},
    "imm, mode": {"method": "imm", "imm": "mode"},
    "sfa": {"method": "sfa"},
    "hat": {"method": "hat", "stream": "split-digits"},
    "progressive": {"method": "progressive", "stream": "split-digits", "epochs": 1},
    "packnet": {"method": "packnet", "stream": "split-digits", "optimizer": "adam", "lr": 0.01},
    "pathnet": {"method": "pathnet", "stream": "split-digits"},
    "lfl": {"method": "lfl"},
    "class-means": {"method": "class-means", "stream": "split-digits", "scenario": "class"},
    "slda, adapted": {"method": "slda", "stream": "split-digits", "scenario": "class", "adapt": True},
    "ranpac": {"method": "ranpac", "projection": 30},
    "wva-signal, adam kept": {"method": "wva-signal", "optimizer": "adam", "lr": 0.01, "fresh_optimizer": False},
}


class TestResume:
    @pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED.keys())
    def test_killed_at_every_event_in_turn_it_ends_with_the_same_bits(self, tmp_path, monkeypatch, settings):
        always(monkeypatch)
        config = tiny(**settings)
        run(config, output=tmp_path / "whole")
        whole = outcome(config, tmp_path / "whole")
        number = 1
        while killed_at(number, config, tmp_path / str(number)):
            run(config, output=tmp_path / str(number))
            assert_same(outcome(config, tmp_path / str(number)), whole)
            number += 1
        assert number == len(whole[2]) + 2  # every event was tried, with the one start

    @pytest.mark.parametrize("name", ["none", "ewc-si, after, kept", "ewc-fisher, budget"])
    def test_also_where_checkpoints_come_after_tasks_only(self, tmp_path, monkeypatch, name):
        never(monkeypatch)
        config = tiny(**RESUMED[name])
        run(config, output=tmp_path / "whole")
        whole = outcome(config, tmp_path / "whole")
        for number in range(1, NUM_EVENTS + 1):
            assert killed_at(number, config, tmp_path / str(number))
            run(config, output=tmp_path / str(number))
            assert_same(outcome(config, tmp_path / str(number)), whole)

    def test_killed_again_and_again(self, tmp_path, monkeypatch):
        """Each session lives for four events: start, two that are kept, and the one in which it is killed."""
        always(monkeypatch)
        config = tiny("ewc-si", optimizer="momentum", lr=0.02)
        run(config, output=tmp_path / "whole")
        sessions = 1
        while killed_at(4, config, tmp_path / "killed"):
            sessions += 1
            assert sessions < 20
        assert sessions > 2
        assert_same(outcome(config, tmp_path / "killed"), outcome(config, tmp_path / "whole"))
        starts = [event for event in events(config, tmp_path / "killed") if event["event"] == "start"]
        assert [event["resumed"] for event in starts] == [False] + [True] * (sessions - 1)

    @pytest.mark.parametrize("write", range(1, 5))
    @pytest.mark.parametrize("where", ["writing", "renaming"])
    def test_killed_while_a_checkpoint_is_written(self, tmp_path, monkeypatch, where, write):
        always(monkeypatch)
        config = tiny("ewc-si", fresh_optimizer=False)
        run(config, output=tmp_path / "whole")
        name = "save_file" if where == "writing" else "replace"
        place: Any = sys.modules["holdfast.files.tensors"] if where == "writing" else Path
        real, count = getattr(place, name), 0

        def broken(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += any("-state.safetensors" in str(arg) for arg in args)
            if count == write:
                if where == "writing":
                    Path(args[1]).write_bytes(b"half of it")
                raise Killed
            return real(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(place, name, broken)
            patched.setattr("holdfast.files.plain._discard", lambda path: None)  # a kill does not clean up
            with pytest.raises(Killed):
                run(config, output=tmp_path / "killed")
        folder = tmp_path / "killed" / config.name / "checkpoint"
        assert list(folder.glob(".holdfast-*.new"))
        run(config, output=tmp_path / "killed")
        assert not list(folder.glob(".holdfast-*.new"))
        assert_same(outcome(config, tmp_path / "killed"), outcome(config, tmp_path / "whole"))

    def test_killed_before_the_result_was_written(self, tmp_path, monkeypatch):
        config = tiny("ewc-fisher")
        run(config, output=tmp_path / "whole")

        def broken(*_: Any) -> None:
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(RunResult, "save", broken)
            with pytest.raises(Killed):
                run(config, output=tmp_path / "killed")
        run(config, output=tmp_path / "killed")
        assert_same(outcome(config, tmp_path / "killed"), outcome(config, tmp_path / "whole"))

    def test_a_real_kill_in_mid_task(self, tmp_path):
        config = tiny("ewc-si", epochs=30, optimizer="momentum", lr=0.02, fresh_optimizer=False)
        program = (
            "import importlib, json, sys, torch; torch.set_num_threads(1)\n"
            "module = importlib.import_module('holdfast.lab.running')\n"
            "from holdfast.lab.config import RunConfig\n"
            "module.CHECKPOINT_SECONDS = 0.0\n"
            "config = RunConfig.from_dict(json.loads(sys.argv[1]))\n"
            "module.run(config, output=sys.argv[2], on_event=lambda event: print(json.dumps(event), flush=True))\n"
        )
        arguments = [sys.executable, "-c", program, json.dumps(config.to_dict()), str(tmp_path / "killed")]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        environment = {**os.environ, "PYTHONPATH": path}
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            for line in child.stdout:
                event = json.loads(line)
                if event["event"] == "epoch" and (event["task"], event["epoch"]) == (1, 10):
                    time.sleep(0.003)
                    child.send_signal(signal.SIGKILL)
                    break
        assert child.returncode == -signal.SIGKILL
        folder = tmp_path / "killed" / config.name
        assert (folder / "checkpoint" / "state.safetensors").exists()
        assert not (folder / "result.json").exists()
        told: list[Mapping[str, Any]] = []
        run(config, output=tmp_path / "killed", on_event=told.append)
        assert told[0]["resumed"]
        assert told[1]["task"] == 1
        assert told[1]["epoch"] >= 10
        run(config, output=tmp_path / "whole")
        assert_same(outcome(config, tmp_path / "killed"), outcome(config, tmp_path / "whole"))

    def test_seconds_add_up_over_sessions(self, tmp_path, monkeypatch):
        always(monkeypatch)
        now = 0.0
        for module in (running, engine):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
        count = 0

        def on_event(_: Mapping[str, Any]) -> None:
            nonlocal now, count
            now, count = now + 1.0, count + 1
            if count == 3:
                raise Killed

        config = tiny("none")
        with pytest.raises(Killed):
            run(config, output=tmp_path, on_event=on_event)
        now += 1000.0  # between the sessions
        result = run(config, output=tmp_path, on_event=on_event)
        # start and one epoch in the first session (the second epoch was lost), start and all the rest in the other
        assert result.seconds == 2 + 1 + (NUM_EVENTS - 3)


class TestFinished:
    def test_it_is_read_back_without_training(self, tmp_path, monkeypatch):
        config = tiny("ewc-fisher")
        result = run(config, output=tmp_path)
        told: list[Any] = []
        monkeypatch.setattr(running, "ActiveRun", None)
        assert run(config, output=tmp_path, on_event=told.append) == result
        assert told == []

    def test_a_deleted_result_is_made_again_from_the_checkpoint(self, tmp_path, monkeypatch):
        config = tiny("ewc-fisher")
        result = run(config, output=tmp_path)
        path = tmp_path / config.name / "result.json"
        path.write_text(path.read_text()[:50])
        with pytest.raises(FileFormatError, match="Delete it and run the same command again"):
            run(config, output=tmp_path)
        path.unlink()
        monkeypatch.setattr(running, "train_epoch", None)
        again = run(config, output=tmp_path)
        assert replace(again, seconds=0.0) == replace(result, seconds=0.0)


class TestErrors:
    def test_a_folder_of_another_configuration(self, tmp_path):
        config = tiny("none")
        run(config, output=tmp_path)
        path = tmp_path / config.name / "config.json"
        content = json.loads(path.read_text())
        content["config"]["lr"] = 0.7
        path.write_text(json.dumps(content))
        with pytest.raises(
            RunMismatchError, match=rf"belongs to another configuration: lr 0.7 there, {config.lr} here"
        ):
            run(config, output=tmp_path)
        run(config, output=tmp_path / "other")
        shutil.rmtree(tmp_path / config.name)
        run(config, output=tmp_path)

    def test_an_output_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=r"cannot write .*file: that is no folder. Choose a folder"):
            run(tiny("none"), output=tmp_path / "file")

    def test_a_damaged_checkpoint(self, tmp_path):
        config = tiny("none")
        assert killed_at(5, config, tmp_path)
        path = tmp_path / config.name / "checkpoint" / "state.safetensors"
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(
            FileFormatError, match=r"state.safetensors is no readable checkpoint .*Delete it to start again"
        ):
            run(config, output=tmp_path)
        path.unlink()
        run(config, output=tmp_path)
        assert [event["event"] for event in events(config, tmp_path)].count("start") == 1

    @pytest.mark.parametrize(
        ("settings", "device", "message"),
        [
            ({"method": "none"}, "gpu", r"device 'gpu' cannot be used: .*Use cpu, or cuda where one is."),
            ({"method": "wva-fisher", "budget": 0.1}, "cpu", "budget has no effect with .* wva-fisher; it belongs to"),
            ({"method": "ewc-fisher", "accumulate": "summ"}, "cpu", "accumulate is 'summ'"),
            ({"method": "wva-fisher", "accumulate": "per_task"}, "cpu", 'accumulate="per_task" joins anchors'),
            ({"method": "none", "stream": "split-digits", "num_tasks": 6}, "cpu", "num_tasks=6, expected 1 to 5"),
            (
                {"method": "none", "stream": "rotated-digits", "fraction": 0.5},
                "cpu",
                "fraction has no effect with stream rotated-digits",
            ),
        ],
    )
    def test_bad_options_leave_nothing_behind(self, tmp_path, settings, device, message):
        with pytest.raises(OptionError, match=message):
            run(tiny(**settings), output=tmp_path / "runs", device=device)
        assert not (tmp_path / "runs").exists()

    def test_diverged_training_has_no_result(self, tmp_path):
        config = tiny("none", lr=1e5)
        with pytest.raises(NotFiniteError, match="training has diverged"):
            run(config, output=tmp_path)
        assert not (tmp_path / config.name / "result.json").exists()

    @pytest.mark.parametrize(
        ("diverges", "remedy", "told"),
        [
            ({"method": "none", "lr": 1e5}, {"lr": 0.1}, r"Lower the learning rate, which is 100000\.$"),
            ({"method": "ewc-fisher", "lr": 1e5}, {"lr": 0.1}, r"Lower the learning rate, which is 100000\.$"),
            (
                {"method": "ewc-fisher", "pull": "gradient", "strength": 1e12},
                {"pull": "implicit"},
                r'0.1, or use pull="implicit": pull="gradient" diverges where lr \* strength \* importance > 2',
            ),
            (
                {"method": "ewc-fisher", "pull": "penalty", "strength": 1e12},
                {"pull": "implicit"},
                r'which is 0.1, or use pull="implicit": pull="penalty" diverges where',
            ),
            (
                {"method": "wva-fisher", "lr": 3.0, "strength": 3.0, "num_tasks": 3},
                {"lr": 0.1},
                r"which is 3: WVA slows the important weights, and all others move at the full rate\.$",
            ),
            ({"method": "wva-fisher", "lr": 1e5}, {"lr": 0.1}, r"which is 100000\.$"),  # in the first task
            (
                {"method": "dgr", "hold": "ewc-fisher", "pull": "gradient", "strength": 1e12},
                {"pull": "implicit"},
                r'or use pull="implicit"',
            ),
        ],
    )
    def test_what_helps_against_divergence_is_told_of_the_method_at_hand(self, tmp_path, diverges, remedy, told):
        with pytest.raises(NotFiniteError, match=told):
            run(tiny(**diverges), output=tmp_path)
        run(tiny(**{**diverges, **remedy}), output=tmp_path)


def test_the_checkpoint_of_a_finished_run_stands_after_its_last_task(tmp_path):
    config = tiny("none")
    run(config, output=tmp_path)
    whole = running.ActiveRun(
        config, running.RunFolder(tmp_path / config.name, config), device="cpu", data_dir=None, on_event=None
    )
    progress = checkpoint.load(
        whole.folder.checkpoint, model=whole.model, optimizer=whole.optimizer, learner=whole.learner
    )
    assert (progress.task, progress.epoch, len(progress.test)) == (TASKS, 0, TASKS)
    assert progress.num_events == NUM_EVENTS - 1

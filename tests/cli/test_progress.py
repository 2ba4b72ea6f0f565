from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from holdfast.cli import progress
from holdfast.cli.progress import EventDisplay, Stages, SweepWatcher

EVENTS = [
    {"event": "start", "num_tasks": 2, "resumed": False},
    {"event": "epoch", "task": 0, "epoch": 1, "epochs": 1, "loss": 0.5, "seconds": 1.0},
    {"event": "task", "task": 0, "accuracy": [0.9, 0.1], "average_accuracy": 0.9, "seconds": 1.5},
    {"event": "epoch", "task": 1, "epoch": 1, "epochs": 1, "loss": 0.25, "seconds": 1.0},
    {"event": "task", "task": 1, "accuracy": [0.6, 0.8], "average_accuracy": 0.7, "seconds": 3.0},
    {"event": "done", "average_accuracy": 0.7, "seconds": 3.0},
]


def shown(*, terminal: bool = False, brief: bool = False, events=EVENTS) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, markup=False, highlight=False)
    with EventDisplay(console, "EWC [x]", brief=brief) as watcher:
        for event in events:
            watcher(event)
    return text.getvalue()


def test_plain_lines():
    assert shown().splitlines() == [
        "EWC [x]: task 1/2 learned to 90.0%, average accuracy so far 90.0%, 1.5 s",
        "EWC [x]: task 2/2 learned to 80.0%, average accuracy so far 70.0%, 3.0 s",
    ]


def test_an_epoch_is_told_of_after_a_long_silence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", -1.0)
    assert "EWC [x]: task 2/2  epoch 1/1  loss 0.250  accuracy so far 90.0%" in shown().splitlines()


def test_brief_is_a_line_a_run():
    assert shown(brief=True).splitlines() == ["EWC [x]        70.0%    3.0 s"]


def test_a_resumed_run_says_so():
    assert shown(events=[{"event": "start", "num_tasks": 2, "resumed": True}]) == "EWC [x]: goes on where it was\n"


def test_a_run_event_gives_the_next_label():
    assert shown(brief=True, events=[{"event": "run", "label": "plain"}, *EVENTS]).startswith("plain ")


def test_in_a_terminal_the_line_moves():
    said = shown(terminal=True)
    assert "\x1b[?25l" in said  # the cursor hides ...
    assert said.rstrip().endswith("\x1b[2K") or "\x1b[?25h" in said  # ... and comes back
    assert "task 2/2 learned to 80.0%" in said


def test_quiet_shows_nothing():
    text = io.StringIO()
    with EventDisplay(Console(file=text, force_terminal=True, quiet=True), "x") as watcher:
        for event in EVENTS:
            watcher(event)
    assert text.getvalue() == ""


def test_the_line_of_a_run_that_was_stopped_goes_with_its_setting():
    text = io.StringIO()
    with SweepWatcher(Console(file=text, force_terminal=True, width=100)) as watcher:
        watcher({"event": "start", "run": "a-run", "num_tasks": 2, "resumed": False})
        watcher({"event": "epoch", "run": "a-run", "task": 0, "epoch": 1, "epochs": 2, "loss": 0.5})
        told = {"event": "trial", "method": "none", "setting": "sgd", "state": "pruned", "why": "hopeless"}
        watcher({**told, "validation": None, "runs": ["a-run", "another"]})
        shown = text.tell()
        time.sleep(0.3)  # the line is drawn ten times a second
    assert "pruned: hopeless" in text.getvalue()
    assert "a-run" in text.getvalue()[:shown]
    assert "a-run" not in text.getvalue()[shown:]


def staged(*, terminal: bool = False, quiet: bool = False) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, markup=False, highlight=False, quiet=quiet)
    with Stages(console) as stages:
        for done in (1, 2):
            stages("reading", done, None)
        for done in (1, 2, 3):
            stages("calibration, round 1 of at most 6", done, 3)
            stages.say(f"step {done}")
    return text.getvalue()


def test_long_work_is_a_moving_line_in_a_terminal():
    said = staged(terminal=True)
    assert "calibration, round 1 of at most 6" in said
    assert "3/3" in said
    assert said.count("step ") == 3


def test_long_work_is_told_of_elsewhere_after_a_long_silence(monkeypatch: pytest.MonkeyPatch):
    assert staged().splitlines() == ["step 1", "step 2", "step 3"]
    monkeypatch.setattr(progress, "SILENT_SECONDS", -1.0)
    assert staged().splitlines()[:3] == ["reading: 1", "reading: 2", "calibration, round 1 of at most 6: 1/3"]
    assert staged(quiet=True) == staged(quiet=True, terminal=True) == ""

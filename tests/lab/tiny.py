"""Runs small enough to be repeated many times, killed at any moment, and compared to the last bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.files import read_state
from holdfast.lab.config import RunConfig, configure
from holdfast.lab.folder import RunFolder
from holdfast.lab.running import run

TASKS, EPOCHS = 2, 2
NUM_EVENTS = 2 + TASKS * (EPOCHS + 1)
"""Start, the epochs and the end of each task, done."""


class Killed(BaseException):
    """Stands for a kill: nothing in the library catches it."""


def tiny(method: str, *, stream: str = "permuted-digits", **settings: Any) -> RunConfig:
    """Two tasks of two epochs of ten steps, eight hidden units."""
    small = {
        "num_tasks": TASKS,
        "epochs": EPOCHS,
        "batch_size": 128,
        "hidden": (8,),
        "importance_examples": 32,
        # not the protocol's, which may be tuned anew
        "optimizer": "sgd",
        "lr": 0.1,
        "slope": 0.2,
    }
    return configure(stream, method, **{**small, **settings})


def killed_at(number: int, config: RunConfig, output: Path) -> bool:
    """Run until the event of that number, from 1, and be killed in it; whether it came."""
    seen = 0

    def on_event(_: Mapping[str, Any]) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            raise Killed

    try:
        run(config, output=output, on_event=on_event)
    except Killed:
        return True
    return False


def events(config: RunConfig, output: Path) -> list[dict[str, Any]]:
    """What stands in metrics.jsonl."""
    return [json.loads(line) for line in (output / config.name / "metrics.jsonl").read_text().splitlines()]


def outcome(config: RunConfig, output: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[dict[str, Any]]]:
    """All that may not depend on where a run was killed: its result, final tensors and events, but for the times and
    what the keeper says in passing of the last step that it measured.
    """
    result = json.loads((output / config.name / "result.json").read_text())
    tensors, _ = read_state(RunFolder(output / config.name, config).checkpoint)
    told = [event for event in events(config, output) if event["event"] != "start"]
    return _timeless(result), tensors, [{**_timeless(event), "keeper": None} for event in told]


def assert_same(first: tuple, second: tuple) -> None:
    """Two outcomes agree to the last bit."""
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    different = [name for name in first[1] if not torch.equal(first[1][name], second[1][name])]
    assert not different
    assert first[2] == second[2]


def _timeless(content: Mapping[str, Any]) -> dict[str, Any]:
    of_its_time = ("seconds", "versions", "sha256")
    return {name: value for name, value in content.items() if not name.startswith(of_its_time)}

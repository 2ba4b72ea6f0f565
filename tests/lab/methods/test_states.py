"""A state that could not be read back is refused when it is first written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lab.tiny import tiny

from holdfast.errors import OptionError
from holdfast.importance import uniform
from holdfast.lab import Estimator, Learner, register_importance, register_method, run
from holdfast.lab.methods.states import checked_state

ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, r"Mine\.state: gave a dict; expected two, tensors by name and JSON notes\."),
        (({}, {}, {}), "gave a tuple; expected two"),
        ((ONE, {}), "gave a tuple; expected two"),
        (
            ({"a": ONE, "b": 3, 4: ONE}, {}),
            r"\['b', 4\] are no tensors by name\. Give what is no tensor among the notes",
        ),
        (({}, {"a": 1, "b": ONE, "c": {1: 2}, 3: 4}), r"the notes \['b', 'c', 3\] are no JSON values"),
        (({"keeper/a": ONE}, {}), "keeper is a name of holdfast's. Choose another one."),
        (({}, {"keeper": 1}), "keeper is a name of holdfast's"),
    ],
)
def test_what_cannot_be_written_and_read_back(found: Any, message: str):
    with pytest.raises(OptionError, match=message):
        checked_state(found, whose="Mine", reserved=["keeper"])


def test_what_can():
    found = {"a/b": ONE}, {"c": [1, 2.5, None, ("x", True)], "keepers": {"d": {}}}
    assert checked_state(found, whose="Mine", reserved=["keeper"]) == found


class Forgetful(Learner):
    def state(self) -> Any:
        return {"steps": 3}


class Counting(Estimator):
    def importance(self, task: Any) -> Any:
        return uniform(self.model)

    def state(self) -> Any:
        return {"steps": 3}, {}


class Changing(Learner):
    def load_state(self, tensors: Any, notes: Any) -> None:
        notes["what was never there"]


def test_a_run_says_so_at_its_first_checkpoint(tmp_path: Path):
    register_method("forgetful")(Forgetful)
    register_importance("counting", on_examples=False)(Counting)
    with pytest.raises(OptionError, match=r"Forgetful\.state: gave a dict; expected two"):
        run(tiny("forgetful", epochs=1), output=tmp_path)
    with pytest.raises(OptionError, match=r"Counting\.state: \['steps'\] are no tensors by name"):
        run(tiny("ewc-counting", strength=1.0, epochs=1), output=tmp_path)
    assert not list(tmp_path.glob("*/checkpoint/*"))


def test_a_method_that_does_not_take_what_it_gave_is_told_as_its_own_error(tmp_path: Path):
    register_method("changing")(Changing)

    def stop(event: Any) -> None:
        if event["event"] == "epoch" and event["task"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny("changing", epochs=1), output=tmp_path, on_event=stop)
    with pytest.raises(KeyError, match="what was never there"):
        run(tiny("changing", epochs=1), output=tmp_path)

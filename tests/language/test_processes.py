"""What processes tell each other, and what they say where they are not about to do the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.language import tiny

from holdfast.errors import LostProcessError, OptionError, OutputError, RunMismatchError
from holdfast.language.batches import examples
from holdfast.language.checkpoints import checkpoints
from holdfast.language.finetuning import share_of_batch
from holdfast.language.launched import Launch, joined
from holdfast.language.measuring import measure_importance
from holdfast.language.models import load_model
from holdfast.language.processes import ALONE, Processes, is_loss
from holdfast.language.rows import Source
from holdfast.likelihoods.categorical import IGNORED


@dataclass(frozen=True)
class Pair(Processes):
    """The first of two, of which the other tells the same but for `changed`."""

    count: int = 2
    changed: dict[str, Any] = field(default_factory=dict)

    def told(self, notes: Any, tensors: Any = None) -> Any:
        other = {**notes, **self.changed} if isinstance(notes, dict) else self.changed.get("notes", notes)
        return [(dict(tensors or {}), notes), (dict(tensors or {}), other)]


@given(st.lists(st.integers(), max_size=20), st.integers(1, 6))
def test_shares_are_all_items_once_in_their_order(items: list[int], count: int):
    shares = [Processes(rank, count).share(items) for rank in range(count)]
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_is_told_what_it_tells():
    tensors = {"a": torch.ones(2)}
    assert ALONE.told([1], tensors) == [(tensors, [1])]
    assert ALONE.of_first(lambda: ({}, "found")) == ({}, "found")
    assert ALONE.add_up(tensors) == tensors
    assert ALONE.told_in_order([tensors["a"]]) == [[tensors["a"]]]
    ALONE.wait()
    ALONE.agree("here", what=(1, 2))


def test_processes_that_differ_are_named_with_what_differs():
    same = {"command": ["a"], "data": "b", "version_of_torch": "2"}
    Pair().agree("evaluate", **same)
    with pytest.raises(RunMismatchError) as caught:
        Pair(changed={"data": "c", "version_of_torch": "1"}).agree("evaluate", **same)
    assert str(caught.value) == (
        "evaluate: the processes disagree: process 1 of 2 has another data, version of torch than the first. Start all "
        "of them with one command, on the same files."
    )


def test_sums_of_other_shapes_are_refused():
    with pytest.raises(RunMismatchError, match="sums of other names or shapes. Start all of them with one command"):
        Pair(changed={"notes": [["a", [3], "torch.float32"]]}).add_up({"a": torch.ones(2)})


def test_data_that_differ_end_a_measurement(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    source = Source(str(tiny.prose(tmp_path / "prose.txt")))
    read = partial(examples, model, source.rows(), length=16, labelled=False)
    with pytest.raises(RunMismatchError) as caught:
        measure_importance(model, read, processes=Pair(changed={"data": "others"}))
    assert str(caught.value) == (
        "importance: the processes read different data: process 1 of 2 found other examples than the first. Give all "
        "of them the same files."
    )


def test_a_folder_that_not_all_see_is_refused(tmp_path: Path):
    with (
        pytest.raises(OutputError) as caught,
        checkpoints(tmp_path / "out", {}, processes=Pair(changed={"notes": False})),
    ):
        pass
    assert str(caught.value) == (
        f"{tmp_path / 'out'}: process 1 of 2 does not see what the first wrote there. Give a folder on storage that "
        "all of them share."
    )
    assert not (tmp_path / "out").exists()


def test_a_share_without_an_example_has_no_target(tmp_path: Path):
    model = load_model(str(tiny.causal(tmp_path / "causal")))
    found = list(examples(model, Source(str(tiny.prose(tmp_path / "prose.txt"))).rows(), length=16, labelled=False))[:1]
    shares = [share_of_batch(model, found, Processes(rank, 2))["labels"] for rank in range(2)]
    assert [bool((labels != IGNORED).any()) for labels in shares] == [False, True]


def test_each_takes_a_device_of_its_own():
    launch = Launch(3, 4, 1)
    assert (launch.device("cpu"), launch.device("cuda")) == ("cpu", "cuda:1")
    with pytest.raises(OptionError) as caught:
        launch.device("cuda:0")
    assert str(caught.value) == (
        "--device cuda:0 is one device, and 4 processes were started. Give --device cuda, of which each takes its own."
    )


def test_processes_that_do_not_find_each_other(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "no"}.items():
        monkeypatch.setenv(name, value)

    def nobody(*_: object, **__: object) -> None:
        raise RuntimeError("nobody")

    monkeypatch.setattr("torch.distributed.rendezvous", nobody)
    told = r"the 2 processes did not find each other \(nobody\). Start them with"
    with pytest.raises(LostProcessError, match=told), joined(Launch(0, 2, 0)):
        pass


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("[.../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"), True),
        (RuntimeError("NCCL communicator was aborted"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_what_torch_says_where_a_process_is_gone(error: Exception, is_one: bool):
    assert is_loss(error) == is_one

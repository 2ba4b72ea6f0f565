import json
from pathlib import Path

import pytest
import torch
from tests.lab.tiny import Killed

from holdfast.errors import FileFormatError, OutputError
from holdfast.files import read_state, write_state
from holdfast.lab import checkpoint
from holdfast.lab.checkpoint import RunProgress
from holdfast.lab.methods import Setting, build_learner, method_named
from holdfast.lab.streams.examples import Examples
from holdfast.lab.training import build_optimizer, mlp, train_epoch

DATA = Examples(torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3)
PROGRESS = RunProgress(
    task=1,
    epoch=2,
    test=[[0.1, 1 / 3]],
    validation=[[0.5, 0.25]],
    baseline=[0.1, 0.3],
    num_events=7,
    seconds=1.25,
    seconds_training=1.0,
    seconds_importance=0.125,
)


def parts(method: str = "ewc-si", *, optimizer: str = "adam", hidden: int = 4) -> dict:
    model = mlp(5, (hidden,), 3)
    learner = build_learner(method_named(method), model, Setting(((0, 1, 2),)), {"strength": 1.0})
    built = build_optimizer(optimizer, model.parameters(), lr=0.01)
    learner.attach(built)
    return {"model": model, "optimizer": built, "learner": learner}


def train(model, optimizer, learner, *, seed: int) -> None:
    train_epoch(model, optimizer, DATA, batch_size=8, seed=seed)
    learner.close_task(DATA, classes=None, task=seed)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize("method", ["none", "ewc-fisher", "ewc-si", "wva-si"])
def test_all_of_it_comes_back(tmp_path, method, optimizer):
    path = tmp_path / "checkpoint" / "state.safetensors"
    first = parts(method, optimizer=optimizer)
    train(**first, seed=0)
    checkpoint.save(path, PROGRESS, **first)
    second = parts(method, optimizer=optimizer)
    assert checkpoint.load(path, **second) == PROGRESS
    groups = [[{**g, "params": None} for g in each["optimizer"].param_groups] for each in (first, second)]
    assert groups[0] == groups[1]
    for each in (first, second):
        train(**each, seed=1)
    again = tmp_path / "again.safetensors"
    states = []
    for each in (first, second):
        checkpoint.save(again, PROGRESS, **each)
        states.append(read_state(again))
    assert states[0][1] == states[1][1]
    assert states[0][0].keys() == states[1][0].keys()
    assert all(torch.equal(tensor, states[1][0][name]) for name, tensor in states[0][0].items())


def test_what_it_holds_is_no_pickle(tmp_path):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, PROGRESS, **parts())
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert json.loads(header["__metadata__"]["notes"])["progress"]["seconds"] == 1.25


def test_a_truncated_one(tmp_path):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, PROGRESS, **parts())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match=r"is no readable checkpoint \(.*\). Delete it to start again."):
        checkpoint.load(path, **parts())


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100])
def test_no_checkpoint_at_all(tmp_path, content):
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="is no readable checkpoint"):
        checkpoint.load(path, **parts())


@pytest.mark.parametrize("other", [{"hidden": 9}, {"method": "none"}, {"method": "ewc-fisher"}], ids=str)
def test_one_of_another_run(tmp_path, other):
    path = tmp_path / "state.safetensors"
    other_parts = parts(**other)
    train(**other_parts, seed=0)
    checkpoint.save(path, PROGRESS, **other_parts)
    with pytest.raises(FileFormatError, match=r"does not fit this run \(.*\). Delete it to start the run again."):
        checkpoint.load(path, **parts())


def test_one_without_notes(tmp_path):
    path = tmp_path / "state.safetensors"
    write_state(path, {"model/weight": torch.zeros(1)}, {})
    with pytest.raises(FileFormatError, match=r"does not fit this run \('numbers'\)"):
        checkpoint.load(path, **parts())


class TestInterrupted:
    """Between the temporary file and its renaming, and while the temporary file is written."""

    def fail(self, monkeypatch, *, where: str, error: BaseException) -> None:
        def broken(*_: object, **__: object) -> None:
            raise error

        if where == "renaming":
            monkeypatch.setattr(Path, "replace", broken)
        else:
            monkeypatch.setattr("holdfast.files.tensors.save_file", broken)

    @pytest.mark.parametrize("where", ["renaming", "writing"])
    @pytest.mark.parametrize("error", [Killed(), KeyboardInterrupt(), OSError("no space left on device")], ids=repr)
    def test_the_one_before_is_kept_and_nothing_is_left_about(self, tmp_path, monkeypatch, where, error):
        path = tmp_path / "state.safetensors"
        checkpoint.save(path, PROGRESS, **parts())
        before = path.read_bytes()
        with monkeypatch.context() as patched:
            self.fail(patched, where=where, error=error)
            with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
                checkpoint.save(path, RunProgress(), **parts())
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
        assert checkpoint.load(path, **parts()) == PROGRESS

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(
            OutputError, match=r"cannot write .*state.safetensors: .*Choose a folder that can be written."
        ):
            checkpoint.save(tmp_path / "file" / "state.safetensors", PROGRESS, **parts())

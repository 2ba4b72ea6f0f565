from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.lab.tiny import EPOCHS, TASKS, Killed, tiny

from holdfast.errors import OptionError, OutputError
from holdfast.lab.running import run
from holdfast.lab.tensorboard import TensorBoard


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_what_is_read_back_is_what_happened(tmp_path: Path):
    config = tiny("ewc-fisher", strength=3.0)
    losses = []
    with TensorBoard(tmp_path / config.name) as board:

        def on_event(event):
            board(event)
            losses.extend([event["loss"]] if event["event"] == "epoch" else [])

        result = run(config, output=tmp_path, on_event=on_event)
    folder = tmp_path / config.name
    assert set(read(folder).Tags()["scalars"]) == {
        "loss/train",
        "accuracy/average",
        "accuracy/task_01",
        "accuracy/task_02",
        "validation/average",
        "seconds/importance",
    }
    assert scalars(folder, "loss/train") == [(k + 1, pytest.approx(loss)) for k, loss in enumerate(losses)]
    averages = [(t + 1, pytest.approx(value)) for t, value in enumerate(result.average_accuracy)]
    assert scalars(folder, "accuracy/average") == averages
    assert scalars(folder, "accuracy/task_02") == [(2, pytest.approx(result.accuracy_matrix[1][1]))]
    validation = [(t + 1, pytest.approx(value)) for t, value in enumerate(result.validation_accuracy)]
    assert scalars(folder, "validation/average") == validation
    (tag,) = read(folder).Tags()["tensors"]
    assert tag == "keeper/text_summary"
    (text,) = read(folder).Tensors(tag)[-1].tensor_proto.string_val
    assert text.decode() == result.keeper


def test_a_resumed_run_tells_every_epoch_once(tmp_path: Path):
    config, stop = tiny("none"), 3  # in the second epoch of the first task

    for killed in (True, False):
        seen = 0
        with TensorBoard(tmp_path / config.name) as board:

            def on_event(event, killed=killed, board=board):
                nonlocal seen
                seen += 1
                board(event)
                if killed and seen == stop:
                    raise Killed

            if killed:
                with pytest.raises(Killed):
                    run(config, output=tmp_path, on_event=on_event)
            else:
                run(config, output=tmp_path, on_event=on_event)
    steps = [step for step, _ in scalars(tmp_path / config.name, "loss/train")]
    assert sorted(set(steps)) == list(range(1, TASKS * EPOCHS + 1))


def test_what_is_done_again_is_hidden(tmp_path: Path):
    epoch = {"event": "epoch", "task": 0, "epochs": 3}
    with TensorBoard(tmp_path) as board:
        board({"event": "start", "resumed": False})
        for number, loss in ((1, 0.1), (2, 0.2), (3, 0.3)):
            board({**epoch, "epoch": number, "loss": loss})
    with TensorBoard(tmp_path) as board:
        board({"event": "start", "resumed": True})
        board({**epoch, "epoch": 2, "loss": 0.5})
    assert scalars(tmp_path, "loss/train") == [(1, pytest.approx(0.1)), (2, pytest.approx(0.5))]


def test_nothing_is_written_of_a_run_that_does_not_start(tmp_path: Path):
    with TensorBoard(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_no_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(OptionError, match=r'Install it with: pip install "torch-holdfast\[tensorboard\]"'):
        TensorBoard(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with TensorBoard(tmp_path / "file" / "run") as board, pytest.raises(OutputError, match="Choose another --output"):
        board({"event": "epoch", "task": 0, "epoch": 1, "epochs": 1, "loss": 0.1})

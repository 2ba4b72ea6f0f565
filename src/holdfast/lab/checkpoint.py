"""All that a run needs to go on where it was killed, in one file that is replaced whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from holdfast.errors import FileFormatError
from holdfast.files import read_state, write_state
from holdfast.files.optimizers import load_optimizer_state, optimizer_state
from holdfast.lab.foreign import is_foreign
from holdfast.lab.methods import Learner
from holdfast.lab.methods.states import checked_state
from holdfast.tensors import prefixed, under


@dataclass
class RunProgress:
    """How far a run has come.

    Attributes:
        task: number of the task at hand; the number of tasks when all are done.
        epoch: epochs of it that are done.
        test: accuracy matrix so far, a row a finished task.
        validation: on validation data, row t on tasks 0..t alone.
        baseline: test accuracies of the untrained network.
        num_events: lines of metrics.jsonl.
        seconds: spent so far, in all sessions.
        seconds_training: of that, in training steps.
        seconds_importance: of that, measuring importances.
        keeper: what the keeper said of itself at the end of the last task's training.
    """

    task: int = 0
    epoch: int = 0
    test: list[list[float]] = field(default_factory=list)
    validation: list[list[float]] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    num_events: int = 0
    seconds: float = 0.0
    seconds_training: float = 0.0
    seconds_importance: float = 0.0
    keeper: str = ""


def save(path: Path, progress: RunProgress, *, model: nn.Module, optimizer: Optimizer, learner: Learner) -> None:
    """Write a checkpoint in place of the one before.

    Raises:
        OutputError: it cannot be written; the one before is then kept.
        OptionError: the learner's state is in no form that can be written.
    """
    of_optimizer, told = optimizer_state(optimizer)
    held, notes = checked_state(learner.state(), whose=type(learner).__name__)
    tensors = prefixed("model", model.state_dict()) | prefixed("optimizer", of_optimizer) | prefixed("learner", held)
    content = {"progress": asdict(progress), **told, "learner": dict(notes)}
    write_state(path, tensors, content)


def load(path: Path, *, model: nn.Module, optimizer: Optimizer, learner: Learner) -> RunProgress:
    """Put model, optimizer and learner where the checkpoint left them.

    Raises:
        FileFormatError: the file is damaged, or does not match them.
    """
    tensors, notes = read_state(path)
    with fitting(path):
        load_optimizer_state(optimizer, under("optimizer", tensors), notes)
        model.load_state_dict(under("model", tensors))
        learner.load_state(under("learner", tensors), notes["learner"])
        return RunProgress(**notes["progress"])


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Raise `FileFormatError` where what a checkpoint holds does not fit what it is loaded into."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_foreign(error):  # of a method that does not take what it gave
            raise
        why = " ".join(str(error).split())  # torch says it in several lines
        raise FileFormatError(f"{path} does not fit this run ({why}). Delete it to start the run again.") from error

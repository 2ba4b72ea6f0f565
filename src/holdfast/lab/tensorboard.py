"""A run as TensorBoard shows it, while it goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import OutputError
from holdfast.lab.packages import check_installed

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


class TensorBoard(AbstractContextManager["TensorBoard"]):
    """Writes the events of one run as TensorBoard's event files. A context manager; hand it to `run` as `on_event`.

    Against the number of epochs of all tasks, or of iterations where images are generated: `loss/train`. Against the
    number of tasks learned: `accuracy/average` and `accuracy/task_01`, ... on test data, `validation/average`,
    `seconds/importance`, and what the keeper says, as text.
    Where a killed run goes on, what it had told of the epochs that are done again is hidden.

    Args:
        folder: of the event files, as a rule the run's own.

    Raises:
        OptionError: tensorboard is not installed.
        OutputError: the folder cannot be written; raised at the first event.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        check_installed("tensorboard", what="event files are written", extra="tensorboard")
        self._folder = Path(folder)
        self._writer: SummaryWriter | None = None
        self._resumed = False

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Write an event, as `holdfast.lab.running` tells it."""
        match event["event"]:
            case "start":
                self._resumed = event["resumed"]
            case "epoch":
                step = event["task"] * event["epochs"] + event["epoch"]
                self._at(step).add_scalar("loss/train", event["loss"], step)
            case "task":
                self._task(event)
            case "done":
                self._at(None).flush()

    def _task(self, event: Mapping[str, Any]) -> None:
        number = event["task"] + 1
        writer = self._at(None)
        writer.add_scalar("accuracy/average", event["average_accuracy"], number)
        writer.add_scalar("validation/average", sum(event["validation"]) / len(event["validation"]), number)
        writer.add_scalar("seconds/importance", event["seconds_importance"], number)
        for j, accuracy in enumerate(event["accuracy"][:number], 1):
            writer.add_scalar(f"accuracy/task_{j:02}", accuracy, number)
        if event["keeper"]:
            writer.add_text("keeper", event["keeper"], number)
        writer.flush()

    def _at(self, step: int | None) -> SummaryWriter:
        """The writer, made at the first event; `step` is that of a resumed run's first epoch."""
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            try:
                self._writer = SummaryWriter(str(self._folder), purge_step=step if self._resumed else None)
            except OSError as error:
                raise OutputError(
                    f"cannot write event files into {self._folder}: {error}. Choose another --output."
                ) from error
        return self._writer

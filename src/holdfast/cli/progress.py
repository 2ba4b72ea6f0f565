"""What a run shows while it goes on: a moving line in a terminal, a line a task elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from holdfast.cli.console import say
from holdfast.lab.running import EventCallback
from holdfast.lab.tensorboard import TensorBoard

SILENT_SECONDS = 20.0
"""Where there is no terminal, an epoch is told of only when nothing was told for so long."""


class _Lines:
    """Moving lines in a terminal, none elsewhere; while in the context they are shown."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        """Start them."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take them away."""
        self._bar.stop()

    @property
    def _is_silent(self) -> bool:
        """Whether there is no terminal and nothing was told for long."""
        return self._bar.disable and time.monotonic() - self._told > SILENT_SECONDS

    def _say(self, text: str) -> None:
        self._told = time.monotonic()
        say(self._console, text)


class EventDisplay(_Lines):
    """Shows the events of runs, one run after the other. A context manager; call it with each event.

    Args:
        console: where to show them.
        label: of the first run; a "run" event gives that of the next.
        brief: one line a run in place of one a task.
    """

    def __init__(self, console: Console, label: str, *, brief: bool = False) -> None:
        super().__init__(console)
        self._label, self._brief = label, brief
        self._line: TaskID | None = None
        self._num_tasks = 0
        self._average: float | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show an event, as `holdfast.lab.running` tells it."""
        match event["event"]:
            case "run":
                self._label = event["label"]
            case "start":
                self._start(event)
            case "epoch":
                self._epoch(event)
            case "task":
                self._task(event)
            case "done":
                self._done(event)

    def _start(self, event: Mapping[str, Any]) -> None:
        self._num_tasks, self._average = event["num_tasks"], None
        if event["resumed"]:
            self._say(f"{self._label}: goes on where it was")
        self._line = self._bar.add_task(self._label, total=self._num_tasks, told="")

    def _epoch(self, event: Mapping[str, Any]) -> None:
        told = f"task {event['task'] + 1}/{self._num_tasks}  "
        told += f"{event.get('unit', 'epoch')} {event['epoch']}/{event['epochs']}"
        told += f"  loss {event['loss']:.3f}"
        if self._average is not None:
            told += f"  accuracy so far {self._average:.1%}"
        self._move(event["task"] + event["epoch"] / event["epochs"], told)
        if self._is_silent:
            self._say(f"{self._label}: {told}")

    def _task(self, event: Mapping[str, Any]) -> None:
        self._average = event["average_accuracy"]
        number = event["task"]
        self._move(number + 1, f"task {number + 1}/{self._num_tasks}  accuracy so far {self._average:.1%}")
        if not self._brief:
            self._say(
                f"{self._label}: task {number + 1}/{self._num_tasks} learned to {event['accuracy'][number]:.1%}, "
                f"average accuracy so far {self._average:.1%}, {event['seconds']:.1f} s"
            )

    def _done(self, event: Mapping[str, Any]) -> None:
        if self._line is not None:
            self._bar.remove_task(self._line)
            self._line = None
        if self._brief:
            self._say(f"{self._label:<13} {event['average_accuracy']:6.1%}  {event['seconds']:5.1f} s")

    def _move(self, completed: float, told: str) -> None:
        if self._line is not None:
            self._bar.update(self._line, completed=completed, told=told)


class SweepWatcher(_Lines):
    """Shows the settings of a sweep as they end, and in a terminal the runs under way. Call it with each event."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._lines: dict[str, TaskID] = {}
        self._num_tasks: dict[str, int] = {}

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show an event, as `holdfast.lab.sweep` tells it."""
        match event["event"]:
            case "trial":
                self._trial(event)
            case "start":
                self._num_tasks[event["run"]] = event["num_tasks"]
                if event["run"] not in self._lines:
                    self._lines[event["run"]] = self._bar.add_task(event["run"], total=event["num_tasks"], told="")
            case "epoch":
                self._epoch(event)
            case "done":
                self._remove(event["run"])

    def _remove(self, run: str) -> None:
        if run in self._lines:
            self._bar.remove_task(self._lines.pop(run))

    def _trial(self, event: Mapping[str, Any]) -> None:
        for run in event["runs"]:  # some may have been stopped
            self._remove(run)
        how = f"{event['validation']:.1%}" if event["state"] == "complete" else f"{event['state']}: {event['why']}"
        self._say(f"{event['method']:<12} {event['setting']:<36} {how}")

    def _epoch(self, event: Mapping[str, Any]) -> None:
        told = f"task {event['task'] + 1}/{self._num_tasks[event['run']]}  epoch {event['epoch']}/{event['epochs']}"
        if event["run"] in self._lines:
            completed = event["task"] + event["epoch"] / event["epochs"]
            self._bar.update(self._lines[event["run"]], completed=completed, told=told)
        if self._is_silent:
            self._say(f"{event['run']}: {told}")


class Stages(_Lines):
    """Shows one piece of long work after the other. A context manager; call it with (work, done, total or None)."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._line: TaskID | None = None
        self._work: str | None = None

    def __call__(self, work: str, done: int, total: int | None) -> None:
        """Show how far it is: a moving line in a terminal, elsewhere a line when nothing was told for long."""
        told = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        if self._line is None or work != self._work:
            if self._line is not None:
                self._bar.remove_task(self._line)
            self._line, self._work = self._bar.add_task(work, total=total, told=""), work
        self._bar.update(self._line, completed=done, told=told)
        if self._is_silent:
            self._say(f"{work}: {told}")

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Print one line above."""
        self._told = time.monotonic()
        say(self._console, *parts)


@contextmanager
def event_callback(console: Console, label: str, *, event_files: Path | None = None) -> Iterator[EventCallback]:
    """What one run is to be handed as `on_event`: it shows the events, and writes TensorBoard's files where asked.

    Args:
        console: where to show them.
        label: of the run.
        event_files: folder of TensorBoard's files; None: none are written.

    Raises:
        OptionError: tensorboard is not installed.
    """
    with ExitStack() as stack:
        callbacks: list[EventCallback] = [stack.enter_context(EventDisplay(console, label))]
        if event_files is not None:
            callbacks.append(stack.enter_context(TensorBoard(event_files)))

        def on_event(event: Mapping[str, Any]) -> None:
            for each in callbacks:
                each(event)

        yield on_event

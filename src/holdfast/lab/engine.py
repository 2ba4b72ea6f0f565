"""The engine of runs: task after task in a folder, told as it happens, and resumable where it was killed."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from holdfast.files.exclusive import locked
from holdfast.lab.checkpoint import RunProgress
from holdfast.lab.configured import Configured
from holdfast.lab.devices import usable_device
from holdfast.lab.folder import RunFolder, versions
from holdfast.lab.provenance import provenance
from holdfast.lab.result import RunResult, summarise

EventCallback = Callable[[Mapping[str, Any]], None]

Progress = TypeVar("Progress", bound=RunProgress)


class RunEngine(ABC, Generic[Progress]):
    """The state of a run, and the steps that take it to its end; what is learned, and how, a subclass says.

    Args:
        config: every setting.
        folder: where it stands.
        progress: of a run that has not begun.
        device: as torch names it.
        data_dir: where MNIST is.
        on_event: called with each event.
    """

    def __init__(
        self,
        config: Configured,
        folder: RunFolder,
        *,
        progress: Progress,
        device: str,
        data_dir: str | os.PathLike[str] | None,
        on_event: EventCallback | None,
    ) -> None:
        self.config, self.folder, self.on_event = config, folder, on_event
        self.progress: Progress = progress
        self.device = usable_device(device)
        self._provenance = provenance(config, data_dir=data_dir)
        folder.check_provenance(self._provenance)
        self.stream = config.build_stream(data_dir=data_dir)
        self._clock = self._saved = time.perf_counter()

    @abstractmethod
    def baseline(self) -> list[float]:
        """The accuracy on every task before anything is learned."""

    @abstractmethod
    def learn(self, t: int) -> None:
        """Learn task t from where it stands, and close it with `closed`."""

    @abstractmethod
    def read_checkpoint(self) -> Progress:
        """Put everything where the checkpoint left it."""

    @abstractmethod
    def write_checkpoint(self) -> None:
        """Write everything that going on needs."""

    def found(self) -> dict[str, Any]:
        """Fields of the result beside those that every run has."""
        return {}

    def finish(self) -> RunResult:
        """Learn what is left to learn, and write the result."""
        self.folder.open(self._provenance)
        resumed = self.folder.checkpoint.exists()
        if resumed:
            self.progress = self.read_checkpoint()
        self.folder.truncate(self.progress.num_events)
        self._clock = self._saved = time.perf_counter()
        self.tell({"event": "start", "num_tasks": len(self.stream), "resumed": resumed})
        if not resumed:
            self.progress.baseline = self.baseline()
        while self.progress.task < len(self.stream):
            self.learn(self.progress.task)
        return self._result()

    def closed(self, test: list[float], validation: list[float], *, seconds: float, **more: Any) -> None:
        """Note what a task that was learned came to, tell it, and write a checkpoint.

        Args:
            test: accuracy on every task.
            validation: on validation data of the tasks so far.
            seconds: that closing it took.
            more: for the event.
        """
        progress, t = self.progress, self.progress.task
        progress.seconds_importance += seconds
        progress.test.append(test)
        progress.validation.append(validation)
        progress.task, progress.epoch = t + 1, 0
        self.tell(
            {
                "event": "task",
                "task": t,
                "accuracy": test,
                "validation": validation,
                "average_accuracy": sum(test[: t + 1]) / (t + 1),
                **more,
                "seconds": self.seconds(),
                "seconds_importance": seconds,
                "keeper": progress.keeper,
            }
        )

    def tell(self, event: Mapping[str, Any]) -> None:
        """Write an event, and call back with it."""
        self.folder.append(event)
        self.progress.num_events += 1
        if self.on_event is not None:
            self.on_event(event)

    def seconds(self) -> float:
        """Of the run so far, over all its sessions."""
        now = time.perf_counter()
        self.progress.seconds += now - self._clock
        self._clock = now
        return self.progress.seconds

    def save(self, *, at_least: float = 0.0) -> None:
        """Write a checkpoint, where the last one is so many seconds old."""
        if time.perf_counter() - self._saved >= at_least:
            self.seconds()
            self.write_checkpoint()
            self._saved = time.perf_counter()

    def _result(self) -> RunResult:
        progress, config = self.progress, self.config
        seconds = self.seconds()
        result = RunResult(
            stream=config.stream,
            scenario=self.stream.scenario,
            method=config.method,
            seed=config.seed,
            **summarise(progress.test, progress.validation, progress.baseline),
            seconds=seconds,
            seconds_training=progress.seconds_training,
            seconds_importance=progress.seconds_importance,
            config=config.to_dict(),
            versions=versions(),
            keeper=progress.keeper,
            **self.found(),
        )
        self.tell({"event": "done", "average_accuracy": result.final_accuracy, "seconds": seconds})
        result.save(self.folder.result)
        return result


def carry_out(
    begun: Callable[..., RunEngine[Any]],
    config: Configured,
    *,
    output: str | os.PathLike[str],
    device: str,
    data_dir: str | os.PathLike[str] | None,
    on_event: EventCallback | None,
) -> RunResult:
    """Do a run in the folder `output`/`config.name`, or go on with it, or read it back where it is finished.

    One that another process is at work on is waited for.

    Args:
        begun: the engine; called with the configuration, the folder, and what follows but `output`.
        config: every setting.
        output: parent of the run's folder.
        device: as torch names it.
        data_dir: where MNIST is.
        on_event: called with each event, and with "busy" where another process is at work on this run.
    """
    folder = RunFolder(Path(output) / config.name, config)
    if folder.result.exists():
        folder.check_provenance(provenance(config, data_dir=data_dir))
        return RunResult.load(folder.result)
    made = begun(config, folder, device=device, data_dir=data_dir, on_event=on_event)

    def waiting() -> None:
        if on_event is not None:
            on_event({"event": "busy"})

    with locked(folder.lock, waiting=waiting):
        return RunResult.load(folder.result) if folder.result.exists() else made.finish()


def seed_of(*purpose: int) -> int:
    """A seed for each use of randomness in a run, independent of that of any other use."""
    sequence = np.random.SeedSequence((len(purpose), *purpose))  # the length: a sequence is padded with zeros
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)

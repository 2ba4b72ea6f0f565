"""Runs done by persistent worker processes, or by this process itself."""

from __future__ import annotations

import os
import queue
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from holdfast.errors import HoldfastError, OptionError
from holdfast.lab.config import RunConfig
from holdfast.lab.results import RunResult
from holdfast.lab.run import EventCallback, run
from holdfast.lab.streams import STREAMS, load_data
from holdfast.lab.worker_process import Inbox, WorkerProcess

MOST_DEATHS = 3
"""A run whose worker has died so often is given up: it is likely the cause."""


@dataclass(frozen=True)
class Done:
    """How a run ended; where it was stopped on request, without result and error.

    Attributes:
        config: which.
        result: what it found; None where it is not finished.
        error: why it failed; empty where it did not.
        kind: name of the class of that error.
    """

    config: RunConfig
    result: RunResult | None = None
    error: str = ""
    kind: str = ""


class Pool(Protocol):
    """Does runs, in the order in which they are submitted."""

    def submit(self, config: RunConfig) -> None:
        """Have a run done, once a worker is free."""
        ...

    def wait(self) -> Done:
        """Wait until some run has ended; only while one is under way."""
        ...

    def stop(self, config: RunConfig) -> None:
        """Stop a run at its next event; it stays resumable."""
        ...


@contextmanager
def pool_of(
    jobs: int,
    *,
    output: str | os.PathLike[str],
    device: str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    on_event: EventCallback | None = None,
) -> Iterator[Pool]:
    """Workers, each a process of one torch thread that imports and loads the data once; one job: no other process.

    When the block ends, however it ends, the processes are gone, and what they were at can be resumed. A process that
    is killed is replaced, and its run taken up again. Should this process be killed, they end by themselves.

    Args:
        jobs: how many.
        output: parent of the run folders.
        device: as torch names it.
        data_dir: where MNIST is.
        on_event: called, in the thread that waits, with every event of each run, under "run" the name of its folder.

    Raises:
        OptionError: jobs is below 1.
    """
    if jobs < 1:
        raise OptionError(f"jobs is {jobs}; expected the number of processes, at least 1.")
    perform = Performer(output=output, device=device, data_dir=data_dir)
    if jobs == 1:
        with one_thread():
            yield _Alone(perform, on_event)
    else:
        with _Workers(jobs, perform, on_event) as workers:
            yield workers


class StoppedError(Exception):
    """Raised inside a run that was asked to stop."""


@dataclass
class Performer:
    """Does a run in this process, and holds on to the images that it was made of."""

    output: str | os.PathLike[str]
    device: str = "cpu"
    data_dir: str | os.PathLike[str] | None = None
    _images: object = None

    def __call__(self, config: RunConfig, on_event: EventCallback) -> tuple[str, str]:
        """Do it.

        Returns:
            Why it failed and the name of the class of that error; both are empty where it did not.

        Raises:
            StoppedError: by `on_event`.
        """
        if not self._result_of(config).exists():
            self._images = _images_of(config, self.data_dir)

        def told(event: Mapping[str, Any]) -> None:
            on_event({**event, "run": config.name})

        try:
            run(config, output=self.output, device=self.device, data_dir=self.data_dir, on_event=told)
        except HoldfastError as error:
            return str(error), type(error).__name__
        return "", ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: what makes the same one in another process."""
        data_dir = None if self.data_dir is None else os.fspath(self.data_dir)
        return {"output": os.fspath(self.output), "device": self.device, "data_dir": data_dir}

    def done(self, config: RunConfig, error: str, kind: str) -> Done:
        """How it ended, with what its folder holds."""
        return Done(config, None if error else RunResult.load(self._result_of(config)), error, kind)

    def _result_of(self, config: RunConfig) -> Path:
        return Path(self.output) / config.name / "result.json"


def _images_of(config: RunConfig, data_dir: str | os.PathLike[str] | None) -> object:
    source = config.data or STREAMS.named(config.stream).data
    return load_data(source, data_dir=data_dir) if source else None


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch: small nets are slower on two, and ten times so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Alone:
    """Does the runs in this process."""

    def __init__(self, perform: Performer, on_event: EventCallback | None) -> None:
        self._perform, self._on_event = perform, on_event
        self._queue: deque[RunConfig] = deque()
        self._to_stop: RunConfig | None = None

    def submit(self, config: RunConfig) -> None:
        self._queue.append(config)

    def stop(self, config: RunConfig) -> None:
        self._to_stop = config

    def wait(self) -> Done:
        config = self._queue.popleft()

        def on_event(event: Mapping[str, Any]) -> None:
            if self._on_event is not None:
                self._on_event(event)
            if self._to_stop == config:
                raise StoppedError

        try:
            return self._perform.done(config, *self._perform(config, on_event))
        except StoppedError:
            return Done(config)
        finally:
            self._to_stop = None


class _Workers:
    """Hands runs to processes and reads what they tell."""

    def __init__(self, count: int, perform: Performer, on_event: EventCallback | None) -> None:
        self._count, self._perform, self._on_event = count, perform, on_event
        self._queue: deque[RunConfig] = deque()
        self._workers: list[WorkerProcess] = []
        self._deaths: Counter[RunConfig] = Counter()
        self._inbox: Inbox = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def submit(self, config: RunConfig) -> None:
        self._queue.append(config)
        self._feed()

    def stop(self, config: RunConfig) -> None:
        for worker in self._workers:
            if worker.config == config:
                worker.send({"stop": True})

    def wait(self) -> Done:
        while True:
            worker, message = self._inbox.get()
            config, done = worker.config, None
            if message is None:
                self._workers.remove(worker)
                how = worker.death()
                done = None if config is None else self._died(config, how)
            elif config is None:
                continue
            elif message["event"] == "warning":
                warnings.warn(message["text"], stacklevel=2)
                continue
            elif message["event"] == "ended":
                worker.config = None
                stopped = message["stopped"]
                done = Done(config) if stopped else self._perform.done(config, message["error"], message["kind"])
            else:
                if self._on_event is not None:
                    self._on_event(message)
                continue
            self._feed()
            if done is not None:
                return done

    def _feed(self) -> None:
        while self._queue:
            free = next((worker for worker in self._workers if worker.config is None), None)
            if free is None and len(self._workers) < self._count:
                free = WorkerProcess(self._perform.to_dict(), self._inbox)
                self._workers.append(free)
            if free is None:
                return
            free.take(self._queue.popleft())

    def _died(self, config: RunConfig, how: str) -> Done | None:
        self._deaths[config] += 1
        if self._deaths[config] < MOST_DEATHS:
            self._queue.appendleft(config)
            return None
        why = f"its worker process died {MOST_DEATHS} time{'s' * (MOST_DEATHS > 1)}, the last time with {how}"
        return Done(config, error=why)

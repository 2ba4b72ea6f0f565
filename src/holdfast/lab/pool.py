"""Jobs done by persistent worker processes, or by this process itself."""

from __future__ import annotations

import os
import queue
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from holdfast.errors import FailedRunsError, HoldfastError, NotFiniteError, OptionError
from holdfast.lab.config import RunConfig
from holdfast.lab.job import Job
from holdfast.lab.results import RunResult
from holdfast.lab.run import EventCallback, run
from holdfast.lab.stacked import named, train_stacked
from holdfast.lab.streams.catalog import load_images
from holdfast.lab.worker_process import Inbox, WorkerProcess

MOST_DEATHS = 3
"""A job whose worker has died so often is given up: it is likely the cause."""


@dataclass(frozen=True)
class Done:
    """How a job ended; where it was stopped on request, without results and failures.

    Attributes:
        job: which.
        results: by name, of the runs that are finished.
        failures: by name, why the others failed.
        kind: name of the class of error that was.
    """

    job: Job
    results: Mapping[str, RunResult] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""


JobEventCallback = Callable[[Job, Mapping[str, Any]], None]
"""Called, in the thread that waits, with every event of a job's runs; the event's "run" is the folder's name."""


class Pool(Protocol):
    """Does jobs, in the order in which they are submitted."""

    def submit(self, job: Job) -> None:
        """Have a job done, once a worker is free."""
        ...

    def wait(self) -> Done:
        """Wait until some job has ended; only while one is under way."""
        ...

    def stop(self, job: Job) -> None:
        """Stop a job at its next event; its runs stay resumable."""
        ...


@contextmanager
def pool_of(
    jobs: int,
    *,
    output: str | os.PathLike[str],
    device: str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    on_event: JobEventCallback | None = None,
) -> Iterator[Pool]:
    """Workers, each a process of one torch thread that imports and loads the data once; one job: no other process.

    When the block ends, however it ends, the processes are gone, and what they were at can be resumed. A process that
    is killed is replaced, and its job taken up again. Should this process be killed, they end by themselves.

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
    """Does a job in this process, and holds on to the images that its runs were made of."""

    output: str | os.PathLike[str]
    device: str = "cpu"
    data_dir: str | os.PathLike[str] | None = None
    _images: object = None

    def __call__(self, job: Job, on_event: EventCallback) -> tuple[dict[str, str], str]:
        """Do it.

        Returns:
            Name -> why, of the runs that failed, and the name of the class of error that was.

        Raises:
            StoppedError: by `on_event`.
        """
        if not all(self._finished(config) for config in job.configs):
            self._images = load_images(job.configs[0].stream, data_dir=self.data_dir)
        where = {"output": self.output, "device": self.device, "data_dir": self.data_dir}
        try:
            if job.stacked:
                train_stacked(job.configs, on_event=on_event, **where)
            else:
                run(job.configs[0], on_event=named(on_event, job.configs[0].name), **where)
        except FailedRunsError as error:
            return error.failures, NotFiniteError.__name__
        except HoldfastError as error:
            return dict.fromkeys(job.names, str(error)), type(error).__name__
        return {}, ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: what makes the same one in another process."""
        data_dir = None if self.data_dir is None else os.fspath(self.data_dir)
        return {"output": os.fspath(self.output), "device": self.device, "data_dir": data_dir}

    def done(self, job: Job, failures: Mapping[str, str], kind: str) -> Done:
        """How it ended, with what its folders hold."""
        finished = [config.name for config in job.configs if self._finished(config) and config.name not in failures]
        results = {name: RunResult.load(Path(self.output) / name / "result.json") for name in finished}
        return Done(job, results, failures, kind)

    def _finished(self, config: RunConfig) -> bool:
        return (Path(self.output) / config.name / "result.json").exists()


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
    """Does the jobs in this process."""

    def __init__(self, perform: Performer, on_event: JobEventCallback | None) -> None:
        self._perform, self._on_event = perform, on_event
        self._queue: deque[Job] = deque()
        self._to_stop: Job | None = None

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def stop(self, job: Job) -> None:
        self._to_stop = job

    def wait(self) -> Done:
        job = self._queue.popleft()

        def on_event(event: Mapping[str, Any]) -> None:
            if self._on_event is not None:
                self._on_event(job, event)
            if self._to_stop is job:
                raise StoppedError

        try:
            return self._perform.done(job, *self._perform(job, on_event))
        except StoppedError:
            return Done(job)
        finally:
            self._to_stop = None


class _Workers:
    """Hands jobs to processes and reads what they tell."""

    def __init__(self, count: int, perform: Performer, on_event: JobEventCallback | None) -> None:
        self._count, self._perform, self._on_event = count, perform, on_event
        self._queue: deque[Job] = deque()
        self._workers: list[WorkerProcess] = []
        self._deaths: Counter[Job] = Counter()
        self._inbox: Inbox = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def submit(self, job: Job) -> None:
        self._queue.append(job)
        self._feed()

    def stop(self, job: Job) -> None:
        for worker in self._workers:
            if worker.job is job:
                worker.send({"stop": True})

    def wait(self) -> Done:
        while True:
            worker, message = self._inbox.get()
            job, done = worker.job, None
            if message is None:
                self._workers.remove(worker)
                how = worker.death()
                done = None if job is None else self._died(job, how)
            elif job is None:
                continue
            elif message["event"] == "warning":
                warnings.warn(message["text"], stacklevel=2)
                continue
            elif message["event"] == "ended":
                worker.job = None
                stopped = message["stopped"]
                done = Done(job) if stopped else self._perform.done(job, message["failures"], message["kind"])
            else:
                if self._on_event is not None:
                    self._on_event(job, message)
                continue
            self._feed()
            if done is not None:
                return done

    def _feed(self) -> None:
        while self._queue:
            free = next((worker for worker in self._workers if worker.job is None), None)
            if free is None and len(self._workers) < self._count:
                free = WorkerProcess(self._perform.to_dict(), self._inbox)
                self._workers.append(free)
            if free is None:
                return
            free.take(self._queue.popleft())

    def _died(self, job: Job, how: str) -> Done | None:
        self._deaths[job] += 1
        if self._deaths[job] < MOST_DEATHS:
            self._queue.appendleft(job)
            return None
        why = f"its worker process died {MOST_DEATHS} time{'s' * (MOST_DEATHS > 1)}, the last time with {how}"
        return self._perform.done(job, dict.fromkeys(job.names, why), "")

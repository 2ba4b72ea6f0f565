"""Runs done by worker processes, or by this process itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from holdfast.errors import OptionError
from holdfast.lab.config import RunConfig
from holdfast.lab.running import EventCallback
from holdfast.lab.worker import Done, Performer, Worker, WorkerDiedError, leave_interrupts

MOST_DEATHS = 3
"""A run whose worker has died so often is given up: it is likely the cause."""

Ends = Generator[tuple[RunConfig, Done], None, None]

Pool = Callable[[Iterable[RunConfig], EventCallback], Ends]
"""Does runs, and gives each with how it ended, as they end. What has not begun when the iterator is closed is left."""


def pool_of(
    jobs: int,
    *,
    output: str | os.PathLike[str],
    device: str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
) -> AbstractContextManager[Pool]:
    """Workers, each a process of one torch thread that imports and loads the data once; one job: no other process.

    When the block ends, however it ends, the processes are gone, and what they were at can be resumed. A process that
    is killed is replaced, and its run taken up again. Should this process be killed, they end by themselves.

    Any number of threads may use the pool at once. The events of a run are told in a thread of its own, under "run" the
    name of its folder; it goes on when its callback returns. An error of the callback ends the run, resumable, and is
    raised to whom it is done for.

    Args:
        jobs: how many.
        output: parent of the run folders.
        device: as torch names it.
        data_dir: where MNIST is.

    Raises:
        OptionError: jobs is below 1.
    """
    if jobs < 1:
        raise OptionError(f"jobs is {jobs}; expected the number of processes, at least 1.")
    perform = Performer(output=output, device=device, data_dir=data_dir)
    return _alone(perform) if jobs == 1 else _Workers(jobs, perform)


@contextmanager
def _alone(perform: Performer) -> Iterator[Pool]:
    with one_thread():
        yield lambda configs, on_event: ((config, perform(config, on_event)) for config in configs)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch: small nets are slower on two, and ten times so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_at_a_time(on_event: EventCallback | None) -> EventCallback:
    """A callback that threads may share; it does nothing where there is none."""
    lock = threading.RLock()

    def tell(event: Mapping[str, Any]) -> None:
        if on_event is not None:
            with lock:
                on_event(event)

    return tell


class _Workers:
    """Threads that wait for processes.

    Not `ProcessPoolExecutor`: it gives up every run at hand where one process dies, and does not say which did.
    """

    def __init__(self, jobs: int, perform: Performer) -> None:
        self._perform = perform
        self._threads = ThreadPoolExecutor(jobs, initializer=leave_interrupts)
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._ended = False

    def __enter__(self) -> Pool:
        return self._do

    def _do(self, configs: Iterable[RunConfig], on_event: EventCallback) -> Ends:
        futures = {self._threads.submit(self._done, config, on_event): config for config in configs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
        for worker in self._workers:
            worker.end()
        self._threads.shutdown(cancel_futures=True)

    def _done(self, config: RunConfig, on_event: EventCallback) -> Done:
        why = ""
        for _ in range(MOST_DEATHS):
            try:
                return self._worker()(config, on_event)
            except WorkerDiedError as error:
                why = str(error)
        times = f"{MOST_DEATHS} time{'s' * (MOST_DEATHS > 1)}"
        return Done(error=f"its worker process died {times}, the last time with {why}", kind=WorkerDiedError.__name__)

    def _worker(self) -> Worker:
        with self._lock:
            if self._ended:
                raise CancelledError
            worker = next((worker for worker in self._workers if worker.is_free), None)
            if worker is None:
                worker = Worker(self._perform)
                self._workers.append(worker)
            worker.is_free = False
            return worker

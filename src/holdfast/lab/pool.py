"""Runs done by worker processes, or by this process itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch

from holdfast.errors import OptionError
from holdfast.lab.config import RunConfig
from holdfast.lab.running import EventCallback
from holdfast.lab.worker import Done, Perform, Worker, WorkerDiedError, leave_interrupts, perform

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
    own = partial(perform, output=output, device=device, data_dir=data_dir)
    return _alone(own) if jobs == 1 else _workers(jobs, own)


@contextmanager
def _alone(own: Perform) -> Iterator[Pool]:
    with one_thread():
        yield lambda configs, on_event: ((config, own(config, on_event)) for config in configs)


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


@contextmanager
def _workers(jobs: int, own: Perform) -> Iterator[Pool]:
    """Threads, each with a process of its own that it waits for.

    Not `ProcessPoolExecutor`: it gives up every run at hand where one process dies, and does not say which did.
    """
    lock, local, workers = threading.Lock(), threading.local(), list[Worker]()
    ended = False

    def worker() -> Worker:
        with lock:
            if ended:
                raise CancelledError
            if not getattr(local, "worker", None):
                local.worker = Worker(own)
                workers.append(local.worker)
            return local.worker

    def done(config: RunConfig, on_event: EventCallback) -> Done:
        why = ""
        for _ in range(MOST_DEATHS):
            try:
                return worker()(config, on_event)
            except WorkerDiedError as error:
                why, local.worker = str(error), None
        times = f"{MOST_DEATHS} time{'s' * (MOST_DEATHS > 1)}"
        return Done(error=f"its worker process died {times}, the last time with {why}", kind=WorkerDiedError.__name__)

    def do(configs: Iterable[RunConfig], on_event: EventCallback) -> Ends:
        futures = {threads.submit(done, config, on_event): config for config in configs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()

    threads = ThreadPoolExecutor(jobs, initializer=leave_interrupts)
    try:
        yield do
    finally:
        with lock:
            ended = True
        for each in workers:
            each.end()
        threads.shutdown()  # what still waits ends by itself, so that whoever waits for it is woken

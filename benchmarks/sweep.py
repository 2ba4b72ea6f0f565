"""A sweep of strengths and seeds: on two processes, against the same runs one after another.

The net and protocol of permuted MNIST, cut to two tasks of one epoch. What two cores can do at best is half the sum of
the single-thread runs. On a machine with other things to do the processor's time tells more than the time on the wall:
it is given beside, summed over all processes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.tables import Part
from holdfast.lab.pool import one_thread
from holdfast.lab.running import run
from holdfast.lab.sweep import Space, sweep

STRENGTHS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, 10000.0)
SEEDS = (0, 1, 2, 3, 4)
TARGET = "1.15"


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """The runs one after another, then the sweep; nothing where other workloads are asked for."""
    if workloads is not None:
        return
    space = Space(
        stream="permuted-digits" if quick else "permuted-mnist",
        methods=("ewc-fisher",),
        strengths=STRENGTHS[3:5] if quick else STRENGTHS,
        seeds=SEEDS[:1] if quick else SEEDS,
        settings={"num_tasks": 2, "epochs": 1},
        prune=False,
    )

    def one_by_one(output: Path) -> None:
        for choice in space.grid("ewc-fisher"):
            for seed in space.seeds:
                with one_thread():
                    run(space.config("ewc-fisher", choice, seed=seed), output=output)

    separate = _timed(one_by_one)
    processes = _timed(lambda output: sweep(space, output=output, jobs=2))
    runs = len(space.grid("ewc-fisher")) * len(space.seeds)
    rows = [
        _row(f"{runs} runs, one after another, one thread", separate, separate, target=None),
        _row("the sweep, `--jobs 2`", processes, separate, target=TARGET),
    ]
    notes = [f"Stream {space.stream}, two tasks of one epoch, ewc-fisher, {runs} runs; each way timed once."]
    yield Part(space.stream, f"{runs} runs of {space.stream}", notes, rows)


def _timed(work: Callable[[Path], object]) -> tuple[float, float]:
    """Seconds on the wall, and of the processor in this process and those it has started and ended."""
    with tempfile.TemporaryDirectory() as folder:
        began, spent = time.perf_counter(), sum(os.times()[:4])
        work(Path(folder))
        return time.perf_counter() - began, sum(os.times()[:4]) - spent


def _row(what: str, taken: tuple[float, float], separate: tuple[float, float], *, target: str | None) -> dict:
    halves = "2.00" if taken is separate else f"{2 * taken[0] / separate[0]:.2f}"
    return {
        "what": what,
        "seconds": taken[0],
        "over half the sum": halves,
        "processor seconds": taken[1],
        "over the sum": f"{taken[1] / separate[1]:.2f}",
        "target": target,
    }

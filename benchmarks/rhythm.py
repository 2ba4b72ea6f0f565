"""How rarely Kronecker factors may pull: accuracy and time of whole lessons under a budget, by the steps between pulls.

An MLP learns permuted digits (the part `mnist`: permuted MNIST, not measured yet), task after task, as in the README:
Adam at 1e-3, `hf.measure` after each task with probes of validation examples, `EWC(net, every=...)` under its own
budget, `close()` at each lesson's end. *lessons* is the processor's time of all training loops with `close()`,
measuring left out, over that of training without a keeper under the same seed, in one run. Accuracies are of test
examples, in %, mean over all tasks at the end.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import holdfast as hf
from benchmarks.tables import Part
from benchmarks.timing import seconds, spread
from holdfast.lab.streams.catalog import build_stream
from holdfast.lab.tables import Estimate
from holdfast.lab.training import accuracy, build_net, build_optimizer, train_epoch

RHYTHMS: tuple[Any, ...] = (None, "auto", 1, 4, 16, 32, 64, 128)
"""Steps between pulls; None without a keeper."""

LOST = 0.3
"""Points of accuracy below the best rhythm from which on a rhythm counts as too rare."""

SEEDS = 3


@dataclass(frozen=True)
class Lessons:
    """What is learned.

    Attributes:
        stream: its name.
        num_tasks: of it.
        epochs: a task.
        batch_size: of training.
    """

    stream: str
    num_tasks: int
    epochs: int
    batch_size: int


STREAMS = {
    "digits": Lessons("permuted-digits", 5, 12, 32),
    "mnist": Lessons("permuted-mnist", 5, 1, 100),
}
TRIAL = Lessons("permuted-digits", 2, 1, 128)


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """A part for each stream; nothing where certain workloads are asked for."""
    if workloads:
        return
    for name, lessons in {"digits": TRIAL}.items() if quick else STREAMS.items():
        yield rhythms(name, lessons, seeds=1 if quick else SEEDS)


def rhythms(name: str, lessons: Lessons, *, seeds: int) -> Part:
    """Every rhythm under every seed, those of a seed one after the other."""
    found: dict[Any, list[tuple[float, float]]] = {every: [] for every in RHYTHMS}
    for seed in range(seeds):
        for every in RHYTHMS:
            found[every].append(_learned(lessons, every, seed))
    plain = [taken for _, taken in found[None]]
    best = max(statistics.mean(kept for kept, _ in runs) for runs in found.values())
    rows = []
    for every, runs in found.items():
        accuracies = [kept for kept, _ in runs]
        lost = best - statistics.mean(accuracies)
        rows.append(
            {
                "every": "no keeper" if every is None else every,
                "accuracy": Estimate.of(accuracies).text(digits=1),
                "below the best": lost,
                "holds": "yes" if lost <= LOST else "no",
                "lessons": spread([taken / other for (_, taken), other in zip(runs, plain, strict=True)]),
            }
        )
    note = (
        f"{lessons.num_tasks} tasks of {lessons.stream}, {lessons.epochs} epochs each in batches of "
        f"{lessons.batch_size}, MLP of 300 and 150 units, {seeds} seeds. *holds*: at most {LOST} points below the best."
    )
    return Part(name, f"Kronecker factors on {lessons.stream}", [note], rows)


def _learned(lessons: Lessons, every: Any, seed: int) -> tuple[float, float]:
    """Mean accuracy on all tasks, in %, and the seconds of the training loops."""
    stream = build_stream(lessons.stream, num_tasks=lessons.num_tasks, seed=seed)
    net = build_net("mlp", stream.input_shape, stream.num_classes, hidden=(300, 150), seed=seed)
    optimizer = build_optimizer("adam", net.parameters(), lr=1e-3)
    keeper = None if every is None else hf.EWC(net, every=every).attach(optimizer)
    taken = 0.0
    for number, task in enumerate(stream):
        for epoch in range(lessons.epochs):
            order = 1000 * seed + lessons.epochs * number + epoch
            taken += seconds(
                lambda task=task, order=order: train_epoch(
                    net, optimizer, task.train, batch_size=lessons.batch_size, seed=order
                )
            )
        if keeper is not None:
            taken += seconds(keeper.close)
            keeper.retain(hf.measure(net, task.train.batches(256), probes=task.validation.batches(256)))
    return 100 * statistics.mean(accuracy(net, task.test) for task in stream), taken

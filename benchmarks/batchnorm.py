"""Batch norm: what holding its running statistics keeps of the old task, and what it costs the new one.

A network with batch norm learns handwritten digits, then the same under another transformation, held by EWC with the
exact Fisher under Adam. *free*: running statistics go on to the new task (the default, which warns of it). *hold*:
`statistics="hold"`. *each its own*: as *free*, and each task is tested with the statistics that it ended with, which
asks to be told the task of every example.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks.tables import Part
from holdfast import EWC, fisher
from holdfast.lab.streams import Examples, Task
from holdfast.lab.streams.catalog import build_stream
from holdfast.lab.training import accuracy, train_epoch

STRENGTHS = (0.0, 1.0, 10.0, 100.0, 1000.0, math.inf)
NETS = ("perceptron", "convolutions")
SECOND = ("permuted", "turned", "inverted")
COLUMNS = ("old, free", "old, hold", "old, each its own", "new, free", "new, hold")


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """One part for each network; nothing where certain workloads are asked for."""
    if workloads is None:
        for net in NETS[:1] if quick else NETS:
            yield measured(net, quick=quick)


def measured(net: str, *, quick: bool) -> Part:
    """Old and new accuracy after the second task, for each second task and strength."""
    seeds, epochs = (1, 2) if quick else (3, 20)
    rows = []
    for second in SECOND[:1] if quick else SECOND:
        runs = [_accuracies(net, second, seed=seed, epochs=epochs) for seed in range(seeds)]
        for strength in STRENGTHS:
            found = {key: [run[strength][key] for run in runs] for key in runs[0][strength]}
            values = {key: f"{statistics.mean(v):.1f} ± {_deviation(v):.1f}" for key, v in found.items()}
            rows.append({"second task": second, "strength": strength, **values})
    note = (
        f"{epochs} epochs a task in batches of 64, Adam at 1e-3, {seeds} seeds; mean and standard deviation of test "
        "accuracies in %. Second task: pixels permuted, images turned by 90 degrees, or black and white exchanged."
    )
    return Part(net, f"{net.capitalize()} with batch norm", [note], rows)


def build(net: str) -> nn.Module:
    """A network of 8 x 8 images with batch norm after each hidden layer."""
    if net == "perceptron":
        hidden = [layer for n in (64, 100) for layer in (nn.Linear(n, 100), nn.BatchNorm1d(100), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))
    assert net == "convolutions"
    layers = [
        layer
        for n, m, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2))
        for layer in (nn.Conv2d(n, m, 3, stride, 1, bias=False), nn.BatchNorm2d(m), nn.ReLU())
    ]
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 8, 8)), *layers, nn.Flatten(), nn.Linear(128, 10))


def second_task(kind: str, first: Task, *, seed: int) -> Task:
    """The first task under another transformation of its inputs."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))

    def changed(x: Tensor) -> Tensor:
        images = x.reshape(-1, 1, 8, 8)
        if kind == "permuted":
            return images.flatten(1)[:, order].reshape_as(images)
        return images.rot90(1, (2, 3)) if kind == "turned" else 1 - images

    parts = (Examples(changed(part.inputs), part.targets) for part in (first.train, first.validation, first.test))
    return Task(kind, *parts, first.classes)


def _accuracies(net: str, second: str, *, seed: int, epochs: int) -> dict[float, dict[str, float]]:
    first = build_stream("permuted-digits", num_tasks=1, seed=seed)[0]
    then = second_task(second, first, seed=seed)
    torch.manual_seed(seed)
    start = build(net)
    optimizer = torch.optim.Adam(start.parameters(), lr=1e-3)
    for epoch in range(epochs):
        train_epoch(start, optimizer, first.train, batch_size=64, seed=epoch)
    importance = fisher(start, first.train.batches(256))
    found: dict[float, dict[str, float]] = {}
    for strength in STRENGTHS:
        row = found[strength] = {}
        for option in ("free", "hold"):
            model = copy.deepcopy(start)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            EWC(model, strength=strength, statistics=option, log_every=0).attach(optimizer).retain(importance)
            for epoch in range(epochs):
                train_epoch(model, optimizer, then.train, batch_size=64, seed=epoch)
            row[f"old, {option}"] = 100 * accuracy(model, first.test)
            row[f"new, {option}"] = 100 * accuracy(model, then.test)
            if option == "free":
                model.load_state_dict(dict(start.named_buffers()), strict=False)
                row["old, each its own"] = 100 * accuracy(model, first.test)
    return {strength: {column: row[column] for column in COLUMNS} for strength, row in found.items()}


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0

"""Lessons one after the other, and what each costs the skills before it, on examples that nothing else sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import nn

from holdfast.curvature import FactoredImportance
from holdfast.importance import kfac, probes_of
from holdfast.probes import Probes
from holdfast.rehearsal import rehearse
from holdfast.retention import EWC
from holdfast.streams import Examples
from holdfast.streams.stream import Task
from holdfast.training import OptimizerName, accuracy, build_optimizer, train_epoch

NUM_PROBES = 128
DAMPING = 0.01
EVERY = 4
"""Steps from one pull, and from one measurement on probes, to the next."""

Holding = Literal["budget", "forecast", "rehearsed", "strength", "plain", "joint"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A network and the tasks that it learns.

    Attributes:
        name: for people.
        build: seed and folder of data -> the untrained network and its tasks, which share their outputs.
        rates: the learning rate of every optimizer.
        epochs: of a task.
        batch_size: examples a step.
    """

    name: str
    build: Callable[[int, str | None], tuple[nn.Module, Sequence[Task]]]
    rates: Mapping[OptimizerName, float]
    epochs: int
    batch_size: int = 32


@dataclass(frozen=True)
class Way:
    """How a network learns several tasks.

    Attributes:
        optimizer: one, for all of them.
        holding: what holds the tasks before: a budget, measured on probes or, without them, a "forecast", which may be
            "rehearsed"; a fixed strength; or nothing ("plain"). "joint" learns all at once.
        value: of the budget, in nats per target, or of the strength.
    """

    optimizer: OptimizerName
    holding: Holding
    value: float = 0.0

    @property
    def held(self) -> str:
        """By what, such as "budget 0.05"."""
        return self.holding + (f" {self.value:g}" if self.value else "")

    def __str__(self) -> str:
        """Such as "adam, budget 0.05"."""
        return f"{self.optimizer}, {self.held}"


def learn(setting: Setting, way: Way, seed: int, data_dir: str | None) -> dict[str, Any]:
    """Learn every task of a setting, as JSON values.

    Returns:
        "lessons", one a task, or one in all where all are learned jointly: "increments" of the earlier skills, in nats
        per target, on all of their test examples; test accuracy on the new task, "new", and "trained" before going
        back. And "accuracy" on every task at the end.
    """
    net, tasks = setting.build(seed, data_dir)
    optimizer = build_optimizer(way.optimizer, net.parameters(), lr=setting.rates[way.optimizer])
    keeper = _keeper(net, way)
    if keeper is not None:
        keeper.attach(optimizer)
    lessons: list[dict[str, Any]] = []
    held_out: list[Probes] = []
    for number, train in enumerate(_lessons(tasks, way)):
        begun = [skill.rise(net) for skill in held_out]
        for epoch in range(setting.epochs):
            order = 1000 * seed + setting.epochs * number + epoch
            train_epoch(net, optimizer, train, batch_size=setting.batch_size, seed=order)
        task = tasks[number]
        trained = accuracy(net, task.test)
        if keeper is not None:
            keeper.close()
        increments = [round(skill.rise(net) - start, 6) for skill, start in zip(held_out, begun)]
        new = accuracy(net, task.test)
        lessons.append({"increments": increments, "trained": round(trained, 4), "new": round(new, 4)})
        if keeper is not None:
            probes = probes_of(net, task.validation, num_examples=NUM_PROBES) if way.holding == "budget" else None
            importance = kfac(net, train, damping=DAMPING)
            if way.holding == "rehearsed" and number + 1 < len(tasks):
                importance = _rehearsed(net, importance, task, setting, way, seed=seed)
            keeper.retain(importance, probes=probes)
        held_out.append(probes_of(net, task.test, num_examples=None))
    return {"lessons": lessons, "accuracy": [round(accuracy(net, task.test), 4) for task in tasks]}


def _rehearsed(
    net: nn.Module, importance: FactoredImportance, task: Task, setting: Setting, way: Way, *, seed: int
) -> FactoredImportance:
    """Under the way's own optimizer; what rises is looked at on validation examples."""
    shuffled = torch.Generator().manual_seed(seed)
    return rehearse(
        net,
        importance,
        task.train.batches(setting.batch_size, generator=shuffled),
        probes=task.validation,
        budget=way.value,
        optimizer=lambda parameters: build_optimizer(way.optimizer, parameters, lr=setting.rates[way.optimizer]),
    )


def _keeper(net: nn.Module, way: Way) -> EWC | None:
    match way.holding:
        case "budget":
            return EWC(net, budget=way.value, every=EVERY, probe_every=EVERY)
        case "forecast" | "rehearsed":
            return EWC(net, budget=way.value)
        case "strength":
            return EWC(net, strength=way.value, every=EVERY)
        case "plain" | "joint":
            return None
        case _:
            assert_never(way.holding)


def _lessons(tasks: Sequence[Task], way: Way) -> list[Examples]:
    """What each lesson trains on."""
    trains = [task.train for task in tasks]
    if way.holding != "joint":
        return trains
    return [Examples(torch.cat([train.inputs for train in trains]), torch.cat([train.targets for train in trains]))]

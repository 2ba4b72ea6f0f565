"""Lessons one after the other, and what each costs the skills before it, on examples that nothing else sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn

from holdfast.calibration import calibrated
from holdfast.curvature import FactoredImportance
from holdfast.importance import measure, probes_of
from holdfast.lab.streams import Examples
from holdfast.lab.streams.stream import Task
from holdfast.lab.training import Losses, OptimizerName, accuracy, build_optimizer, train_epoch
from holdfast.likelihoods import Categorical, num_targets
from holdfast.probes import Probes
from holdfast.records import Importance
from holdfast.retention import EWC

Holding = Literal["budget", "forecast", "calibrated", "strength", "plain", "joint"]
Judged = Literal["accuracy", "perplexity"]


@dataclass(frozen=True)
class Way:
    """How a network learns several tasks.

    Attributes:
        optimizer: one, for all of them.
        holding: what holds the tasks before: a budget, measured on probes or, without them, a "forecast", which may be
            "calibrated"; a fixed strength; or nothing ("plain"). "joint" learns all at once.
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


@dataclass(frozen=True, kw_only=True)
class LessonSetting:
    """A network and the tasks that it learns.

    Attributes:
        name: for people.
        build: seed and folder of data -> the untrained network and its tasks, which share their outputs.
        rates: the learning rate of every optimizer under which it learns.
        epochs: of a task.
        batch_size: examples a step.
        tasks: in words.
        holdings: what holds it, with the value of a budget or a strength.
        judged: by what a task is; a perplexity, of a causal language model whose targets are its inputs.
    """

    name: str
    build: Callable[[int, str | None], tuple[nn.Module, Sequence[Task]]]
    rates: Mapping[OptimizerName, float]
    epochs: int
    batch_size: int = 32
    tasks: str = ""
    holdings: Sequence[tuple[Holding, float]] = ()
    judged: Judged = "accuracy"

    @property
    def ways(self) -> tuple[Way, ...]:
        """Each holding under each optimizer."""
        return tuple(Way(optimizer, *holding) for holding in self.holdings for optimizer in self.rates)

    def judge(self, net: nn.Module, examples: Examples) -> float:
        """Accuracy, 0..1, or perplexity, to four digits."""
        match self.judged:
            case "accuracy":
                return round(accuracy(net, examples), 4)
            case "perplexity":
                return float(f"{perplexity(net, examples):.4g}")
            case _:
                assert_never(self.judged)


def learn(setting: LessonSetting, way: Way, seed: int, data_dir: str | None) -> dict[str, Any]:
    """Learn every task of a setting, as JSON values.

    Returns:
        "lessons", one a task, or one in all where all are learned jointly: "increments" of the earlier skills, in nats
        per target, on all of their test examples; test accuracy on the new task, or perplexity, "new", and "trained"
        before going back. And the same on every task at the end, "accuracy" or "perplexity".
    """
    net, tasks = setting.build(seed, data_dir)
    optimizer = build_optimizer(way.optimizer, net.parameters(), lr=setting.rates[way.optimizer])
    keeper = _keeper(net, way)
    if keeper is not None:
        keeper.attach(optimizer)
    loss = partial(_text_loss, net) if setting.judged == "perplexity" else None
    lessons: list[dict[str, Any]] = []
    held_out: list[Probes] = []
    for number, train in enumerate(_lessons(tasks, way)):
        begun = [skill.rise(net) for skill in held_out]
        for epoch in range(setting.epochs):
            order = 1000 * seed + setting.epochs * number + epoch
            train_epoch(net, optimizer, train, batch_size=setting.batch_size, seed=order, loss=loss)
        task = tasks[number]
        trained = setting.judge(net, task.test)
        if keeper is not None:
            keeper.close()
        increments = [round(skill.rise(net) - start, 6) for skill, start in zip(held_out, begun)]
        lessons.append({"increments": increments, "trained": trained, "new": setting.judge(net, task.test)})
        if keeper is not None:
            importance = measure(net, train, probes=task.validation)
            if way.holding == "calibrated" and number + 1 < len(tasks):
                importance = _calibrated(net, importance, task, setting, way, seed=seed)
            keeper.retain(importance if way.holding == "budget" else importance.with_probes(None))
        held_out.append(probes_of(net, task.test, num_examples=None))
    return {"lessons": lessons, setting.judged: [setting.judge(net, task.test) for task in tasks]}


def _calibrated(
    net: nn.Module,
    importance: Importance | FactoredImportance,
    task: Task,
    setting: LessonSetting,
    way: Way,
    *,
    seed: int,
) -> Importance | FactoredImportance:
    """Under the way's own optimizer; what rises is looked at on validation examples."""
    shuffled = torch.Generator().manual_seed(seed)
    return calibrated(
        net,
        importance,
        task.train.batches(setting.batch_size, generator=shuffled),
        probes=task.validation,
        budget=way.value,
        optimizer=lambda parameters: build_optimizer(way.optimizer, parameters, lr=setting.rates[way.optimizer]),
    )


def _keeper(net: nn.Module, way: Way) -> EWC | None:
    match way.holding:
        case "budget" | "forecast" | "calibrated":
            return EWC(net, budget=way.value, statistics="hold")
        case "strength":
            return EWC(net, strength=way.value, every="auto", statistics="hold")
        case "plain" | "joint":
            return None
        case _:
            assert_never(way.holding)


@torch.no_grad()
def perplexity(net: nn.Module, examples: Examples) -> float:
    """Of a causal language model on token numbers [N, T]: e to the mean loss of a token."""
    training = net.training
    net.eval()
    losses = [_nats(net, tokens, targets) for tokens, targets in examples.batches(64)]
    net.train(training)
    return math.exp(sum(float(nats) for nats, _ in losses) / sum(count for _, count in losses))


def _text_loss(net: nn.Module, tokens: Tensor, targets: Tensor, _: Tensor | None) -> Losses:
    nats, count = _nats(net, tokens, targets)
    return nats / count, None


def _nats(net: nn.Module, tokens: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """The loss of a batch, summed over its targets, and how many there are."""
    likelihood, batch = Categorical(causal=True), (tokens, targets)
    return likelihood.nll(net(tokens), batch).sum(), num_targets(likelihood, batch)


def _lessons(tasks: Sequence[Task], way: Way) -> list[Examples]:
    """What each lesson trains on."""
    trains = [task.train for task in tasks]
    if way.holding != "joint":
        return trains
    return [Examples.joined(trains)]

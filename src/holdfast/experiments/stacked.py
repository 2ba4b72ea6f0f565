"""Runs that differ in seed and strength alone, trained as one batched program.

Every weight of K networks stands in one tensor [K, ...], of which the networks' own weights are views: measuring,
testing and checkpoints are those of separate runs, and only training is done for all at once. The optimizer and the
implicit pull act on each entry by itself; a pull depends on strength * importance alone, so that one keeper of strength
1 holds all networks by importances multiplied with their strengths.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.optim import Optimizer

from holdfast.errors import FailedRunsError, NotFiniteError, OptionError
from holdfast.experiments.config import RunConfig
from holdfast.experiments.folder import RunFolder
from holdfast.experiments.lock import locked
from holdfast.experiments.results import RunResult
from holdfast.experiments.run import ActiveRun, EventCallback, seed_of
from holdfast.memory import Retained
from holdfast.memory.stored import AnyTensor, read
from holdfast.methods import method_named
from holdfast.methods.holding import KeeperLearner
from holdfast.retention import EWC, WVA, Keeper
from holdfast.streams import STREAMS
from holdfast.training import build_optimizer, divergence, learning_rate, num_epochs

SMALL = 100_000
"""On a CPU a batched program is faster than separate runs for networks of up to about so many weights."""


def why_not_stacked(configs: Sequence[RunConfig]) -> str:
    """Why these runs cannot be one batched program; empty where they can."""
    first = configs[0]
    differing = sorted(
        {
            name
            for config in configs
            for name, value in config.to_dict().items()
            if value != first.to_dict()[name] and name not in ("seed", "strength")
        }
    )
    if differing:
        return f"they differ in {', '.join(differing)}; only seed and strength may differ"
    method = method_named(first.method)
    strengths = [config.strength for config in configs if config.strength is not None]
    reasons = {
        f"method {first.method} does more than pull weight by weight": method.mechanism not in ("none", "ewc", "wva")
        or method.importance in ("si", "kfac"),
        "a budget is solved for each run by itself": first.budget is not None,
        "clip takes the norm over all weights": first.clip is not None,
        "an optimizer that lives on from task to task has no checkpoint of one run": not first.fresh_optimizer,
        'pull "penalty" stands in the loss': first.pull == "penalty" and method.mechanism == "ewc",
        "scaled_dot_product_attention has no batching rule on every device": first.net == "attention",
        "an infinite strength times an importance of zero is no number": math.inf in strengths,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def gains_by_stacking(config: RunConfig, *, device: str) -> bool:
    """Whether a batched program of such runs is likely faster than separate processes."""
    if not device.startswith("cpu"):
        return True
    pixels = {"digits": 64, "mnist": 784}[STREAMS[config.stream].images]
    weights = sum(inputs * outputs for inputs, outputs in pairwise((pixels, *config.hidden, 10)))
    return config.net == "mlp" and weights <= SMALL


def train_stacked(
    configs: Sequence[RunConfig],
    *,
    output: str | os.PathLike[str] = "runs",
    device: str = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    on_event: EventCallback | None = None,
) -> list[RunResult]:
    """Do runs that differ in seed and strength alone as one batched program.

    Each has its own data order, permutations and weights as in its separate run, which it equals within the rounding of
    float32, and its own folder, as `run` writes it. Killed at any moment, the same call goes on from the end of the
    last task that each has learned; so does `run`. Seconds are each run's share.

    Args:
        configs: the runs.
        output: parent of the run folders.
        device: as torch names it.
        data_dir: where MNIST is.
        on_event: called with each event of each run, under "run" the name of its folder.

    Returns:
        What each found, in the order of `configs`.

    Raises:
        OptionError: they cannot be one program; says why.
        FailedRunsError: training diverged in some; raised when all others are done.

    Cost: memory of all networks at once, and of the data of one task and all test data for each seed.
    """
    reason = why_not_stacked(configs)
    if reason:
        raise OptionError(f"train_stacked: these runs cannot be one program: {reason}. Do them with run_all.")
    folders = {config.name: RunFolder(Path(output) / config.name, config) for config in configs}
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        for name in sorted(folders):  # in one order, so that two processes never wait for each other
            stack.enter_context(locked(folders[name].lock))
        members: list[ActiveRun] = []
        for config in {config.name: config for config in configs}.values():
            if not folders[config.name].result.exists():
                like = next((member for member in members if member.config.seed == config.seed), None)
                on_its_event = named(on_event, config.name)
                folder = folders[config.name]
                member = ActiveRun(config, folder, device=device, data_dir=data_dir, on_event=on_its_event, like=like)
                members.append(member)
        for member in members:
            member.begin()
        halfway = [member for member in members if member.progress.epoch]  # separate runs, killed in mid-task
        for member in halfway:
            failures |= _tried(member, lambda member=member: member.learn(member.progress.task))
        while members := [member for member in members if member.config.name not in failures]:
            t = min(member.progress.task for member in members)
            if t == len(members[0].stream):
                break
            failures |= _learn([member for member in members if member.progress.task == t], t)
        for member in members:
            member.result()
    if failures:
        raise FailedRunsError(failures, of=len(folders))
    return [RunResult.load(folders[config.name].result) for config in configs]


def named(on_event: EventCallback | None, name: str) -> EventCallback | None:
    """The same callback, called with "run" the name of the run's folder."""
    if on_event is None:
        return None

    def told(event: Mapping[str, Any]) -> None:
        on_event({**event, "run": name})

    return told


def _tried(member: ActiveRun, action: Callable[[], None]) -> dict[str, str]:
    """Name -> why, where training diverged in it."""
    try:
        action()
    except NotFiniteError as error:
        return {member.config.name: str(error)}
    return {}


def _learn(members: Sequence[ActiveRun], t: int) -> dict[str, str]:
    """Train all on task t, and close it; returns name -> why of those in which training diverged."""
    config = members[0].config
    seeds = sorted({member.config.seed for member in members})
    examples = [next(m for m in members if m.config.seed == seed).training_examples(t) for seed in seeds]
    data_of = torch.tensor([seeds.index(member.config.seed) for member in members], device=members[0].device)
    columns = members[0].columns(t)
    net = stacked([member.model for member in members])
    optimizer = build_optimizer(config.optimizer, net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    _hold(members, net, optimizer)
    forward = vmap(lambda weights, inputs: functional_call(net, weights, (inputs,)))
    weights = dict(net.named_parameters())
    size = config.batch_size
    steps_an_epoch = -(-len(examples[0]) // size)
    epochs = num_epochs(len(examples[0]), size, epochs=config.epochs, iterations=config.iterations)
    num_steps = config.iterations or epochs * steps_an_epoch
    failures: dict[str, str] = {}
    net.train()
    for epoch in range(epochs):
        began = time.perf_counter()
        orders = [
            torch.randperm(len(one), generator=torch.Generator().manual_seed(seed_of(seed, t, epoch)))
            .to(one.inputs.device)
            .split(size)
            for one, seed in zip(examples, seeds, strict=True)
        ]
        losses = []
        for step in range(min(steps_an_epoch, num_steps - epoch * steps_an_epoch)):
            rate = learning_rate(config.schedule, config.lr, step=epoch * steps_an_epoch + step, num_steps=num_steps)
            optimizer.param_groups[0]["lr"] = rate
            chosen = [order[step] for order in orders]
            inputs = torch.stack([one.inputs.index_select(0, c) for one, c in zip(examples, chosen, strict=True)])
            targets = torch.stack([one.targets.index_select(0, c) for one, c in zip(examples, chosen, strict=True)])
            optimizer.zero_grad()
            each = _mean_losses(forward(weights, inputs[data_of]), targets[data_of], columns)
            each.sum().backward()
            optimizer.step()
            losses.append(each.detach())
        means = torch.stack(losses).mean(0).tolist()
        share = (time.perf_counter() - began) / len(members)
        for member, loss in zip(members, means, strict=True):
            member.excuse(but=share)
            if not math.isfinite(loss):
                when, steadier = f"in epoch {epoch + 1} of task {t + 1}", member.learner.steadier
                error = divergence(loss, where="train_stacked", when=when, lr=config.lr, steadier=steadier)
                failures.setdefault(member.config.name, str(error))
            member.count_epoch(t, loss=loss, seconds=share, epochs=epochs)
    for member in members:
        if member.config.name not in failures:
            member.excuse(but=0.0)
            failures |= _tried(member, lambda member=member: member.close(t))
    return failures


def stacked(models: Sequence[nn.Module]) -> nn.Module:
    """A module of the same names whose parameters are those of all models, [K, ...]; theirs become views of them."""
    net = copy.deepcopy(models[0])
    for name, parameter in list(net.named_parameters()):
        whole = torch.stack([model.get_parameter(name).detach() for model in models])
        owner, _, own = name.rpartition(".")
        setattr(net.get_submodule(owner), own, nn.Parameter(whole, requires_grad=parameter.requires_grad))
        for model, part in zip(models, whole, strict=True):
            model.get_parameter(name).data = part
    return net


def _hold(members: Sequence[ActiveRun], net: nn.Module, optimizer: Optimizer) -> None:
    """Hold the steps of all networks by one keeper of strength 1, from what each network's own keeper holds."""
    learners = [member.learner for member in members]
    held = [learner.keeper.held for learner in learners if isinstance(learner, KeeperLearner)]
    if not held or held[0].num_tasks == 0:
        return
    strengths = [member.config.strength or 0.0 for member in members]
    importance = {
        name: torch.stack([_dense(one.importance[name]) * s for one, s in zip(held, strengths, strict=True)])
        for name in held[0].importance
    }
    anchors = {name: torch.stack([_dense(one.anchors[name]) for one in held]) for name in held[0].anchors}
    keeper = _keeper_of(net, members[0].config)
    keeper.held = Retained(
        importance=importance,
        anchors=anchors,
        num_tasks=held[0].num_tasks,
        largest=max(float(value.max()) for value in importance.values()),
    )
    keeper.attach(optimizer)


def _dense(held: AnyTensor) -> Tensor:
    return read(held, dtype=torch.float32, device=held.device)


def _keeper_of(net: nn.Module, config: RunConfig) -> Keeper:
    match method_named(config.method).mechanism:
        case "ewc":
            return EWC(net, strength=1.0, pull=config.pull, every=config.pull_every, log_every=0)
        case "wva":
            return WVA(net, strength=1.0, attenuation=config.attenuation, on=config.attenuate, log_every=0)
        case other:
            raise AssertionError(f"{other} holds no weights: why_not_stacked lets no such method pass")


def _mean_losses(logits: Tensor, targets: Tensor, columns: Tensor | None) -> Tensor:
    """The mean cross-entropy of each network's batch.

    Args:
        logits: [K, B, C].
        targets: int64 [K, B].
        columns: as for `task_loss`.

    Returns:
        [K], nats.
    """
    if columns is not None:
        logits = logits.masked_fill(~columns[targets], -math.inf)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets).mean(1)

"""Ways to hold an old task while a step is taken: holdfast's keepers, and what people write by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import holdfast as hf
from benchmarks.workloads import Workload
from holdfast.curvature import Accumulate
from holdfast.retention import Keeper
from holdfast.tensors import trainable_parameters

OptimizerName = Literal["sgd", "adam"]
Drawn = dict[str, Tensor]


@dataclass(frozen=True)
class HeldModel:
    """A model, its optimizer, and what is done besides.

    Attributes:
        model: learns.
        optimizer: of its parameters; a keeper is attached to it.
        penalty: added to the loss; None for nothing.
        inject: called before the step; None for nothing.
        keeper: ours, if there is one.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    penalty: Callable[[], Tensor] | None = None
    inject: Callable[[], None] | None = None
    keeper: Keeper | None = None


Hold = Callable[[Workload, OptimizerName], HeldModel]


def plain(workload: Workload, optimizer: OptimizerName) -> HeldModel:
    """Nothing held."""
    model = workload.model().train()
    if optimizer == "sgd":
        return HeldModel(model, torch.optim.SGD(model.parameters(), lr=0.01))
    return HeldModel(model, torch.optim.Adam(model.parameters(), lr=1e-4))


def kept(build: Callable[[nn.Module], Keeper], *, num_tasks: int = 1) -> Hold:
    """By a keeper, with importances drawn at random."""

    def hold(workload: Workload, optimizer: OptimizerName) -> HeldModel:
        held = plain(workload, optimizer)
        keeper = build(held.model).attach(held.optimizer)
        for task in range(num_tasks):
            info = hf.ImportanceInfo(kind="drawn", num_examples=1, nats_per_unit=1.0)
            keeper.retain(hf.Importance(drawn(held.model, task), info))
        return HeldModel(held.model, held.optimizer, keeper=keeper)

    return hold


def kept_by_factors(*, every: int, accumulate: Accumulate = "sum", num_tasks: int = 1) -> Hold:
    """By EWC on Kronecker factors, measured on one batch."""

    def hold(workload: Workload, optimizer: OptimizerName) -> HeldModel:
        held = plain(workload, optimizer)
        kind = "exact" if workload.exact else "sampled"
        factors = hf.kfac(held.model, workload.batches(1), kind=kind)
        keeper = hf.EWC(held.model, strength=1.0, every=every, accumulate=accumulate).attach(held.optimizer)
        for _ in range(num_tasks):
            keeper.retain(factors)
        return HeldModel(held.model, held.optimizer, keeper=keeper)

    return hold


def penalised(num_tasks: int) -> Hold:
    """By the penalty of each task in the loss, as the first page of a search has it."""

    def hold(workload: Workload, optimizer: OptimizerName) -> HeldModel:
        held = plain(workload, optimizer)
        tasks = [(drawn(held.model, task), anchors(held.model)) for task in range(num_tasks)]

        def penalty() -> Tensor:
            loss = torch.zeros(())
            for importance, anchor in tasks:
                for name, parameter in held.model.named_parameters():
                    loss = loss + 0.5 * (importance[name] * (parameter - anchor[name]) ** 2).sum()
            return loss

        return HeldModel(held.model, held.optimizer, penalty=penalty)

    return hold


def injected(workload: Workload, optimizer: OptimizerName) -> HeldModel:
    """By the pull added to each gradient before the step."""
    held = plain(workload, optimizer)
    importance, anchor = drawn(held.model, 0), anchors(held.model)

    @torch.no_grad()
    def inject() -> None:
        for name, parameter in held.model.named_parameters():
            if parameter.grad is not None:
                parameter.grad += importance[name] * (parameter - anchor[name])

    return HeldModel(held.model, held.optimizer, inject=inject)


def drawn(model: nn.Module, task: int) -> Drawn:
    """Importances at random, few of them large: the time does not hang on their values."""
    generator = torch.Generator().manual_seed(task)
    parameters = trainable_parameters(model)
    return {name: torch.rand(value.shape, generator=generator).pow(4) for name, value in parameters.items()}


def anchors(model: nn.Module) -> Drawn:
    """The weights as they are."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def held_bytes(keeper: Keeper) -> int:
    """Of importances, anchors and factors."""
    held = keeper.held
    tensors = [*held.importance.values(), *held.anchors.values()]
    for layer in held.layers.values():
        tensors += [value for value in vars(layer).values() if isinstance(value, Tensor)]
    return sum(held.nbytes for held in tensors)

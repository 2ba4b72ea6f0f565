"""A small network, importances for it, mechanisms by name, and loops that were written without them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holdfast import EWC, WVA, FactoredImportance, Importance, ImportanceInfo, KroneckerFactors
from holdfast.retention import Keeper

Mechanism = Callable[..., Keeper]

MECHANISMS: dict[str, Mechanism] = {
    "ewc": EWC,
    "ewc-gradient": partial(EWC, pull="gradient"),
    "ewc-penalty": partial(EWC, pull="penalty"),
    "ewc-per-task": partial(EWC, accumulate="per_task"),
    # a budget of infinity stands for strength zero
    "ewc-budget": lambda model, strength, **options: EWC(
        model, budget=1e-3 / strength if strength else torch.inf, **options
    ),
    "wva": WVA,
    "wva-exponential": partial(WVA, attenuation="exponential"),
    "wva-gradients": partial(WVA, on="gradients"),
}


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def importance_of(model: nn.Module, *, seed: int = 0, **info: Any) -> Importance:
    """Random importances in nats; about a quarter of them and the first of each parameter are zero."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            drawn = torch.rand(parameter.shape, generator=generator)
            values[name] = torch.where(drawn < 0.25, 0.0, drawn)
            values[name].view(-1)[0] = 0.0
    return Importance(
        values, ImportanceInfo(**{"kind": "fisher-exact", "num_examples": 8, "nats_per_unit": 1.0} | info)
    )


def batches(count: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 8, 3, generator=generator)
    targets = 3 * torch.randn(count, 8, 2, generator=generator)
    return [(x.to(dtype), y.to(dtype)) for x, y in zip(inputs, targets, strict=True)]


def train(model, optimizer, data, *, penalty=None) -> None:
    """A loop that knows nothing of holdfast, unless it adds a penalty."""
    for inputs, targets in data:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        if penalty is not None:
            loss = loss + penalty()
        loss.backward()
        optimizer.step()


def train_held(keeper: Keeper, optimizer, data) -> None:
    """The same loop, with what the keeper's pull asks of it."""
    asks = isinstance(keeper, EWC) and keeper.pull == "penalty"
    train(keeper.model, optimizer, data, penalty=keeper.penalty if asks else None)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def factored_of(model: nn.Module, *, seed: int = 0, scale: float = 1.0, rank: int | None = None) -> FactoredImportance:
    """Random Kronecker factors in nats for the layers of `network`, of full rank unless said otherwise."""
    generator = torch.Generator().manual_seed(seed)

    def positive(size: int) -> Tensor:
        x = torch.randn(size, rank or 2 * size, generator=generator)
        return x @ x.T / (rank or 2 * size)

    factors = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            out, inputs = layer.weight.shape
            prefix = f"{name}." if name else ""
            factors[f"{prefix}weight"] = KroneckerFactors(
                positive(inputs + 1), scale * positive(out), shape=(out, inputs), bias=f"{prefix}bias"
            )
    return FactoredImportance(factors, {}, ImportanceInfo("kfac-exact", 8, nats_per_unit=1.0))

"""What EWC and WVA add to a training step: forward, backward and step, against the plain optimizer's.

Under SGD and Adam, batch 128, on two multilayer perceptrons. One task is retained, with importances drawn at random:
the time does not hang on their values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.tables import Table
from benchmarks.timing import compare
from holdfast import EWC, WVA, Importance, ImportanceInfo
from holdfast.retention import Keeper
from holdfast.tensors import trainable_parameters
from holdfast.training import OptimizerName, build_optimizer, mlp

NETS = ((300, 150), (1000, 1000))
OPTIMIZERS: tuple[tuple[OptimizerName, float], ...] = (("sgd", 0.05), ("adam", 1e-3))
BATCH = 128
KEEPERS: dict[str, Callable[[nn.Module], Keeper] | None] = {
    "plain": None,
    "EWC": lambda model: EWC(model, strength=1.0),
    "EWC, budget": lambda model: EWC(model, budget=0.01),
    "WVA": lambda model: WVA(model, strength=100.0),
}


def measure(*, quick: bool = False) -> Table:
    """Every optimizer on every net."""
    rounds, steps = (3, 3) if quick else (41, 10)
    rows = []
    for hidden in NETS:
        for name, lr in OPTIMIZERS:
            variants = {
                keeper: steps_of(hidden, name, lr=lr, build=build, num_steps=steps) for keeper, build in KEEPERS.items()
            }
            for keeper, timing in compare(variants, rounds=rounds, warmup=2).items():
                rows.append(
                    {
                        "net": f"784-{'-'.join(map(str, hidden))}-10",
                        "optimizer": name,
                        "step": keeper,
                        "ms a step": 1e3 * timing.seconds / steps,
                        "over plain": timing.spread,
                    }
                )
    notes = [
        f"Whole training steps (forward, backward, step) at batch {BATCH}; {rounds} rounds of {steps} steps in turn, "
        "medians and quartiles of the ratios within a round."
    ]
    return Table("A held training step", notes, rows, quick=quick)


def steps_of(
    hidden: tuple[int, ...],
    optimizer_name: OptimizerName,
    *,
    lr: float,
    build: Callable[[nn.Module], Keeper] | None,
    num_steps: int,
) -> Callable[[], None]:
    """A call that takes so many steps."""
    generator = torch.Generator().manual_seed(0)
    model = mlp(784, hidden, 10, slope=0.2)
    optimizer = build_optimizer(optimizer_name, model.parameters(), lr=lr)
    batches: list[Any] = [
        (torch.rand(BATCH, 784, generator=generator), torch.randint(10, (BATCH,), generator=generator))
        for _ in range(num_steps)
    ]
    if build is not None:
        drawn = {
            name: torch.rand(parameter.shape, generator=generator).pow(4)
            for name, parameter in trainable_parameters(model).items()
        }

        info = ImportanceInfo(kind="drawn", num_examples=1, nats_per_unit=1.0)
        build(model).attach(optimizer).retain(Importance(drawn, info))

    def take_steps() -> None:
        for inputs, targets in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    return take_steps

"""What each of two processes does: `python -m tests.integrations.spread FOLDER`. The test does the same in one."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests import many
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import holdfast as hf
from holdfast.files import write_json
from holdfast.integrations.sharding import over_processes, whole_weights

MECHANISMS = {
    "ewc": partial(hf.EWC, strength=3.0, log_every=2),
    "ewc-gradient": partial(hf.EWC, strength=0.3, pull="gradient", log_every=2),
    "ewc-budget": partial(hf.EWC, budget=1e-4, log_every=2),
    "ewc-per-task": partial(hf.EWC, strength=3.0, accumulate="per_task", log_every=2),
    "ewc-int8": partial(hf.EWC, strength=3.0, importance_dtype="int8", anchor_dtype="int16", log_every=2),
    "wva": partial(hf.WVA, strength=30.0, log_every=2),
}
OPTIMIZERS = {
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
}
ESTIMATORS = {
    "fisher": hf.fisher,
    "empirical": partial(hf.fisher, kind="empirical"),
    "mas": hf.mas,
    "signal": hf.signal,
}
FIRST, SECOND = 3, 4


def network() -> nn.Sequential:
    """Layers whose rows two processes cannot share evenly."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def batches(count: int, *, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 3, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(count)]


def share(data, rank: int, world: int):
    return [(x[rank::world], y[rank::world]) for x, y in data]


def train(model: nn.Module, optimizer, data) -> None:
    for inputs, targets in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def two_tasks(model: nn.Module, mechanism: str, optimizer: str, *, rank: int = 0, world: int = 1):
    """Retain, train, retain, train; the importances are measured on the way."""

    def measured(seed: int) -> hf.Importance:
        with whole_weights(model):
            own = hf.fisher(model, share(batches(2, seed=seed), rank, world))
        return over_processes(own) if world > 1 else own

    built = OPTIMIZERS[optimizer](model.parameters())
    keeper = MECHANISMS[mechanism](model).attach(built).retain(measured(0))
    train(model, built, share(batches(FIRST, seed=1), rank, world))
    keeper.retain(measured(2))
    train(model, built, share(batches(SECOND, seed=3), rank, world))
    return keeper, built


def figures(keeper) -> dict[str, Any]:
    report = keeper.report()
    found = {name: getattr(report, name) for name in ("protected", "pinned", "pull_ratio", "predicted_rise")}
    return {"num_steps": report.num_steps, **{name: value for name, value in found.items() if value is not None}}


def spread_over(model: nn.Sequential, world: int) -> nn.Sequential:
    many.spread_over(model, [layer for layer in model if isinstance(layer, nn.Linear)], world)
    return model


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    return many.whole(model.named_parameters())


def main(folder: Path, rank: int, world: int) -> None:
    weights: dict[str, torch.Tensor] = {}
    told: dict[str, Any] = {}

    def note(case: str, model: nn.Module, keeper) -> None:
        weights.update({f"{case}/{name}": tensor for name, tensor in whole(model).items()})
        told[case] = figures(keeper)

    for optimizer in OPTIMIZERS:
        for mechanism in MECHANISMS:
            model = spread_over(network(), world)
            keeper, built = two_tasks(model, mechanism, optimizer, rank=rank, world=world)
            note(f"{mechanism} {optimizer}", model, keeper)
            keeper.save(folder / f"saved-{mechanism}-{optimizer}")
            if optimizer == "momentum":
                train(model, built, share(batches(3, seed=4), rank, world))
                note(f"{mechanism} {optimizer} on", model, keeper)

    model = DistributedDataParallel(network())
    keeper, _ = two_tasks(model, "ewc", "adam", rank=rank, world=world)
    note("ddp", model, keeper)

    model = network()
    keeper = MECHANISMS["ewc"](model).retain(hf.fisher(model, batches(2, seed=0)))  # whole, before it is sharded
    spread_over(model, world)
    built = OPTIMIZERS["adam"](model.parameters())
    keeper.attach(built)
    train(model, built, share(batches(FIRST, seed=1), rank, world))
    note("retained before", model, keeper)

    loaded = spread_over(network(), world)
    keeper = hf.EWC.load(folder / "one", loaded)
    built = OPTIMIZERS["adam"](loaded.parameters())
    keeper.attach(built)
    train(loaded, built, share(batches(FIRST, seed=1), rank, world))
    note("saved by one", loaded, keeper)

    for name, estimator in ESTIMATORS.items():
        with whole_weights(model):
            found = over_processes(estimator(model, share(batches(2, seed=5), rank, world)))
        weights |= {f"{name}/{key}": value for key, value in found.items()}
        told[name] = found.info.num_examples
    if rank == 0:
        save_file(weights, folder / "weights.safetensors")
        write_json(folder / "told.json", told)


if __name__ == "__main__":
    with many.member() as (own, count):
        main(Path(sys.argv[1]), own, count)

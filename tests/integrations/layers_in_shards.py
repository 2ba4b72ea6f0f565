"""What each of several processes does with layers held whole: `python -m tests.integrations.layers_in_shards FOLDER`.

The importances are measured before, on other weights, so that one process and several hold the same. `steps` of each
case are of the same examples however many processes there are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests import many
from tests.integrations import in_shards, spread
from torch import Tensor, distributed, nn

import holdfast as hf
from holdfast.curvature.owners import LayerElsewhere
from holdfast.files import write_json
from holdfast.tensors import all_parameters, placed, shard, shards_of

COUNT = 8
"""Examples of a batch: two or four processes share them evenly."""

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.01)


def points(seed: int, count: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, COUNT, 3, generator=generator)
    return list(zip(x, torch.randint(3, (count, COUNT), generator=generator), strict=True))


def texts(seed: int, count: int = 4) -> list[Any]:
    ids = torch.randint(61, (count, COUNT, 6), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": each, "labels": each} for each in ids]


def share(data: list[Any], rank: int, world: int) -> list[Any]:
    """The examples of each batch that a process takes."""
    rows = slice(rank, None, world)
    return [
        {name: value[rows] for name, value in batch.items()}
        if isinstance(batch, dict)
        else tuple(value[rows] for value in batch)
        for batch in data
    ]


@dataclass(frozen=True)
class Holding:
    """A model, how it is held, and trained."""

    keeper: Callable[..., Any]
    optimizer: Callable[..., torch.optim.Optimizer] = ADAMW
    net: Callable[[], nn.Module] = spread.network
    data: Callable[..., list[Any]] = points
    inner: Callable[[Any], Any] = lambda model: [layer for layer in model if isinstance(layer, nn.Linear)]
    steps: tuple[int, int] = (50, 60)
    probes: bool = False
    back: float | None = None
    measured: bool = False
    there: bool = False
    copies: int = 1
    loose: float = 2e-4
    rounding: float = 1e-5


def _llama_layers(model: Any) -> Any:
    return model.model.layers


def llama() -> nn.Module:
    """In float64: in float32 Adam makes rounding grow on such a model, held or not."""
    return in_shards.llama().double()


EWC = partial(hf.EWC, log_every=10)
LLAMA = partial(Holding, net=llama, data=texts, inner=_llama_layers, rounding=1e-9)

CASES = {
    "sgd": Holding(partial(EWC, strength=3.0), SGD),
    "adamw": Holding(partial(EWC, strength=3.0)),
    "every 4": Holding(partial(EWC, strength=3.0, every=4)),
    "per task": Holding(partial(EWC, strength=3.0, accumulate="per_task"), SGD),
    "gradient": Holding(partial(EWC, strength=0.3, pull="gradient"), SGD),
    "bfloat16": Holding(partial(EWC, strength=3.0, importance_dtype="bfloat16")),
    "forecast": Holding(partial(EWC, budget=1e-3), SGD, loose=2e-3),
    "probes": Holding(partial(EWC, budget=0.01, probe_every=8), probes=True, loose=5e-3),
    "rewound": Holding(partial(EWC, strength=0.01), probes=True, back=0.01, loose=5e-3),
    "measured on shards": Holding(partial(EWC, strength=3.0), probes=True, back=0.001, measured=True, loose=5e-3),
    "wva": Holding(partial(hf.WVA, strength=20.0, log_every=10), measured=True),
    "llama sgd": LLAMA(partial(EWC, strength=3.0), SGD, net=in_shards.llama, loose=2e-3, rounding=1e-3),
    "llama adamw": LLAMA(partial(EWC, strength=3.0)),
    "llama every 4": LLAMA(partial(EWC, strength=3.0, every=4), measured=True),
    "llama, measured there": LLAMA(partial(EWC, strength=3.0), there=True, loose=2e-3, rounding=1e-3),
    "llama probes": LLAMA(partial(EWC, budget=0.01, probe_every=8), probes=True, loose=5e-3),
}
OF_COPIES = {
    "copies": Holding(partial(EWC, strength=3.0), copies=2),
    "copies, measured on shards": Holding(partial(EWC, strength=3.0), copies=2, measured=True),
}
MORE = 20


@cache
def importance_of(name: str, seed: int) -> hf.FactoredImportance:
    """Of a task, whole: it is measured on weights beside those that are trained."""
    case = {**CASES, **OF_COPIES}[name]
    model = case.net()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    found = hf.kfac(model, case.data(seed), kind="empirical", share_inputs=True)
    assert isinstance(found, hf.FactoredImportance)
    return found


def as_measured(importance: hf.FactoredImportance, model: nn.Module) -> hf.FactoredImportance:
    """What each process has of an importance that was measured on shards; owners other than those that hold."""
    parameters = all_parameters(model)
    shards = shards_of(parameters)
    if shards is None:
        return importance
    names = list(importance)
    owners = {name: (number // 2) % shards.size for number, name in enumerate(reversed(names))}
    own = {name: importance[name] for name in names if owners[name] == shards.rank}
    rest = {
        name: LayerElsewhere(owners[name], place, importance[name].to("meta"))
        for place, name in enumerate(names)
        if name not in own
    }
    diagonal = {n: placed(shard(value, parameters[n]), parameters[n]) for n, value in importance.diagonal.items()}
    return hf.FactoredImportance(own, diagonal, importance.info, elsewhere=rest, shards=shards)


def built(case: Holding, world: int) -> nn.Module:
    model = case.net()
    if not distributed.is_initialized():
        return model
    shape = (case.copies, world // case.copies) if case.copies > 1 else (world,)
    return many.spread_over(model, case.inner(model), *shape)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[Any], steps: int) -> None:
    for step in range(steps):
        batch = data[step % len(data)]
        optimizer.zero_grad()
        if isinstance(batch, dict):
            model(**batch).loss.backward()
        else:
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()


def retained(keeper: hf.EWC, name: str, seed: int, rank: int, world: int) -> None:
    case = {**CASES, **OF_COPIES}[name]
    own = share(case.data(seed), rank, world)
    importance = hf.kfac(keeper.model, own, kind="empirical") if case.there else importance_of(name, seed)
    if case.measured:
        importance = as_measured(importance, keeper.model)
    probes = hf.probes_of(keeper.model, own, num_examples=None) if case.probes else None
    keeper.retain(importance, probes=probes)


def held(name: str, rank: int = 0, world: int = 1) -> tuple[hf.EWC, torch.optim.Optimizer]:
    """Two tasks are retained, each is followed by training."""
    case = {**CASES, **OF_COPIES}[name]
    model = built(case, world)
    optimizer = case.optimizer(model.parameters())
    keeper = case.keeper(model).attach(optimizer)
    for seed, steps in zip((1, 3), case.steps, strict=True):
        retained(keeper, name, seed, rank, world)
        train(model, optimizer, share(case.data(seed + 1), rank, world), steps)
        if case.probes:
            keeper.close()
    if case.back is not None:
        own = share(case.data(4), rank, world)
        new = importance_of(name, 4)
        keeper.rewind(case.back, importance=as_measured(new, model) if case.measured else new, data=own)
    return keeper, optimizer


def more(keeper: hf.EWC, optimizer: torch.optim.Optimizer, name: str, rank: int = 0, world: int = 1) -> None:
    case = {**CASES, **OF_COPIES}[name]
    train(keeper.model, optimizer, share(case.data(5), rank, world), MORE)


def loaded(path: Path, name: str, weights: dict[str, Tensor], rank: int = 0, world: int = 1) -> hf.EWC:
    """A keeper from a folder, of a model with these weights, trained on under a new optimizer."""
    case = {**CASES, **OF_COPIES}[name]
    model = case.net()
    model.load_state_dict(weights, strict=False)
    if world > 1:
        many.spread_over(model, case.inner(model), world)
    optimizer = case.optimizer(model.parameters())
    keeper = hf.EWC.load(path, model).attach(optimizer)
    more(keeper, optimizer, name, rank, world)
    return keeper


def figures(keeper: hf.EWC) -> dict[str, Any]:
    rises = [skill.rise for skill in keeper.skills]
    return {**spread.figures(keeper), **{f"rise {number}": rise for number, rise in enumerate(rises)}}


def curvature_bytes(keeper: hf.EWC) -> int:
    """Memory of the curvatures that this process holds; a basis that several layers share counts once."""
    found = {t.data_ptr(): t.nbytes for layer in keeper.held.layers.values() for t in layer.tensors().values()}
    return sum(found.values())


def main(folder: Path, rank: int, world: int) -> None:
    found: dict[str, Tensor] = {}
    told: dict[str, Any] = {}

    def note(case: str, keeper: hf.EWC) -> None:
        weights = many.whole(keeper.model.named_parameters())
        found.update({f"{case}/{name}": tensor for name, tensor in weights.items()})
        told[case] = figures(keeper)

    for name in CASES if world == 2 else OF_COPIES:
        keeper, optimizer = held(name, rank, world)
        note(name, keeper)
        if name in ("adamw", "llama adamw"):
            sizes: list[Any] = [None] * world
            distributed.all_gather_object(sizes, curvature_bytes(keeper))
            told[f"{name} bytes"] = sizes
            keeper.save(folder / f"{name} by {world}")
            state = [keeper.state_dict()]
            distributed.broadcast_object_list(state)
            fresh = CASES[name].keeper(keeper.model)
            fresh.load_state_dict(state[0])
            keeper.detach()
            fresh.attach(optimizer)
            more(fresh, optimizer, name, rank, world)
            note(f"{name} on", fresh)
    for name in ("adamw", "llama adamw"):
        fresh = EWC(built(CASES[name], world), strength=3.0)
        fresh.retain(importance_of(name, 1))
        fresh.save(folder / f"retained {name} by {world}")
        weights = many.whole(CASES[name].net().named_parameters())
        again = loaded(folder / f"one {name}", name, weights, rank, world)
        note(f"{name} by one, loaded by {world}", again)
        again.save(folder / f"on {name} by {world}")
    if rank == 0:
        save_file(found, folder / f"found-{world}.safetensors")
        write_json(folder / f"told-{world}.json", told)


if __name__ == "__main__":
    with many.member() as (own, count):
        main(Path(sys.argv[1]), own, count)

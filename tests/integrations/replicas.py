"""What each of two replicas does: `python -m tests.integrations.replicas FOLDER`. The test does the same in one.

One process stands for two by the mean of the losses on their shares, which is what DistributedDataParallel trains on.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests import many
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import holdfast as hf
from holdfast.curvature.joining import tensors_of
from holdfast.files import write_json
from holdfast.integrations.sharding import over_processes

NUM_STEPS = 6


class Branches(nn.Module):
    """Each process takes a way of its own through it, so that some parameters are used by one process alone."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleList([nn.Linear(9, 6), nn.Linear(9, 6)])
        self.last = nn.Linear(6, 3)

    def forward(self, inputs: Tensor, way: int = 0) -> Tensor:
        return self.last(torch.tanh(self.ways[way](inputs.flatten(1))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))


def convolution() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(nn.Unflatten(1, (1, 3)), *layers)


def attention() -> nn.Module:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=0.0, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.layer(self.first(inputs)).mean(1))

    return Encoder()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convolution": convolution,
    "attention": attention,
    "branches": Branches,
}
WAYS: dict[str, dict[str, Any]] = {
    "wrapped before": {},
    "wrapped after": {"wrapped": "after", "momentum": 0.9},
    "convolution": {"model": "convolution", "clip": 0.1},
    "attention, Adam": {"model": "attention", "adam": True, "wrapped": "after"},
    "next gradient": {"gradient": "after"},
    "views of buckets": {"gradient_as_bucket_view": True, "clip": 0.1},
    "accumulated": {"accumulate": "no_sync", "model": "convolution"},
    "accumulated, each reduced": {"accumulate": "reduced", "clip": 0.1},
    "unused": {"model": "branches", "find_unused_parameters": True, "clip": 0.1},
    "unused, accumulated": {"model": "branches", "find_unused_parameters": True, "accumulate": "no_sync"},
    "scaled": {"scaled": True},
    "kutalev": {"variant": "kutalev"},
    "kutalev, convolution": {"variant": "kutalev", "model": "convolution", "adam": True},
}


class Several(hf.Categorical):
    """Examples of one to three targets, so that the processes' shares have other numbers of them."""

    def num_targets(self, batch: Any) -> int:
        return int((batch[1] + 1).sum())


MEASURED = {
    "fisher": ("convolution", hf.fisher),
    "kfac": ("mlp", hf.kfac),
    "kfac, convolution": ("convolution", partial(hf.kfac, kind="empirical")),
    "kfac, attention": ("attention", hf.kfac),
    "fisher, several targets": ("convolution", partial(hf.fisher, loss=Several())),
    "kfac, several targets": ("mlp", partial(hf.kfac, loss=Several())),
    "kfac, attention, several targets": ("attention", partial(hf.kfac, loss=Several())),
}


WRAPPED = {
    "fisher": ("convolution", hf.fisher),
    "fisher, sampled": ("mlp", partial(hf.fisher, kind="sampled", num_draws=2)),
    "fisher, batched": ("mlp", partial(hf.fisher, kind="batched")),
    "fisher, several targets": ("convolution", partial(hf.fisher, loss=Several())),
    "mas": ("mlp", hf.mas),
    "mas, batched": ("mlp", partial(hf.mas, batched=True)),
    "mas, local": ("mlp", partial(hf.mas, local=True)),
    "taylor": ("attention", hf.taylor),
    "signal": ("mlp", hf.signal),
    "kfac, sampled": ("mlp", partial(hf.kfac, kind="sampled")),
    "kfac, attention": ("attention", hf.kfac),
    "measure": ("mlp", partial(hf.measure, probes=[(torch.ones(2, 3, 3), torch.tensor([0, 1]))])),
}
"""Measured on the wrapped model, where every process gives its share."""


def shares(ranks: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The batches of these processes, one process after the other."""
    return [share(number, rank) for rank in ranks for number in range(2)]


def halting() -> Iterator[tuple[Tensor, Tensor]]:
    """Data that end in an error."""
    yield batch(0)
    raise ValueError("no more data")


def built(name: str) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name]()


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(8, 3, 3, generator=generator)
    return inputs, (inputs[:, 0, 0] > 0).long() + (inputs[:, 1, 1] > 0).long()


def share(number: int, rank: int) -> tuple[Tensor, Tensor]:
    inputs, targets = batch(number)
    return inputs[rank::2], targets[rank::2]


def loss_of(model: nn.Module, number: int, ranks: list[int]) -> Tensor:
    """The mean loss over the shares of these processes."""
    total = torch.zeros(())
    for rank in ranks:
        inputs, targets = share(number, rank)
        branches = isinstance(getattr(model, "module", model), Branches)
        total = total + F.cross_entropy(model(inputs, (rank + number) % 2) if branches else model(inputs), targets)
    return total / len(ranks)


def two_tasks(
    ranks: list[int],
    *,
    model: str = "mlp",
    wrapped: str = "before",
    adam: bool = False,
    momentum: float = 0.0,
    clip: float | None = None,
    accumulate: str | None = None,
    scaled: bool = False,
    find_unused_parameters: bool = False,
    gradient_as_bucket_view: bool = False,
    **options: Any,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """SI and EWC over two tasks: the importance of the second, and the weights at its end."""
    torch.manual_seed(0)
    bare = built(model)

    def wrap() -> Any:
        if len(ranks) == 2:
            return bare
        return DistributedDataParallel(
            bare, find_unused_parameters=find_unused_parameters, gradient_as_bucket_view=gradient_as_bucket_view
        )

    trained = wrap() if wrapped == "before" else bare
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    optimizer: Any = (
        torch.optim.Adam(bare.parameters(), lr=0.01)
        if adam
        else torch.optim.SGD(bare.parameters(), lr=0.1, momentum=momentum)
    )
    keeper = hf.EWC(trained, strength=10.0).attach(optimizer)
    path = hf.SynapticIntelligence(trained, scaler=scaler, **options).attach(optimizer)
    if wrapped == "after":
        trained = wrap()
    importance = None
    for task in range(2):
        for step in range(NUM_STEPS):
            number = 100 * task + 2 * step
            optimizer.zero_grad()
            parts = (number, number + 1) if accumulate else (number,)
            for index, part in enumerate(parts):
                waits = accumulate == "no_sync" and index == 0 and len(ranks) == 1
                with trained.no_sync() if waits else nullcontext():
                    loss = loss_of(trained, part, ranks) / len(parts)
                    (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is not None:
                scaler.unscale_(optimizer)
            if clip is not None:
                nn.utils.clip_grad_norm_(bare.parameters(), clip)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            if options.get("variant") == "kutalev":
                path.after_step(lambda number=number: loss_of(trained, number, ranks))
        importance = path.importance()
        keeper.retain(importance)
    assert importance is not None
    return dict(importance), {name: weight.detach().clone() for name, weight in bare.named_parameters()}


def closed_lesson(rank: int, *, wrapped: str = "before") -> tuple[dict[str, Tensor], list[float]]:
    """Under a budget, with probes and new data of this process's own: the weights at its end, and the rises."""
    bare = built("mlp")
    model = DistributedDataParallel(bare)
    optimizer = torch.optim.Adam(bare.parameters(), lr=0.02)
    probes = hf.probes_of(bare, [share(0, rank)])
    for step in range(8):
        optimizer.zero_grad()
        loss_of(model, step, [rank]).backward()
        optimizer.step()
    keeper = hf.EWC(bare if wrapped == "after" else model, budget=1e-4, probe_every=2).attach(optimizer)
    if wrapped == "after":
        assert keeper.group is None
        keeper.group = distributed.group.WORLD
    keeper.retain(hf.fisher(model, [share(0, rank)]), probes=probes)
    for step in range(40):
        if step == 12:
            keeper.detach()  # so that there is something to take back
        optimizer.zero_grad()
        (-loss_of(model, step, [rank])).backward()
        optimizer.step()
    found = keeper.close(data=[share(100, rank)])
    assert found is not None
    (skill,) = keeper.skills
    weights = {name: weight.detach().clone() for name, weight in bare.named_parameters()}
    return weights, [skill.begun, skill.increment, found.cost or 0.0]


def lesson_alone(rank: int) -> list[float]:
    """The rises that one process measures by itself, while the other does something else."""
    if rank:
        return []
    bare = built("mlp")
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    keeper = hf.EWC(bare, budget=1e-4, probe_every=2).attach(optimizer)
    keeper.retain(hf.fisher(bare, [batch(0)]), probes=hf.probes_of(bare, [batch(0)]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(4):
            optimizer.zero_grad()
            loss_of(bare, step, [0, 1]).backward()
            optimizer.step()
    keeper.close(data=[batch(1)])
    assert ["set keeper.group" in str(warning.message) for warning in caught] == [True], caught
    return [skill.increment for skill in keeper.skills]


def rehearsed(ranks: list[int], *, dropout: float = 0.0, group: Any = None) -> tuple[dict[str, Tensor], float]:
    """The weights after a rehearsal in which each process has its share of the past, and the loss of its last batch.

    With a group the rehearsal is of the bare model, and is told who trains it.
    """
    bare = nn.Sequential(built("mlp"), nn.Dropout(dropout))
    model = DistributedDataParallel(bare) if len(ranks) == 1 else bare
    torch.manual_seed(ranks[0])
    past = [share(200 + number, ranks[0]) if len(ranks) == 1 else batch(200 + number) for number in range(4)]
    optimizer = torch.optim.Adam(bare.parameters(), lr=0.01)
    rehearsal = hf.Rehearsal(model if group is None else bare, past, share=0.5).attach(optimizer)
    if group is not None:
        rehearsal.group = group
    for step in range(2 * NUM_STEPS):
        optimizer.zero_grad()
        loss_of(model, step, ranks).backward()
        optimizer.step()
    assert rehearsal.last_loss is not None
    return {name: weight.detach().clone() for name, weight in bare.named_parameters()}, rehearsal.last_loss


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except (hf.HoldfastError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(folder: Path, rank: int) -> None:
    found: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for name, settings in WAYS.items():
        importance, weights = two_tasks([rank], **settings)
        found |= {f"{name}/importance/{key}": value for key, value in importance.items()}
        found |= {f"{name}/weights/{key}": value for key, value in weights.items()}
    for wrapped, name in (("before", "lesson"), ("after", "lesson, wrapped after")):
        weights, told[name] = closed_lesson(rank, wrapped=wrapped)
        found |= {f"{name}/{key}": value for key, value in weights.items()}
    told["lesson, alone"] = lesson_alone(rank)
    for dropout in (0.0, 0.5):
        weights, told[f"rehearsed, dropout {dropout}"] = rehearsed([rank], dropout=dropout)
        found |= {f"rehearsed, dropout {dropout}/{key}": value for key, value in weights.items()}
    weights, told["rehearsed, wrapped after"] = rehearsed([rank], group=distributed.group.WORLD)
    found |= {f"rehearsed, wrapped after/{key}": value for key, value in weights.items()}
    told["rehearsed, alone"] = None if rank else rehearsed([0, 1])[1]
    for name, (kind, estimator) in MEASURED.items():
        model = DistributedDataParallel(built(kind))
        own = estimator(model.module, [batch(0), batch(1)][: 2 - rank])
        keeper = hf.EWC(model, strength=1.0)
        told[f"{name}, not joined"] = error_of(lambda keeper=keeper, own=own: keeper.retain(own))
        told[f"{name}, held before"] = keeper.held.num_tasks
        joined = over_processes(own)
        keeper.retain(joined)
        told[f"{name}, joined"] = [keeper.held.num_tasks, joined.info.num_examples]
        found |= {f"{name}/joined/{key}": value.contiguous() for key, value in tensors_of(joined).items()}
    for name, (kind, estimator) in WRAPPED.items():
        model = DistributedDataParallel(built(kind))
        own = estimator(model, shares([rank]))
        found |= {f"{name}/wrapped/{key}": value.contiguous() for key, value in tensors_of(own).items()}
        told[f"{name}, wrapped"] = [own.info.num_examples, own.info.num_targets, own.info.details["processes"]]
    model = DistributedDataParallel(built("mlp"))
    hf.EWC(model, strength=1.0).retain(own := hf.fisher(model, [share(0, rank)]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told["joined again"] = [over_processes(own) is own, str(caught[0].message) if caught else ""]
    told["all data"] = hf.fisher(model, [batch(0)]).info.num_examples
    told["all data differ by"] = max(
        float((value - hf.fisher(model.module, [batch(0)])[key]).abs().max())
        for key, value in hf.fisher(model, [batch(0)]).items()
    )
    told["halted"] = error_of(lambda: hf.fisher(model, halting() if rank else [batch(0)]))
    told["no data"] = error_of(lambda: hf.kfac(model, [] if rank else [batch(0)]))
    told["halted, measure"] = error_of(lambda: hf.measure(model, [batch(0)], probes=halting() if rank else [batch(1)]))
    calibrated = hf.calibrated(model, hf.mas(model, [share(0, rank)]), [share(0, rank)], steps=5, lessons=1, rounds=1)
    told["calibrated"] = [calibrated.info.nats_per_unit, calibrated.info.scatter]
    compiled: Any = torch.compile(model)
    own = hf.fisher(model.module, [share(0, rank)])
    told["compiled"] = error_of(lambda: hf.WVA(compiled, strength=1.0).retain(own))
    told["bare"] = error_of(lambda: hf.EWC(built("mlp"), strength=1.0).retain(own))
    lessons = {"calibration": "made-up lessons", "calibrated_at": 0.05, "scatter": 2.0 - rank / 2}
    some = own.with_info(nats_per_unit=1.0 + rank, **lessons)
    joined = over_processes(some)
    told["nats"] = [some.info.nats_per_unit, joined.info.nats_per_unit, joined.info.scatter]
    told["si"] = error_of(lambda: over_processes(own.with_info(kind="si")))
    told["mas-batched"] = error_of(lambda: over_processes(hf.mas(model.module, [share(0, rank)], batched=True)))
    told["no examples"] = error_of(lambda: over_processes(own.with_info(num_examples=0)))
    other = hf.kfac(model.module, [share(0, rank)]) if rank else own
    told["other kinds"] = error_of(lambda: over_processes(other))
    short = distributed.new_group(timeout=timedelta(seconds=2))
    model = DistributedDataParallel(built("mlp"), process_group=short)
    if rank == 0:
        told["alone"] = error_of(lambda: hf.EWC(model, strength=1.0).retain(own))
        told["alone, measuring"] = error_of(lambda: hf.fisher(model, [batch(0)]))
        told["alone, bare"] = error_of(lambda: hf.EWC(model.module, strength=1.0).retain(own))
    distributed.barrier()
    save_file(found, folder / f"found-{rank}.safetensors")
    write_json(folder / f"told-{rank}.json", told)


if __name__ == "__main__":
    with many.member() as (own, _):
        main(Path(sys.argv[1]), own)

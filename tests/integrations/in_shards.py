"""What each of two processes measures on a sharded model: `python -m tests.integrations.in_shards FOLDER`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests import many
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy

import holdfast as hf
from holdfast.errors import EmptyDataError, StateError
from holdfast.files import write_json

COUNT = 12


def llama() -> nn.Module:
    """Grouped queries, and an embedding tied to the head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config)


def tower() -> nn.Module:
    """Layers whose rows two processes cannot share evenly, a norm, and a group inside a group."""
    torch.manual_seed(1)
    inner = nn.Sequential(nn.Linear(7, 7), nn.GELU(), nn.Linear(7, 7, bias=False))
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Sequential(inner, nn.Tanh()), nn.Linear(7, 3))


class Strange(nn.Module):
    """Parameters that are used in ways that no cover knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.pair = nn.Linear(5, 4), nn.Bilinear(4, 4, 3)
        self.turn = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(x).tanh()
        return self.pair(h, h) @ torch.linalg.matrix_exp(0.1 * self.turn)


class Experts(nn.Module):
    """Data that decide which layer an example goes through, and where its row is."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.gate, self.outputs = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inputs(x).relu()
        chosen, found = self.gate(h).argmax(1), torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            found = found.index_add(0, rows, expert(h[rows]) * self.gate(h)[rows].softmax(1)[:, number : number + 1])
        return self.outputs(found)


class Chosen(nn.Module):
    """Channels first: a convolution, batch norm at rest, and an example's own mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Twice(nn.Module):
    """A group of layers that every forward pass goes through two times."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(5, 6), nn.Linear(6, 3)
        self.block = nn.Sequential(nn.Linear(6, 9), nn.SiLU(), nn.Linear(9, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inputs(x)
        for _ in range(2):
            h = h + self.block(h)
        return self.outputs(h)


class Attending(nn.Module):
    """A frozen layer, a transposed convolution, packed attention, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 9, 3, padding=1).requires_grad_(False)
        self.wider, self.attention = (
            nn.ConvTranspose1d(9, 5, 2, stride=2),
            nn.MultiheadAttention(5, 1, batch_first=True),
        )
        self.scale, self.head = nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.wider(self.conv(x.flatten(2)).relu()).transpose(1, 2)
        return self.head((self.attention(h, h, h)[0] * self.scale).amax(1))


def texts(rows: slice) -> list[Any]:
    ids = torch.randint(61, (COUNT, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[4, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    rest = [{"input_ids": a, "labels": b, "attention_mask": c} for a, b, c in zip(ids[rows], labels[rows], mask[rows])]
    return [
        {key: torch.stack([row[key] for row in rest[i : i + 2]]) for key in rest[0]} for i in range(0, len(rest), 2)
    ]


def points(rows: slice, *shape: int) -> list[Any]:
    generator = torch.Generator().manual_seed(6)
    x, y = torch.randn(COUNT, *shape, generator=generator), torch.randint(3, (COUNT,), generator=generator)
    return list(zip(x[rows].split(2), y[rows].split(2)))


FISHER = partial(hf.fisher, kind="empirical")


@dataclass(frozen=True)
class Measurement:
    """A model, its data, and how it is measured and sharded."""

    net: Callable[[], nn.Module]
    data: Callable[[slice], list[Any]]
    estimator: Callable[..., hf.Importance] = FISHER
    inner: Callable[[Any], Any] = lambda model: ()
    options: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], Any] = lambda model: None
    uneven: bool = False
    several: bool = False
    rough: bool = False


def _layers(model: Any) -> Any:
    return model.model.layers


LLAMA = partial(Measurement, llama, texts, inner=_layers)


def _points(rows: slice) -> list[Any]:
    return points(rows, 5)


def _images(rows: slice) -> list[Any]:
    return points(rows, 2, 4, 4)


def checkpointed(model: Any) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()


CASES = {
    "empirical": LLAMA(),
    "uneven": LLAMA(uneven=True),
    "sampled": LLAMA(partial(hf.fisher, kind="sampled", num_draws=2)),
    "top classes": LLAMA(partial(hf.fisher, top_k=3)),
    "mas": LLAMA(hf.mas),
    "taylor": LLAMA(hf.taylor),
    "signal": LLAMA(partial(hf.signal, others="zero")),
    "by token": LLAMA(partial(hf.fisher, kind="sampled", per="token")),
    "checkpoints": LLAMA(prepare=checkpointed),
    "bfloat16": LLAMA(options={"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)}, rough=True),
    "not resharded": LLAMA(options={"reshard_after_forward": False}),
    "copies of shards": LLAMA(several=True),
    "exact": Measurement(tower, _points, hf.fisher, lambda model: (model[2][0], model[2])),
    "exact, uneven": Measurement(tower, _points, hf.fisher, lambda model: (model[2][0], model[2]), uneven=True),
    "twice": Measurement(Twice, _points, hf.fisher, lambda model: (model.block,), uneven=True),
    "attention": Measurement(Attending, _images, hf.fisher),
    "strange": Measurement(Strange, _points, inner=lambda model: (model.pair,)),
    "experts": Measurement(Experts, _points),
    "images": Measurement(Chosen, _images, hf.fisher, lambda model: (model.conv,)),
    "signal of images": Measurement(Chosen, _images, partial(hf.signal, others="zero")),
}


def built(case: Measurement) -> nn.Module:
    torch.manual_seed(2)
    return case.net()


def share(case: Measurement, rank: int, world: int) -> list[Any]:
    """The examples of a process: as a DistributedSampler deals them, or one process with three times as many."""
    if case.uneven:
        return case.data([slice(0, 9), slice(9, COUNT)][rank])
    return case.data(slice(rank, COUNT, world))


def sharded(case: Measurement, world: int) -> nn.Module:
    model = built(case)
    case.prepare(model)
    return many.spread_over(model, case.inner(model), *((world, 1) if case.several else (world,)), **case.options)


def state_of(model: nn.Module) -> list[Any]:
    named = [(name, type(p), p.dtype, p.requires_grad, id(p.grad)) for name, p in model.named_parameters()]
    return [named, [(name, module.training, len(module._forward_hooks)) for name, module in model.named_modules()]]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[Any], steps: int) -> None:
    for step in range(steps):
        inputs, targets = data[step % len(data)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


KEEPERS = {"ewc": partial(hf.EWC, strength=2.0, log_every=5), "wva": partial(hf.WVA, strength=20.0, log_every=5)}


def kept(name: str, model: nn.Module, rank: int, world: int, *, steps: int = 40) -> nn.Module:
    """A model that is measured, held and trained on, and then measured and held again."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    keeper = KEEPERS[name](model).attach(optimizer)
    for rows in (slice(rank, COUNT, world), slice(rank, 8, world)):
        keeper.retain(FISHER(model, points(rows, 5)))
        # each step is of the same examples in one process and in two
        train(model, optimizer, [(x[rank::world], y[rank::world]) for x, y in points(slice(0, COUNT), 5)], steps)
    return model


def main(folder: Path, rank: int, world: int) -> None:
    found: dict[str, torch.Tensor] = {}
    told: dict[str, Any] = {}
    for name, case in CASES.items():
        model = sharded(case, world)
        before = state_of(model)
        if name == "sampled":  # which leaves the weights of the outermost group in every process
            with torch.no_grad():
                model(**share(case, rank, world)[0])
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            importance = case.estimator(model, share(case, rank, world))
        assert state_of(model) == before, name
        found |= {f"{name}/{key}": value for key, value in many.whole(importance.items()).items()}
        info = importance.info
        told[name] = [info.num_examples, info.num_targets, [str(each.message)[:60] for each in warned]]
        if name == "uneven":
            importance.save(folder / "saved")
            again = sharded(case, world)
            hf.EWC(again, strength=1.0).retain(hf.Importance.load(folder / "saved", model=again))
    case = CASES["exact"]
    try:
        case.estimator(sharded(case, world), share(case, rank, world) if rank else [])
    except (EmptyDataError, StateError) as error:
        told[f"error in process {rank}"] = type(error).__name__
    gathered: list[Any] = [None] * world
    distributed.all_gather_object(gathered, told)
    told |= {key: value for each in gathered for key, value in each.items()}
    for name in KEEPERS:
        model = kept(name, sharded(CASES["exact"], world), rank, world)
        found |= {f"kept {name}/{key}": value for key, value in many.whole(model.named_parameters()).items()}
    if rank == 0:
        save_file(found, folder / "found.safetensors")
        write_json(folder / "told.json", told)


if __name__ == "__main__":
    with many.member() as (own, count):
        main(Path(sys.argv[1]), own, count)

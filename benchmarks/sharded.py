"""Sharded measuring: what a process takes at most while `hf.fisher` measures a model that several share.

A GPT of random weights under `fully_shard`, every layer a group, learns nothing: its empirical Fisher is measured on a
few texts, each process having its share. Peak memory is what is in use at most, weights included, over what the
libraries take; blocks that are free are given back at once (`benchmarks.memory`). `fully_shard` is of one process too,
so that both columns hold what it does.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.tables import Part
from holdfast.tensors import local

PROCESSES = (1, 2, 4)
TEXTS, LENGTH, VOCABULARY = 8, 16, 8000


class Block(nn.Module):
    """A transformer's layer of causal attention and a feed-forward part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in self.mixed(self.first(x)).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Texts(nn.Module):
    """A causal model, its head tied to its embedding."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.places.weight[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return nn.functional.linear(self.norm(x), self.tokens.weight)


def measure(*, quick: bool = False, workloads: Sequence[str] | None = None) -> Iterator[Part]:
    """One part; nothing where certain workloads are asked for, or where memory cannot be told."""
    if workloads is None and memory.measurable():
        width, layers = (128, 4) if quick else (1024, 15)
        yield measured(width, layers, processes=PROCESSES[:2] if quick else PROCESSES)


def measured(width: int, layers: int, *, processes: Sequence[int]) -> Part:
    """A line a number of processes."""
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in Texts(width, layers).parameters())
    rows, alone = [], 0.0
    for count in processes:
        with tempfile.TemporaryDirectory() as folder:
            found = _in_processes(count, folder, width, layers)
        most = max(peak for peak, _ in found)
        alone = alone or most
        rows.append(
            {
                "processes": count,
                "its weights, MB": 4 * weights / count / memory.MB,
                "peak, MB": most,
                "of one's": most / alone,
                "seconds": statistics.median(seconds for _, seconds in found),
            }
        )
    note = (
        f"{weights / 1e6:.0f} million float32 weights in {layers} layers of width {width}; {TEXTS} texts of {LENGTH} "
        "tokens, one at a time, the proof on the first of them included. The largest peak of all processes; they share "
        "the cores there are, so that seconds say little."
    )
    return Part("gpt", f"A GPT of {weights / 1e6:.0f} million weights", [note], rows)


def _in_processes(count: int, folder: str, width: int, layers: int) -> list[tuple[float, float]]:
    context = torch.multiprocessing.get_context("spawn")
    queue: Any = context.SimpleQueue()
    started = [
        context.Process(target=_one, args=(rank, count, folder, width, layers, queue), daemon=True)
        for rank in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [queue.get() for _ in started]


def _one(rank: int, count: int, folder: str, width: int, layers: int, queue: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    import holdfast as hf

    torch.set_num_threads(1)
    memory.give_back_at_once()
    store = torch.distributed.FileStore(str(Path(folder) / "store"), count)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", (count,))

    def sharded(width: int, layers: int) -> nn.Module:
        with torch.device("meta"):
            model = Texts(width, layers)
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            with torch.no_grad():
                own = local(parameter)
                own.normal_(0, 0.02) if own.ndim > 1 else own.fill_(1.0)
        return model

    ids = torch.randint(VOCABULARY, (TEXTS, LENGTH), generator=torch.Generator().manual_seed(0))[rank::count]
    batches = [(one[:, :-1], one[:, 1:]) for one in ids.split(1)]
    start = 0.0

    def call() -> None:
        nonlocal start
        model, start = sharded(width, layers), time.monotonic()
        hf.fisher(model, batches, kind="empirical")

    peak = memory.peak(call, warmup=lambda: hf.fisher(sharded(64, 2), batches, kind="empirical"))
    queue.put((peak, time.monotonic() - start))
    torch.distributed.destroy_process_group()

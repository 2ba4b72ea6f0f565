"""Several processes on this machine, over gloo on the CPU: how tests start them, and what each of them does first."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

ROOT = Path(__file__).parents[1]


def started(
    count: int, *command: str, logs: Path | None = None, cwd: Path | None = None
) -> list[subprocess.Popen[str]]:
    """Processes as torchrun starts them, which a test may kill one by one; what they say is read, or in `logs`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    told = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": count}
    own = {**os.environ, **{name: str(value) for name, value in told.items()}}
    with ExitStack() as files:
        outputs: list[Any] = [(subprocess.PIPE, subprocess.PIPE)] * count
        if logs is not None:
            opened = [files.enter_context((logs / f"log-{rank}").open("w")) for rank in range(count)]
            outputs = [(file, file) for file in opened]
        return [
            subprocess.Popen(
                command,
                env={**own, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=out,
                stderr=err,
                text=True,
                cwd=cwd,
            )
            for rank, (out, err) in enumerate(outputs)
        ]


def run_together(module: ModuleType, folder: Path, *arguments: str, count: int = 2, timeout: float = 400) -> None:
    """Run `python -m MODULE FOLDER ...` in so many processes, and fail with what the first that failed says."""
    command = sys.executable, "-m", module.__name__, str(folder), *arguments
    processes = started(count, *command, logs=folder, cwd=ROOT)
    end = time.monotonic() + timeout
    try:
        while any(each.poll() is None for each in processes) and time.monotonic() < end:
            if any(each.poll() for each in processes):
                time.sleep(5)  # the others may say more
                break
            time.sleep(0.1)
    finally:
        for each in processes:
            each.kill()
            each.wait()
    ends = [(each.returncode, (folder / f"log-{rank}").read_text()[-3000:]) for rank, each in enumerate(processes)]
    assert all(status == 0 for status, _ in ends), "\n".join(f"{status}: {told}" for status, told in ends)


@contextmanager
def member() -> Iterator[tuple[int, int]]:
    """Within it this process is one of several, on one thread: its number, and how many there are."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    try:
        yield distributed.get_rank(), distributed.get_world_size()
    finally:
        distributed.destroy_process_group()


@contextmanager
def group_of_one(folder: Path) -> Iterator[None]:
    """Within it there is a process group of this process alone, which takes seconds less than others."""
    store = distributed.FileStore(str(folder / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def spread_over(model: nn.Module, inner: Iterable[nn.Module], *shape: int, **options: Any) -> nn.Module:
    """The model under `fully_shard`, and these layers of it before; of two numbers the first is of copies."""
    names = ("copies", "shards") if len(shape) == 2 else None  # named, it has a group that torch remembers in the next
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for layer in inner:
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def whole(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> a tensor of its own, gathered where it is sharded; without what DDP puts before a name."""
    return {
        name.removeprefix("module."): (
            tensor.detach().full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach().clone()
        ).contiguous()
        for name, tensor in named
    }

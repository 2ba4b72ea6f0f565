"""A model whose weights two processes share: `run(folder)` starts them, with this module as their program."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tests.goldens.cases import STEPS, Case, Training
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

CASES = [Case(mechanism, optimizer) for mechanism, optimizer in product(("ewc", "wva"), ("sgd", "adam"))]
WORLD = 2


def run(folder: Path) -> dict[str, Tensor]:
    """Case -> its whole weights at the end."""
    program = [sys.executable, "-m", "tests.goldens.sharded", str(folder)]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen([*program, str(rank)], cwd=root, stderr=subprocess.PIPE, text=True) for rank in range(WORLD)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()  # one that waits for another which has failed
    assert not any(process.returncode for process in processes), "\n".join(errors)[-3000:]
    return load_file(folder / "weights.safetensors")


def _shard(model: nn.Sequential) -> None:
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), WORLD)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    found = {}
    for case in CASES:
        training = Training(case, prepare=_shard, share=(rank, WORLD)).attach()
        training.steps(0, STEPS)
        found[str(case)] = torch.cat([p.detach().full_tensor().flatten() for p in training.model.parameters()])
    if rank == 0:
        save_file(found, folder / "weights.safetensors")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

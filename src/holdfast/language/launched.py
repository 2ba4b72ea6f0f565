"""Processes that torchrun or accelerate started, and their process group, which begins and ends here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from holdfast.errors import LostProcessError, OptionError
from holdfast.language.processes import Processes

STARTING = timedelta(minutes=10)
"""So long a process waits for all others to have started."""

WORKING = timedelta(hours=6)
"""So long for one of them at work: the first alone measures and writes some things. One that is dead is noticed at
once."""

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """That several processes were started, and which of them this is.

    Attributes:
        rank: the number of this process, from 0.
        count: how many there are, two or more.
        local_rank: its number among those of this machine.
    """

    rank: int
    count: int
    local_rank: int

    def device(self, name: str) -> str:
        """Of "cuda" the device of this process; any other name as it is.

        Raises:
            OptionError: one CUDA device was named for all processes.
        """
        if not name.startswith("cuda"):
            return name
        if name != "cuda":
            raise OptionError(
                f"--device {name} is one device, and {self.count} processes were started. Give --device cuda, of which "
                "each takes its own."
            )
        return f"cuda:{self.local_rank}"


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """What torchrun said in the environment; None where one process was started.

    Raises:
        OptionError: several were started, and not as torchrun does.
    """
    size = environment.get("WORLD_SIZE", "")
    if not size.isdigit() or int(size) < 2:
        return None
    missing = [name for name in _NEEDED if not environment.get(name)]
    rank, local_rank = environment.get("RANK", ""), environment.get("LOCAL_RANK", "0")
    if missing or not (rank.isdigit() and int(rank) < int(size) and local_rank.isdigit()):
        told = f"without {', '.join(missing)}" if missing else f"with RANK {rank!r} and LOCAL_RANK {local_rank!r}"
        raise OptionError(
            f"WORLD_SIZE is {size} {told}: several processes are started by torchrun --nproc-per-node {size} -m "
            "holdfast ..., one without it, with WORLD_SIZE unset."
        )
    return Launch(int(rank), int(size), int(local_rank))


@contextmanager
def joined(launch: Launch) -> Iterator[tuple[Processes, Any]]:
    """The process group of all processes, as long as the block: gloo for tensors on the CPU, nccl for CUDA's.

    Yields:
        The processes, and the store by which they reach each other, also where one of them is gone.

    Raises:
        LostProcessError: they do not find each other.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    processes = Processes(launch.rank, launch.count)
    if torch.cuda.is_available() and launch.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(launch.local_rank)
    try:
        store, rank, size = next(torch.distributed.rendezvous("env://", timeout=STARTING))
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WORKING)
    except RuntimeError as error:
        told = " ".join(str(error).split())[:200]
        raise LostProcessError(
            f"the {launch.count} processes did not find each other ({told}). Start them with torchrun, and let "
            "MASTER_ADDR and MASTER_PORT be reached by all."
        ) from error
    try:
        yield processes, torch.distributed.PrefixStore("holdfast", store)
    finally:
        torch.distributed.destroy_process_group()

"""A language model in shards: each process has its share of the weights, and whole blocks come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from holdfast.curvature.factored import AnyImportance
from holdfast.language.batches import Example
from holdfast.language.processes import Processes
from holdfast.language.sizes import blocks_of
from holdfast.records import Importance
from holdfast.tensors import is_sharded, local, whole_on_first


def shard_blocks(module: nn.Module, *, device: str | torch.device, processes: Processes) -> None:
    """Spread a model over the processes by `fully_shard`, in place: each of its blocks a group, and all the rest.

    Args:
        module: whole in every process, on the CPU; its shards go to the device.
        device: of this process.
        processes: two or more, joined.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (processes.count,))
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def class_name(module: nn.Module) -> str:
    """Of a model's class, as it was before `fully_shard` made a subclass of it."""
    name = type(module).__name__
    return name.removeprefix("FSDP") if in_shards(module) else name


def in_shards(module: nn.Module) -> bool:
    """Whether a model is spread over processes."""
    return any(map(is_sharded, module.parameters()))


def own_examples(part: Sequence[Example], processes: Processes) -> tuple[Sequence[Example], int]:
    """This process's examples of a part that all measure together, and how often each of the part's is measured.

    The i-th of process r of w has the number w i + r, by which its labels are drawn. Fewer examples than processes are
    measured by all.
    """
    if len(part) < processes.count:
        return part, processes.count
    return part[processes.rank :: processes.count], 1


def gathered_importance(found: AnyImportance, processes: Processes, *, times: int) -> Importance | None:
    """The importance in the first process's memory, tensor by tensor; None in the others.

    Args:
        found: of all processes together, in shards; a diagonal.
        processes: all of which come here.
        times: how often each example was measured.

    Cost: one whole tensor at a time on each device.
    """
    values = {name: whole_on_first(local(value), value) for name, value in found.diagonal.items()}
    info: Any = found.info
    counts = {"num_examples": info.num_examples // times, "num_targets": info.num_targets // times}
    return Importance(values, replace(info, **counts)) if processes.is_first else None

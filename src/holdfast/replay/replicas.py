"""Replicas of one model, which several processes train: what they add to their gradients is the mean of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from holdfast.tensors import is_sharded


def replicas_of(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Any:
    """The processes that train replicas of a model; None where this is the only one, or `fully_shard` spread it.

    Those of a `DistributedDataParallel` model are its process group; of a bare one they are all.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or any(map(is_sharded, parameters)):
        return None
    wrapper = getattr(model, "_orig_mod", model)
    group = wrapper.process_group if isinstance(wrapper, DistributedDataParallel) else distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


def average(tensor: Tensor, replicas: Any) -> Tensor:
    """Make a tensor its mean over processes, in place."""
    tensor /= distributed.get_world_size(replicas)
    distributed.all_reduce(tensor, group=replicas)
    return tensor


def average_gradients(parameters: Sequence[nn.Parameter], replicas: Any) -> None:
    """Make gradients their means over processes; those that no process has stay None.

    Cost: an all-reduce of the gradients.
    """
    found = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    distributed.all_reduce(found, group=replicas)
    for parameter, count in zip(parameters, found.tolist(), strict=True):
        if count:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            average(parameter.grad, replicas)

"""The processes that train one model together: who they are, and the means of what each of them finds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from holdfast.tensors import is_sharded, unwrap


class Replicas:
    """The processes that train one model together, as replicas or shards of it.

    All of them run the same loop, and each must come to every call here, for it waits for the others. They are seen
    where the model was given wrapped in `DistributedDataParallel`, or spread by `fully_shard`. A bare model is this
    process's own, since the others may know nothing of it: so it is for a keeper that one process makes, to save it.
    Where it is wrapped later, its user says so by `named`.

    Args:
        model: as its user was given it; `torch.compile` is looked through.

    Attributes:
        named: the process group that the user named; None for none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.named: Any = None

    @property
    def group(self) -> Any:
        """Their process group; None where this process is alone."""
        if not _several():
            return None
        if self.named is not None:
            return self.named
        if (wrapper := wrapper_of(self._model)) is not None:
            return wrapper.process_group
        spread = any(map(is_sharded, self._model.parameters()))
        return torch.distributed.group.WORLD if spread else None

    @property
    def may_be_more(self) -> bool:
        """Whether there are other processes, of which nobody said whether they train this model too."""
        return self.group is None and _several() and torch.distributed.get_world_size() > 1

    def agreed(self, measured: Sequence[float]) -> list[float]:
        """The means of what the processes measured, in float64."""
        group = self.group
        if group is None or not measured:
            return list(measured)
        device = next(self._model.parameters()).device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        shared = torch.tensor(measured, dtype=dtype, device=device)
        torch.distributed.all_reduce(shared, group=group)
        return (shared / torch.distributed.get_world_size(group)).tolist()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make gradients their means over replicas; those that no process has stay None, and shards stay as they are.

        Cost: an all-reduce of the gradients.
        """
        group = self.group
        if group is None or any(map(is_sharded, parameters)):  # `fully_shard` has averaged them
            return
        found = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        torch.distributed.all_reduce(found, group=group)
        count = torch.distributed.get_world_size(group)
        for parameter, known in zip(parameters, found.tolist(), strict=True):
            if known:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad /= count
                torch.distributed.all_reduce(parameter.grad, group=group)


_whole: WeakSet[nn.Module] = WeakSet()


@contextmanager
def kept_whole(model: nn.Module) -> Iterator[None]:
    """Inside, the weights of a model stay whole: they are there at the wish of who uses it."""
    bare = unwrap(model)
    _whole.add(bare)
    try:
        yield
    finally:
        _whole.discard(bare)


def rest(model: nn.Module) -> None:
    """Let the weights of all groups of a sharded model go, as between training steps, unless they are `kept_whole`.

    A forward pass without a backward pass leaves those of the outermost group in every process.
    """
    if "torch.distributed.fsdp" not in sys.modules or unwrap(model) in _whole:  # the import takes seconds
        return
    from torch.distributed.fsdp import FSDPModule

    for module in unwrap(model).modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def wrapper_of(model: nn.Module) -> DistributedDataParallel | None:
    """The `DistributedDataParallel` that a model is, compiled or not; None where it is none."""
    inner: Any = model
    while inner is not None and not isinstance(inner, DistributedDataParallel):
        inner = getattr(inner, "_orig_mod", None)
    return inner


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()

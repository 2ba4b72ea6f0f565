"""The processes that train one model together: who they are, and the means of what each of them finds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from holdfast.errors import StateError
from holdfast.tensors import Found, is_sharded, unwrap


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


class Meeting:
    """The processes that measure replicas of one model together, each with its own share of the data.

    They are those of the `DistributedDataParallel` that the model was given wrapped in; of any other model this process
    is alone, and nothing is asked of others. All come to every call here, in the same order. Within `with meeting`, and
    in `together`, an error in one of them ends all.

    Args:
        model: as its user gave it; `torch.compile` is looked through.
        where: for messages.

    Attributes:
        group: their process group; None where this process is alone.
        size, rank: how many they are, and which of them this process is.
    """

    def __init__(self, model: nn.Module, *, where: str) -> None:
        wrapper = wrapper_of(model) if _several() else None
        self.group: Any = None if wrapper is None else wrapper.process_group
        self.size, self.rank = 1, 0
        if wrapper is not None:
            self.size, self.rank = (f(self.group) for f in (distributed.get_world_size, distributed.get_rank))
            self.group = self.group if self.size > 1 else None
        self._where = where
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._ended = False

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.group is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is not None and not self.is_alone and not self._ended:
            self._ended = True
            with suppress(RuntimeError):  # the others are gone: the error here is to be told
                self._reduced([1.0])

    def together(self, act: Callable[[], Found]) -> Found:
        """What `act` finds here, if no process raised."""
        if self.is_alone:
            return act()
        with self:
            found = act()
            self.check()
            return found

    def check(self) -> None:
        """Raise `StateError` if another process ended in an error, or has not come."""
        if not self.is_alone:
            self.total([])

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sums of these numbers over the processes, in float64 (of an accelerator without it in float32)."""
        if self.is_alone:
            return list(numbers)
        try:
            failed, *found = self._reduced([0.0, *numbers])
        except RuntimeError as error:
            self._ended = True
            raise StateError(
                f"{self._where}: not all {self.size} processes of the DistributedDataParallel model came here, to join "
                "what they measured. Call it in every process, or give it the bare model, model.module, where one "
                "process alone measures."
            ) from error
        if failed:
            self._ended = True
            raise StateError(f"{self._where}: another process ended in an error, which it tells.")
        return found

    def largest(self, number: float) -> float:
        """The largest of the processes' numbers."""
        self.check()
        shared = torch.tensor([number], dtype=torch.float32, device=self._device)
        if not self.is_alone:
            distributed.all_reduce(shared, distributed.ReduceOp.MAX, group=self.group)
        return float(shared)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors the sums of those that all processes have.

        Cost: an all-reduce of each.
        """
        self.check()
        for tensor in () if self.is_alone else tensors:
            distributed.all_reduce(tensor, group=self.group)

    def _reduced(self, numbers: Sequence[float]) -> list[float]:
        dtype = torch.float32 if self._device.type == "mps" else torch.float64
        shared = torch.zeros(_NUMBERS, dtype=dtype, device=self._device)
        shared[: len(numbers)] = torch.tensor(numbers, dtype=dtype)
        distributed.all_reduce(shared, group=self.group)
        return shared[: len(numbers)].tolist()


_NUMBERS = 8
"""That a meeting adds up at once: always as many, so that one that ended is told of wherever the others are."""


def wrapper_of(model: nn.Module) -> DistributedDataParallel | None:
    """The `DistributedDataParallel` that a model is, compiled or not; None where it is none."""
    inner: Any = model
    while inner is not None and not isinstance(inner, DistributedDataParallel):
        inner = getattr(inner, "_orig_mod", None)
    return inner


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()

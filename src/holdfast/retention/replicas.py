"""Replicas of one model must go on alike: what they are given is compared, and what they measure is averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from holdfast.curvature.factored import AnyImportance, importance_of
from holdfast.curvature.files import layers_to_tensors
from holdfast.curvature.protocol import Measured
from holdfast.errors import StateError
from holdfast.records import ImportanceInfo
from holdfast.tensors import is_sharded, prefixed, sum_of, under


class Replicas:
    """The processes that train one model together, as replicas or shards of it.

    All of them run the same loop, and each must come to every call here, for it waits for the others. They are seen
    where the model was given wrapped in `DistributedDataParallel`, or spread by `fully_shard`. A bare model is this
    process's own, since the others may know nothing of it: so it is for a keeper that one process makes, to save it.
    Where it is wrapped later, its user says so by `named`.

    Args:
        model: as the keeper was given it; `torch.compile` is looked through.

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
        if (wrapper := _wrapper(self._model)) is not None:
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


def check_replicas(importance: Measured, model: nn.Module, *, where: str) -> None:
    """Raise where the processes that train replicas of `model` are about to hold different importances.

    They are compared where the model was given wrapped in `DistributedDataParallel`, over its process group: all of its
    processes run the same loop, and each must call this. Nothing is compared where the model was given bare, nor where
    `fully_shard` has spread it, since every process then takes its part of one whole.

    Args:
        importance: that this process is to hold.
        model: as the keeper was given it; `torch.compile` is looked through.
        where: for the message.

    Raises:
        StateError: the importances are not the same to the bit, or not all processes called; in all that did.

    Cost: one pass over the importance, and an all-gather of two numbers.
    """
    wrapper = _wrapper(model)
    if wrapper is None:
        return
    tensors = tensors_of(importance)
    total = torch.tensor([sum_of(value.sum() for value in tensors.values())], dtype=torch.float64)
    bits = {name: int(_bits(value).sum(dtype=torch.int64)) for name, value in tensors.items()}
    mine = torch.cat([torch.tensor([digest((form_of(tensors), bits))]), total.view(torch.int64)])
    try:
        digests, totals = gathered(mine.to(next(wrapper.parameters()).device), wrapper.process_group)
    except RuntimeError as error:
        raise StateError(
            f"{where}: not all processes of the DistributedDataParallel model came here, to compare what they hold. "
            "Call it in every process, or give a keeper that one process alone needs the bare model, model.module."
        ) from error
    if (digests != digests[0]).any():
        raise StateError(
            f"{where}: the importances differ between the {len(digests)} processes: their entries add up to "
            f"{', '.join(f'{value:.6g}' for value in totals.view(torch.float64).tolist())}. Replicas that hold "
            "different importances drift apart. Join what each measured on its own share of the data: "
            "holdfast.integrations.sharding.over_processes(importance)."
        )


def tensors_of(importance: Measured) -> dict[str, Tensor]:
    """Everything that an importance consists of, in the order of names; of layers "factors/WEIGHT/inputs" and so on."""
    return dict(sorted({**prefixed("factors", layers_to_tensors(importance.layers)), **importance.diagonal}.items()))


def importance_with(importance: AnyImportance, tensors: Mapping[str, Tensor], info: ImportanceInfo) -> AnyImportance:
    """Of the form of `importance`, from tensors as `tensors_of` names them."""
    layers = {name: replace(layer, **under(f"factors/{name}", tensors)) for name, layer in importance.layers.items()}
    return importance_of(layers, {name: tensors[name] for name in importance.diagonal}, info)


def form_of(tensors: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes."""
    return [(name, tuple(value.shape)) for name, value in tensors.items()]


def gathered(numbers: Tensor, group: Any) -> Tensor:
    """Of a vector of each process its numbers side by side, on the CPU: [numbers, processes]."""
    found = [torch.empty_like(numbers) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(found, numbers, group=group)
    return torch.stack(found, dim=1).cpu()


def digest(value: Any) -> int:
    """A number of 63 bits that stands for what has this `repr`."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "big") >> 1


def _bits(value: Tensor) -> Tensor:
    """As whole numbers, whose sum does not depend on the order in which a device adds."""
    return value.detach().contiguous().view(torch.int32)


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _wrapper(model: nn.Module) -> DistributedDataParallel | None:
    inner: Any = model
    while inner is not None and not isinstance(inner, DistributedDataParallel):
        inner = getattr(inner, "_orig_mod", None)
    return inner

"""Replicas of one model must go on alike: the importances that they are given are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.curvature.factored import AnyImportance, importance_of
from holdfast.curvature.files import layers_to_tensors
from holdfast.curvature.protocol import Measured
from holdfast.errors import StateError
from holdfast.records import ImportanceInfo
from holdfast.replicas import wrapper_of
from holdfast.tensors import prefixed, sum_of, under


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
    wrapper = wrapper_of(model)
    if wrapper is None:
        return
    tensors = tensors_of(importance)
    total = torch.tensor([sum_of(value.sum() for value in tensors.values())], dtype=torch.float64)
    mine = torch.cat([torch.tensor([importance_digest(importance)]), total.view(torch.int64)])
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


def importance_digest(importance: Measured) -> int:
    """A number of 63 bits that stands for the names, shapes and values of an importance.

    Cost: one pass over it.
    """
    tensors = tensors_of(importance)
    bits = {name: int(_bits(value).sum(dtype=torch.int64)) for name, value in tensors.items()}
    return digest((form_of(tensors), bits))


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

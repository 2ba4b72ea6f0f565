"""What several processes measured, each on its share of the data, as one importance of all data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from holdfast.curvature.factored import AnyImportance, importance_of
from holdfast.curvature.files import layers_to_tensors
from holdfast.curvature.protocol import Measured
from holdfast.errors import OptionError, ParameterMismatchError
from holdfast.records import ImportanceInfo
from holdfast.tensors import local, prefixed, under

Joined = TypeVar("Joined", bound=AnyImportance)

PROCESSES = "processes"
"""In `ImportanceInfo.details`: of how many processes' data it is; missing for what one process measured."""

_NO_MEANS = {
    "fisher-batched": "is a mean over batches, whose number is not known any more. Measure on the model wrapped in "
    "DistributedDataParallel, which joins it, or use another kind.",
    "mas-batched": "is an absolute value of each process's mean. Measure on the model wrapped in "
    "DistributedDataParallel, which joins it, or without batched=True.",
    "si": "is no mean over targets, and needs none: SynapticIntelligence under DistributedDataParallel finds the same "
    "in every process. Retain it as it is.",
}


def is_joined(info: ImportanceInfo) -> bool:
    """Whether it is of all processes' data already."""
    return PROCESSES in info.details


def joined(importance: Joined, *, group: Any, where: str) -> Joined:
    """The mean of what the processes measured, weighted by what each is a mean over, the same in all of them.

    Args:
        importance: of this process: a mean over targets, or of `kfac` each factor by itself.
        group: of the processes; None for all.
        where: for messages.

    Raises:
        OptionError: an importance that is no mean over targets, or whose number of targets nobody knows.
        ParameterMismatchError: kinds, names or shapes differ between processes; in all of them.

    Cost: an all-gather of five numbers, and one all-reduce of each tensor.
    """
    info, tensors = importance.info, tensors_of(importance)
    if info.kind in _NO_MEANS:
        raise OptionError(f"{where}: {info.kind!r} {_NO_MEANS[info.kind]}")
    joint = _of_all(info, tensors, group, where=where)
    weights = _weights(importance, tensors)
    found = {name: value * weight for (name, value), weight in zip(tensors.items(), weights)}
    torch.distributed.all_reduce(weights, group=group)
    for value, total in zip(found.values(), weights):
        torch.distributed.all_reduce(value, group=group)
        value.div_(total.where(total > 0, 1.0))
    of_all: Any = importance_with(importance, found, joint)
    return of_all


def tensors_of(importance: Measured) -> dict[str, Tensor]:
    """Everything that an importance consists of, in the order of names; of layers "factors/WEIGHT/inputs" and so on."""
    return dict(sorted({**prefixed("factors", layers_to_tensors(importance.layers)), **importance.diagonal}.items()))


def importance_digest(importance: Measured) -> int:
    """A number of 63 bits that stands for the names, shapes and values of an importance.

    Cost: one pass over it.
    """
    tensors = tensors_of(importance)
    return digest((form_of(tensors), {name: sum_of_bits(value) for name, value in tensors.items()}))


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


def sum_of_bits(value: Tensor) -> int:
    """The sum of float32 entries as whole numbers, which does not depend on the order in which a device adds.

    Of a DTensor those of this process's shard.
    """
    return int(local(value.detach()).contiguous().view(torch.int32).sum(dtype=torch.int64))


def _weights(importance: AnyImportance, tensors: Mapping[str, Tensor]) -> Tensor:
    """[len(tensors)] float64: over how many targets, examples or units of trace each of the tensors is a mean here."""
    info = importance.info
    weights: dict[str, Tensor | int] = dict.fromkeys(tensors, info.num_targets)
    by_name = str(info.details.get("matched", "")).split(", ")
    for name in importance.layers:
        inputs, outputs = f"factors/{name}/inputs", f"factors/{name}/outputs"
        if info.details.get("factors") == "matched" or name in by_name:
            weights[outputs] = info.num_targets * tensors[inputs].trace()
        else:
            weights[inputs] = info.num_examples
    device = next(iter(tensors.values())).device
    return torch.tensor([float(weight) for weight in weights.values()], dtype=torch.float64, device=device)


def _of_all(info: ImportanceInfo, tensors: Mapping[str, Tensor], group: Any, *, where: str) -> ImportanceInfo:
    """With the examples, targets and mean nats per unit of all processes; raises unless they measured the same."""
    nats = info.nats_per_unit
    form = (info.kind, info.unit, nats is None, info.calibration, info.calibrated_at, info.scatter is None)
    numbers = [info.num_examples, info.num_targets, 0.0 if nats is None else nats, info.scatter or 0.0]
    own, numbers = digest((*form, form_of(tensors))), torch.tensor(numbers, dtype=torch.float64)
    mine = torch.cat([torch.tensor([own]), numbers.view(torch.int64)]).to(next(iter(tensors.values())).device)
    digests, *rows = gathered(mine, group)
    examples, targets, factors, scatters = (row.view(torch.float64) for row in rows)
    if (digests != digests[0]).any():
        raise ParameterMismatchError(
            f"{where}: kind, unit, calibration, names or shapes differ between processes; in this one "
            f"{info.kind}, {info.unit}, {len(tensors)} tensors. In all of them, measure the same parameters with the "
            "same options."
        )
    counts = {"num_examples": int(examples.sum()), "num_targets": int(targets.sum())}
    if unknown := [name for name, count in counts.items() if not count]:
        raise OptionError(
            f"{where}: {' and '.join(unknown)} of this importance ({info.kind}) is 0 in all processes, and it "
            f"weights the mean. Say it of each: importance.with_info({', '.join(f'{name}=...' for name in unknown)})."
        )
    mean = None if nats is None else float(targets @ factors / counts["num_targets"])
    scatter = None if info.scatter is None else float(scatters.max())
    details = {**info.details, PROCESSES: len(digests)} if len(digests) > 1 else info.details
    return replace(info, **counts, nats_per_unit=mean, scatter=scatter, details=details)

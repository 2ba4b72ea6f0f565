"""Maps from parameter name to tensor: where they come from, and how they are walked.

Maps name -> tensor travel between all stages of the library. Names are *canonical*: those of
`model.named_parameters()` of the bare model, whatever wraps it, with tied weights under their first name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

TensorMap = Mapping[str, Tensor]

_WRAPPER_PIECES = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

CHUNK_BYTES = 64 * 2**20
"""Lists of tensors are walked in chunks of at most this many bytes (or one tensor), which bounds temporaries."""


def unwrap(model: nn.Module) -> nn.Module:
    """The bare model inside `DataParallel`, `DistributedDataParallel` and `torch.compile` wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def canonical_name(name: str) -> str:
    """A parameter's name without the pieces that `torch.compile`, FSDP or checkpoint wrappers put in.

    >>> canonical_name("encoder._orig_mod.weight")
    'encoder.weight'
    """
    return _WRAPPER_PIECES.sub("", name)


def all_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Canonical name -> parameter, frozen ones too; tied weights once."""
    return {canonical_name(name): parameter for name, parameter in unwrap(model).named_parameters()}


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Canonical name -> parameter for every parameter that requires a gradient; tied weights once."""
    return {name: parameter for name, parameter in all_parameters(model).items() if parameter.requires_grad}


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """Canonical name -> all names of the parameter, the canonical first; more than one where weights are tied."""
    bare = unwrap(model)
    first = {id(parameter): canonical_name(name) for name, parameter in bare.named_parameters()}
    names: dict[str, list[str]] = {name: [] for name in first.values()}
    for name, parameter in bare.named_parameters(remove_duplicate=False):
        names[first[id(parameter)]].append(canonical_name(name))
    return names


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype to compute in: float32, or the tensor's own where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def copies(tensors: TensorMap) -> dict[str, Tensor]:
    """Detached copies that share no memory with the originals."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def chunks(tensors: Sequence[Tensor], *, limit: int = CHUNK_BYTES) -> Iterator[slice]:
    """Slices of `tensors` of at most `limit` bytes each, never mixing devices or dtypes.

    A chunk can be handed to one `torch._foreach_*` call, and its temporaries stay below the
    limit or the largest single tensor.
    """
    start, size = 0, 0
    for index, tensor in enumerate(tensors):
        same = (tensor.device, tensor.dtype) == (tensors[start].device, tensors[start].dtype)
        if index > start and (not same or size + tensor.nbytes > limit):
            yield slice(start, index)
            start, size = index, 0
        size += tensor.nbytes
    if len(tensors) > start:
        yield slice(start, len(tensors))


def sum_of(values: Iterable[Tensor]) -> float:
    """The sum of zero-dimensional tensors, possibly on several devices, as a float (one wait for each device)."""
    total = Total()
    total.add(values)
    return total.read()


class Total:
    """A sum of zero-dimensional tensors that grows, possibly on several devices."""

    def __init__(self) -> None:
        self._by_device: dict[torch.device, Tensor] = {}

    def add(self, values: Iterable[Tensor]) -> None:
        """Count these, without waiting for them."""
        totals = self._by_device
        for value in values:
            value = value.to(torch.float64) if value.device.type != "mps" else value
            totals[value.device] = totals[value.device] + value if value.device in totals else value

    def read(self) -> float:
        """What they come to (one wait for each device)."""
        return float(sum(total.item() for total in self._by_device.values()))


def ranks(values: Tensor) -> Tensor:
    """Rank of each element of a flattened tensor, ties sharing their mean rank; float64, shape [numel]."""
    _, inverse, counts = torch.unique(values.flatten(), return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() + 1) / 2)[inverse]


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two tensors of one shape, in -1..1; NaN where one of them is constant."""
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = a.norm() * b.norm()
    return float((a @ b) / scale) if scale > 0 else float("nan")

"""Maps from parameter name to tensor: where they come from, and how they are walked.

Maps name -> tensor travel between all stages of the library. Names are *canonical*: those of
`model.named_parameters()` of the bare model, whatever wraps it, with tied weights under their first name.

The parameters of a model that `fully_shard` spread over processes are DTensors. Every process holds what belongs to its
own shards, in plain tensors: `local`, `shard` and `whole` go from one form to the other.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from holdfast.errors import ParameterMismatchError, StateError, UnsupportedLayerError

TensorMap = Mapping[str, Tensor]

Found = TypeVar("Found")

_WRAPPER_PIECES = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

CHUNK_BYTES = 64 * 2**20
"""Lists of tensors are walked in chunks of at most this many bytes (or one tensor), which bounds temporaries."""


def copied(model: nn.Module, memo: dict[int, Any], *, where: str) -> nn.Module:
    """The model's deep copy, for what is copied together with it.

    Args:
        model: the model.
        memo: of `copy.deepcopy`.
        where: who asks, for the message.

    Raises:
        StateError: the model is being copied, and who asks is an attribute of it: nothing is in the copy yet.
    """
    twin = copy.deepcopy(model, memo)
    if not vars(twin):
        raise StateError(
            f"{where}: it is an attribute of the {type(model).__name__} that is being copied, and would be copied "
            "before the weights. Copy it first, copy.deepcopy((it, model, optimizer)), or keep it outside of the model."
        )
    return twin


def unwrap(model: nn.Module) -> nn.Module:
    """The bare model inside `DataParallel`, `DistributedDataParallel` and `torch.compile` wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module as it was before `fully_shard`, which gives each that it takes a class of its own."""
    bases = type(module).__bases__
    return bases[1] if len(bases) == 2 and bases[0].__name__ == "FSDPModule" else type(module)


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


def check_real(parameters: TensorMap, *, where: str) -> None:
    """Raise `UnsupportedLayerError` naming every parameter that is not of real numbers in 16 to 64 bits.

    An importance is one real number for each weight, and a complex weight has two parts that matter apart.
    """
    strange = {name: p.dtype for name, p in parameters.items() if p.dtype not in _REAL}
    if not strange:
        return
    listed = ", ".join(f"{name!r} ({str(dtype).removeprefix('torch.')})" for name, dtype in strange.items())
    if any(dtype.is_complex for dtype in strange.values()):
        remedy = (
            "Keep complex weights as a real parameter of shape [..., 2], made by torch.view_as_real and seen through "
            "torch.view_as_complex in forward(), or freeze them with requires_grad_(False)."
        )
    else:
        remedy = "Train them in bfloat16 or float32, or freeze them with requires_grad_(False)."
    raise UnsupportedLayerError(
        f"{where}: {len(strange)} of {len(parameters)} trainable parameters hold no real numbers in 16 to 64 bits: "
        f"{listed}. {remedy}"
    )


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


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor, sharing its memory; another tensor as it is."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "to_local")


def shard(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Of a tensor of the parameter's shape, which every process has, what lies beside this process's shard of it."""
    like: Any = parameter
    if is_sharded(tensor) or not is_sharded(parameter):
        return local(tensor)
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(parameter.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None).to_local()


def whole(piece: Tensor, parameter: Tensor) -> Tensor:
    """The tensor of which every process has what `shard` gave it; each of them must ask for it."""
    laid: Any = placed(piece, parameter)
    return laid.full_tensor() if is_sharded(parameter) else piece


def placed(piece: Tensor, parameter: Tensor) -> Tensor:
    """This process's shard of a tensor as a DTensor beside the parameter's, sharing memory; else as it is."""
    like: Any = parameter
    if not is_sharded(parameter):
        return piece
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        piece.to(parameter.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )


class Gathered:
    """A tensor that the processes have parts of, made whole when it is taken; all of them take it, once.

    Args:
        sharded: a DTensor.

    Attributes:
        shape, dtype: of the whole.
        is_taken: whether this process has taken it.
    """

    def __init__(self, sharded: Tensor) -> None:
        self._sharded = sharded
        self.shape, self.dtype = sharded.shape, sharded.dtype
        self.is_taken = False

    def take(self) -> Tensor:
        """The whole, on the CPU of the first process; in others a tensor of no entries."""
        self.is_taken = True
        return whole_on_first(local(self._sharded), self._sharded)


def gathered_when_taken(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | Gathered]:
    """The same tensors, those that the processes have parts of `Gathered`."""
    return {name: Gathered(tensor) if is_sharded(tensor) else tensor for name, tensor in tensors.items()}


def bounds_of(parameter: Tensor) -> tuple[slice, ...]:
    """Which entries of a parameter this process has, along each of its axes."""
    like: Any = parameter
    if not is_sharded(parameter):
        return tuple(slice(0, length) for length in parameter.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    lengths, starts = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))


def reduced_to_shards(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's shard of the sum of all processes' tensors of the parameter's shape; each must ask for it.

    Cost: a reduce-scatter.
    """
    like: Any = parameter
    from torch.distributed.tensor import DTensor, Partial

    terms: Any = DTensor.from_local(tensor, like.device_mesh, [Partial()] * like.device_mesh.ndim, run_check=False)
    return terms.redistribute(placements=like.placements).to_local()


def whole_on_first(piece: Tensor, parameter: Tensor) -> Tensor:
    """As `whole`, for the first process alone, on its CPU; the others get a tensor of no entries."""
    found = whole(piece, parameter)
    return found.cpu() if torch.distributed.get_rank() == 0 else found.new_empty(0)


@dataclass(frozen=True)
class Shards:
    """How a model's parameters are spread over processes, all in one way.

    Attributes:
        mesh: the processes, a `DeviceMesh`.
        copies: how many processes have the same shard.
    """

    mesh: Any
    copies: int

    def sum_of(self, values: Iterable[Tensor]) -> float:
        """As `sum_of`, of the terms of all processes, which must all ask for it; each shard counts once."""
        return self.totals([sum_of(values)])[0] / self.copies

    def largest(self, value: float) -> float:
        """The largest of all processes' values, which must all ask for it."""
        return self._reduced([value], torch.distributed.ReduceOp.MAX)[0]

    @property
    def first(self) -> int:
        """Which of them is the process that writes for all."""
        return int((self.mesh.mesh.flatten() == 0).nonzero().item())

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes for all."""
        return torch.distributed.get_rank() == 0

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.largest(0.0)

    def together(self, act: Callable[[], Found], *, where: str) -> Found:
        """What `act` finds here, if it finds something in all processes, which must all ask for it.

        Args:
            act: asks nothing of the other processes.
            where: for the message.

        Raises:
            StateError: it raised in another process alone; its own error where it raised in this one.
        """
        try:
            found = act()
        except BaseException:
            self.largest(1.0)
            raise
        if self.largest(0.0):
            raise StateError(f"{where}: another process of the sharded model was refused, and says why.")
        return found

    def totals(self, values: Sequence[float]) -> list[float]:
        """The sums of each of these numbers over all processes, which must all ask for them, in float64."""
        return self._reduced(values, torch.distributed.ReduceOp.SUM)

    def add_up(self, tensor: Tensor, how: Any = None) -> None:
        """Make a tensor the sum of those that all processes have, who must all ask for it."""
        for dim in range(self.mesh.ndim):
            how = torch.distributed.ReduceOp.SUM if how is None else how
            torch.distributed.all_reduce(tensor, how, group=self.mesh.get_group(dim))

    @property
    def size(self) -> int:
        """How many processes there are."""
        return int(self.mesh.size())

    @property
    def rank(self) -> int:
        """Which of them this process is, counted along the last axis of the mesh first."""
        return int((self.mesh.mesh.flatten() == torch.distributed.get_rank()).nonzero().item())

    def add_up_at(self, rank: int, tensor: Tensor) -> None:
        """Make the tensor of one process the sum of those that all have, who must all ask for it.

        What the others have behind it has no meaning.

        Cost: a reduction; no process receives more than it gives.
        """
        for dim, group, source in reversed(list(self._ways_to(rank))):
            if self._is_beside(rank, dim):
                torch.distributed.reduce(tensor, source, group=group)

    def hand_over(self, tensor: Tensor, source: int, to: int) -> None:
        """Copy the tensor of process `source` into that of process `to`; of the others none need ask for it."""
        ranks = self.mesh.mesh.flatten().tolist()
        if source == to or self.rank not in (source, to):
            return
        if self.rank == source:
            torch.distributed.send(tensor.contiguous(), ranks[to])
        else:
            torch.distributed.recv(tensor, ranks[source])

    def _ways_to(self, rank: int) -> Iterator[tuple[int, Any, int]]:
        """Along each axis of the mesh: the group that this process is in, and the one there beside `rank`."""
        for dim, place in enumerate(self._place(rank)):
            group = self.mesh.get_group(dim)
            yield dim, group, torch.distributed.get_global_rank(group, place)

    def _is_beside(self, rank: int, dim: int) -> bool:
        """Whether this process and `rank` have the same places along all axes after this one."""
        return self._place(self.rank)[dim + 1 :] == self._place(rank)[dim + 1 :]

    def _place(self, rank: int) -> tuple[int, ...]:
        """Along each axis of the mesh."""
        found: list[int] = []
        for length in reversed(self.mesh.mesh.shape):
            rank, place = divmod(rank, length)
            found.append(place)
        return tuple(reversed(found))

    def _reduced(self, values: Sequence[float], how: Any) -> list[float]:
        found = torch.tensor(values, dtype=torch.float64, device=self.mesh.device_type)
        self.add_up(found, how)
        return found.tolist()


def shards_of(parameters: TensorMap) -> Shards | None:
    """How these parameters are spread over processes; None where none of them is sharded.

    Raises:
        ParameterMismatchError: some are sharded in another way than the first, or not at all.
    """
    kinds = {name: _shards(parameter) for name, parameter in parameters.items()}
    first = next((kind for kind in kinds.values() if kind is not None), None)
    if first is None:
        return None
    other = [name for name, kind in kinds.items() if kind != first]
    if other:
        raise ParameterMismatchError(
            f"{len(other)} of {len(kinds)} trainable parameters are not sharded as the others are: "
            f"{', '.join(map(repr, other[:8]))}. Apply fully_shard to the whole model, or freeze them."
        )
    return first


def _shards(parameter: Tensor) -> Shards | None:
    if not is_sharded(parameter):
        return None
    like: Any = parameter
    mesh = like.device_mesh
    parts = math.prod(mesh.size(dim) for dim, placement in enumerate(like.placements) if placement.is_shard())
    return Shards(mesh, mesh.size() // parts)


def copies(tensors: TensorMap) -> dict[str, Tensor]:
    """Detached copies that share no memory with the originals."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def prefixed(prefix: str, tensors: TensorMap) -> dict[str, Tensor]:
    """The same tensors as "prefix/name", so that several maps make one."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: TensorMap) -> dict[str, Tensor]:
    """Of many maps in one the map that `prefixed` put there."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


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


def some_entries(tensor: Tensor, *, most: int = 16) -> Tensor:
    """A few entries, spread over the tensor (of a DTensor over this process's shard): a flat copy."""
    entries = local(tensor.detach())
    flat = entries.view(-1) if entries.is_contiguous() else entries.flatten()
    return flat[:: max(1, len(flat) // most)][:most].clone()


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
        return float(sum(total.item() for total in self.terms))

    @property
    def terms(self) -> list[Tensor]:
        """One for each device."""
        return list(self._by_device.values())


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

"""Replicas of one model must go on alike: the importances that they are given are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.curvature.joining import digest, form_of, gathered, sum_of_bits, tensors_of
from holdfast.curvature.protocol import Measured
from holdfast.errors import StateError
from holdfast.replicas import rest, wrapper_of
from holdfast.tensors import Shards, is_sharded, shards_of, trainable_parameters

_NAMED = 8
"""So many of the tensors that differ are named."""


def check_replicas(importance: Measured, model: nn.Module, *, where: str) -> None:
    """Raise where the processes that train one model are about to hold different importances.

    They are compared where the model was given wrapped in `DistributedDataParallel`, over its process group, and where
    `fully_shard` has spread it: what is measured on its shards between the processes that have copies of the same
    shard, and the diagonal of what each process has whole between all of them. All of these processes run the same
    loop, and each must call this. Nothing is compared where the model was given bare.

    Args:
        importance: that this process is to hold.
        model: as the keeper was given it; `torch.compile` is looked through.
        where: for the message.

    Raises:
        StateError: the importances are not the same to the bit, or not all processes called; in all that did.

    Cost: one pass over the importance, and an all-gather of a number for each of its tensors.
    """
    rest(model)  # an evaluation may have left whole weights behind
    wrapper, shards = wrapper_of(model), shards_of(trainable_parameters(model))
    try:
        if wrapper is not None:
            compared = _Compared(tensors_of(importance), importance, next(wrapper.parameters()).device)
            told = compared.told([wrapper.process_group])
        elif shards is not None:
            compared = _Compared({**importance.diagonal}, importance, torch.device(shards.mesh.device_type))
            told = compared.told([shards.mesh.get_group(dim) for dim in range(shards.mesh.ndim)], shards)
        else:
            return
    except RuntimeError as error:
        raise StateError(
            f"{where}: not all processes of the {'sharded' if wrapper is None else 'DistributedDataParallel'} model "
            "came here, to compare what they hold. Call it in every process, or give a keeper that one process alone "
            "needs the bare model, model.module."
        ) from error
    if told:
        raise StateError(
            f"{where}: the importances differ between the processes in {told}. Replicas that hold different "
            "importances drift apart. Measure on the model that all of them train, wrapped or sharded, which joins "
            "what they find, or join what each measured on its own share of the data: "
            "holdfast.integrations.sharding.over_processes(importance)."
        )


class _Compared:
    """Tensors by name, and the factor to nats, which are to be the same in several processes."""

    def __init__(self, tensors: Mapping[str, Tensor], importance: Measured, device: torch.device) -> None:
        self._tensors, self._nats, self._device = tensors, importance.info.nats_per_unit, device

    def told(self, groups: Sequence[Any], shards: Shards | None = None) -> str:
        """In what the processes differ, in words; empty for nothing.

        Args:
            groups: process groups, along each axis of the mesh where the model is sharded.
            shards: of a sharded model.
        """
        forms = float(any(map(self._forms_differ, groups)))
        if forms if shards is None else shards.largest(forms):
            return "names or shapes"  # and there may not be as many tensors to compare
        differing = torch.zeros(1 + len(self._tensors), dtype=torch.int32, device=self._device)
        for dim, group in enumerate(groups):
            differing |= self._differing(group, dim).to(differing)
        if shards is not None:
            shards.add_up(differing, torch.distributed.ReduceOp.MAX)
        nats, *rest = differing.tolist()
        names = [name for name, differs in zip(self._tensors, rest, strict=True) if differs]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        named = f"{len(names)} of {len(rest)} tensors: {', '.join(map(repr, names[:_NAMED]))}{more}"
        return "; ".join([*([named] if names else []), *(["nats_per_unit"] if nats else [])])

    def _forms_differ(self, group: Any) -> bool:
        own = torch.tensor([digest(form_of(self._tensors))], device=self._device)
        forms = gathered(own, group)
        return bool((forms != forms[:, :1]).any())

    def _differing(self, group: Any, dim: int) -> Tensor:
        """[1 + tensors] whether the factor to nats differs in this group, and each tensor."""
        digests = [0 if _is_cut(value, dim) else sum_of_bits(value) for value in self._tensors.values()]
        rows = gathered(torch.tensor([digest(self._nats), *digests], device=self._device), group)
        return (rows != rows[:, :1]).any(dim=1)


def _is_cut(value: Tensor, dim: int) -> bool:
    """Whether the processes along this axis of the mesh have different parts of a tensor."""
    sharded: Any = value
    return is_sharded(value) and sharded.placements[dim].is_shard()

"""The sums that a measurement adds up: whole ones, or the shards of a model that lies on many devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from holdfast.moments.company import Company
from holdfast.moments.gradients import accumulator_dtype, zero_like
from holdfast.tensors import reduced_to_shards, trainable_parameters


class Totals(Mapping[str, Tensor]):
    """Name -> the sum so far of every trainable parameter, in which passes add.

    Of a sharded model a sum is whole only as long as its group of layers is at work: then it is given, added up over
    the processes and scattered to their shards.

    Args:
        model: whose parameters they are.
        company: of the model.
        start: name -> where each sum begins, laid out as `kept` is, changed in place; None: at zero, and a sum takes
            memory when something is first added to it.
    """

    def __init__(self, model: nn.Module, company: Company, *, start: Mapping[str, Tensor] | None = None) -> None:
        self._parameters, self._company = trainable_parameters(model), company
        self._kept: dict[str, Tensor] = dict(start or {})
        self._whole: dict[str, Tensor] = {}

    @property
    def kept(self) -> dict[str, Tensor]:
        """Name -> this process's part of all that was given; alone the sums themselves."""
        return {name: self._own(name) for name in self._parameters}

    def __getitem__(self, name: str) -> Tensor:
        if self._company.is_alone:
            return self._own(name)
        if name not in self._whole:
            like = self._parameters[name]
            self._whole[name] = torch.zeros(like.shape, dtype=accumulator_dtype(like), device=like.device)
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def add(self, kept: Mapping[str, Tensor]) -> None:
        """Add what was summed elsewhere, laid out as `kept` is."""
        for name, value in kept.items():
            self._own(name).add_(value)

    @torch.no_grad()
    def give(self, names: Sequence[str]) -> None:
        """Nothing more is added to these; all processes say so of the same names in the same order."""
        for name in () if self._company.is_alone else names:
            self._own(name).add_(reduced_to_shards(self[name], self._parameters[name]))
            del self._whole[name]

    def give_rest(self) -> None:
        """Nothing more is added to any of them for now."""
        if not self._company.is_alone:
            pending = self._company.union(self._whole)
            self.give([name for name in self._parameters if name in pending])

    def _own(self, name: str) -> Tensor:
        if name not in self._kept:
            self._kept[name] = zero_like(self._parameters[name])
        return self._kept[name]

"""The sums for the factors of layers: of all, or, where processes share a model, of those that are one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, assert_never

import torch

from holdfast.moments.company import Company
from holdfast.moments.symmetric import SymmetricSum

Side = Literal["inputs", "outputs"]


class FactorTotals:
    """Sums of products, by side and layer, in which batches add.

    Where processes share a model, each layer's sums belong to its owner. What the others add to them they have for a
    while, and give it to the owner, all in the same order, as soon as it fills `limit` bytes. So no process has the
    sums of all layers.

    Args:
        company: the processes.
        limit: bytes of what is not yet given; one factor more at most.

    Attributes:
        inputs: weight -> the sum for A, of the layers that are this process's own, and of what is not yet given.
        outputs: likewise for G.
    """

    def __init__(self, company: Company, *, limit: int) -> None:
        self._company, self._limit, self._filled = company, limit, 0
        self._owners: Mapping[str, int] = {}
        self._pending: dict[tuple[Side, str], SymmetricSum] = {}
        self.inputs: dict[str, SymmetricSum] = {}
        self.outputs: dict[str, SymmetricSum] = {}

    def belong(self, owners: Mapping[str, int]) -> None:
        """Say which process owns each layer, before anything is added."""
        self._owners = owners

    def of(self, side: Side) -> dict[str, SymmetricSum]:
        """The sums of a side, by weight."""
        match side:
            case "inputs":
                return self.inputs
            case "outputs":
                return self.outputs
            case _:
                assert_never(side)

    def take_part(self, side: Side, weight: str, size: int, *, like: torch.Tensor, width: int | None) -> None:
        """All processes come here for a layer when they have added what they have to one of its sums.

        Args:
            side: which of them.
            weight: of the layer.
            size: n of the sum [n, n].
            like: a tensor of its dtype and on its device.
            width: of its blocks, as `SymmetricSum` says.
        """
        if self._company.is_alone:
            return
        sums = self.of(side)
        if weight not in sums:
            sums[weight] = SymmetricSum(size, like=like, width=width)
        own = sums[weight]
        if (side, weight) not in self._pending:
            self._pending[side, weight] = own
            self._filled += own.upper.nbytes
        if self._filled > self._limit:
            self.give()

    @torch.no_grad()
    def give(self) -> None:
        """Give to their owners what was added to the sums of other processes' layers; all processes come here."""
        shards = self._company.shards
        for (side, weight), own in self._pending.items():
            assert shards is not None
            shards.add_up_at(self._owners[weight], own.upper)
            if self._owners[weight] != shards.rank:
                del self.of(side)[weight]
        self._pending.clear()
        self._filled = 0

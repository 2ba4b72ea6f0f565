"""Where the gradients of covered uses go: into the totals at once, or kept until a parameter's last use has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.moments.attribution import Attribution
from holdfast.moments.covered import CoveredUse
from holdfast.moments.gradients import PHI, Phi, accumulator_dtype
from holdfast.moments.intercept import Place
from holdfast.moments.kernels.contribution import Contribution
from holdfast.moments.kernels.embedding import Lookups
from holdfast.moments.kernels.linear import add_outer
from holdfast.moments.layout import RAGGED, Layout
from holdfast.moments.operations import Convolution, Linear, by_token, wide
from holdfast.moments.ragged import ragged_contributions, row_axes, row_examples
from holdfast.moments.shared import PlacedContribution, add_shared


@dataclass(frozen=True)
class Proof:
    """What a proof on a few examples found out about a model that uses its parameters in a certain way.

    Attributes:
        missed: parameters whose gradients are not known.
        shared: parameters of which some element is used more than once.
        runs_again: whether parts of the forward pass run again in the backward pass, as with activation checkpoints.
    """

    missed: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    runs_again: bool = True


class Collector:
    """Takes what the covered uses of one batch receive.

    Args:
        totals: name -> sum so far, changed in place.
        phi: what is summed.
        size: examples in the batch.
        chunk_bytes: bound on per-example gradients that must be written out.
        tokens: whether positions count as examples.
        finished: called with names of parameters to whose sums this backward pass adds no more.

    Attributes:
        proof: what is known of the model.
        size: examples in the batch.
        num_rows: backward passes that are to come.
        attribution: takes the gradients of moved uses, as long as it is there, and no other goes anywhere.
        examples: for uses whose rows are not where their layout says, the example of each.
        met: name -> the parts of it from which a gradient came, in this backward pass.
    """

    def __init__(
        self,
        totals: Mapping[str, Tensor],
        *,
        phi: Phi,
        size: int,
        chunk_bytes: int,
        tokens: bool = False,
        finished: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self._totals, self.size, self._chunk_bytes = totals, size, chunk_bytes
        self._phi: Phi = phi
        self._kept: dict[str, list[PlacedContribution]] = {}
        self._spread: dict[CoveredUse, tuple[Tensor, Tensor]] = {}
        self._by_token, self._finished = tokens, finished
        self.proof, self.num_rows = Proof(), 1
        self.attribution: Attribution | None = None
        self.examples: dict[CoveredUse, Tensor] = {}
        self.met: dict[str, list[Place]] = {}

    def leave(self, names: Sequence[str]) -> None:
        """The backward pass has left the layers of these parameters."""
        later = {spot.place.name for use in self._spread for spot in use.spots if spot is not None}
        if self._finished is not None:
            self._finished([name for name in names if name not in later and name not in self.proof.shared])

    def receive(self, use: CoveredUse, g: Tensor, x: Tensor, weights: Sequence[Tensor | None]) -> None:
        """The gradient g at the output of a use came by."""
        if self.attribution is not None:
            if use.moved:
                self.attribution.take(use, g, weights)
            return
        if use in self._spread:
            self._add_spread(use, g)
            return
        x = x.detach()
        names = [None if spot is None else spot.place.name for spot in use.spots]
        if self.num_rows > 1 and self._can_spread(use, names, g):
            self._spread[use] = (x, g.new_zeros(g.shape, dtype=accumulator_dtype(g)))
            self._add_spread(use, g)
            return
        wanted = [name is not None and name not in self.proof.missed for name in names]
        if self._by_token and all(spot is None or spot.rows is None for spot in use.spots):
            layout, size = (Layout(0), len(g)) if use.moved else (use.layout, self.size)
            tokens = by_token(use.operation, g, x, weights, layout, size)
            if tokens is not None:
                each = use.operation.contributions(*tokens, weights, wanted, Layout(0), len(tokens[0]))
                for spot, contribution in zip(use.spots, each):
                    if spot is not None and contribution is not None:
                        contribution.add_to(spot.place.of(self._totals[spot.place.name]), self._phi)
                return
        found = self._contributions(use, g, x, weights, wanted)
        for spot, contribution in zip(use.spots, found):
            if spot is None or contribution is None:
                continue
            place = spot.place
            if spot.rows is not None:  # the same rows of a table for all examples
                place, numbers = spot.rows.table, spot.rows.numbers.reshape(1, -1).expand(self.size, -1)
                gradients = contribution.dense(0, self.size).reshape(*numbers.shape, place.size[-1])
                contribution = Lookups(numbers, gradients, place.size[0], spot.rows.padding)
            self.met.setdefault(place.name, []).append(place)
            if place.name in self.proof.shared:
                self._kept.setdefault(place.name, []).append((place, contribution))
            else:
                contribution.add_to(place.of(self._totals[place.name]), self._phi)

    def _contributions(
        self, use: CoveredUse, g: Tensor, x: Tensor, weights: Sequence[Tensor | None], wanted: Sequence[bool]
    ) -> list[Contribution | None]:
        examples = self.examples.get(use)
        if examples is None and use.layout == RAGGED:
            assert self._phi == "signed" or self.size == 1 or not any(wanted), use
            axes = row_axes(use.operation, g.ndim, weights)
            examples = torch.zeros(g.shape[:axes].numel(), dtype=torch.long, device=g.device)
        if examples is None and isinstance(use.operation, Convolution) and use.layout.order != "alone":
            examples = row_examples(use.layout, g.shape[:1], self.size).to(g.device)
        if examples is None:
            return use.operation.contributions(g, x, weights, wanted, use.layout, self.size)
        return ragged_contributions(use.operation, g, x, weights, wanted, examples=examples, size=self.size)

    def _can_spread(self, use: CoveredUse, names: Sequence[str | None], g: Tensor) -> bool:
        """Of a Linear layer without positions only phi(G) is summed over the rows: phi(g a) = phi(g) phi(a)."""
        simple = isinstance(use.operation, Linear) and use.layout.axis == 0 and g.shape[:-1] == (self.size,)
        return (
            simple
            and use not in self.examples
            and not any(name in self.proof.shared or name in self.proof.missed for name in names)
        )

    def _add_spread(self, use: CoveredUse, g: Tensor) -> None:
        _, total = self._spread[use]
        if self._phi == "square" and g.dtype == total.dtype:
            total.addcmul_(g, g)
        else:
            total += PHI[self._phi](g.to(total.dtype))

    @torch.no_grad()
    def end_row(self) -> None:
        """A backward pass is over: no more gradients of its own will come for any parameter."""
        for name, places in self.met.items():
            assert name in self.proof.shared or self._phi == "signed" or len(set(places)) == len(places), name
        for name, parts in self._kept.items():
            add_shared(self._totals[name], parts, phi=self._phi, chunk_bytes=self._chunk_bytes)
        self._kept.clear()
        self.met.clear()

    @torch.no_grad()
    def end(self) -> None:
        """All backward passes are over."""
        for use, (x, G) in self._spread.items():
            weight, bias = use.spots
            if weight is not None:
                add_outer(weight.place.of(self._totals[weight.place.name]), G, PHI[self._phi](wide(x)))
            if bias is not None:
                bias.place.of(self._totals[bias.place.name]).add_(G.sum(dim=0))
            if self._finished is not None:
                self._finished([spot.place.name for spot in use.spots if spot is not None])
        self._spread.clear()

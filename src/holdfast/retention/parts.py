"""The weights that one step moves, cut into blocks that stay in a processor's cache through all that is done to them.

On the CPU every tensor becomes one block or several, each one flat piece, so that temporaries are a few megabytes at
most, whatever the model's size. On accelerators, where calls are dear, many tensors are a block together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from typing import Any

from torch import Tensor, nn

from holdfast.retention.rounding import round_, widened
from holdfast.steps import Increment, Kept, Metric, RootMetric, metric_values
from holdfast.tensors import chunks, local

BLOCK = 2**18
"""Weights in a block, 1 MB in float32: fewer cost more calls, more fall out of the cache."""


@dataclass
class Block:
    """Weights that are treated together: one flat piece of a tensor, or several whole tensors.

    Attributes:
        weights: theta', live views outside autograd.
        anchors: likewise; empty for mechanisms without.
        importance: Omega, float32.
        metrics: one for each, where they were given.
        increments: likewise.
        residuals: of weights of half precision, what rounding took from earlier pulls; else empty.
    """

    weights: list[Tensor]
    anchors: list[Tensor]
    importance: list[Tensor]
    metrics: list[Metric] = field(default_factory=list)
    increments: list[Increment | Kept] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)

    def wide(self) -> Block:
        """Itself; weights of half precision become copies in float32, which `round_back` brings home."""
        if not self.residuals:
            return self
        return Block(
            [widened(weight, residual) for weight, residual in zip(self.weights, self.residuals, strict=True)],
            [anchor.float() for anchor in self.anchors],
            self.importance,
            [replace(m, second=m.second.float()) if isinstance(m, RootMetric) else m for m in self.metrics],
            [Increment(moved, 1.0) for moved in self.moved()] if self.increments else [],
        )

    def round_back(self, wide: Block) -> None:
        """Take the weights of `wide()` after they were changed, which uses them up."""
        for weight, residual, value in zip(self.weights, self.residuals, wide.weights):
            round_(weight, residual, value)

    def metric(self) -> float | list[Tensor]:
        """M computed: one number for all, or a tensor for each."""
        return metric_values(self.metrics, self.weights)

    def moved(self) -> list[Tensor]:
        """The increments computed; to be asked before the weights are changed."""
        return [increment.value(weight) for increment, weight in zip(self.increments, self.weights, strict=True)]


@dataclass(frozen=True)
class Part:
    """Protected parameters of one parameter group, on one device and of one dtype, at most 64 MB or one tensor."""

    group: Mapping[str, Any]
    parameters: list[nn.Parameter]
    importance: list[Tensor]
    anchors: list[Tensor]
    residuals: list[Tensor] = field(default_factory=list)

    @property
    def weights(self) -> list[Tensor]:
        """The live weights, outside autograd; of sharded ones this process's shards."""
        return [local(parameter.detach()) for parameter in self.parameters]

    @property
    def gradients(self) -> list[Tensor]:
        """The live gradients; only of a part that the step moves."""
        return [local(parameter.grad) for parameter in self.parameters if parameter.grad is not None]

    def stepped(self) -> Part | None:
        """The part of it that the optimizer moves in this step: parameters with a gradient."""
        kept = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if len(kept) == len(self.parameters):
            return self
        return Part(self.group, *(_chosen(column, kept) for column in self._columns)) if kept else None

    def blocks(self, *, metrics: Sequence[Metric] = (), increments: Sequence[Increment | Kept] = ()) -> Iterator[Block]:
        """Its blocks, every weight in exactly one of them.

        Args:
            metrics: one for each parameter, or none.
            increments: likewise.
        """
        for index, pieces in self._pieces:
            cut_metrics = _cut(metrics[index]) if metrics else repeat(None)
            cut_increments = increments[index].pieces(BLOCK) if increments else repeat(None)
            for (weight, anchor, importance, residual), metric, increment in zip(pieces, cut_metrics, cut_increments):
                yield Block(
                    [weight],
                    [] if anchor is None else [anchor],
                    [importance],
                    [] if metric is None else [metric],
                    [] if increment is None else [increment],
                    [] if residual is None else [residual],
                )
        for together, block in self._together:
            block.metrics, block.increments = _chosen(metrics, together), _chosen(increments, together)
            yield block

    @property
    def _columns(self) -> tuple[list[nn.Parameter], list[Tensor], list[Tensor], list[Tensor]]:
        return self.parameters, self.importance, self.anchors, self.residuals

    @cached_property
    def _pieces(self) -> list[tuple[int, list[tuple[Tensor, Tensor | None, Tensor, Tensor | None]]]]:
        """Of every parameter that is cut its index and flat pieces of weight, anchor, importance and residual."""
        cut = []
        for index, weight in enumerate(self.weights):
            if _is_cut(weight):
                anchors = self.anchors[index].reshape(-1).split(BLOCK) if self.anchors else repeat(None)
                importance = self.importance[index].reshape(-1).split(BLOCK)
                residuals = self.residuals[index].view(-1).split(BLOCK) if self.residuals else repeat(None)
                cut.append((index, list(zip(weight.view(-1).split(BLOCK), anchors, importance, residuals))))
        return cut

    @cached_property
    def _together(self) -> list[tuple[list[int], Block]]:
        """The blocks of the parameters that are not cut, with their indices; one stretch of memory or not, apart."""
        found = []
        for flat in (True, False):
            whole = [i for i, w in enumerate(self.weights) if not _is_cut(w) and w.is_contiguous() == flat]
            for some in chunks([self.weights[index] for index in whole]):
                indices = whole[some]
                columns = (self.weights, self.anchors, self.importance, self.residuals)
                weights, anchors, importance, residuals = (_chosen(column, indices) for column in columns)
                found.append((indices, Block(weights, anchors, importance, residuals=residuals)))
        return found


def _is_cut(weight: Tensor) -> bool:
    return weight.is_cpu and weight.is_contiguous()


def _cut(metric: Metric) -> Iterator[Metric]:
    if isinstance(metric, RootMetric):
        return metric.pieces(BLOCK)
    return iter(metric.reshape(-1).split(BLOCK)) if isinstance(metric, Tensor) else repeat(metric)


def _chosen(column: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    return [column[index] for index in indices] if column else []

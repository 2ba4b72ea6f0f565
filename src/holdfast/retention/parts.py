"""The weights that one step moves, cut into blocks that stay in a processor's cache through all that is done to them.

On the CPU every tensor becomes one block or several, each one flat piece, so that temporaries are a few megabytes at
most, whatever the model's size. On accelerators, where calls are dear, many tensors are a block together; but what is
held in another form than the step takes is read piece by piece there too, into the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.memory.stored import AnyTensor, Readable, is_ready, pieces, read, readings
from holdfast.retention.rounding import round_, with_residual
from holdfast.steps import CopiedIncrement, Increment, Metric, RootMetric, metric_values
from holdfast.tensors import chunks, local

BLOCK = 2**18
"""Weights in a block, 1 MB in float32: fewer cost more calls, more fall out of the cache."""

READ_BLOCK = 3 * 2**15
"""The same where importance or anchor is read into memory of its own, which is kept small; a multiple of 256."""

READ_BLOCK_CUDA = 2**22
"""The same on an accelerator, 16 MB in float32."""

WIDE_BLOCK_CUDA = 2**24
"""The same of weights of half precision, which a pull widens: 64 MB in float32."""


Reading = Tensor | Readable

Piece = tuple[Any, Reading | None, Reading, Any]
"""Of a weight, a tensor, with its anchor, importance and residual, a tensor or None."""


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
        gradients: live, where they were asked for.
    """

    weights: list[Tensor]
    anchors: list[Tensor]
    importance: list[Tensor]
    metrics: list[Metric] = field(default_factory=list)
    increments: list[Increment | CopiedIncrement] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    def wide(self) -> Block:
        """Itself; weights of half precision become copies in float32, which `round_back` brings home."""
        if not self.residuals:
            return self
        return Block(
            [with_residual(weight, residual) for weight, residual in zip(self.weights, self.residuals, strict=True)],
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
    importance: list[AnyTensor]
    anchors: list[AnyTensor]
    residuals: list[Tensor] = field(default_factory=list)

    @cached_property
    def weights(self) -> list[Tensor]:
        """The live weights, outside autograd; of sharded ones this process's shards."""
        return [local(parameter.detach()) for parameter in self.parameters]

    @property
    def gradients(self) -> list[Tensor]:
        """The live gradients; only of a part that the step moves."""
        return [local(parameter.grad) for parameter in self.parameters if parameter.grad is not None]

    def stepped(self, gradients: Mapping[int, Tensor]) -> Part | None:
        """The part of it that the optimizer moves in this step: parameters with a gradient, now or in `gradients`."""
        kept = [i for i, p in enumerate(self.parameters) if p.grad is not None or id(p) in gradients]
        if len(kept) == len(self.parameters):
            return self
        return Part(self.group, *(_chosen(column, kept) for column in self._columns)) if kept else None

    def whole(self) -> Block:
        """All of it as one block; what is not held as steps take it is read into new memory."""
        weights = self.weights
        anchors = [_as_anchor(held, weight) for held, weight in zip(self.anchors, weights)]
        importance = [_as_importance(held, weight) for held, weight in zip(self.importance, weights, strict=True)]
        return Block(weights, anchors, importance, residuals=list(self.residuals), gradients=self.gradients)

    def blocks(
        self, *, metrics: Sequence[Metric] = (), increments: Sequence[Increment | CopiedIncrement] = ()
    ) -> Iterator[Block]:
        """Its blocks, every weight in exactly one of them; a block is to be done with when the next is asked for.

        Args:
            metrics: one for each parameter, or none.
            increments: likewise.
        """
        rows: dict[int, Tensor] = {}
        for index, size, kept in self._pieces:
            cut = kept or self._cut(index, size)
            cut_metrics = _cut(metrics[index], size) if metrics else repeat(None)
            cut_increments = increments[index].pieces(size) if increments else repeat(None)
            for (weight, anchor, importance, residual), metric, increment in zip(cut, cut_metrics, cut_increments):
                yield Block(
                    [weight],
                    [] if anchor is None else [_as_anchor(anchor, weight, rows)],
                    [_as_importance(importance, weight, rows)],
                    [] if metric is None else [metric],
                    [] if increment is None else [increment],
                    [] if residual is None else [residual],
                )
        for together, part, ready in self._together:
            block = ready or part.whole()
            block.metrics, block.increments = _chosen(metrics, together), _chosen(increments, together)
            yield block

    @property
    def _columns(self) -> tuple[list[nn.Parameter], list[AnyTensor], list[AnyTensor], list[Tensor]]:
        return self.parameters, self.importance, self.anchors, self.residuals

    @cached_property
    def _pieces(self) -> list[tuple[int, int, list[Piece] | None]]:
        """Of every parameter that is cut its index, the size of a piece, and its pieces where they may be kept.

        Those that are read are not: their many small objects would take a hundredth of the model's memory.
        """
        sizes = [(index, size) for index in range(len(self.parameters)) if (size := self._size(index))]
        return [(i, size, list(self._cut(i, size)) if self._is_ready(i) else None) for i, size in sizes]

    def _cut(self, index: int, size: int) -> Iterator[Piece]:
        anchors = readings(self.anchors[index], size) if self.anchors else repeat(None)
        residuals = pieces(self.residuals[index], size) if self.residuals else repeat(None)
        return zip(pieces(self.weights[index], size), anchors, readings(self.importance[index], size), residuals)

    @cached_property
    def _together(self) -> list[tuple[list[int], Part, Block | None]]:
        """The parameters that are not cut, those in one stretch of memory apart from the others.

        Some together: their indices, a part of them alone, and their block where nothing is to be read for it.
        """
        found = []
        for flat in (True, False):
            whole = [i for i, w in enumerate(self.weights) if not self._size(i) and w.is_contiguous() == flat]
            for some in chunks([self.weights[index] for index in whole]):
                part = Part(self.group, *(_chosen(column, whole[some]) for column in self._columns))
                ready = all(map(part._is_ready, range(len(part.parameters))))
                found.append((whole[some], part, part.whole() if ready else None))
        return found

    def _size(self, index: int) -> int:
        """Weights in a piece of this parameter; 0 if it is not cut."""
        weight = self.weights[index]
        if self._is_ready(index):
            if _is_cut(weight):
                return BLOCK
            widens = self.residuals and weight.is_contiguous() and weight.numel() > WIDE_BLOCK_CUDA
            return WIDE_BLOCK_CUDA if widens else 0
        if not weight.is_contiguous():
            return 0
        return READ_BLOCK if weight.is_cpu else READ_BLOCK_CUDA

    def _is_ready(self, index: int) -> bool:
        """Whether nothing is to be read for this parameter: all that is held of it is as a step takes it."""
        weight = self.weights[index]
        return is_ready(self.importance[index], dtype=torch.float32, device=weight.device) and (
            not self.anchors or is_ready(self.anchors[index], dtype=weight.dtype, device=weight.device)
        )


def _is_cut(weight: Tensor) -> bool:
    return weight.is_cpu and weight.is_contiguous()


def _as_importance(held: Reading, weight: Tensor, rows: dict[int, Tensor] | None = None) -> Tensor:
    return _as_tensor(held, weight, dtype=torch.float32, row=0, rows=rows)


def _as_anchor(held: Reading, weight: Tensor, rows: dict[int, Tensor] | None = None) -> Tensor:
    return _as_tensor(held, weight, dtype=weight.dtype, row=1, rows=rows)


def _as_tensor(
    held: Reading, weight: Tensor, *, dtype: torch.dtype, row: int, rows: dict[int, Tensor] | None
) -> Tensor:
    """What is held of a weight, where it is; read into a row that is used again, or without rows into new memory."""
    if is_ready(held, dtype=dtype, device=weight.device):
        return held
    if rows is None:
        return read(held, dtype=dtype, device=weight.device)
    size = weight.numel()
    if row not in rows or len(rows[row]) < size:
        rows[row] = torch.empty(size, dtype=dtype, device=weight.device)
    return read(held, dtype=dtype, device=weight.device, out=rows[row][:size])


def _cut(metric: Metric, size: int) -> Iterator[Metric]:
    if isinstance(metric, RootMetric):
        return metric.pieces(size)
    return iter(metric.reshape(-1).split(size)) if isinstance(metric, Tensor) else repeat(metric)


def _chosen(column: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    return [column[index] for index in indices] if column else []

"""What is done to a block, by the quickest way that is right for it.

a piece of a float32 tensor on the CPU      in place, in few passes (`in_place`)
contiguous tensors on CUDA, with Triton     one kernel each (`fused`)
all else, and the largest of numbers        the formulas as they stand (`force`)
"""

from __future__ import annotations

import functools
import importlib
import math
from types import ModuleType
from typing import TypeGuard

import torch
from torch import Tensor

from holdfast.retention import force, in_place
from holdfast.retention.force import LARGEST, Attenuation
from holdfast.retention.in_place import Scratch
from holdfast.retention.parts import Block
from holdfast.steps import CopiedIncrement, Increment, Metric, RootMetric

SMALLEST = 1 / LARGEST


class Route:
    """EWC's and WVA's steps on blocks, in scratch memory that is used again for every block."""

    def __init__(self) -> None:
        self._rows = torch.empty(2, 0, dtype=torch.float32)
        self._views: dict[int, Scratch] = {}

    def pull(self, block: Block, strength: float, *, largest: float) -> None:
        """Each weight goes the share w = a/(1 + a) of the way to its anchor, a = strength * Omega / M.

        Args:
            block: with anchors and metrics.
            strength: lambda, 0..inf.
            largest: a bound on every importance.
        """
        metric = block.metrics[0]
        if strength == 0:
            return
        if _is_piece(block) and _is_plain(metric, strength, largest=largest):
            piece = block.weights[0], block.anchors[0], block.importance[0], strength
            in_place.pull_(*piece, metric=metric, scratch=self._scratch(block))
        elif (fused := _fused(block)) and all(_is_plain(m, strength, largest=largest) for m in block.metrics):
            columns = block.weights, block.anchors, block.importance, block.metrics
            for weight, anchor, importance, metric in zip(*columns, strict=True):
                fused.pull_(weight, anchor, importance, strength, metric=metric)
        else:
            shares = force.pull_shares(block.importance, strength, metric=block.metric(), largest=largest)
            force.pull_(block.weights, block.anchors, shares)

    def attenuate(self, block: Block, strength: float, *, attenuation: Attenuation, largest: float) -> None:
        """Each weight gives back the share w = a/(1 + a) or 1 - exp(-a) of its increment, a = strength * Omega.

        Args:
            block: with increments.
            strength: lambda, 0..inf.
            attenuation: "hyperbolic" or "exponential".
            largest: a bound on every importance.
        """
        if strength == 0:
            return
        increment = block.increments[0]
        if _is_piece(block) and isinstance(increment, Increment) and _is_plain(1.0, strength, largest=largest):
            if increment.rate != 0:
                in_place.attenuate_(
                    block.weights[0],
                    block.importance[0],
                    strength,
                    increment=increment,
                    attenuation=attenuation,
                    largest=largest,
                    scratch=self._scratch(block),
                )
        elif (fused := _fused(block)) and _is_plain(1.0, strength, largest=largest):
            columns = block.weights, block.importance, block.increments
            for weight, importance, increment in zip(*columns, strict=True):
                fused.attenuate_(weight, importance, strength, increment=increment, attenuation=attenuation)
        else:
            shares = force.relative_force(block.importance, strength, largest=largest)
            force.attenuate_(block.weights, block.moved(), force.relative_share(shares, attenuation=attenuation))

    def rise(self, block: Block, strength: float, *, largest: float) -> tuple[list[Tensor], list[Tensor]]:
        """sum Omega d^2, d what a pull would leave of the distance to the anchor, and its derivative by strength / -2.

        Args:
            block: with anchors and metrics.
            strength: lambda >= 0, finite.
            largest: a bound on every importance.

        Returns:
            Addends of each, zero-dimensional.
        """
        metric = block.metrics[0]
        if _is_piece(block) and _is_plain(metric, strength, largest=largest):
            piece = block.weights[0], block.anchors[0], block.importance[0], strength
            value, slope = in_place.rise(*piece, metric=metric, scratch=self._scratch(block))
            return [value], [slope / strength]
        return force.rise(block.weights, block.anchors, block.importance, strength, metric=block.metric())

    def distance(self, block: Block) -> list[Tensor]:
        """Addends of sum Omega (theta - anchor)^2."""
        if _is_piece(block):
            piece = block.weights[0], block.anchors[0], block.importance[0]
            return [in_place.distance(*piece, scratch=self._scratch(block))]
        return [
            (importance * (weight - anchor).float().square()).sum()
            for weight, anchor, importance in zip(block.weights, block.anchors, block.importance, strict=True)
        ]

    def _scratch(self, block: Block) -> Scratch:
        size = block.weights[0].numel()
        if size not in self._views:
            if size > self._rows.shape[1]:
                self._rows = torch.empty(2, size, dtype=torch.float32)
                self._views.clear()
            self._views[size] = self._rows[0, :size], self._rows[1, :size]
        return self._views[size]


def _fused(block: Block) -> ModuleType | None:
    """The kernels for CUDA, if they can treat every tensor of the block as one stretch of memory."""
    weight = block.weights[0]
    if not _is_on_device(weight) or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return None
    entries = (*block.weights, *block.anchors, *block.importance, *block.metrics, *block.increments)
    return _kernels() if all(tensor.is_contiguous() for entry in entries for tensor in _tensors(entry)) else None


def _is_on_device(weight: Tensor) -> bool:
    return weight.is_cuda


def _tensors(entry: Metric | Increment | CopiedIncrement | None) -> list[Tensor]:
    match entry:
        case Tensor():
            return [entry]
        case RootMetric():
            return [entry.second]
        case CopiedIncrement():
            return [entry.before]
        case Increment():
            return [entry.first, *_tensors(entry.buffer), *_tensors(entry.metric)]
        case _:
            return []


@functools.cache
def _kernels() -> ModuleType | None:
    """None where Triton is not at hand."""
    try:
        return importlib.import_module("holdfast.retention.fused")
    except ImportError:
        return None


def _is_piece(block: Block) -> bool:
    """Whether the block is one piece of a float32 tensor on the CPU."""
    weight = block.weights[0]
    return len(block.weights) == 1 and weight.dim() == 1 and weight.is_cpu and weight.dtype == torch.float32


def _is_plain(metric: Metric, strength: float, *, largest: float) -> TypeGuard[float | RootMetric]:
    """Whether Omega / (Omega + M/strength) can be had as it stands: no term overflows, and none is zero over zero."""
    if isinstance(metric, Tensor) or not 0 < strength < math.inf or largest > LARGEST:
        return False
    if isinstance(metric, RootMetric):
        return SMALLEST * strength <= metric.offset and metric.offset + metric.slope <= LARGEST * strength
    return SMALLEST * strength <= metric <= LARGEST * strength

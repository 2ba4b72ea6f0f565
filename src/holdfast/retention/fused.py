"""On CUDA: the steps of EWC and WVA in one kernel a tensor, each number read and written once.

Imported only where Triton is at hand, which comes with torch's CUDA builds on Linux. Weights of float32 or half
precision, of any shape and each one stretch of memory; what is computed is float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from holdfast.retention.force import Attenuation
from holdfast.steps import CopiedIncrement, Increment, RootMetric

_BLOCK = 1024


@triton.jit
def _pull(
    weight,
    anchor,
    importance,
    second,
    size,
    slope,
    offset,
    ROOT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    start = tl.load(weight + i, mask=mask, other=0.0).to(tl.float32)
    end = tl.load(anchor + i, mask=mask, other=0.0).to(tl.float32)
    omega = tl.load(importance + i, mask=mask, other=0.0)
    metric = tl.full((BLOCK,), offset, tl.float32)
    if ROOT:
        metric += slope * tl.sqrt_rn(tl.load(second + i, mask=mask, other=0.0).to(tl.float32))
    share = tl.div_rn(omega, omega + metric)
    # from the nearer end, as torch.lerp: a share of 0 leaves every bit, and one of 1 sets the anchor
    pulled = tl.where(share < 0.5, start + share * (end - start), end - (end - start) * (1 - share))
    tl.store(weight + i, pulled.to(weight.dtype.element_ty), mask=mask)


@triton.jit
def _attenuate(
    weight,
    importance,
    first,
    buffer,
    second,
    size,
    strength,
    inverse_strength,
    rate,
    momentum,
    decay,
    slope,
    offset,
    KEPT: tl.constexpr,
    NESTEROV: tl.constexpr,
    ROOT: tl.constexpr,
    EXPONENTIAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    theta = tl.load(weight + i, mask=mask, other=0.0).to(tl.float32)
    omega = tl.load(importance + i, mask=mask, other=0.0)
    moved = tl.load(first + i, mask=mask, other=0.0).to(tl.float32)
    if KEPT:
        moved = theta - moved
    else:
        if NESTEROV:
            moved += momentum * tl.load(buffer + i, mask=mask, other=0.0).to(tl.float32)
        if ROOT:
            root = tl.sqrt_rn(tl.load(second + i, mask=mask, other=1.0).to(tl.float32))
            moved = tl.div_rn(moved, slope * root + offset)
        moved = rate * moved - decay * theta
    if EXPONENTIAL:
        x = strength * omega
        share = tl.where(x < 0.01, x * (1 - x * (0.5 - x / 6)), 1 - tl.exp(-x))  # 1 - exp(-x), small ones by series
    else:
        share = tl.div_rn(omega, omega + inverse_strength)
    tl.store(weight + i, (theta - moved * share).to(weight.dtype.element_ty), mask=mask)


def pull_(weight: Tensor, anchor: Tensor, importance: Tensor, strength: float, *, metric: float | RootMetric) -> None:
    """The pull theta' + (anchor - theta') w in place, as `in_place.pull_`."""
    root = isinstance(metric, RootMetric)
    slope, offset = (metric.slope, metric.offset) if root else (0.0, metric)
    with torch.cuda.device_of(weight):
        _over(_pull, weight)(
            weight,
            anchor,
            importance,
            metric.second if root else weight,
            weight.numel(),
            slope / strength,
            offset / strength,
            ROOT=root,
            BLOCK=_BLOCK,
        )


def attenuate_(
    weight: Tensor,
    importance: Tensor,
    strength: float,
    *,
    increment: Increment | CopiedIncrement,
    attenuation: Attenuation,
) -> None:
    """The step theta' - increment * w in place, as `in_place.attenuate_`, also from a kept copy."""
    kept = isinstance(increment, CopiedIncrement)
    described = Increment(increment.before, 1.0) if kept else increment
    buffer, metric = described.buffer, described.metric
    with torch.cuda.device_of(weight):
        _over(_attenuate, weight)(
            weight,
            importance,
            described.first,
            weight if buffer is None else buffer,
            weight if metric is None else metric.second,
            weight.numel(),
            strength,
            1 / strength,
            described.rate / (1 - described.decay),
            described.share,
            described.decay / (1 - described.decay),
            1.0 if metric is None else metric.slope,
            0.0 if metric is None else metric.offset,
            KEPT=kept,
            NESTEROV=buffer is not None,
            ROOT=metric is not None,
            EXPONENTIAL=attenuation == "exponential",
            BLOCK=_BLOCK,
        )


def _over(kernel: Any, weight: Tensor) -> Any:
    """The kernel with a program for each block of the weight; Triton's stubs want what only the compiler makes."""
    return kernel[(triton.cdiv(weight.numel(), _BLOCK),)]

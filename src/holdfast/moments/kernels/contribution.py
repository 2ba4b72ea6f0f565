"""What one use of a parameter contributes: the gradient of each example, summed under phi or written out."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from holdfast.moments.gradients import PHI, Phi


class Contribution(Protocol):
    """Per-example gradients of a parameter (or of a view of it) through one use, in any form that is cheap to keep."""

    def __len__(self) -> int:
        """B."""
        ...

    def add_to(self, total: Tensor, phi: Phi) -> None:
        """Add sum_b phi(g_b) to `total`, of the parameter's shape, in place."""
        ...

    def dense(self, start: int, stop: int) -> Tensor:
        """[b, *shape]: g_b of the examples `start` to `stop` (exclusive)."""
        ...


class DenseContribution:
    """Per-example gradients as they are.

    Args:
        values: [B, *shape], in the accumulators' dtype.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        """B."""
        return len(self.values)

    def add_to(self, total: Tensor, phi: Phi) -> None:
        """Add sum_b phi(g_b) to `total`."""
        total += PHI[phi](self.values).sum(dim=0)

    def dense(self, start: int, stop: int) -> Tensor:
        """[b, *shape]: g_b."""
        return self.values[start:stop]


def add_blocks(total: Tensor, blocks: Tensor, phi: Phi) -> None:
    """Add sum_b phi(g_b) to `total`; `blocks` [b, *shape] is used up."""
    if phi == "square" and len(blocks) == 1:
        total.addcmul_(blocks[0], blocks[0])
    else:
        total += in_place(blocks, phi).sum(dim=0) if len(blocks) > 1 else in_place(blocks[0], phi)


def in_place(tensor: Tensor, phi: Phi) -> Tensor:
    """The tensor itself, changed to phi of it."""
    return tensor.square_() if phi == "square" else tensor.abs_() if phi == "abs" else tensor


def reduced(tensor: Tensor, shape: torch.Size) -> Tensor:
    """[B, ...] summed over the axes that broadcasting gave to a parameter of this shape: [B, *shape]."""
    missing = tensor.ndim - 1 - len(shape)
    axes = [1 + axis for axis in range(missing)]
    axes += [1 + missing + axis for axis, n in enumerate(shape) if n == 1 and tensor.shape[1 + missing + axis] != 1]
    summed = tensor.sum(dim=axes, keepdim=True) if axes else tensor
    return summed.reshape(len(tensor), *shape)

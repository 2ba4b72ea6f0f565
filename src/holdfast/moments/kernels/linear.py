"""Linear layers: the gradient of one example for the weight is a product, G_b^T A_b over its positions."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.moments.gradients import PHI, Phi
from holdfast.moments.kernels.contribution import add_blocks

_CACHE_BYTES = 2**20
"""A block of the product of one example: small enough to be squared before it leaves the processor's cache."""

_DEVICE_BYTES = 2**26
"""The same without a cache to stay in, where it is the number of kernels that counts."""


class Products:
    """Per-example gradients G_b^T A_b of a weight [out, in].

    Args:
        inputs: A [B, P, in], P positions.
        gradients: G [B, P, out], at the layer's output.
    """

    def __init__(self, inputs: Tensor, gradients: Tensor) -> None:
        self.inputs, self.gradients = inputs, gradients

    def __len__(self) -> int:
        """B."""
        return len(self.inputs)

    def add_to(self, total: Tensor, phi: Phi) -> None:
        """Add sum_b phi(G_b^T A_b) to `total` [out, in]."""
        A, G = self.inputs, self.gradients
        if A.shape[1] == 1:
            add_outer(total, PHI[phi](G[:, 0]), PHI[phi](A[:, 0]))
        elif phi == "signed":
            total += G.flatten(0, 1).mT @ A.flatten(0, 1)
        elif not total.is_contiguous() and total.mT.is_contiguous():
            add_products(total.mT, A, G, phi)
        else:
            add_products(total, G, A, phi)

    def dense(self, start: int, stop: int) -> Tensor:
        """[b, out, in]: G_b^T A_b."""
        return self.gradients[start:stop].mT @ self.inputs[start:stop]


def add_outer(total: Tensor, G: Tensor, A: Tensor) -> None:
    """Add G^T A to `total`: one position, where phi(g a) = phi(g) phi(a); G and A are phi of what they were."""
    if total.dtype == G.dtype:
        total.addmm_(G.mT, A)
    else:
        total += G.mT @ A


@functools.cache
def _fused() -> Callable[[Tensor, Tensor, Tensor, Phi], None] | None:
    """The kernel for CUDA; None where Triton is not at hand."""
    try:
        return importlib.import_module("holdfast.moments.kernels.fused").add_products
    except ImportError:
        return None


def add_products(total: Tensor, G: Tensor, A: Tensor, phi: Phi) -> None:
    """Add sum_b phi(G_b^T A_b) to `total` [out, in] without writing the product of an example to memory.

    Blocks of rows are the outer loop, so that a block of the product and of the total stay in the cache; small weights
    go several examples at a time. On CUDA in one kernel, if Triton is there.
    """
    if total.is_cuda and total.dtype == G.dtype == torch.float32 and phi != "signed" and (fused := _fused()):
        fused(total, G, A, phi)
        return
    size, _, width = G.shape
    num_bytes = A.shape[2] * A.element_size()
    limit = _DEVICE_BYTES if total.is_cuda else _CACHE_BYTES
    rows = max(1, min(width, limit // num_bytes))
    together = max(1, min(size, limit // (2 * rows * num_bytes)))
    buffer = A.new_empty(together, rows, A.shape[2])
    for row in range(0, width, rows):
        some = total[row : row + rows]
        for b in range(0, size, together):
            left, right = G[b : b + together, :, row : row + rows].mT, A[b : b + together]
            out = buffer[: len(left), : left.shape[1]]
            if together == 1:
                torch.mm(left[0], right[0], out=out[0])
            else:
                out = torch.bmm(left, right, out=out if out.is_contiguous() else None)
            add_blocks(some, out, phi)

"""Sums of products that are symmetric: what lies below the diagonal is mirrored in the end, and not multiplied out."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 256
"""Rows of the sum that are taken at once, or an eighth of them; smaller products do not pay."""


class SymmetricSum:
    """The sum of products L^T R, each of which is symmetric.

    Args:
        size: n; the sum is [n, n].
        like: a tensor of its dtype and on its device.

    Cost: r n^2 / 2 multiplications for a product of r rows and a large n, half of the plain product's, and an eighth
    more; memory n^2, as products are added in place.
    """

    def __init__(self, size: int, *, like: Tensor) -> None:
        self._upper = like.new_zeros(size, size)
        self._block = max(_BLOCK, -(-size // 8))

    def add(self, left: Tensor, right: Tensor, *, factor: float = 1.0) -> None:
        """Add factor * L^T R of two tensors [r, n], in their dtype also under autocast."""
        with torch.autocast(left.device.type, enabled=False):
            for start in range(0, len(self._upper), self._block):
                end = start + self._block
                self._upper[start:end, start:].addmm_(left[:, start:end].T, right[:, start:], alpha=factor)

    def taken(self) -> Tensor:
        """[n, n], exactly symmetric; the sum itself, to which nothing can be added any more."""
        found = self._upper
        del self._upper
        for start in range(0, len(found), self._block):
            end = start + self._block
            block = found[start:end, start:end]
            block.copy_(block.triu() + block.triu(1).T)
            found[end:, start:end] = found[start:end, end:].T
        return found

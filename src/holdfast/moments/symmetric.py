"""Sums of products that are symmetric: what lies below the diagonal is mirrored in the end, and not multiplied out."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.curvature.blocks import blocks_of, spans

_BLOCK = 256
"""Rows of the sum that are taken at once, or an eighth of them; smaller products do not pay."""


class SymmetricSum:
    """The sum of products L^T R, each of which is symmetric.

    Args:
        size: n; the sum is [n, n].
        like: a tensor of its dtype and on its device.
        width: b < n for the diagonal blocks of the sum alone, as `holdfast.curvature.blocks` has them; None: all of it.

    Attributes:
        width: b.
        upper: what was added so far, [n, b], of which what lies right of the diagonal counts.

    Cost of [n, n]: r n^2 / 2 multiplications for a product of r rows and a large n, half of the plain product's, and an
    eighth more; memory n^2, as products are added in place. Of [n, b]: n b in place of n^2.
    """

    def __init__(self, size: int, *, like: Tensor, width: int | None = None) -> None:
        width = size if width is None else width
        self.width = width
        self.upper = like.new_zeros(size, width)
        self._spans = spans(size, width)
        self._step = max(_BLOCK, -(-width // 8))

    def add(self, left: Tensor, right: Tensor, *, factor: float = 1.0) -> None:
        """Add factor * L^T R of two tensors [r, n], in the dtype of the sum also under autocast."""
        left, right = left.to(self.upper.dtype), right.to(self.upper.dtype)
        with torch.autocast(left.device.type, enabled=False):
            for upper, rows in zip(blocks_of(self.upper), self._spans):
                L, R = left[:, rows], right[:, rows]
                for start in range(0, len(upper), self._step):
                    end = start + self._step
                    upper[start:end, start:].addmm_(L[:, start:end].T, R[:, start:], alpha=factor)

    def taken(self) -> Tensor:
        """[n, n], or [n, b], exactly symmetric; the sum itself, to which nothing can be added any more."""
        found = self.upper
        del self.upper
        for whole in blocks_of(found):
            for start in range(0, len(whole), self._step):
                end = start + self._step
                corner = whole[start:end, start:end]
                corner.copy_(corner.triu() + corner.triu(1).T)
                whole[end:, start:end] = whole[start:end, end:].T
        return found

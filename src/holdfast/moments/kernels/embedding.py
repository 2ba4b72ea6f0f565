"""Embeddings: the gradient of one example is a few rows, one for each token that occurs in it."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.moments.gradients import PHI, Phi


class Lookups:
    """Per-example gradients of a table [V, D] of which rows were looked up.

    Args:
        tokens: [B, P], row numbers; those equal to `padding` have no gradient. [N] where `examples` are given.
        gradients: [B, P, D], at what was looked up; or [N, D].
        num_rows: V.
        padding: a row number, or -1 for none.
        examples: [N], which example looked each row up.
        size: B, with `examples`.
    """

    def __init__(
        self,
        tokens: Tensor,
        gradients: Tensor,
        num_rows: int,
        padding: int = -1,
        *,
        examples: Tensor | None = None,
        size: int = 0,
    ) -> None:
        if examples is None:
            size = len(tokens)
            examples = torch.arange(size, device=tokens.device).unsqueeze(1).expand_as(tokens).flatten()
            tokens, gradients = tokens.flatten(), gradients.flatten(0, 1)
        self.tokens, self.examples, self.num_rows, self._size = tokens, examples, num_rows, size
        if padding >= 0:
            gradients = gradients.masked_fill((tokens == padding).unsqueeze(-1), 0.0)
        self.gradients = gradients

    def __len__(self) -> int:
        """B."""
        return self._size

    def add_to(self, total: Tensor, phi: Phi) -> None:
        """Add sum_b phi(g_b) to `total` [V, D]."""
        _, tokens, sums = self.segments()
        total.index_add_(0, tokens, PHI[phi](sums))

    def segments(self) -> tuple[Tensor, Tensor, Tensor]:
        """For each distinct token of each example: the example [S], the token [S], and the summed gradient [S, D].

        Cost: a sort of B * P numbers; nothing depends on V.
        """
        keys, inverse = torch.unique(self.examples * self.num_rows + self.tokens, return_inverse=True)
        sums = self.gradients.new_zeros(len(keys), self.gradients.shape[1])
        sums.index_add_(0, inverse, self.gradients)
        return keys // self.num_rows, keys % self.num_rows, sums

    def dense(self, start: int, stop: int) -> Tensor:
        """[b, V, D]: g_b."""
        some = (self.examples >= start) & (self.examples < stop)
        places = (self.examples[some] - start) * self.num_rows + self.tokens[some]
        out = self.gradients.new_zeros((stop - start) * self.num_rows, self.gradients.shape[1])
        return out.index_add_(0, places, self.gradients[some]).unflatten(0, (stop - start, self.num_rows))

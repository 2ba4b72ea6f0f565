"""Embeddings: the gradient of one example is a few rows, one for each token that occurs in it."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.moments.gradients import PHI, Phi


class Lookups:
    """Per-example gradients of a table [V, D] of which rows were looked up.

    Args:
        tokens: [B, P], row numbers; those equal to `padding` have no gradient.
        gradients: [B, P, D], at what was looked up.
        num_rows: V.
        padding: a row number, or -1 for none.
    """

    def __init__(self, tokens: Tensor, gradients: Tensor, num_rows: int, padding: int = -1) -> None:
        self.tokens, self.num_rows, self.padding = tokens, num_rows, padding
        if padding >= 0:
            gradients = gradients.masked_fill((tokens == padding).unsqueeze(-1), 0.0)
        self.gradients = gradients

    def __len__(self) -> int:
        """B."""
        return len(self.tokens)

    def add_to(self, total: Tensor, phi: Phi) -> None:
        """Add sum_b phi(g_b) to `total` [V, D]."""
        _, tokens, sums = self.segments()
        total.index_add_(0, tokens, PHI[phi](sums))

    def segments(self) -> tuple[Tensor, Tensor, Tensor]:
        """For each distinct token of each example: the example [S], the token [S], and the summed gradient [S, D].

        Cost: a sort of B * P numbers; nothing depends on V.
        """
        size, _, width = self.gradients.shape
        examples = torch.arange(size, device=self.tokens.device).unsqueeze(1)
        keys, inverse = torch.unique(examples * self.num_rows + self.tokens, return_inverse=True)
        sums = self.gradients.new_zeros(len(keys), width)
        sums.index_add_(0, inverse.flatten(), self.gradients.flatten(0, 1))
        return keys // self.num_rows, keys % self.num_rows, sums

    def dense(self, start: int, stop: int) -> Tensor:
        """[b, V, D]: g_b."""
        tokens, gradients = self.tokens[start:stop], self.gradients[start:stop]
        out = gradients.new_zeros(len(tokens), self.num_rows, gradients.shape[2])
        places = tokens.unsqueeze(-1).expand_as(gradients)
        return out.scatter_add_(1, places, gradients)

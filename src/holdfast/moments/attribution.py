"""Which example each row of a use belongs to, measured in the backward pass of the batch itself.

A backward pass is linear in the gradients at the outputs, and the gradient of a row comes from the outputs of its own
example alone. So in a second pass, with the gradients of example b at the outputs times 2^d, those of its rows are
2^d times what they were: exactly, for powers of two only change exponents. Each pass tells one digit of b.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from holdfast.moments.covered import CoveredUse
from holdfast.moments.gradients import accumulator_dtype
from holdfast.moments.layout import RAGGED
from holdfast.moments.operations import Weights
from holdfast.moments.ragged import row_axes, row_examples

_DIGITS = {torch.float16: 8}
_DIGITS_OF_OTHERS = 64
"""Digits in one pass: 2^64 times a gradient is within the range of float32 and bfloat16, 2^8 within that of float16."""

_FLOOR = 1e-7
"""Rows whose gradient is a smaller share of the largest may be rounding: they belong to nobody if nobody has them."""


class Attribution:
    """Takes the gradients of the uses that were moved, in a few backward passes.

    Args:
        size: examples in the batch.
        dtypes: of the outputs.
        rtol: rounding.
    """

    def __init__(self, size: int, *, dtypes: Sequence[torch.dtype], rtol: float) -> None:
        self._size, self._rtol = size, rtol
        self._base = min((_DIGITS.get(dtype, _DIGITS_OF_OTHERS) for dtype in dtypes), default=_DIGITS_OF_OTHERS)
        self._seen: dict[CoveredUse, list[Tensor]] = {}
        self._axes: dict[CoveredUse, torch.Size] = {}
        self._place = 0

    def weights(self, device: torch.device) -> Iterator[Tensor]:
        """For each backward pass the factors [B] of the examples: 1, and then powers of two."""
        examples = torch.arange(self._size, device=device)
        num_places = max(1, math.ceil(math.log(max(2, self._size), self._base) - 1e-9))
        yield torch.ones(self._size, dtype=torch.float32, device=device)
        for place in range(num_places):
            self._place = place + 1
            yield torch.exp2((examples // self._base**place % self._base).float())

    def take(self, use: CoveredUse, g: Tensor, weights: Weights) -> None:
        """The gradient g at the output of a use came by; two random sums of each row are kept."""
        axes = row_axes(use.operation, g.ndim, weights)
        rows = g.flatten(0, axes - 1)
        self._axes[use] = g.shape[:axes]
        flat = rows.flatten(1) if rows.ndim > 1 else rows.unsqueeze(1)
        flat = flat.to(accumulator_dtype(flat))
        generator = torch.Generator().manual_seed(0)
        mixing = torch.empty(flat.shape[1], 2, dtype=torch.float32).uniform_(0.5, 1.5, generator=generator)
        mixing *= torch.empty_like(mixing).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        sums = self._seen.setdefault(use, [])
        if len(sums) == self._place:
            sums.append(flat @ mixing.to(flat))
        else:  # no row, or a second gradient in one pass
            self._seen[use] = []

    def examples(self) -> dict[CoveredUse, Tensor | None]:
        """[rows] of each use: each row's example, -1 where its gradient is zero; None where rows are of several."""
        return {use: self._found(sums) for use, sums in self._seen.items()}

    def lies(self, use: CoveredUse, examples: Tensor) -> bool:
        """Whether the rows of a use are where its layout says, if they belong to these examples, or to none (-1)."""
        axes = self._axes[use]
        if use.layout == RAGGED or use.layout.axis >= len(axes):
            return False
        expected = row_examples(use.layout, axes, self._size).to(examples.device)
        return bool(((examples == expected) | (examples < 0)).all())

    def _found(self, sums: list[Tensor]) -> Tensor | None:
        if len(sums) != self._place + 1:
            return None
        plain, *weighted = sums
        if not all(bool(each.isfinite().all()) for each in sums):
            return None
        scale, larger = plain.abs().max(dim=1)
        ids = torch.zeros(len(plain), dtype=torch.long, device=plain.device)
        known = scale > 0
        for place, each in enumerate(weighted):
            ratio = (each / plain).gather(1, larger.unsqueeze(1)).squeeze(1)
            digit = ratio.clamp(min=2.0**-2).nan_to_num(1.0, 1.0, 1.0).log2().round()
            error = (each - torch.exp2(digit).unsqueeze(1) * plain).abs().amax(dim=1)
            known &= (digit >= 0) & (digit < self._base) & (error <= self._rtol * torch.exp2(digit) * scale)
            ids += digit.clamp(0, self._base - 1).long() * self._base**place
        known &= ids < self._size
        if len(plain) and bool((~known & (scale > _FLOOR * scale.max())).any()):
            return None
        return ids.where(known, -1)

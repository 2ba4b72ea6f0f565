"""Importances in 8 bits, anchors in 16: integers under one power of two for every 256 weights.

A float32 number above zero is (1 + fraction) * 2^exponent, and its bits, read as an integer, grow with it. An
importance keeps the exponent, as a distance from its block's largest, and the first three bits of the fraction:

    value = (1 + f/8) * 2^(e - 127 + k),        code = 8 e + f,        e = 1..31,  f = 0..7,        code 0: zero

with k the exponent of the block. So the code is logarithmic: the same relative precision over nine decades, where a
linear one would lose all but the largest two. A code over the square root would spend a bit of the exponent on the
fraction and need it again for the square: the same bound. An anchor is what needs the same absolute
precision everywhere, and is linear:

    value = code * 2^(k - 141),        code = -32767..32767.

Since scales are powers of two, decoding is exact, and what was decoded encodes to itself as long as its block's largest
stays within the range of the code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
"""Weights that share an exponent."""

IMPORTANCE_ERROR = 1 / 16
"""Relative, of an importance above `IMPORTANCE_FLOOR` times the largest of its block."""

IMPORTANCE_FLOOR = 2.0**-30
"""Of the largest of a block: what is smaller and not zero is held as about this."""

ANCHOR_ERROR = 2.0**-15
"""Of the largest magnitude of a block."""

BFLOAT16_ERROR = 2.0**-8
"""Relative."""

_FIRST = 8  # the smallest code of an importance above zero
_LARGEST_MARK = 254 * 8 + 7  # of a finite number
_SMALLEST_EXPONENT = 16  # of a block of anchors: its step is then a normal number


def encode_importance(values: Tensor, noise: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Codes of importances.

    Args:
        values: float32 [n], finite and >= 0.
        noise: where given, each is rounded up or down with the chance that makes it right on average, so that what
            is added to again and again does not stand still; else to the nearest.

    Returns:
        uint8 codes [n], in the order of the values and zero for zero alone; uint8 exponents [n / 256, rounded up].
    """
    marks = _leading_bits(values, 20, noise).clamp_(max=_LARGEST_MARK)
    blocks = _blocks(marks)
    exponents = (blocks.amax(dim=1) >> 3).sub_(31).clamp_(min=0)
    codes = (blocks - 8 * exponents.unsqueeze(1)).clamp_(min=_FIRST).view(-1)[: len(values)]
    return codes.mul_(values > 0).to(torch.uint8), exponents.to(torch.uint8)


def decode_importance(codes: Tensor, scales: Tensor, *, out: Tensor) -> Tensor:
    """The importances of `encode_importance`, into `out`, float32 [n], contiguous; `scales` as `scales_of` gives."""
    out.view(torch.int32).copy_(codes).bitwise_left_shift_(20)  # (1 + f/8) 2^(e - 127)
    return _scale(out.mul_(2.0**96), scales)  # in two factors, as 2^k may be too large


def encode_anchor(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of anchors: int16 [n] and uint8 exponents [n / 256, rounded up], of finite float32 values [n]."""
    largest = _blocks(values.abs()).amax(dim=1)
    exponents = (largest.view(torch.int32) >> 23).clamp_(min=_SMALLEST_EXPONENT)
    steps = _powers(exponents, -141).repeat_interleave(BLOCK)[: len(values)]
    return (values / steps).round_().clamp_(-32767, 32767).to(torch.int16), exponents.to(torch.uint8)


def decode_anchor(codes: Tensor, scales: Tensor, *, out: Tensor) -> Tensor:
    """The anchors of `encode_anchor`, into `out`, float32 [n], contiguous; `scales` as `scales_of` gives."""
    return _scale(out.copy_(codes), scales)


def scales_of(exponents: Tensor, *, of: Tensor) -> Tensor:
    """What decoding multiplies every block by: float32 [n / 256, rounded up], for codes of the dtype of `of`."""
    return _powers(exponents, -96 if of.dtype == torch.uint8 else -141)


def are_exponents(exponents: Tensor, *, of: Tensor) -> bool:
    """Whether these can be the exponents of such codes."""
    if exponents.dtype != torch.uint8 or exponents.shape != (-(-of.numel() // BLOCK),):
        return False
    low, high = (0, 223) if of.dtype == torch.uint8 else (_SMALLEST_EXPONENT, 254)
    return bool(((exponents >= low) & (exponents <= high)).all())


def to_bfloat16(values: Tensor, noise: torch.Generator | None = None) -> Tensor:
    """Importances, float32 and >= 0, as bfloat16; zero for zero alone. `noise` as for `encode_importance`."""
    leading = _leading_bits(values, 16, noise).clamp_(min=1, max=_LARGEST_MARK << 4 | 15).mul_(values > 0)
    return leading.to(torch.int16).view(torch.bfloat16)


def _leading_bits(values: Tensor, dropped: int, noise: torch.Generator | None) -> Tensor:
    """The bits of float32 numbers >= 0 without the last `dropped` of them, rounded; int32."""
    if noise is None:
        return (values.view(torch.int32) + (1 << (dropped - 1))) >> dropped
    drawn = torch.randint(1 << dropped, values.shape, generator=noise, dtype=torch.int32, device=values.device)
    return drawn.add_(values.view(torch.int32)) >> dropped


def _blocks(values: Tensor) -> Tensor:
    """[n / 256, 256], the last row filled up with zeros."""
    return F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)


def _powers(exponents: Tensor, offset: int) -> Tensor:
    """2^(exponents + offset), float32."""
    return ((exponents.to(torch.int32) + (127 + offset)) << 23).view(torch.float32)


def _scale(values: Tensor, scales: Tensor) -> Tensor:
    """Every block times its scale, in place."""
    rest = len(values) % BLOCK
    if rest == 0:
        values.view(-1, BLOCK).mul_(scales.unsqueeze(1))
    else:
        values[:-rest].view(-1, BLOCK).mul_(scales[:-1].unsqueeze(1))
        values[-rest:].mul_(scales[-1])
    return values

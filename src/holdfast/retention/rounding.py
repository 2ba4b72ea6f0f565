"""What half precision rounds away of a pull, kept until it amounts to something.

A bfloat16 weight has eight bits: a pull of less than 1/512 of it rounds to nothing, at every step again. So a pull acts
on

    v = theta + q u,    u = max(|theta|, tiny) eps / 65534,    -32767 <= q <= 32767,

and what rounding v to the weight's precision leaves over becomes the new q, a 16-bit integer for each weight: half a
unit in the last place of theta is at most |theta| eps / 2. The step of q is that of float32 at the same size, so that a
pull acts on a weight of half precision as on one of float32. The optimizer's own step rounds as it always did.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = 32767
_TINY = 1e-30
"""Below this the unit stays what it is: it must not underflow float32."""


def is_half(weight: Tensor) -> bool:
    """Whether pulls on this weight are rounded."""
    return weight.dtype in (torch.bfloat16, torch.float16)


def no_residual(weight: Tensor) -> Tensor:
    """q = 0 for every entry: int16, laid out as the weight."""
    return torch.zeros_like(weight, dtype=torch.int16)


def with_residual(weight: Tensor, residual: Tensor) -> Tensor:
    """v = theta + q u, a new float32 tensor."""
    wide = weight.float()
    return wide.addcmul_(_unit(weight, wide), residual)


def round_(weight: Tensor, residual: Tensor, value: Tensor) -> None:
    """theta and q for which theta + q u = `value`, in place; `value` is used up."""
    weight.copy_(value)
    wide = weight.float()
    residual.copy_(value.sub_(wide).div_(_unit(weight, wide)).round_().clamp_(-_LARGEST, _LARGEST))


def _unit(weight: Tensor, wide: Tensor) -> Tensor:
    kind = torch.finfo(weight.dtype)
    return wide.abs().clamp_min_(max(kind.smallest_normal, _TINY)).mul_(kind.eps / (2 * _LARGEST))

"""The one formula that EWC and WVA share: a step is cut back toward an anchor by w = a/(1 + a).

EWC's anchor is where the weights stood when the old task was closed; WVA's is where they stood before the
step. Both work on lists of tensors, in place. Here every number is allowed; `in_place` and `fused` are the same for the
common case in fewer passes, and are tested against this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from holdfast.tensors import wide_dtype

Attenuation = Literal["hyperbolic", "exponential"]

LARGEST = 1e30
"""Relative forces are clamped here: w is 1 in float32 long before, and 1 + a stays finite."""


def relative_force(
    importance: list[Tensor], strength: float, *, metric: float | list[Tensor] = 1.0, largest: float = math.inf
) -> list[Tensor]:
    """The elastic force over the metric, a = strength * Omega / M; new float32 tensors, 0 <= a <= 1e30.

    Args:
        importance: Omega, float32 tensors >= 0.
        strength: lambda >= 0; infinity pins every weight with a positive importance.
        metric: M, one number or a tensor for each.
        largest: a bound on the entries of `importance`, which saves the clamp where nothing can overflow.
    """
    if strength == math.inf:
        importance = list(torch._foreach_sign(importance))  # the smallest importance pins as well
        largest = 1.0
    strength = min(float(strength), LARGEST)
    if isinstance(metric, float | int):
        factor = min(strength / metric, LARGEST)
        force = list(torch._foreach_mul(importance, factor))
        if largest * factor <= LARGEST:
            return force
    else:
        # in this order: Omega/M may overflow, and zero times infinity is no number
        force = list(torch._foreach_mul(importance, strength))
        torch._foreach_div_(force, metric)
    torch._foreach_clamp_max_(force, LARGEST)
    return force


def pull_shares(
    importance: list[Tensor], strength: float, *, metric: float | list[Tensor], largest: float = math.inf
) -> list[Tensor]:
    """The share w = a/(1 + a) of the way to the anchor, a = strength * Omega / M; new tensors, 0..1.

    For a metric of tensors it is computed as strength * Omega / (M + strength * Omega), in fewer passes.

    Args:
        importance: Omega, float32 tensors >= 0.
        strength: lambda >= 0; infinity pins every weight with a positive importance.
        metric: M > 0, one number, or a tensor for each.
        largest: a bound on the entries of `importance`.
    """
    if isinstance(metric, float | int):
        return relative_share(relative_force(importance, strength, metric=metric, largest=largest))
    if strength == math.inf or strength * largest > LARGEST:
        return relative_share(relative_force(importance, strength, metric=metric))
    shares = list(torch._foreach_mul(importance, strength))
    torch._foreach_div_(shares, torch._foreach_add(shares, metric))
    return shares


def pull_(weights: Sequence[Tensor], anchors: Sequence[Tensor], shares: list[Tensor]) -> None:
    """The proximal step theta' + (anchor - theta') w in place, w the share of the way that each weight goes.

    `lerp` computes it from the nearer end: theta' + (anchor - theta') w up to w = 1/2, else
    anchor + (theta' - anchor)(1 - w). So w = 0 leaves every bit, w = 1 sets the anchor, and no w overshoots.
    """
    if _is_plain(weights):
        torch._foreach_lerp_(list(weights), list(anchors), shares)
    else:
        for weight, anchor, share in zip(weights, anchors, shares, strict=True):
            wide = wide_dtype(weight)
            weight.copy_(torch.lerp(weight.to(wide), anchor.to(wide), share.to(wide)))


def rise(
    weights: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importance: list[Tensor],
    strength: float,
    *,
    metric: float | list[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """sum Omega d^2 of each tensor, d = (theta' - anchor)/(1 + a), and sum Omega d^2 k/(1 + a), where a = strength * k.

    The derivative of the first by the strength is -2 times the second.
    """
    rises, slopes = [], []
    forces = relative_force(importance, 1.0, metric=metric)
    for weight, anchor, value, k in zip(weights, anchors, importance, forces, strict=True):
        shrink = 1 + strength * k
        terms = value * ((weight - anchor).float() / shrink).square()
        rises.append(terms.sum())
        slopes.append((terms * k / shrink).sum())
    return rises, slopes


def attenuate_(weights: Sequence[Tensor], increments: Sequence[Tensor], shares: Sequence[Tensor]) -> None:
    """In place theta' - increment * w: the step with its increment cut to (1 - w) of what the optimizer made it."""
    if _is_plain(weights):
        torch._foreach_addcmul_(list(weights), list(increments), list(shares), -1.0)
    else:
        for weight, increment, share in zip(weights, increments, shares, strict=True):
            wide = wide_dtype(weight)
            weight.copy_(weight.to(wide) - increment.to(wide) * share.to(wide))


def relative_share(force: list[Tensor], *, attenuation: Attenuation = "hyperbolic") -> list[Tensor]:
    """The share w of an increment that is taken back, a/(1 + a) or 1 - exp(-a), in place of `force`; 0..1."""
    if attenuation == "hyperbolic":
        torch._foreach_div_(force, torch._foreach_add(force, 1.0))
        return force
    torch._foreach_neg_(force)
    torch._foreach_expm1_(force)
    torch._foreach_neg_(force)
    return force


def _is_plain(weights: Sequence[Tensor]) -> bool:
    return all(weight.dtype == torch.float32 for weight in weights)

"""The formulas of `force` for one piece of a tensor on the CPU, float32, in as few passes as torch allows.

They write into two or three rows of scratch memory that are used again for every piece, and allocate nothing. Held
against `force` by the tests. Reciprocals of roots are taken where a root is meant: torch computes them a third faster.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.retention.force import Attenuation
from holdfast.steps import Increment, RootMetric

_ONE = torch.ones((), dtype=torch.float32)

Scratch = tuple[Tensor, Tensor]
"""Two rows of memory of the piece's size, whatever is in them."""


def share_(out: Tensor, importance: Tensor, strength: float, *, metric: float | RootMetric) -> Tensor:
    """w = Omega / (Omega + M/strength) into `out`: `force.pull_shares`.

    A second moment of zero becomes a root of infinity and from that M = offset, as it should be.
    """
    if isinstance(metric, RootMetric):
        torch.rsqrt(metric.second, out=out)
        torch.addcdiv(importance, _ONE, out, value=metric.slope / strength, out=out)
        out.add_(metric.offset / strength)
    else:
        torch.add(importance, metric / strength, out=out)
    return torch.div(importance, out, out=out)


def pull_(
    weight: Tensor, anchor: Tensor, importance: Tensor, strength: float, *, metric: float | RootMetric, scratch: Scratch
) -> None:
    """The pull theta' + (anchor - theta') w in place: `force.pull_`, with one row of scratch."""
    weight.lerp_(anchor, share_(scratch[0], importance, strength, metric=metric))


def rise(
    weight: Tensor, anchor: Tensor, importance: Tensor, strength: float, *, metric: float | RootMetric, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """sum Omega d^2 for d the distance to the anchor after such a pull, and sum Omega d^2 w; two rows of scratch."""
    share = share_(scratch[0], importance, strength, metric=metric)
    terms = torch.lerp(weight, anchor, share, out=scratch[1]).sub_(anchor)
    terms.mul_(terms).mul_(importance)
    return terms.sum(), torch.dot(terms, share)


def distance(weight: Tensor, anchor: Tensor, importance: Tensor, *, scratch: Scratch) -> Tensor:
    """sum Omega (theta - anchor)^2, with two rows of scratch."""
    along = torch.sub(weight, anchor, out=scratch[0])
    return torch.dot(along, torch.mul(along, importance, out=scratch[1]))


def attenuate_(
    weight: Tensor,
    importance: Tensor,
    strength: float,
    *,
    increment: Increment,
    attenuation: Attenuation,
    largest: float,
    scratch: Scratch,
) -> None:
    """The step theta' - increment * w in place: `force.attenuate_`, with two rows of scratch.

    Args:
        weight: theta', changed.
        importance: Omega.
        strength: lambda > 0, finite.
        increment: with a rate other than zero.
        attenuation: "hyperbolic" or "exponential".
        largest: a bound on Omega.
        scratch: memory to work in.
    """
    if attenuation == "hyperbolic" and _takes_one_division(increment, strength, largest=largest):
        attenuate_adam_(weight, importance, strength, increment=increment, scratch=scratch)
        return
    share = scratch[1]
    if attenuation == "hyperbolic":
        share_(share, importance, strength, metric=1.0)
    else:
        torch.mul(importance, -strength, out=share).expm1_().neg_()
    direction, rate = _increment(increment, weight, out=scratch[0])
    weight.addcmul_(direction, share, value=-rate)


def attenuate_adam_(
    weight: Tensor, importance: Tensor, strength: float, *, increment: Increment, scratch: Scratch
) -> None:
    """The same for Adam's increment rate * m / M and w = Omega / q, q = Omega + 1/strength, in five passes.

    One division does for both: theta' - rate/offset * m * Omega / (q (1 + slope/offset sqrt(v))).
    """
    metric = increment.metric
    assert metric is not None
    root, q = scratch[0], torch.add(importance, 1 / strength, out=scratch[1])
    torch.rsqrt(metric.second, out=root)
    torch.addcdiv(q, q, root, value=metric.slope / metric.offset, out=q)
    weight.addcdiv_(torch.mul(increment.first, importance, out=root), q, value=-increment.rate / metric.offset)


def _takes_one_division(increment: Increment, strength: float, *, largest: float) -> bool:
    """Whether it is Adam's without decay, and of sizes at which no product leaves float32, gradients up to 1e10."""
    metric = increment.metric
    if metric is None or increment.decay or metric.offset == 0 or strength > 1e20:
        return False
    return (largest + 1 / strength) * metric.slope / metric.offset <= 1e28


def _increment(increment: Increment, weight: Tensor, *, out: Tensor) -> tuple[Tensor, float]:
    """The increment as a tensor, `out` or one that was there, and a factor of it."""
    direction, rate, metric = increment.first, increment.rate, increment.metric
    if increment.buffer is not None:
        direction = torch.add(direction, increment.buffer, alpha=increment.share, out=out)
    if metric is not None:
        root = torch.sqrt(metric.second, out=out).add_(metric.offset / metric.slope)
        direction, rate = torch.div(direction, root, out=out), rate / metric.slope
    if increment.decay:
        direction = torch.add(direction, weight, alpha=-increment.decay / rate, out=out)
    return direction, rate / (1 - increment.decay)

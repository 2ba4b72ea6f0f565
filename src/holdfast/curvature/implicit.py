"""The implicit pull of a whole layer, whose curvature K is held in an eigenbasis (`holdfast.curvature.kronecker`).

The proximal step from theta', in the metric M of the optimizer, is the x that minimises

    phi(x) = 1/2 (x - theta')^T M (x - theta') + strength/2 (x - anchor)^T K (x - anchor).

With one number M for the layer (SGD) it is closed form: along each direction of the basis the distance to the anchor
shrinks by w = a/(1 + a), a = strength * S / M.

Under Adam M differs from weight to weight and shares no basis with K. P = T + strength K does, with T the largest entry
of M, and P >= M + strength K. So each step improves on the pull p of the step before, with d' = theta' - anchor:

    p <- P^-1 (T - M) p_before - P^-1 strength K d'     phi at most that of p_before, from which P bounds it from above
    p <- p + alpha P^-1 r,   r = (T - M) (p - p_before)    r = -grad phi; alpha where phi is least along the direction
    p <- beta p                                            beta where phi is least on the line from theta'

*No growth.* The last line alone proves it, whatever p was: theta' itself lies on the line, so that
phi(theta' + p) <= phi(theta'). Without a task's gradient theta' is where the step before ended, and

    strength/2 d^T K d + 1/2 p^T M p  <=  strength/2 d_before^T K d_before

for any sequence of metrics and strengths: nothing is carried over that could be of another metric than today's.

*The fixed point* is that of the exact step, grad L + strength K d = 0. Where theta' and M stand still, the first line
lowers phi by at least a share min M / T of what separates it from its least, the others never raise it, and where it is
least p stays as it is. How many steps that takes: docs/strength.md.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

SMALLEST = 1e-30
"""Metrics over strengths are clamped here: nothing divides zero by zero, and the largest strengths pin."""


class Eigenbasis(Protocol):
    """A curvature along its own directions."""

    @property
    def spectrum(self) -> Tensor:
        """S [out, n], >= 0."""
        ...

    def coordinates(self, matrix: Tensor) -> Tensor:
        """A displacement [out, n] along the directions."""
        ...

    def matrix(self, coordinates: Tensor) -> Tensor:
        """The inverse of `coordinates`."""
        ...


def share_of_spectrum(spectrum: Tensor, strength: float, *, metric: float) -> Tensor:
    """Each direction's w = a/(1 + a), a = strength * S / M; 0..1, and no NaN for any strength up to infinity."""
    if strength == math.inf:
        return (spectrum > 0).to(spectrum.dtype)  # the smallest curvature pins as well
    return spectrum / (spectrum + max(metric / strength, SMALLEST))


def layer_pull(
    distance: Tensor, layer: Eigenbasis, strength: float, *, metric: float | Tensor, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The pull p of one step: what is added to theta' [out, n].

    Args:
        distance: theta' - anchor, [out, n].
        layer: K, in the dtype of `distance` or held in fewer bits.
        strength: lambda > 0; infinity pins every direction with a positive curvature.
        metric: M, one number > 0, or a tensor [out, n] >= 0.
        before: p of the step before, where M is a tensor; None for none.

    Returns:
        p [out, n], and w [out, n], the share of its distance that each direction goes under the largest entry of M.

    Cost: a product is a change of basis and one back, 4 out n (out + n) operations. One under one number M, else 2.5.
    """
    S = layer.spectrum.to(distance.dtype)
    if not isinstance(metric, Tensor):
        share = share_of_spectrum(S, strength, metric=metric)
        return layer.matrix(share * layer.coordinates(distance)).neg_(), share
    M = metric.clamp(SMALLEST, 1 / SMALLEST)
    T = largest_metric(M)
    share = share_of_spectrum(S, strength, metric=T)
    rest, slack = 1 - share, 1 - M / T  # of P^-1 T and of (T - M)/T
    if before is None:
        before = torch.zeros_like(distance)
    c = layer.coordinates(distance)

    along = rest * layer.coordinates(slack * before) - share * c  # p in the basis
    pull = layer.matrix(along)

    r = slack * (pull - before)
    y = layer.coordinates(r)
    z_along = rest * y
    z = layer.matrix(z_along)
    alpha = _ratio((r * z).sum(), (M / T * z * z).sum() + (share * y * z_along).sum())
    pull, along = pull + alpha * z, along + alpha * z_along

    moved = (M * pull * pull).sum() / max(strength, SMALLEST)
    beta = _ratio(-(S * c * along).sum(), moved + (S * along * along).sum())
    return beta * pull, share


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """0 where nothing is to be gained along a direction."""
    return torch.where(below > 0, above / below, 0.0)


def largest_metric(metric: float | Tensor) -> float:
    """One number for the whole layer that is nowhere below its metric."""
    return max(float(metric.max()), SMALLEST) if isinstance(metric, Tensor) else metric

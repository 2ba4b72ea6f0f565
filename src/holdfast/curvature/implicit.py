"""The implicit pull of a whole layer, whose curvature K is held in an eigenbasis (`holdfast.curvature.kronecker`).

The proximal step from theta', in the metric M of the optimizer, is the x that minimises

    1/2 (x - theta')^T M (x - theta') + strength/2 (x - anchor)^T K (x - anchor).

With one number M for the layer (SGD) it is closed form: along each direction of the basis the distance to the anchor
shrinks by w = a/(1 + a), a = strength * S / M. Under Adam M differs from weight to weight and shares no basis with K.
Then the largest entry T >= M takes its place, which bounds the objective from above, and what this bound leaves undone
is made up by starting at theta' + p, p the pull of the step before, where the bound touches the objective:

    x = anchor + (T + strength K)^-1 T (theta' - anchor + (1 - M/T) p),        p <- x - theta'.

One product with K's basis a step, whatever the metric. Where x rests, M p + strength K (x - anchor) = 0: the fixed
point is that of the exact step. And it is stable at every strength: without a task's gradient

    strength/2 d^T K d + 1/2 (d - d_before)^T (T - M) (d - d_before),     d = x - anchor,

never grows, since T - M is nowhere negative.
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
        layer: K, in the dtype of `distance`.
        strength: lambda > 0; infinity pins every direction with a positive curvature.
        metric: M, one number > 0, or a tensor [out, n] >= 0.
        before: p of the step before, where M is a tensor; None for none.

    Returns:
        p [out, n], and w [out, n], the share of its distance that each direction went.

    Cost: two products [out, out] [out, n] and two [out, n] [n, n].
    """
    if isinstance(metric, Tensor):
        largest = largest_metric(metric)
        if before is None:
            before = torch.zeros_like(distance)
        before = before - before * (metric / largest)
        distance = distance + before
    else:
        largest, before = metric, None
    share = share_of_spectrum(layer.spectrum, strength, metric=largest)
    pull = layer.matrix(share * layer.coordinates(distance)).neg_()
    return pull if before is None else pull.add_(before), share


def largest_metric(metric: float | Tensor) -> float:
    """One number for the whole layer that is nowhere below its metric."""
    return max(float(metric.max()), SMALLEST) if isinstance(metric, Tensor) else metric

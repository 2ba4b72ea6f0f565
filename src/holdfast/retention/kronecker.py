"""The implicit pull of a whole layer, whose curvature K is held in an eigenbasis (`holdfast.memory.kronecker`).

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

import torch
from torch import Tensor
from torch.optim import Optimizer

from holdfast.errors import StateError
from holdfast.memory import HeldLayer
from holdfast.retention.plan import LayerPart, apart_message
from holdfast.steps import UserMetric, metric_values, step_metrics

SMALLEST = 1e-30
"""Metrics over strengths are clamped here: nothing divides zero by zero, and the largest strengths pin."""


def share_of_spectrum(spectrum: Tensor, strength: float, *, metric: float) -> Tensor:
    """Each direction's w = a/(1 + a), a = strength * S / M; 0..1, and no NaN for any strength up to infinity."""
    if strength == math.inf:
        return (spectrum > 0).to(spectrum.dtype)  # the smallest curvature pins as well
    return spectrum / (spectrum + max(metric / strength, SMALLEST))


def layer_pull(
    distance: Tensor, layer: HeldLayer, strength: float, *, metric: float | Tensor, before: Tensor | None = None
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


def layer_metric(optimizer: Optimizer, part: LayerPart, *, user_metric: UserMetric | None = None) -> float | Tensor:
    """The metric of the step just taken, of a whole layer.

    Returns:
        One number, or a tensor [out, n] >= 0.

    Raises:
        StateError: the learning rate of its weight or of its bias alone is zero.
    """
    metrics = [
        step_metrics(optimizer, group, [parameter], user_metric=user_metric)
        for group, parameter in zip(part.groups, part.parameters, strict=True)
    ]
    found = [metric_values(metric, [p]) for metric, p in zip(metrics, part.parameters, strict=True)]
    numbers = [metric for metric in found if not isinstance(metric, list)]
    if len(numbers) == len(found) and len(set(numbers)) == 1:
        return numbers[0]
    if math.inf in numbers:  # one of them has a learning rate of zero
        raise StateError(apart_message(part.name, "EWC"))
    whole = [
        metric[0] if isinstance(metric, list) else torch.full_like(p, metric)
        for p, metric in zip(part.parameters, found, strict=True)
    ]
    return part.layer.join(*(metric.to(part.anchor.dtype) for metric in whole))

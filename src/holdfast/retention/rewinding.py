"""The way back along the curvature: from weights that learned too freely toward the anchors.

With d the distance to the anchors and K the curvature held, the point

    d(mu) = (1 + mu delta)^-1 (1 + mu K)^-1 d

loses little of the new task for what it gives back of the old: mu = 0 is where training ended, and mu to infinity is
the anchor. delta > 0, a share of K's mean, takes back what K does not see; with K = 0 it is linear averaging with the
weights of the anchors. Every way of the new task counts the same: the metric of an optimizer at the end of a training
is no measure of what it has learned (docs/strength.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.memory import Retained
from holdfast.memory.stored import read, side_by_side
from holdfast.tensors import TensorMap, local, sum_of, wide_dtype


def mean_curvature(held: Retained, weights: TensorMap) -> float:
    """The mean of K's diagonal over the weights that are held."""
    totals = [layer.spectrum.sum() for layer in held.layers.values()]
    for name, stored in held.importance.items():
        device = weights[name].device
        totals.append(read(stored, dtype=torch.float32, device=device).sum())
    return sum_of(totals) / max(1, sum(value.numel() for value in held.covered.values()))


@torch.no_grad()
def rewound(weights: TensorMap, held: Retained, *, strength: float, delta: float) -> dict[str, Tensor]:
    """The weights at d(mu), beside the parameters in their dtype; those that are not held are left out.

    Args:
        weights: where training ended, by name.
        held: K and the anchors.
        strength: mu >= 0, in one over the unit of K.
        delta: >= 0, in the unit of K.

    Cost: one pass over the weights, and a pull of each layer.
    """
    found: dict[str, Tensor] = {}
    rest = 1 / (1 + strength * delta)
    for name, importance in held.importance.items():
        if name in weights:
            weight, pieces = local(weights[name].detach()), []
            for part, omega, anchor in side_by_side(weight, importance, held.anchors[name]):
                end = anchor.float()
                pieces.append((end + (part.float() - end) * rest / (1 + strength * omega)).to(part.dtype))
            found[name] = torch.cat(pieces).view_as(weight)
    for name, layer in held.layers.items():
        names = list(layer.shapes(name))
        if all(n in weights for n in names):
            ends = [weights[n].detach().to(wide_dtype(weights[name])) for n in names]
            anchors = [read(held.anchors[n], dtype=ends[0].dtype, device=ends[0].device) for n in names]
            curvature = layer.to(ends[0].device, ends[0].dtype)
            pulls = [torch.zeros_like(end) for end in ends]
            if strength > 0:
                pulls, _, _ = curvature.pull(ends, anchors, strength, metrics=[1.0] * len(ends), before=None)
            for n, end, pull, anchor in zip(names, ends, pulls, anchors, strict=True):
                found[n] = (anchor + (end + pull - anchor) * rest).to(weights[n].dtype)
    return found


def sought(kept: Callable[[float], bool], *, start: float = 1.0, rounds: int = 12, most: float = 1e12) -> float:
    """The least mu, to a few per cent, at which `kept` holds; infinity where it does not hold at `most`.

    Args:
        kept: whether the budget is kept at mu; of growing mu first not, then so.
        start: where to begin.
        rounds: halvings of the last decade.
        most: the largest that is tried.
    """
    low, high = 0.0, start
    while not kept(high):
        low, high = high, high * 10
        if high > most:
            return math.inf
    if low == 0:  # it held at the start: look below
        low = start
        while low > start * 1e-9 and kept(low):
            low, high = low / 10, low
        if low <= start * 1e-9:
            return low
    for _ in range(rounds):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if kept(middle) else (middle, high)
        if high < low * 1.02:
            break
    return high

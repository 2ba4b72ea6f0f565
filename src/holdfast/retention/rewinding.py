"""The way back along the curvature: from weights that learned too freely toward the anchors.

With d the distance to the anchors, K the curvature held and M the metric of the new task, the point

    d(mu) = (1 + mu delta / M)^-1 (M + mu K)^-1 M d

loses least of the new task, as far as M tells, for what it gives back of the old: mu = 0 is where training ended, and
mu to infinity is the anchor. delta > 0, a share of K's mean, takes back what K does not see; with K = 0 it is linear
averaging with the weights of the anchors.

(In the article the two factors would stand as one, M + mu (K + delta I). Apart they need of a curvature no more than
the pull it has, and differ where mu K and mu delta are alike.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from holdfast.curvature import Curvature
from holdfast.memory import Retained
from holdfast.memory.stored import read, side_by_side
from holdfast.tensors import TensorMap, local, sum_of, wide_dtype

Metrics = Mapping[str, float | Tensor]

_ROUNDS = 30
"""Pulls, each from where the last one left off, that stand for the exact step in a metric that differs by weight."""


def mean_curvature(held: Retained, weights: TensorMap) -> float:
    """The mean of K's diagonal over the weights that are held."""
    totals = [layer.spectrum.sum() for layer in held.layers.values()]
    for name, stored in held.importance.items():
        device = weights[name].device
        totals.append(read(stored, dtype=torch.float32, device=device).sum())
    return sum_of(totals) / max(1, sum(value.numel() for value in held.covered.values()))


@torch.no_grad()
def rewound(
    weights: TensorMap, held: Retained, metrics: Metrics, *, strength: float, delta: float
) -> dict[str, Tensor]:
    """The weights at d(mu), beside the parameters in their dtype; those that are not held are left out.

    Args:
        weights: where training ended, by name.
        held: K and the anchors.
        metrics: M by name, > 0, a number or a tensor of the weight's shape; 1 where there is none.
        strength: mu >= 0, in the unit of M over that of K.
        delta: >= 0, in the unit of K.

    Cost: one pass over the weights; of each Kronecker layer a pull under a number M, and 30 under a tensor.
    """
    found: dict[str, Tensor] = {}
    for name, importance in held.importance.items():
        if name in weights:
            weight, metric, pieces = local(weights[name].detach()), metrics.get(name, 1.0), []
            for part, omega, anchor in side_by_side(weight, importance, held.anchors[name]):
                start, size = sum(map(len, pieces)), part.numel()
                m = metric.reshape(-1)[start : start + size] if isinstance(metric, Tensor) else metric
                wide, end = part.float(), anchor.float()
                away = (wide - end) / ((1 + strength * omega / m) * (1 + strength * delta / m))
                pieces.append((end + away).to(part.dtype))
            found[name] = torch.cat(pieces).view_as(weight)
    for name, layer in held.layers.items():
        names = list(layer.shapes(name))
        if all(n in weights for n in names):
            ends = [weights[n].detach().to(wide_dtype(weights[name])) for n in names]
            given = [metrics.get(n, 1.0) for n in names]
            anchors = [read(held.anchors[n], dtype=ends[0].dtype, device=ends[0].device) for n in names]
            curvature = layer.to(ends[0].device, ends[0].dtype)
            pulls = _settled(curvature, ends, anchors, given, strength)
            for n, end, pull, anchor, m in zip(names, ends, pulls, anchors, given, strict=True):
                found[n] = (anchor + (end + pull - anchor) / (1 + strength * delta / m)).to(weights[n].dtype)
    return found


def _settled(
    layer: Curvature,
    ends: Sequence[Tensor],
    anchors: Sequence[Tensor],
    metrics: Sequence[float | Tensor],
    strength: float,
) -> Sequence[Tensor]:
    """The pull of a layer, which under a tensor of metrics is come to step by step."""
    pulls: Sequence[Tensor] = [torch.zeros_like(end) for end in ends]
    before = None
    if strength > 0:
        for _ in range(_ROUNDS if any(isinstance(m, Tensor) for m in metrics) else 1):
            pulls, _, before = layer.pull(ends, anchors, strength, metrics=metrics, before=before)
    return pulls


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

"""The way back along the curvature: from weights that learned too freely toward the anchors.

With d the distance to the anchors, K the curvature held and M that of the new task where training ended, the point

    d(mu) = (1 + mu delta)^-1 (M + mu K)^-1 M d

gives back of the old what costs the new task least, as far as both are quadratic: mu = 0 is where training ended, and
mu to infinity is the anchor. delta > 0, a share of the mean of K in the metric M, takes back what K does not see; with
K = 0 it is linear averaging with the weights of the anchors. M is damped; where nobody has measured it, it is 1, and
every way counts the same: the metric of an optimizer at the end of a training is no measure of what it has learned
(docs/strength.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from holdfast.curvature import Curvature, Measured, RelativeCurvature, relative
from holdfast.curvature.exchange import ALONE, Exchange
from holdfast.errors import ParameterMismatchError
from holdfast.memory import Retained
from holdfast.memory.stored import read, side_by_side
from holdfast.retention.owned import diagonal_beside, factors_at_owners
from holdfast.tensors import TensorMap, local, wide_dtype

_DAMPING = 0.1
"""Share of each factor's mean eigenvalue that is added to M along every direction; to single weights their mean."""

_LEAST = 1e-3
"""A tensor, or a layer, of which the new task knows less than this share of the mean counts as that share."""


@dataclass(frozen=True)
class NewTask:
    """M, the curvature of the new task, beside what is held; all of it 1 where nothing is known.

    Attributes:
        weights: of each weight that is held alone, > 0, of its shape.
        layers: of layers that are held as a whole, and owned by this process: what is held in the metric M, or where
            there are no factors on both sides one number > 0 for the layer.
    """

    weights: TensorMap = field(default_factory=dict)
    layers: Mapping[str, RelativeCurvature | float] = field(default_factory=dict)


@torch.no_grad()
def new_task(
    importance: Measured, held: Retained, weights: TensorMap, *, where: str, exchange: Exchange = ALONE
) -> NewTask:
    """M, damped, from an importance of the new task; of a sharded model in shards, and of each process's own layers.

    Raises:
        ParameterMismatchError: the importance lacks weights that are held, has them in other shapes, or is zero.

    Cost: for layers with Kronecker factors two eigendecompositions each; their memory twice over.
    """
    sizes = {name: weights[name].numel() for name in held.covered if name in weights}
    factors = factors_at_owners(importance, held, exchange)
    diagonal = diagonal_beside(importance, weights, exchange)
    wrong = [name for name in sizes if name not in diagonal or diagonal[name].shape != local(weights[name]).shape]
    if wrong:
        raise ParameterMismatchError(
            f"{where}: the importance of the new task has no entry of the right shape for {', '.join(map(repr, wrong))}"
            ". Measure it on this model, on data of the new task, with all parameters that are held trainable."
        )
    means = exchange.means({name: diagonal[name].float() for name in sizes})
    least = _LEAST * sum(mean * sizes[name] for name, mean in means.items())
    least /= max(1, sum(sizes.values()))
    if not least > 0:
        raise ParameterMismatchError(f"{where}: the importance of the new task is zero. Measure it on its data.")
    own = {
        name: diagonal[name].to(weights[name].device, torch.float32) + max(means[name], least)
        for name in held.importance
        if name in sizes
    }

    def metric_of(name: str, layer: Curvature) -> RelativeCurvature | float:
        names = [n for n in layer.shapes(name) if n in sizes]
        mean = sum(means[n] * sizes[n] for n in names) / max(1, sum(sizes[n] for n in names))
        return relative(layer, factors.get(name) if mean > least else None, damping=_DAMPING) or max(mean, least)

    layers = exchange.together(
        lambda: {name: metric_of(name, layer) for name, layer in held.layers.items()}, where=where
    )
    return NewTask(own, layers)


def mean_curvature(
    held: Retained, weights: TensorMap, new: NewTask | None = None, *, exchange: Exchange = ALONE
) -> float:
    """The mean of K over the weights that are held, along the directions of M; of its diagonal where M is 1."""
    new = NewTask() if new is None else new
    totals = []
    for name, layer in held.layers.items():
        metric = new.layers.get(name, 1.0)
        known = isinstance(metric, RelativeCurvature)
        totals.append(metric.spectrum.sum() if known else layer.spectrum.sum() / metric)
    for name, stored in held.importance.items():
        omega = read(stored, dtype=torch.float32, device=weights[name].device)
        totals.append((omega / local(new.weights[name]) if name in new.weights else omega).sum())
    sizes = (weights[name].numel() if name in weights else value.numel() for name, value in held.covered.items())
    return exchange.sum_of(totals) / max(1, sum(sizes))


@torch.no_grad()
def rewound(
    weights: TensorMap,
    held: Retained,
    *,
    strength: float,
    rest: float,
    new: NewTask | None = None,
    exchange: Exchange = ALONE,
) -> dict[str, Tensor]:
    """The weights at d(mu), beside the parameters in their dtype; those that are not held are left out.

    Args:
        weights: where training ended, by name; of a sharded model this process's shards.
        held: K and the anchors.
        strength: mu >= 0, in the unit of M over that of K.
        rest: (1 + mu delta)^-1, 0..1.
        new: M.
        exchange: the processes that hold a sharded model together.

    Cost: one pass over the weights, and a pull of each layer.
    """
    new = NewTask() if new is None else new
    found: dict[str, Tensor] = {}
    for name, importance in held.importance.items():
        if name in weights:
            weight, pieces, done = local(weights[name].detach()), [], 0
            metric = new.weights[name].reshape(-1) if name in new.weights else None
            for part, omega, anchor in side_by_side(weight, importance, held.anchors[name]):
                end = anchor.float()
                over = omega if metric is None else omega / metric[done : (done := done + part.numel())]
                pieces.append((end + (part.float() - end) * rest / (1 + strength * over)).to(part.dtype))
            found[name] = torch.cat(pieces).view_as(weight)
    names = {name: list(layer.shapes(name)) for name, layer in held.all_layers.items()}
    layers = {name: layer for name, layer in held.all_layers.items() if all(n in weights for n in names[name])}

    def ask(name: str) -> tuple[list[Tensor], list[Tensor]]:
        dtype = wide_dtype(weights[name])
        ends = [local(weights[n].detach()).to(dtype) for n in names[name]]
        return ends, [read(held.anchors[n], dtype=dtype, device=end.device) for n, end in zip(names[name], ends)]

    def left(name: str, layer: Curvature, ends: list[Tensor], anchors: list[Tensor]) -> list[Tensor]:
        ways = [end - anchor for end, anchor in zip(ends, anchors, strict=True)]
        metric, curvature = new.layers.get(name, 1.0), layer.to(ends[0].device, ends[0].dtype)
        if strength > 0 and isinstance(metric, RelativeCurvature):
            return metric.nearer(ways, strength)
        if strength > 0:
            pulls, _, _ = curvature.pull(ends, anchors, strength, metrics=[metric] * len(ends), before=None)
            return [way + pull for way, pull in zip(ways, pulls, strict=True)]
        return ways

    for name, ways in exchange.each(layers, ask, left):
        for n, way, anchor in zip(names[name], ways, ask(name)[1], strict=True):
            found[n] = (anchor + way * rest).to(weights[n].dtype)
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

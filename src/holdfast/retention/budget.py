"""A budget in place of a strength: steps are projected onto the ellipsoid of a bearable predicted rise.

The projection of theta' in the metric M minimises 1/2 sum M (d - d')^2 under 1/2 sum Omega d^2 <= budget, with d the
distance to the anchor. Its solution d = d'/(1 + mu Omega/M) is the implicit pull with the multiplier mu as
strength, so that only mu is to be found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from holdfast.curvature.exchange import ByParameter
from holdfast.curvature.protocol import Group
from holdfast.errors import OptionError
from holdfast.retention import force
from holdfast.retention.force import LARGEST
from holdfast.retention.rise import layers_rise, weights_rise
from holdfast.retention.route import Route
from holdfast.retention.step import Step
from holdfast.steps import UserMetric

Rise = Callable[[float], tuple[float, float]]


def multiplier_of(
    step: Step, budget: float, *, start: float, route: Route, metric: UserMetric | None, where: str
) -> float:
    """The multiplier whose pull brings the predicted rise of what a step moves to the budget; 0 where it is within.

    Args:
        step: taken already, and not pulled back yet.
        budget: nats per target.
        start: the last step's multiplier.
        route: by which blocks of weights are pulled.
        metric: of the user's own; None for the optimizer's.
        where: for messages.
    """
    held, largest = step.held, step.held.largest
    resting = step.resting()
    unmoved = weights_rise(resting, held.importance, held.anchors, sum_of=step.sum_of)
    unmoved += layers_rise(resting, held, held.anchors, exchange=step.exchange)
    limit = max(0.0, budget + held.start - unmoved)
    parts = {part.name: part for part in step.layers()}

    def ask(name: str) -> Sequence[ByParameter]:
        part = parts[name]
        return part.values(), part.anchors, part.metrics(step.optimizer, metric, where=where)

    asked = step.exchange.gathered({name: part.curvature for name, part in parts.items()}, ask)
    layers = [layer.line(values, anchors, metrics) for _, layer, (values, anchors, metrics) in asked]

    def rise(multiplier: float) -> tuple[float, float]:
        blocks = step.blocks(metric=True, user_metric=metric, changes=False)
        pairs = [route.rise(block, multiplier, largest=largest) for block in blocks]
        for way, spectrum, metrics in layers:
            pairs.append(force.rise([way], [torch.zeros_like(way)], [spectrum], multiplier, metric=metrics))
        values, slopes = ([term for pair in pairs for term in pair[i]] for i in (0, 1))
        return 0.5 * step.sum_of(values), -step.sum_of(slopes)

    if start == 0:  # mostly within the budget, and that is sooner seen without a metric
        terms = [term for block in step.blocks(changes=False) for term in route.distance(block)]
        terms += [(spectrum * way.square()).sum() for way, spectrum, _ in layers]
        if 0.5 * step.sum_of(terms) <= limit:
            return 0.0
    return solve_multiplier(rise, limit, start=start)


def solve_multiplier(rise: Rise, budget: float, *, start: float = 0.0, tolerance: float = 1e-3) -> float:
    """The multiplier mu >= 0 that brings the rise to the budget: between (1 - 2 tolerance) of it and all of it.

    Newton's method on 1/sqrt(rise(mu)), which is concave and nearly linear in mu: it comes to the root from the
    left, and takes about three evaluations from the last step's value.

    Args:
        rise: mu -> (rise, its derivative); decreasing and convex.
        budget: nats per target >= 0; zero pins.
        start: where to begin, such as the last step's value.
        tolerance: relative.

    Returns:
        0 where the rise is within the budget already.
    """
    if budget <= 0:
        return LARGEST if rise(0.0)[0] > budget else 0.0
    target = budget * (1 - tolerance)
    multiplier, (now, slope) = start, rise(start)
    for _ in range(60):
        if now <= budget and (multiplier == 0 or now >= budget * (1 - 2 * tolerance)):
            return multiplier
        # a start far too large sees no slope: begin again at zero
        step = 2 * now * ((now / target) ** 0.5 - 1) / -slope if slope else -multiplier
        multiplier = max(0.0, multiplier + step)
        now, slope = rise(multiplier)
    return multiplier if now <= budget else LARGEST


def check_directions(layers: Mapping[str, Group], *, where: str) -> None:
    """Raise `OptionError` for layers whose curvature has no directions along which a budget could be kept."""
    without = [name for name, layer in layers.items() if not layer.has_directions]
    if without:
        raise OptionError(
            f"{where}: a budget is kept along the directions of a curvature, and those of {len(without)} layers, "
            f"such as {without[0]!r}, have none. Give a strength."
        )

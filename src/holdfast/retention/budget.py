"""A budget in place of a strength: steps are projected onto the ellipsoid of a bearable predicted rise.

The projection of theta' in the metric M minimises 1/2 sum M (d - d')^2 under 1/2 sum Omega d^2 <= budget, with d the
distance to the anchor. Its solution d = d'/(1 + mu Omega/M) is the implicit pull with the multiplier mu as
strength, so that only mu is to be found.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.retention.force import LARGEST

Rise = Callable[[float], tuple[float, float]]


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

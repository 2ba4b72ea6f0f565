"""When a published figure counts as reproduced, and when a claim stands."""

from __future__ import annotations

from typing import Literal

from holdfast.experiments.reproduce.recipe import Published
from holdfast.experiments.tables import Estimate

Verdict = Literal["reproduced", "better", "not reached"]
Stand = Literal["agrees", "disagrees", "open"]

TOLERANCE = 0.005
"""Half a point: what a figure without an interval of its own is taken to be uncertain by."""

LEGEND = f"""Verdicts compare our 95% interval with the published figure and its own interval; a figure, or a mean of
ours, that has none is given ±{100 * TOLERANCE:g} points. *Reproduced*: the intervals meet. *Better*: ours lies wholly
above. *Not reached*: ours lies wholly below. A wide interval meets much: look at its width too."""


def verdict(ours: Estimate, published: Published) -> Verdict:
    """Whether our interval meets, exceeds or misses the published one."""
    reach = _half(ours.half_width) + (published.spread or TOLERANCE)
    difference = ours.mean - published.figure
    return "better" if difference > reach else "not reached" if difference < -reach else "reproduced"


def above(difference: Estimate) -> Stand:
    """Whether the claim stands that a difference is positive: open where its interval holds 0, or there is none."""
    if difference.half_width is None or abs(difference.mean) <= difference.half_width:
        return "open"
    return "agrees" if difference.mean > 0 else "disagrees"


def not_below(difference: Estimate) -> Stand:
    """Whether the claim stands that a difference is not negative: it falls only where the interval lies below 0."""
    stand = above(difference)
    return "agrees" if stand == "open" and difference.half_width is not None else stand


def equal(difference: Estimate) -> Stand:
    """Whether the claim stands that there is no difference: its interval holds 0."""
    if difference.half_width is None:
        return "open"
    return "agrees" if abs(difference.mean) <= difference.half_width else "disagrees"


def stand_text(stand: Stand) -> str:
    """As it ends a sentence whose subject is the claim."""
    return {
        "agrees": "agrees with the authors",
        "disagrees": "is not so here, against the authors",
        "open": "stays open: the interval holds zero",
    }[stand]


def _half(width: float | None) -> float:
    return TOLERANCE if width is None else width

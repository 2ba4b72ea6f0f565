"""When a printed figure counts as reproduced, and when a claim stands."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from holdfast.lab.tables import Estimate
from recipes.lines import CitedFigure

Verdict = Literal["reproduced", "better", "not reached"]
Stand = Literal["agrees", "disagrees", "open"]

TOLERANCE = 0.005
"""Half a point: what a figure without an interval of its own is taken to be uncertain by."""
WIDEST = 0.03
"""Three points: a wider interval of ours counts as so wide, lest few seeds reproduce everything."""
MARGIN = 0.01
"""One point: differences below it do not matter to claims that there is none."""

LEGEND = f"""Verdicts compare our 95% interval with the printed figure and its own interval. A figure or mean
without an interval is given ±{100 * TOLERANCE:g} points; one of ours wider than ±{100 * WIDEST:g} counts as so wide.
*Reproduced*: the intervals meet. *Better*: ours lies wholly above. *Not reached*: ours lies wholly below."""
PROGRAM_NOTE = (
    "The reference program is independent of this library. Nobody has published its figures, so that they confirm and "
    "refute nothing, and there is no verdict on them."
)


def verdict(ours: Estimate, printed: CitedFigure) -> Verdict:
    """Whether our interval meets, exceeds or misses the printed one."""
    reach = min(_half(ours.half_width), WIDEST) + (printed.spread or TOLERANCE)
    difference = ours.mean - printed.figure
    return "better" if difference > reach else "not reached" if difference < -reach else "reproduced"


def above(difference: Estimate) -> Stand:
    """Whether the claim stands that a difference is positive: open where its interval holds 0, or there is none."""
    if difference.half_width is None or abs(difference.mean) <= difference.half_width:
        return "open"
    return "agrees" if difference.mean > 0 else "disagrees"


def not_below(difference: Estimate) -> Stand:
    """Whether the claim stands that a difference is not negative: its interval lies above minus the margin.

    The claim falls where the interval lies below 0.
    """
    if difference.half_width is None:
        return "open"
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    return "disagrees" if high < 0 else "agrees" if low >= -MARGIN else "open"


def equivalent(difference: Estimate) -> Stand:
    """Whether the claim stands that there is no difference: its interval lies within the margin.

    The claim falls where the interval leaves 0 out.
    """
    if difference.half_width is None:
        return "open"
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    return "agrees" if low >= -MARGIN and high <= MARGIN else "open" if low <= 0 <= high else "disagrees"


def together(stands: Collection[Stand]) -> Stand:
    """Whether a claim stands that has several parts: it falls with any of them."""
    return "disagrees" if "disagrees" in stands else "open" if "open" in stands else "agrees"


def stand_text(stand: Stand, *, coarse: bool = False) -> str:
    """As it ends a sentence whose subject is the claim; `coarse`: it is the grid that leaves it open."""
    return {
        "agrees": "agrees with the authors",
        "disagrees": "is not so here, against the authors",
        "open": f"stays open, the {'grid being too coarse' if coarse else 'interval being too wide'} to tell",
    }[stand]


def _half(width: float | None) -> float:
    return TOLERANCE if width is None else width

from __future__ import annotations

import pytest
from recipes.lines import CitedFigure
from recipes.verdict import above, equivalent, not_below, stand_text, together, verdict

from holdfast.errors import OptionError
from holdfast.lab.tables import Estimate


@pytest.mark.parametrize(
    ("ours", "printed", "expected"),
    [
        (Estimate(0.90, 0.01), CitedFigure(0.90), "reproduced"),
        (Estimate(0.90, 0.01), CitedFigure(0.914), "reproduced"),  # the intervals 0.89..0.91 and 0.909..0.919 meet
        (Estimate(0.90, 0.01), CitedFigure(0.916), "not reached"),
        (Estimate(0.90, 0.01), CitedFigure(0.884), "better"),
        (Estimate(0.90, 0.01), CitedFigure(0.92, spread=0.011), "reproduced"),
        (Estimate(0.90), CitedFigure(0.909), "reproduced"),  # one seed: half a point on either side
        (Estimate(0.90), CitedFigure(0.911), "not reached"),
        (Estimate(0.90, 0.5), CitedFigure(0.934), "reproduced"),  # counts as 0.03 wide
        (Estimate(0.90, 0.5), CitedFigure(0.936), "not reached"),
    ],
)
def test_a_figure_is_reproduced_where_the_intervals_meet(ours: Estimate, printed: CitedFigure, expected: str):
    assert verdict(ours, printed) == expected


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (Estimate(0.02, 0.01), ("agrees", "agrees", "disagrees")),
        (Estimate(0.01, 0.015), ("open", "agrees", "open")),
        (Estimate(0.001, 0.002), ("open", "agrees", "agrees")),
        (Estimate(-0.01, 0.02), ("open", "open", "open")),
        (Estimate(-0.02, 0.01), ("disagrees", "disagrees", "disagrees")),
        (Estimate(0.02), ("open", "open", "open")),
    ],
)
def test_a_claim_stands_or_falls_with_the_interval_of_the_difference(
    difference: Estimate, expected: tuple[str, str, str]
):
    assert (above(difference), not_below(difference), equivalent(difference)) == expected


def test_every_stand_can_be_told():
    assert len({stand_text(stand) for stand in ("agrees", "disagrees", "open")}) == 3
    assert stand_text("open", coarse=True) == "stays open, the grid being too coarse to tell"


def test_a_claim_of_several_parts_falls_with_any_of_them():
    assert together(["agrees", "agrees"]) == "agrees"
    assert together(["agrees", "open"]) == "open"
    assert together(["open", "disagrees", "agrees"]) == "disagrees"


def test_a_reference_says_whether_it_is_in_print_and_of_how_many_seeds():
    assert CitedFigure(0.88, kind="program", seeds=1).title == "reference program, 1 seed"
    assert CitedFigure(0.99, 0.0012, seeds=30).title == "printed, 30 seeds"
    assert CitedFigure(0.99, 0.0012, seeds=30).column == "printed %, 30 seeds"
    assert (CitedFigure(0.971).title, CitedFigure(0.971).text) == ("printed", "97.1")
    with pytest.raises(OptionError, match="unknown kind 'rumoured'"):
        CitedFigure(0.88, kind="rumoured")  # pyright: ignore[reportArgumentType]

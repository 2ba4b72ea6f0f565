from __future__ import annotations

import pytest
from recipes.lines import Published
from recipes.verdict import above, equivalent, not_below, stand_text, verdict

from holdfast.lab.tables import Estimate


@pytest.mark.parametrize(
    ("ours", "published", "expected"),
    [
        (Estimate(0.90, 0.01), Published(0.90), "reproduced"),
        (Estimate(0.90, 0.01), Published(0.914), "reproduced"),  # the intervals 0.89..0.91 and 0.909..0.919 meet
        (Estimate(0.90, 0.01), Published(0.916), "not reached"),
        (Estimate(0.90, 0.01), Published(0.884), "better"),
        (Estimate(0.90, 0.01), Published(0.92, spread=0.011), "reproduced"),
        (Estimate(0.90), Published(0.909), "reproduced"),  # one seed: half a point on either side
        (Estimate(0.90), Published(0.911), "not reached"),
        (Estimate(0.90, 0.5), Published(0.934), "reproduced"),  # counts as 0.03 wide
        (Estimate(0.90, 0.5), Published(0.936), "not reached"),
    ],
)
def test_a_figure_is_reproduced_where_the_intervals_meet(ours: Estimate, published: Published, expected: str):
    assert verdict(ours, published) == expected


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

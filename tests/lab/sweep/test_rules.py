from __future__ import annotations

import pytest

from holdfast.lab.sweep.rules import hopeless, next_strengths


@pytest.mark.parametrize(
    ("value", "others", "expected"),
    [
        (0.10, [0.80, 0.80, 0.80], False),  # too few to judge by
        (0.10, [0.80, 0.80, 0.80, 0.80], True),
        (0.76, [0.80, 0.80, 0.80, 0.80], False),  # not far below the best
        (0.30, [0.80, 0.20, 0.20, 0.20], False),  # above the median
        (0.30, [0.80, 0.20, 0.35, 0.40], True),
    ],
)
def test_hopeless_is_below_the_median_and_far_below_the_best(value, others, expected):
    assert hopeless(value, others) is expected


GRID = [1.0, 10.0, 100.0]


def test_half_decades_on_both_sides_of_the_best():
    found = {1.0: [0.5, 0.5], 10.0: [0.8, 0.8], 100.0: [0.6, 0.6]}
    assert next_strengths(found, GRID) == [3.16, 31.6]


def test_quarters_where_the_halves_gained_more_than_the_noise():
    found = {1.0: [0.5, 0.5], 10.0: [0.8, 0.8], 100.0: [0.6, 0.6], 3.16: [0.7, 0.7]}
    assert next_strengths({**found, 31.6: [0.85, 0.85]}, GRID) == [17.8, 56.2]
    assert next_strengths({**found, 31.6: [0.90, 0.72]}, GRID) == []  # 0.01 +- 0.09
    assert next_strengths({**found, 31.6: [0.75, 0.75]}, GRID) == []


def test_it_ends_with_the_quarters():
    found = {1.0: [0.5], 10.0: [0.8], 100.0: [0.6], 3.16: [0.7], 31.6: [0.9], 17.8: [0.85], 56.2: [0.86]}
    assert next_strengths(found, GRID) == []


def test_a_decade_beyond_the_edge_while_it_gains_and_no_more_than_three():
    found: dict[float, list[float] | None] = {1.0: [0.3], 10.0: [0.5], 100.0: [0.7]}
    assert next_strengths(found, GRID) == [31.6, 1000.0]
    found |= {31.6: [0.6], 1e3: [0.8], 316.0: [0.75], 1e4: [0.9], 3160.0: [0.85], 3.16e4: [0.91]}
    found |= {1e4: [0.9], 1.78e4: [0.9]}
    assert next_strengths(found, GRID) == []
    assert next_strengths({1.0: [0.5], 10.0: [0.5005]}, [1.0, 10.0]) == [3.16]  # no gain that can be believed


def test_what_was_given_up_is_a_neighbour_and_never_the_best():
    assert next_strengths({1.0: None, 10.0: [0.8], 100.0: None}, GRID) == [3.16, 31.6]
    assert next_strengths({1.0: None}, [1.0]) == []
    assert next_strengths({}, GRID) == []


def test_every_search_comes_to_an_end():
    for peak in (1e-9, 0.03, 7.0, 55.0, 1e9):
        found: dict[float, list[float] | None] = dict.fromkeys(GRID)

        def accuracy(strength: float, peak: float = peak) -> list[float]:
            import math

            return [1 / (1 + abs(math.log10(strength / peak)))]

        found = {strength: accuracy(strength) for strength in GRID}
        for _ in range(20):
            more = next_strengths(found, GRID)
            if not more:
                break
            found |= {strength: accuracy(strength) for strength in more}
        else:
            pytest.fail(f"no end with the best at {peak}")
        assert len(found) <= 14

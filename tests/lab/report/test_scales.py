from __future__ import annotations

import math

import pytest

from holdfast.lab.report.scales import Scale, StrengthScale, accuracy_ticks, power_text


def test_a_straight_scale():
    assert Scale(0.5, 1.0).at(0.75) == 50
    assert Scale(1, 1).at(1) == 50


def test_strengths_stand_by_their_power_of_ten():
    scale = StrengthScale([0.1, 1.0, 10.0])
    assert scale.at(1.0) == pytest.approx(50)
    assert scale.at(10.0) - scale.at(1.0) == pytest.approx(scale.at(1.0) - scale.at(0.1))
    assert [tick.text for tick in scale.ticks()] == ["0.1", "1", "10"]
    assert 0 < scale.at(0.1) < scale.at(10.0) < 100


def test_no_strength_and_all_of_it_stand_beyond():
    scale = StrengthScale([0.0, 2.0, 300.0, math.inf])
    places = [scale.at(value) for value in (0.0, 2.0, 300.0, math.inf)]
    assert places == sorted(places)
    assert all(0 < place < 100 for place in places)
    assert [tick.text for tick in scale.ticks()] == ["1", "10", "100", "1000", "0", "∞"]


@pytest.mark.parametrize("strengths", [[5.0], [0.0], [math.inf], [0.0, math.inf]])
def test_strengths_without_a_range(strengths: list[float]):
    scale = StrengthScale(strengths)
    assert all(0 < scale.at(value) < 100 for value in strengths)


def test_many_decades_have_few_ticks():
    ticks = StrengthScale([1e-6, 1e12]).ticks()
    assert 4 <= len(ticks) <= 7
    assert ticks[0].text == "10⁻⁶"


def test_powers_as_text():
    assert [power_text(power) for power in (-4, -2, 0, 3, 4, 12)] == ["10⁻⁴", "0.01", "1", "1000", "10⁴", "10¹²"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.4, 1.0), (0.9, 0.95), (0.85, 1.0)])
def test_accuracies_have_a_few_round_ticks(low: float, high: float):
    ticks = accuracy_ticks(Scale(low, high))
    assert 3 <= len(ticks) <= 7
    assert all(0 <= tick.at <= 100.0001 for tick in ticks)
    assert all(tick.text.removesuffix("%").isdigit() for tick in ticks)

"""The strength that keeps a rise within its budget, on made-up lessons."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from holdfast.retention.controller import LONGEST, LOWEST, Controller, steps_since

HIGHEST = 1e4


AIM = 0.5


def lesson(
    controller: Controller,
    *,
    drive: float,
    settles: float = 10.0,
    every: int | Literal["auto"] = 1,
    period: int = 1,
    steps: int = 400,
    noise=lambda n: 0.0,
) -> list[float]:
    """Rises over the budget of a skill that a task drives away, and a strength holds: it settles at drive/strength."""
    ratio, told = 0.0, []
    for number in range(1, steps + 1):
        rest = drive / controller.strength
        ratio += (rest - ratio) / settles
        if since := steps_since(number, every, period=period):
            controller.follow(ratio * math.exp(noise(number)), since, number)
        told.append(ratio)
    return told


@pytest.mark.parametrize("every", [1, 4, 20, 100, "auto"])
@pytest.mark.parametrize("settles", [5.0, 50.0])
@pytest.mark.parametrize("drive", [0.05, 1.0, 30.0, 3000.0])
def test_it_comes_to_half_the_budget_from_any_start_however_rarely_it_is_measured(every, settles, drive):
    for start in (LOWEST, 1.0, HIGHEST):
        found = lesson(Controller(start, HIGHEST), drive=drive, settles=settles, every=every, steps=3000)
        assert all(0.8 * AIM < ratio < 1.25 * AIM for ratio in found[-100:])


@pytest.mark.parametrize("every", [4, 20, 100, "auto"])
@pytest.mark.parametrize("period", [1, 7])
def test_from_above_no_lesson_of_any_length_goes_far_beyond(every, period):
    for drive in (0.05, 1.0, 30.0, 3000.0):
        for settles in (5.0, 50.0, 200.0):
            found = lesson(
                Controller(HIGHEST, HIGHEST), drive=drive, settles=settles, every=every, period=period, steps=4000
            )
            assert max(found) < 2.5 * AIM


def test_noise_of_a_measurement_does_not_shake_it():
    found = lesson(Controller(), drive=30.0, noise=lambda n: 0.2 * (-1) ** n)
    assert all(0.7 * AIM < ratio < 1.4 * AIM for ratio in found[-50:])


@pytest.mark.parametrize("period", [1, 7, 16, 200])
def test_measurements_become_rarer_and_come_after_pulls(period):
    taken = [n for n in range(1, 10_001) if steps_since(n, "auto", period=period)]
    gaps = [after - before for before, after in zip([0, *taken], taken)]
    assert all(n % period == 0 for n in taken)
    assert gaps == [steps_since(n, "auto", period=period) for n in taken]
    assert gaps == sorted(gaps)
    assert all(gap <= max(period, n / 4) for n, gap in zip(taken, gaps))
    assert max(period, LONGEST / 2) <= gaps[-1] <= max(period, LONGEST)


def test_it_is_bounded_and_remembers_nothing_from_beyond():
    controller = Controller(highest=HIGHEST)
    for _ in range(500):
        controller.follow(1e9, 4, 400)
    assert controller.strength == HIGHEST
    for _ in range(3):
        controller.follow(0.25, 4, 400)
    assert controller.strength < HIGHEST / 2  # at once: nothing was wound up
    for _ in range(500):
        controller.follow(0.0, 4, 400)
    assert controller.strength == LOWEST
    assert controller.follow(3.0, 4, 400) > LOWEST


def test_what_does_not_help_is_said_after_a_while_and_forgotten_when_it_does():
    controller = Controller(HIGHEST, HIGHEST)
    found = [controller.is_futile for _ in range(12) if controller.follow(2.0, 4, 400)]
    assert found.index(True) == 7
    controller.follow(0.9, 4, 400)
    assert not controller.is_futile


def test_one_measurement_moves_it_so_far_at_most():
    for first, second in ((1e-30, 1e30), (1e30, -1.0), (0.0, 1e30), (1.0, 0.0)):
        controller = Controller()
        before = controller.follow(first, 100, 100)
        assert abs(math.log(controller.follow(second, 100, 200) / before)) <= 5 + 1e-9

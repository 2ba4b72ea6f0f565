"""The strength that keeps a rise within its budget, on made-up lessons."""

from __future__ import annotations

import math

import pytest

from holdfast.retention.controller import LOWEST, Controller

HIGHEST = 1e4


def lesson(controller: Controller, *, drive: float, steps: int = 400, noise=lambda n: 0.0) -> list[float]:
    """Rises over the budget of a skill that a task drives away, and a strength holds: it settles at drive/strength."""
    ratio, told = 0.0, []
    for number in range(steps):
        rest = drive / controller.strength
        ratio += 0.1 * (rest - ratio)
        controller.follow(ratio * math.exp(noise(number)))
        told.append(ratio)
    return told


@pytest.mark.parametrize("drive", [0.05, 1.0, 30.0, 3000.0])
def test_it_comes_to_the_budget_from_any_start(drive):
    for start in (LOWEST, 1.0, HIGHEST):
        found = lesson(Controller(start, HIGHEST), drive=drive)
        assert all(0.8 < ratio < 1.25 for ratio in found[-50:])


def test_noise_of_a_measurement_does_not_shake_it():
    found = lesson(Controller(), drive=30.0, noise=lambda n: 0.2 * (-1) ** n)
    assert all(0.7 < ratio < 1.4 for ratio in found[-50:])


def test_it_is_bounded_and_remembers_nothing_from_beyond():
    controller = Controller(highest=HIGHEST)
    for _ in range(500):
        controller.follow(1e9)
    assert controller.strength == HIGHEST
    for _ in range(3):
        controller.follow(0.5)
    assert controller.strength < HIGHEST / 2  # at once: nothing was wound up
    for _ in range(500):
        controller.follow(0.0)
    assert controller.strength == LOWEST
    assert controller.follow(3.0) > LOWEST


def test_what_does_not_help_is_said_after_a_while_and_forgotten_when_it_does():
    controller = Controller(HIGHEST, HIGHEST)
    found = [controller.is_futile for _ in range(12) if controller.follow(2.0)]
    assert found.index(True) == 7
    controller.follow(0.9)
    assert not controller.is_futile


def test_one_measurement_moves_it_ninefold_at_most():
    for first, second in ((1e-30, 1e30), (1e30, -1.0), (0.0, 1e30), (1.0, 0.0)):
        controller = Controller()
        before = controller.follow(first)
        assert abs(math.log(controller.follow(second) / before)) <= 2.2 + 1e-9

"""What recipes conclude, from runs of known figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from recipes import FULL, recipe_named
from recipes.findings import RecipeFindings
from recipes.page import conclusion
from tests.recipes.made_up import filled

from holdfast.lab import RunConfig


def concluded(name: str, kept: Callable[[RunConfig], float]) -> str:
    recipe = recipe_named(name, FULL)
    return conclusion(RecipeFindings(recipe, filled(recipe, lambda config: kept(config) + 0.001 * config.seed), {}))


@pytest.mark.parametrize(
    ("exponential", "expected"),
    [
        ({250: 0.82, 75: 0.80, 750: 0.80}, "is not so here"),  # a flat top: no more than 0.84 between
        ({250: 0.82, 75: 0.60, 750: 0.80}, "stays open, the grid being too coarse to tell"),  # up to 0.84 + 0.22 t
        ({25000: 0.82}, "stays open, the grid being too coarse to tell"),  # the strongest: no bound at all
        ({250: 0.95}, "agrees with the authors"),
    ],
)
def test_a_claim_falls_on_a_grid_only_if_no_strength_between_could_save_it(
    exponential: dict[float, float], expected: str
):
    def kept(config: RunConfig) -> float:
        if config.optimizer == "sgd":
            return 0.5
        if config.attenuation == "hyperbolic":
            return 0.9 if config.strength == 750 else 0.7
        return exponential.get(config.strength or 0, 0.5)

    told = concluded("attenuation", kept)
    adam = told[told.index("Adam: ") :]
    assert f"that exponential is not worse {expected}" in adam


@pytest.mark.parametrize(
    ("kept", "domain", "expected"),
    [
        (0.6, 0.65, "that it helps little agrees with the authors"),
        (0.6, 0.9, "that it helps little is not so here, against the authors"),
    ],
)
def test_every_scenario_has_its_own_verdict(kept: float, domain: float, expected: str):
    def of(config: RunConfig) -> float:
        if config.scenario == "task":
            return 0.95
        holds = config.method.startswith("ewc")
        return domain if holds and config.scenario == "domain" else kept

    told = concluded("scenarios", of)
    assert "that it suffices agrees with the authors" in told
    assert expected in told
    assert "that it fails agrees with the authors" in told


def test_which_fisher_says_when_plain_training_keeps_as_much():
    alike = "and plain training no less (exact less plain: 0.00 ± 0.00 points): no way is told apart."
    assert alike in concluded("which-fisher", lambda config: 0.9)
    assert alike not in concluded("which-fisher", lambda config: 0.5 if config.method == "none" else 0.9)

"""Experiments that never were: every run of a recipe with a figure that is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from recipes import Recipe, Size
from recipes.outcome import Outcome
from tests.lab.made_up import result

from holdfast.lab import RunConfig
from holdfast.lab.streams import STREAMS

UNTRAINED = Size("quick", "digits", {"num_tasks": 2, "epochs": 1, "importance_examples": 32}, seeds=(0, 1))
"""Of recipes whose runs are made up, whatever their nets."""

TINY = replace(UNTRAINED, settings={**UNTRAINED.settings, "hidden": (8,)})
"""Of recipes that train perceptrons."""

Kept = Callable[[RunConfig], float]


def outcome(config: RunConfig, kept: float = 0.9) -> Outcome:
    """A run that keeps this much of each task."""
    spec = STREAMS[config.stream]
    made = result(
        config.method,
        seed=config.seed,
        kept=kept,
        num_tasks=config.num_tasks or spec.num_tasks or 5,  # pairs of classes
        stream=config.stream,
        scenario=config.scenario or spec.scenario,
        config=config.to_dict(),
    )
    return Outcome(config, made)


def filled(recipe: Recipe, kept: Kept = lambda config: 0.9 - 0.01 * config.seed) -> dict[RunConfig, Outcome]:
    """All runs of the recipe, trials and then those that were chosen; negative: it diverged."""
    found: dict[RunConfig, Outcome] = {}
    while to_do := recipe.to_do(found):
        for config in to_do:
            share = kept(config)
            found[config] = Outcome(config, None, "diverged") if share < 0 else outcome(config, share)
    return found

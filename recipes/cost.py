"""What an experiment will cost, before it starts: from runs that were timed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from holdfast.lab.config import RunConfig
from holdfast.lab.streams import STREAMS
from holdfast.lab.training import num_epochs
from recipes.findings import Recipe
from recipes.lines import Outcomes, once

_SECONDS = 1.5e-10
"""For each multiplication of one example, on one core, where nothing of the kind was timed."""
_STEP = 5e6
"""What every step costs beside, in multiplications."""
_GENERATOR = 4.5
"""Work of a run in which a generator learns beside the solver, both from twice the batch: measured on split MNIST."""
_EXAMPLES = {"mnist": 55_000, "digits": 1_100}
_PAIRS = 5
"""Tasks of a split stream: two classes in each."""
_WEIGHTS = {"convolution": 450_000, "attention": 2_000_000}
"""Multiplications of an example, for nets whose weights are used many times."""


@dataclass(frozen=True)
class RemainingCost:
    """Of what is left to do.

    Attributes:
        done: runs that are finished.
        to_do: runs that are known to be needed.
        more: runs that will follow once strengths are chosen, at most.
        seconds: for to_do and more, one after the other.
        timed: how many timed runs the estimate is from; 0: from stored figures.
    """

    done: int
    to_do: int
    more: int
    seconds: float
    timed: int

    def text(self, jobs: int = 1) -> str:
        """One line for people."""
        left = f"{self.to_do} to do" + (f" and up to {self.more} more when strengths are chosen" if self.more else "")
        if not self.seconds:
            return f"{self.done} runs done, {left}"
        basis = f"from {self.timed} timed runs" if self.timed else "from stored figures"
        at_once = f" in {jobs} processes" if jobs > 1 else ""
        return f"{self.done} runs done, {left}: about {_span(self.seconds / jobs)}{at_once}, {basis}"


def remaining_cost(
    recipes: Iterable[Recipe], found: Outcomes, measured: Mapping[str, Collection[int]] | None = None
) -> RemainingCost:
    """What the recipes still cost together; runs that they share count once, and a measurement counts as a run.

    Args:
        recipes: which.
        found: runs that are done.
        measured: name of a recipe -> the seeds under which it is measured already.
    """
    recipes = list(recipes)
    wanted = once(config for recipe in recipes for config in recipe.wanted(found))
    left = [config for config in wanted if config not in found]
    later = [line for recipe in recipes for line in recipe.undecided(found)]
    more = [line.candidates[-1] for line in later for _ in line.seeds]
    timed, rates = _rates(found)
    seconds = sum(work(config) * _rate(config, rates) for config in (*left, *more))
    done, to_do = len(wanted) - len(left), len(left)
    for recipe in recipes:
        seeds = set(recipe.measure_seeds)
        open_seeds = seeds - set((measured or {}).get(recipe.name, ()))
        done, to_do = done + len(seeds) - len(open_seeds), to_do + len(open_seeds)
        seconds += recipe.measure_seconds * len(open_seeds)
    return RemainingCost(done, to_do, len(more), seconds, timed)


def work(config: RunConfig) -> float:
    """Training steps of a run times what one has to do: multiplications, and what comes with every step."""
    spec = STREAMS[config.stream]
    tasks = config.num_tasks or spec.num_tasks or _PAIRS
    examples = _EXAMPLES[spec.data] / (_PAIRS if spec.name.startswith("split") else 1)
    pixels = 784 if spec.data == "mnist" else 64
    sizes = [pixels, *(config.hidden or ()), 10]
    weights = _WEIGHTS.get(config.net) or sum(a * b for a, b in pairwise(sizes))
    epochs = num_epochs(int(examples), config.batch_size, epochs=config.epochs, iterations=config.iterations)
    beside = 1.0
    if config.method in ("joint", "cumulative"):
        beside = (tasks + 1) / 2
    elif config.method.startswith("dgr"):
        beside = _GENERATOR
    steps = config.iterations or epochs * examples / config.batch_size
    return steps * tasks * beside * (config.batch_size * weights + _STEP)


def _rates(found: Outcomes) -> tuple[int, dict[tuple[str, ...], float]]:
    """Seconds for each unit of work: of a stream's runs by net, hidden units and method, and by net and units alone."""
    samples: dict[tuple[str, ...], list[float]] = defaultdict(list)
    timed = 0
    for config, outcome in found.items():
        if outcome.result is not None and outcome.result.seconds > 0:
            timed += 1
            for key in _keys(config):
                samples[key].append(outcome.result.seconds / work(config))
    return timed, {key: median(values) for key, values in samples.items()}


def _rate(config: RunConfig, rates: dict[tuple[str, ...], float]) -> float:
    return next((rates[key] for key in _keys(config) if key in rates), _SECONDS)


def _keys(config: RunConfig) -> list[tuple[str, ...]]:
    net = (config.stream, config.net, str(config.hidden))
    return [(*net, config.method, config.optimizer), (*net, config.optimizer), net]


def _span(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"

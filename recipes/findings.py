"""A published experiment, and what its runs say, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from holdfast.lab.config import RunConfig
from holdfast.lab.frame import DataFrame, runs_table
from holdfast.lab.result import RunResult
from holdfast.lab.tables import Estimate
from recipes.lines import Outcomes, RecipeLine, Size, once
from recipes.outcome import Outcome
from recipes.verdict import Verdict, verdict

Value = Callable[[RunResult], float]
Measure = Callable[[int, str | None], dict[str, Any]]
"""From a seed and the folder of MNIST to JSON values."""


def final(result: RunResult) -> float:
    """Average test accuracy after the last task."""
    return result.final_accuracy


@dataclass(frozen=True)
class Answer:
    """A line of the recipe, and what became of it.

    Attributes:
        line: what was asked.
        config: the chosen configuration, None before there is a choice.
        outcomes: of its runs that are done, by seed.
        at_edge: whether the choice fell on the end of the grid.
    """

    line: RecipeLine
    config: RunConfig | None
    outcomes: tuple[Outcome, ...]
    at_edge: bool

    @property
    def results(self) -> list[RunResult]:
        """Of the runs that did not diverge."""
        return [outcome.result for outcome in self.outcomes if outcome.result is not None]

    @property
    def num_diverged(self) -> int:
        """How many runs diverged."""
        return len(self.outcomes) - len(self.results)

    @property
    def complete(self) -> bool:
        """Whether every seed is done."""
        return len(self.outcomes) == len(self.line.seeds)

    @property
    def verdict(self) -> Verdict | None:
        """Against the printed figure, where both are there."""
        reference = self.line.reference
        if reference is None or reference.kind != "printed" or not self.outcomes:
            return None
        return verdict(self.of(final), reference) if self.results else "not reached"

    def of(self, value: Value) -> Estimate:
        """Mean and interval over the seeds that did not diverge."""
        return Estimate.of([value(result) for result in self.results])

    def by_seed_results(self) -> dict[int, RunResult]:
        """The runs that did not diverge, by seed."""
        return {result.seed: result for result in self.results}

    def by_seed(self, value: Value) -> dict[int, float]:
        """The value of each seed that did not diverge."""
        return {result.seed: value(result) for result in self.results}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published experiment.

    Attributes:
        name: as it is typed.
        title: one line for people.
        question: what it asks.
        source: who asked it, with the number of the article.
        claim: what the authors found; empty where their answer is not known.
        size: in full or small.
        lines: the rows of the answer.
        conclude: findings -> one paragraph, agreeing or disagreeing with the authors, by arithmetic.
        draw: findings and a folder -> the pictures in it.
        measure: in place of runs, what is measured under one seed, as JSON values; given the folder of MNIST.
        parts: likewise by name, one after the other under a seed, each kept when it is done.
        measure_seeds: under which.
        measure_seconds: about how long one takes in full.
        table: findings -> a Markdown table; None for one with a row a line.
        notes: what the reader should know, such as what was tuned.
    """

    name: str
    title: str
    question: str
    source: str
    claim: str
    size: Size
    lines: tuple[RecipeLine, ...] = ()
    conclude: Callable[[RecipeFindings], str]
    draw: Callable[[RecipeFindings, Path], Sequence[Path]]
    measure: Measure | None = None
    parts: Mapping[str, Measure] = field(default_factory=dict)
    measure_seeds: tuple[int, ...] = ()
    measure_seconds: float = 60.0
    table: Callable[[RecipeFindings], str] | None = None
    notes: str = ""

    def wanted(self, found: Outcomes) -> list[RunConfig]:
        """All runs that are known to be needed, each once: trials, and what is reported where the choice is made."""
        return once(c for line in self.lines for c in (*line.trials(), *line.reported(found)))

    def to_do(self, found: Outcomes) -> list[RunConfig]:
        """Of those, the ones not done. When they are done there may be more, until there are none."""
        return [config for config in self.wanted(found) if config not in found]

    def measured_seeds(self, measured: Mapping[int, Any]) -> list[int]:
        """The seeds under which nothing is left to be measured."""
        return [seed for seed, entry in measured.items() if all(part in entry for part in self.parts)]

    def undecided(self, found: Outcomes) -> list[RecipeLine]:
        """The lines whose choice is still open: their reported runs are not among the wanted ones yet."""
        return [line for line in self.lines if line.chosen(found) is None]


@dataclass(frozen=True)
class RecipeFindings:
    """A recipe, and all that is known of its runs.

    Attributes:
        recipe: what was asked.
        found: outcomes by configuration.
        measured: measurements by seed.
    """

    recipe: Recipe
    found: Outcomes
    measured: Mapping[int, Any]

    @cached_property
    def answers(self) -> list[Answer]:
        """One a line."""
        return [
            Answer(
                line,
                line.chosen(self.found),
                tuple(self.found[config] for config in line.reported(self.found) if config in self.found),
                line.at_edge(self.found),
            )
            for line in self.recipe.lines
        ]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        measured = set(self.recipe.measured_seeds(self.measured))
        return measured.issuperset(self.recipe.measure_seeds) and all(answer.complete for answer in self.answers)

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all runs of the recipe that are done, trials included."""
        return [self.found[config] for config in self.recipe.wanted(self.found) if config in self.found]

    def answer(self, label: str) -> Answer:
        """The answer of the line with this label."""
        return next(answer for answer in self.answers if answer.line.label == label)

    def labelled(self, start: str) -> list[Answer]:
        """The answers whose labels begin so."""
        return [answer for answer in self.answers if answer.line.label.startswith(start)]

    def paired(self, first: Answer, second: Answer, value: Value = final) -> Estimate:
        """Mean and interval of the first's value minus the second's under the same seeds."""
        ours, theirs = first.by_seed(value), second.by_seed(value)
        return Estimate.of([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def best_answer(answers: Sequence[Answer]) -> Answer:
    """The answer of the highest mean validation accuracy, on which settings may be chosen."""
    alive = [answer for answer in answers if answer.results]
    return max(alive, key=lambda answer: answer.of(lambda result: result.validation_accuracy[-1]).mean)


def as_groups(answers: Sequence[Answer]) -> DataFrame:
    """The runs of the answers under the labels of their lines, for the pictures of `holdfast.lab.plots`."""
    runs = [(answer.line.label, result) for answer in answers for result in answer.results]
    table = runs_table(result for _, result in runs).assign(configuration=[label for label, _ in runs])
    labels = table.groupby("method", sort=False)["configuration"]
    return table.assign(
        variant=labels.transform(lambda own: own.factorize()[0]), num_variants=labels.transform("nunique")
    )


def points(estimate: Estimate) -> str:
    """A difference of accuracies in points, with its sign, such as "+1.2 ± 0.4"."""
    sign = "+" if estimate.mean > 0 else ""
    return sign + estimate.text(scale=100, digits=2)


def percent(estimate: Estimate) -> str:
    """An accuracy in per cent."""
    return estimate.text(scale=100)

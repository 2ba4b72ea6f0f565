"""Figures of the committed results, as pages show them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from recipes import recipe_named
from recipes.findings import RecipeFindings, best_answer, final, percent
from recipes.lines import Outcomes
from recipes.promise import worst
from recipes.store import committed, read_measured

from holdfast.lab.tables import Estimate

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@cache
def outcomes() -> Outcomes:
    return committed(RESULTS)


@cache
def recipe(name: str) -> RecipeFindings:
    return RecipeFindings(recipe_named(name), outcomes(), read_measured(RESULTS / name / "results.json"))


def kept(name: str, label: str) -> str:
    """Final accuracy of a line of a recipe."""
    return percent(recipe(name).answer(label).of(final))


def seeds(name: str, label: str) -> int:
    return len(recipe(name).answer(label).results)


def measured(name: str, part: str) -> list[Any]:
    """What a recipe measured, one a seed."""
    return [entry[part] for entry in recipe(name).measured.values()]


def content(path: str) -> Any:
    return json.loads((RESULTS / path).read_text())


def rows(benchmark: str, part: str, by: str) -> dict[str, dict[str, Any]]:
    """A table of a benchmark, by the texts of one column."""
    return {str(row[by]): row for row in content(f"benchmarks/{benchmark}.json")["parts"][part]["rows"]}


def runs(pattern: str) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))]


def told(values: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    return Estimate.of(values).text(scale=scale, digits=digits)


def span(values: Iterable[float], digits: int = 0, scale: float = 1) -> str:
    ordered = sorted(values)
    low, high = (f"{scale * end:.{digits}f}" for end in (ordered[0], ordered[-1]))
    return low if low == high else f"{low} to {high}"


WORDS = {1: "one", 3: "three", 5: "five", 9: "nine"}


def over_budget(name: str, networks: Sequence[str]) -> list[float]:
    """Increment over budget, of every lesson under a budget."""
    entries = recipe(name).measured.values()
    parts = {part for part in next(iter(entries)) if part.split(",")[0] in networks and " budget " in part}
    return [rise / float(part.split()[-1]) for entry in entries for part in parts for rise in worst(entry[part])]


def points_at(name: str, part: str, way: str, budget: float) -> list[Any]:
    """What each seed has at this budget."""
    every = [point for run in measured(name, part) for point in run["points"]]
    return [point for point in every if point["way"] == way and point.get("budget") == budget]


def chosen_strengths() -> Iterator[str]:
    """The strengths of EWC with Fisher on validation data, at a falling and at a constant rate."""
    tuned = recipe("curve").answer("EWC Fisher, tuned").config
    best = best_answer(recipe("strength").labelled("EWC Fisher")).config
    assert tuned is not None
    assert best is not None
    yield f"({tuned.strength:g} and {best.strength:g} on "


def drawing(stream: str, method: str) -> list[Any]:
    return runs(f"generation/runs/{stream}-{method}-[0-9].json")


def drawn_right(found: Sequence[Any], tasks: int) -> str:
    return told([run["average_accuracy"][tasks - 1] for run in found])


def classes(method: str, **options: Any) -> list[Any]:
    """Runs of split MNIST, class after class, of a method with these options, the others as they are by default."""
    usual = {"adapt": False, "projection": 1000}
    own = runs(f"classes/runs/split-mnist-{method}-[0-9]-*.json")
    return [run for run in own if all(run["config"].get(k, v) == (usual | options)[k] for k, v in usual.items())]

"""C: split MNIST in three scenarios."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from holdfast.lab.methods import METHODS
from holdfast.lab.tables import Estimate
from recipes.findings import Answer, Recipe, RecipeFindings, final, percent, points
from recipes.lines import CitedFigure, RecipeLine, Size, around
from recipes.pictures import beside
from recipes.verdict import Stand, above, stand_text, together
from recipes.which_fisher import TRAINING

_AUTHORS, _HSU = "van de Ven and Tolias 2019, arXiv 1904.07734", "Hsu et al. 2018"
_SCENARIOS = ("task", "domain", "class")
_PRINTED = {
    "joint": ("joint", None, ""),
    "lwf": ("LwF", (0.996, 0.715, 0.239), _AUTHORS),
    "ewc-fisher": ("online EWC", (0.991, 0.643, 0.200), _AUTHORS),
    "ewc-si": ("SI", (0.991, 0.654, 0.200), _AUTHORS),
    "ewc-mas": ("MAS", (0.992, 0.686, 0.195), _HSU),
    "none": ("plain", (0.872, 0.592, 0.199), _AUTHORS),
}
_CLOSE = 0.02
_LITTLE = 0.1
"""Ten points: no printed gain over plain training in the domain scenario is larger."""
WHY_CLASS = (
    "In the class-incremental scenario a task brings examples of its own two classes alone: every step pushes the "
    "outputs of all older classes down, and none is there to push them up again. Every image is then taken for one of "
    "the newest classes, a fifth of them rightly. Holding weights cannot change that; replay can."
)
ONE_ADAM = (
    "One Adam serves all tasks, as in the authors' program; with a new one for each, plain training forgets far less "
    "where the task is told."
)


def scenarios(size: Size) -> Recipe:
    """The recipe."""
    lines = []
    for number, scenario in enumerate(_SCENARIOS):
        for method, (label, figures, source) in _PRINTED.items():
            if method not in METHODS:
                continue
            base = size.config("split", method, scenario=scenario, **TRAINING)
            choose = METHODS[method].holds_weights and scenario != "class"
            lines.append(
                RecipeLine(
                    label=f"{label}, {scenario}",
                    candidates=around(base, (0.01, 0.1, 1, 10, 100)) if choose else (base,),
                    seeds=size.num_seeds(5),
                    reference=CitedFigure(figures[number], source=source) if figures else None,
                    section=f"{scenario}-incremental",
                )
            )
    return Recipe(
        name="scenarios",
        title="Three scenarios of split MNIST",
        question="What is kept when the task is told at test time, when it is not, and when classes are to be told?",
        source=f"{_AUTHORS}; MAS {_HSU}",
        claim="Holding weights suffices where the task is told, helps little where it is not, and fails where classes "
        "of different tasks must be told apart.",
        size=size,
        lines=tuple(lines),
        conclude=_conclude,
        draw=_draw,
        notes=f"{WHY_CLASS} Its strengths are the protocol's, since there is nothing to choose between. {ONE_ADAM}",
    )


def _conclude(findings: RecipeFindings) -> str:
    told = []
    for scenario in _SCENARIOS:
        held = ", ".join(f"{name} {percent(answer.of(final))}" for name, answer in _held(findings, scenario))
        told.append(f"{scenario}: {held}; plain {percent(findings.answer(f'plain, {scenario}').of(final))}")
    behind = {name: findings.paired(findings.answer("joint, task"), held) for name, held in _held(findings, "task")}
    suffices = together([above(_less(_CLOSE, lost)) for lost in behind.values()])
    domain, classes = (_gains(findings, scenario) for scenario in ("domain", "class"))
    return (
        f"Accuracy in %, by scenario. {'. '.join(told)}. Where the task is told, holding weights lies below joint "
        f"training by {_listed(behind)} points: that it suffices {stand_text(suffices)}. Where it is not told, holding "
        f"weights gains over plain training {_listed(domain)} points: that it helps little "
        f"{stand_text(_little(domain))}. Where classes must be told apart, it gains {_listed(classes)} points: that it "
        f"fails {stand_text(_little(classes))}. Little is less than {100 * _LITTLE:g} points."
    )


def _gains(findings: RecipeFindings, scenario: str) -> dict[str, Estimate]:
    plain = findings.answer(f"plain, {scenario}")
    return {name: findings.paired(held, plain) for name, held in _held(findings, scenario)}


def _little(gains: Mapping[str, Estimate]) -> Stand:
    return together([above(_less(_LITTLE, gain)) for gain in gains.values()])


def _less(bound: float, value: Estimate) -> Estimate:
    """What is left of a bound."""
    return Estimate(bound - value.mean, value.half_width)


def _listed(values: Mapping[str, Estimate]) -> str:
    return ", ".join(f"{name} {points(value)}" for name, value in values.items())


def _held(findings: RecipeFindings, scenario: str) -> list[tuple[str, Answer]]:
    """The methods that hold weights, by name."""
    ours = [answer for answer in findings.answers if answer.line.label.endswith(f", {scenario}")]
    held = [answer for answer in ours if METHODS[answer.line.candidates[0].method].holds_weights]
    return [(answer.line.label.removesuffix(f", {scenario}"), answer) for answer in held]


def _draw(findings: RecipeFindings, folder: Path) -> list[Path]:
    return [beside(findings.answers, folder / "beside.png", title=findings.recipe.title)]

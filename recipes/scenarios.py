"""C: split MNIST in three scenarios."""

from __future__ import annotations

from pathlib import Path

from holdfast.lab.methods import METHODS
from recipes.findings import Answer, Recipe, RecipeFindings, final, percent
from recipes.lines import Published, RecipeLine, Size, around
from recipes.pictures import beside
from recipes.which_fisher import TRAINING

_AUTHORS, _HSU = "van de Ven and Tolias 2019, arXiv 1904.07734", "Hsu et al. 2018"
_SCENARIOS = ("task", "domain", "class")
_PUBLISHED = {
    "joint": ("joint", None, ""),
    "lwf": ("LwF", (0.996, 0.715, 0.239), _AUTHORS),
    "ewc-fisher": ("online EWC", (0.991, 0.643, 0.200), _AUTHORS),
    "ewc-si": ("SI", (0.991, 0.654, 0.200), _AUTHORS),
    "ewc-mas": ("MAS", (0.992, 0.686, 0.195), _HSU),
    "none": ("plain", (0.872, 0.592, 0.199), _AUTHORS),
}
_CLOSE = 0.02
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
        for method, (label, figures, source) in _PUBLISHED.items():
            if method not in METHODS:
                continue
            base = size.config("split", method, scenario=scenario, **TRAINING)
            choose = METHODS[method].holds_weights and scenario != "class"
            lines.append(
                RecipeLine(
                    label=f"{label}, {scenario}",
                    candidates=around(base, (0.01, 0.1, 1, 10, 100)) if choose else (base,),
                    seeds=size.num_seeds(5),
                    published=Published(figures[number], source=source) if figures else None,
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
        held = ", ".join(
            f"{answer.line.label.split(',')[0]} {percent(answer.of(final))}" for answer in _held(findings, scenario)
        )
        told.append(f"{scenario}: {held}; plain {percent(findings.answer(f'plain, {scenario}').of(final))}")
    behind = max(findings.paired(findings.answer("joint, task"), answer).mean for answer in _held(findings, "task"))
    ahead = max(findings.paired(answer, findings.answer("plain, class")).mean for answer in _held(findings, "class"))
    agrees = "as the authors say" if max(behind, ahead) <= _CLOSE else "otherwise than the authors say"
    return (
        f"Accuracy in %, by scenario. {'. '.join(told)}. Where the task is told, holding weights stays within "
        f"{100 * behind:.1f} points of joint training; where classes must be told apart, it lies at most "
        f"{100 * ahead:.1f} points above plain training, {agrees}."
    )


def _held(findings: RecipeFindings, scenario: str) -> list[Answer]:
    """Of the methods that hold weights."""
    ours = [answer for answer in findings.answers if answer.line.label.endswith(f", {scenario}")]
    return [answer for answer in ours if METHODS[answer.line.candidates[0].method].holds_weights]


def _draw(findings: RecipeFindings, folder: Path) -> list[Path]:
    return [beside(findings.answers, folder / "beside.png", title=findings.recipe.title)]

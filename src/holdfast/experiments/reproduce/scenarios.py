"""C: split MNIST in three scenarios."""

from __future__ import annotations

from pathlib import Path

from holdfast.experiments.reproduce.findings import Findings, final, percent
from holdfast.experiments.reproduce.pictures import beside
from holdfast.experiments.reproduce.recipe import Line, Published, Recipe, Size, around
from holdfast.experiments.reproduce.which_fisher import TRAINING
from holdfast.methods import METHODS

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
WHY_CLASS = (
    "In the class-incremental scenario a task brings examples of its own two classes alone: every step pushes the "
    "outputs of all older classes down, and none is there to push them up again. Every image is then taken for one of "
    "the newest classes, a fifth of them rightly. Holding weights cannot change that; replay can."
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
                Line(
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
        notes=f"{WHY_CLASS} Its strengths are the protocol's, since there is nothing to choose between.",
    )


def _conclude(findings: Findings) -> str:
    told = []
    for scenario in _SCENARIOS:
        answers = [answer for answer in findings.answers if answer.line.label.endswith(f", {scenario}")]
        held = [a for a in answers if a.results and METHODS[a.results[0].method].holds_weights]
        figures = ", ".join(f"{a.line.label.removesuffix(f', {scenario}')} {percent(a.of(final))}" for a in held)
        plain = next(answer for answer in answers if answer.line.label.startswith("plain"))
        told.append(f"{scenario}: {figures}; plain {percent(plain.of(final))}")
    fair = [answer.verdict for answer in findings.answers if answer.verdict is not None]
    kept = sum(verdict != "not reached" for verdict in fair)
    return (
        f"Accuracy in %, by scenario. {'. '.join(told)}. {kept} of {len(fair)} published figures are reproduced or "
        "bettered. As the authors say, holding weights is enough in the first column and does next to nothing in the "
        "last."
    )


def _draw(findings: Findings, folder: Path) -> list[Path]:
    return [beside(findings.answers, folder / "beside.png", title=findings.recipe.title)]

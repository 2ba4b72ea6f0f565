"""C and F: Deep Generative Replay in three scenarios of split MNIST, and beside its controls on permuted MNIST."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from holdfast.lab.plots import accuracy_curves
from recipes.findings import Recipe, RecipeFindings, as_groups, final, percent, points
from recipes.lines import CitedFigure, RecipeLine, Size
from recipes.pictures import beside
from recipes.verdict import Stand, above, stand_text, together

_AUTHORS = "van de Ven and Tolias 2019, arXiv 1904.07734"
_SHIN = "Shin et al. 2017, arXiv 1705.08690"
_SCENARIOS = ("task", "domain", "class")
_PRINTED = {"dgr": ("DGR", (0.995, 0.957, 0.908)), "dgr-distilled": ("DGR distilled", (0.996, 0.968, 0.918))}
CONDITIONAL = "DGR distilled, conditional VAE"
_CONTROLS = ("exact", "generative", "noise", "none")
_QUICK = {"epochs": 100}
"""The generator of the small version needs more than the other recipes' epochs."""


def dgr(size: Size) -> Recipe:
    """The recipe of the three scenarios."""
    seeds = {"task": size.num_seeds(5), "domain": size.num_seeds(5), "class": size.num_seeds(9)}
    lines = [
        RecipeLine(
            label=f"{label}, {scenario}",
            candidates=(_sized(size).config("split", method, scenario=scenario),),
            seeds=seeds[scenario],
            reference=CitedFigure(figures[number], source=_AUTHORS),
            section=f"{scenario}-incremental",
        )
        for number, scenario in enumerate(_SCENARIOS)
        for method, (label, figures) in _PRINTED.items()
    ]
    told = _sized(size).config("split", "dgr-distilled", scenario="class", generator="cvae")
    lines.append(RecipeLine(label=CONDITIONAL, candidates=(told,), seeds=seeds["class"], section="class-incremental"))
    return Recipe(
        name="dgr",
        title="Deep Generative Replay: three scenarios of split MNIST",
        question="Can a network that dreams its past tell all classes apart without old data?",
        source=f"{_SHIN}; {_AUTHORS}",
        claim="Generative replay keeps all three scenarios; distilled answers keep more than hard ones.",
        size=size,
        lines=tuple(lines),
        conclude=_conclude,
        draw=_draw,
        notes="Generator: a VAE of 400-400 units and 100 latents, 2000 iterations a task together with the solver. The "
        "conditional VAE is asked for each class alike often. In full size the class-incremental lines have nine "
        "seeds: after five the interval of hard answers was too wide to compare.",
    )


def controls(size: Size) -> Recipe:
    """The recipe of the controls."""
    settings: dict[str, Any] = {
        "num_tasks": 5,
        "hidden": (400, 400),
        "slope": 0.0,
        "optimizer": "adam",
        "lr": 1e-3,
        "batch_size": 128,
        "epochs": 5,
        "generator_units": 1000,
    }
    lines = [
        RecipeLine(
            label=source,
            candidates=(_sized(size).config("permuted", "dgr-distilled", **settings, replay=source),),
            seeds=size.num_seeds(3),
        )
        for source in _CONTROLS
    ]
    return Recipe(
        name="dgr-controls",
        title="Deep Generative Replay and its controls: five tasks of permuted MNIST",
        question="How much of what real old inputs would keep do drawn ones keep?",
        source=_SHIN,
        claim="Generative replay keeps nearly as much as exact replay; noise keeps less, and nothing least.",
        size=size,
        lines=tuple(lines),
        conclude=_conclude_controls,
        draw=_draw_controls,
        notes="The old solver answers, at temperature 2, whatever is replayed: real inputs of the old tasks (exact), "
        "the generator's (generative), or evenly random pixels (noise).",
    )


def _sized(size: Size) -> Size:
    return size if size.name == "full" else Size(size.name, size.images, {**size.settings, **_QUICK}, size.seeds)


def _conclude(findings: RecipeFindings) -> str:
    told = []
    for scenario in _SCENARIOS:
        hard, soft = (findings.answer(f"{label}, {scenario}") for label, _ in _PRINTED.values())
        told.append(
            f"{scenario}: hard answers {percent(hard.of(final))}, distilled {percent(soft.of(final))} "
            f"({points(findings.paired(soft, hard))} points)"
        )
    lead = findings.paired(findings.answer("DGR distilled, class"), findings.answer("DGR, class"))
    return (
        f"Accuracy in %, by scenario. {'; '.join(told)}. That distilled answers keep more of the classes "
        f"{stand_text(above(lead))}. With a conditional VAE the class-incremental figure is "
        f"{percent(findings.answer(CONDITIONAL).of(final))}."
    )


def _conclude_controls(findings: RecipeFindings) -> str:
    answers = [findings.answer(source) for source in _CONTROLS]
    told = ", ".join(f"{answer.line.label} {percent(answer.of(final))}" for answer in answers)
    behind = findings.paired(answers[0], answers[1])
    steps: list[Stand] = [above(findings.paired(one, other)) for one, other in pairwise(answers)]
    return (
        f"Accuracy in % after the last task: {told}. Exact replay lies {points(behind)} points above "
        f"generative replay. The order exact, generative, noise, none {stand_text(together(steps))}."
    )


def _draw(findings: RecipeFindings, folder: Path) -> list[Path]:
    return [beside(findings.answers, folder / "beside.png", title=findings.recipe.title)]


def _draw_controls(findings: RecipeFindings, folder: Path) -> list[Path]:
    groups = as_groups(findings.answers)
    title = findings.recipe.title
    return [
        accuracy_curves(groups, folder / "accuracy.png", title=title),
        beside(findings.answers, folder / "beside.png", title=title),
    ]

"""A 8: convolution and attention, where the textbook pull explodes or gradient clipping drowns the task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.curve import AUTHORS
from recipes.findings import Answer, Recipe, RecipeFindings, best_answer, final, percent, points
from recipes.lines import RecipeLine, Size
from recipes.pictures import Series, curves

PULLS: dict[str, dict[str, Any]] = {
    "implicit": {"pull": "implicit"},
    "textbook": {"pull": "gradient"},
    "clipped": {"pull": "penalty", "clip": 1.0},
}
NETS: dict[str, dict[str, Any]] = {"convolution": {}, "attention": {"num_tasks": 5}}
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)


def nets(size: Size) -> Recipe:
    """The recipe."""
    seeds = size.num_seeds(3)
    if size.name == "quick":
        size = replace(size, settings={**size.settings, "epochs": 6})
    lines = []
    for net, training in NETS.items():
        shared = {"net": net, "optimizer": "sgd", "lr": 0.1, "epochs": 1, "importance_examples": 500, **training}
        lines.append(
            RecipeLine(
                label=f"{net}, plain",
                candidates=(size.config("permuted", "none", **shared),),
                seeds=seeds,
                section=net,
            )
        )
        for strength in STRENGTHS:
            for name, pull in PULLS.items():
                config = size.config("permuted", "ewc-fisher", strength=strength, **shared, **pull)
                lines.append(
                    RecipeLine(label=f"{net}, {name}, {strength:g}", candidates=(config,), seeds=seeds, section=net)
                )
    return Recipe(
        name="nets",
        title="Convolution and attention: the implicit pull against the textbook's",
        question="What becomes of EWC where gradients of the penalty are large, with gradient clipping and without?",
        source=AUTHORS,
        claim="In convolution and self-attention nets the textbook pull explodes, and where gradients are clipped it "
        "drowns the task.",
        size=size,
        lines=tuple(lines),
        conclude=_conclude,
        draw=_draw,
        notes="The best strength is so on validation data of the reported seeds. One epoch a task, importances on 500 "
        "images; attention, which takes longer, learns five tasks. Textbook: the pull is added to the gradients. "
        "Clipped: the penalty is added to the loss, and gradients are scaled down to a norm of 1, those of the task "
        "among them, which the implicit pull leaves alone.",
    )


def _conclude(findings: RecipeFindings) -> str:
    told = []
    for net in NETS:
        arms = {name: findings.labelled(f"{net}, {name}, ") for name in PULLS}
        plain, implicit = findings.answer(f"{net}, plain"), best_answer(arms["implicit"])
        gain = findings.paired(implicit, plain)
        runs = sum(len(answer.outcomes) for answer in arms["textbook"])
        lost = {name: sum(answer.num_diverged for answer in answers) for name, answers in arms.items()}
        text = (
            f"{net.capitalize()}: plain training ends at {percent(plain.of(final))}%, the implicit pull at its best at "
            f"{percent(implicit.of(final))}% ({points(gain)} points). Of {runs} runs each diverged: "
            f"{', '.join(f'{name} {number}' for name, number in lost.items())}. "
        )
        told.append(text + _clipped(findings, arms["clipped"], implicit))
    return " ".join(told)


def _clipped(findings: RecipeFindings, clipped: list[Answer], implicit: Answer) -> str:
    alive = [answer for answer in clipped if answer.results]
    if not alive:
        return "With clipping it diverged too."
    top, strongest = best_answer(alive), alive[-1]
    return (
        f"With clipping it reaches {percent(top.of(final))}% at its best (implicit less clipped: "
        f"{points(findings.paired(implicit, top))} points), and learns each new task to "
        f"{percent(strongest.of(lambda result: result.learning_accuracy))}% at the greatest strength."
    )


def _draw(findings: RecipeFindings, folder: Path) -> list[Path]:
    pictures = []
    for net in NETS:
        series = []
        for name in PULLS:
            answers = [answer for answer in findings.labelled(f"{net}, {name}, ") if answer.outcomes]
            places = [answer.line.candidates[0].strength or 0.0 for answer in answers]
            series.append(Series(name, places, [answer.of(final) if answer.results else None for answer in answers]))
        plain = findings.answer(f"{net}, plain")
        if plain.results:
            series.append(Series("plain", STRENGTHS, [plain.of(final)] * len(STRENGTHS)))
        if any(line.places for line in series):
            pictures.append(
                curves(
                    series,
                    folder / f"{net}.png",
                    title=f"EWC Fisher in a net of {net}",
                    remark="mean and 95% interval over seeds; a cross: every seed diverged",
                    across="strength",
                    logarithmic=True,
                )
            )
    return pictures

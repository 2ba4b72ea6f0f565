"""A 4 and A 5: the best strength, and the importance that suits EWC and WVA best."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from holdfast.lab.result import RunResult
from holdfast.lab.tables import Estimate
from recipes.attenuation import FACTORS
from recipes.curve import AUTHORS, SETTINGS
from recipes.findings import Answer, Recipe, RecipeFindings, best_answer, final, percent, points
from recipes.lines import RecipeLine, Size, around
from recipes.pictures import Series, beside, curves
from recipes.verdict import above, equivalent, not_below, stand_text

_GRIDS = {
    "ewc-fisher": (*FACTORS, 30.0),
    "wva-signal": (*FACTORS, 30.0),
    "wva-fisher": (1 / 300, 1 / 100, 1 / 30, 1 / 10, 1 / 3, 1.0, 10 / 3),
}
_LABELS = {"ewc-fisher": "EWC Fisher", "wva-signal": "WVA signal", "wva-fisher": "WVA Fisher"}
_TRIALS = {
    "ewc-mas": (0.1, 1, 10, 100),
    "ewc-si": (0.1, 1, 10, 100, 1000),
    "ewc-signal": (0.1, 1, 10),
    "ewc-taylor": (0.1, 1, 10),
    "wva-mas": (1e-4, 1e-3, 0.01, 0.1, 1),
    "wva-si": (0.01, 0.1, 1, 10),
    "wva-taylor": (0.01, 0.1, 1, 10),
}
_IMPORTANCES = {"fisher": "Fisher", "mas": "MAS", "si": "SI", "signal": "signal", "taylor": "Taylor"}


def strength(size: Size) -> Recipe:
    """The recipe of A 4."""
    lines = [
        RecipeLine(
            label=f"{_LABELS[method]}, strength {config.strength:g}",
            candidates=(config,),
            seeds=size.num_seeds(3),
            section=_LABELS[method],
        )
        for method, factors in _GRIDS.items()
        for config in around(size.config("permuted", method), factors)
    ]
    return Recipe(
        name="strength",
        title="The best strength",
        question="Which strength is best, and does that depend on the number of tasks?",
        source=AUTHORS,
        claim="The best strength does not depend on the number of tasks.",
        size=size,
        lines=tuple(lines),
        conclude=_find_best,
        draw=_draw_strengths,
        notes="The best strengths are those of the grid, by validation data of the reported seeds.",
    )


def importances(size: Size) -> Recipe:
    """The recipe of A 5."""
    seeds = size.num_seeds(3)
    lines = []
    for mechanism in ("ewc", "wva"):
        for importance, label in _IMPORTANCES.items():
            method = f"{mechanism}-{importance}"
            shared = method in _GRIDS  # the strengths that A 4 runs anyhow
            lines.append(
                RecipeLine(
                    label=f"{mechanism.upper()} {label}",
                    candidates=around(
                        size.config("permuted", method, **SETTINGS.get(method, {})),
                        _GRIDS.get(method) or _TRIALS[method],
                    ),
                    seeds=seeds,
                    trial_seeds=seeds if shared else (9,),
                    trial_settings={} if shared or size.name == "quick" else {"num_tasks": 5},
                    section=mechanism.upper(),
                )
            )
    return Recipe(
        name="importances",
        title="Which importance suits EWC, and which WVA",
        question="Fisher, MAS, SI, signal or Taylor?",
        source=AUTHORS,
        claim="For WVA Fisher >= MAS >= signal within the error; EWC keeps skills better than WVA.",
        size=size,
        lines=tuple(lines),
        conclude=_compare,
        draw=_draw_importances,
    )


def _find_best(findings: RecipeFindings) -> str:
    told = []
    for label in _LABELS.values():
        answers = _of_section(findings, label)
        top = best_answer(answers)
        num_tasks = len(top.results[0].average_accuracy)
        winners = {t: _best_after(answers, t) for t in range(2, num_tasks + 1)}
        lost = {t: findings.paired(winners[t], top, lambda r, t=t: r.average_accuracy[t - 1]) for t in winners}
        worst = max(lost, key=lambda t: lost[t].mean)
        keeps = equivalent(lost[worst])
        courses = ", ".join(
            f"{strength} after {_tasks(list(ts))}"
            for strength, ts in groupby(winners, key=lambda t: _strength(winners[t]))
        )
        told.append(
            f"{label}: best at {_strength(top)} with {percent(top.of(final))}%. By validation data the best is "
            f"{courses}; keeping {_strength(top)} throughout costs at most {points(lost[worst])} points, after "
            f"{worst} tasks: that it does not depend on the number of tasks "
            f"{stand_text(keeps)}."
        )
    return " ".join(told)


def _tasks(numbers: list[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{first} tasks" if first == last else f"{first} to {last} tasks"


def _best_after(answers: list[Answer], num_tasks: int) -> Answer:
    """Of the highest mean validation accuracy after so many tasks."""

    def so_far(result: RunResult) -> float:
        return result.validation_accuracy[num_tasks - 1]

    return max((answer for answer in answers if answer.results), key=lambda answer: answer.of(so_far).mean)


def _draw_strengths(findings: RecipeFindings, folder: Path) -> list[Path]:
    pictures = []
    for method, label in _LABELS.items():
        answers = [answer for answer in _of_section(findings, label) if answer.outcomes]
        if not any(answer.results for answer in answers):
            continue
        most = max(len(result.average_accuracy) for answer in answers for result in answer.results)
        shown = [t for t in (2, 3, 4, 6, 8, 10) if t <= most]
        series = [Series(f"after {t} tasks", _strengths(answers), _after(answers, t)) for t in shown]
        pictures.append(
            curves(
                series,
                folder / f"{method}.png",
                title=f"{label}: accuracy against strength",
                remark="mean and 95% interval over seeds",
                across="strength",
                up="average test accuracy so far",
                logarithmic=True,
            )
        )
    return pictures


def _compare(findings: RecipeFindings) -> str:
    wva = {name: findings.answer(f"WVA {label}") for name, label in _IMPORTANCES.items()}
    ewc = {name: findings.answer(f"EWC {label}") for name, label in _IMPORTANCES.items()}
    first, second = findings.paired(wva["fisher"], wva["mas"]), findings.paired(wva["mas"], wva["signal"])
    lead = findings.paired(best_answer(list(ewc.values())), best_answer(list(wva.values())))
    return (
        f"For EWC: {_ranking(ewc)}. For WVA: {_ranking(wva)}. WVA, Fisher minus MAS: {points(first)} points, so that "
        f"Fisher >= MAS {stand_text(not_below(first))}; MAS minus signal: {points(second)}, so that MAS >= signal "
        f"{stand_text(not_below(second))}. The best importance for EWC lies {points(lead)} points above the best for "
        f"WVA: that EWC keeps skills better {stand_text(above(lead))}."
    )


def _ranking(answers: dict[str, Answer]) -> str:
    order = sorted(answers, key=lambda name: -answers[name].of(final).mean)
    return ", ".join(f"{_IMPORTANCES[name]} {percent(answers[name].of(final))}" for name in order)


def _draw_importances(findings: RecipeFindings, folder: Path) -> list[Path]:
    return [beside(findings.answers, folder / "beside.png", title=findings.recipe.title)]


def _of_section(findings: RecipeFindings, section: str) -> list[Answer]:
    return [answer for answer in findings.answers if answer.line.section == section]


def _strength(answer: Answer) -> str:
    return f"{answer.line.candidates[0].strength:g}"


def _strengths(answers: list[Answer]) -> list[float]:
    return [answer.line.candidates[0].strength or 0.0 for answer in answers]


def _after(answers: list[Answer], num_tasks: int) -> list[Estimate | None]:
    return [
        answer.of(lambda result: result.average_accuracy[num_tasks - 1]) if answer.results else None
        for answer in answers
    ]

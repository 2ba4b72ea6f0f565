"""A 2 and A 3: how WVA slows a weight: its gradients or its increments, hyperbolically or exponentially."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.lab.config import RunConfig
from holdfast.lab.tables import Estimate
from recipes.curve import AUTHORS
from recipes.findings import Answer, Recipe, RecipeFindings, best_answer, final, percent, points
from recipes.lines import RecipeLine, Size, around
from recipes.pictures import Series, beside, curves
from recipes.verdict import above, equivalent, not_below, stand_text

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Half decades around the strength that the authors or a first trial found best."""

_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "momentum": {"optimizer": "momentum", "lr": 0.02},  # as far as SGD at 0.2 goes: lr / (1 - 0.9)
    "Adam": {"optimizer": "adam", "lr": 1e-3},
}
_GRIDS = {"SGD": FACTORS, "Adam": (*FACTORS, 30.0, 100.0)}


def wva(size: Size, optimizer: str, **settings: Any) -> RunConfig:
    """WVA on signal under an optimizer."""
    return size.config("permuted", "wva-signal", **_OPTIMIZERS[optimizer], **settings)


def increments(size: Size) -> Recipe:
    """The recipe of A 2."""
    seeds = size.num_seeds(3)
    tasks = None if size.name == "quick" else 5
    lines = []
    for optimizer in _OPTIMIZERS:
        for kind in ("increments", "gradients"):
            base = wva(size, optimizer, attenuate=kind)
            shared = optimizer != "momentum" and kind == "increments"  # the strengths that A 3 runs anyhow
            lines.append(
                RecipeLine(
                    label=f"{optimizer}, {kind}",
                    candidates=around(base, FACTORS if shared else (0.1, 1, 10, 100)),
                    seeds=seeds,
                    trial_seeds=seeds if shared else (9,),
                    trial_settings={} if shared else {"num_tasks": tasks},
                )
            )
    return Recipe(
        name="increments",
        title="WVA on gradients or on increments",
        question="Should WVA slow the gradients before the optimizer, or the increments after it?",
        source=AUTHORS,
        claim="The same for SGD; increments, not gradients, for Adam, which stays a little below SGD.",
        size=size,
        lines=tuple(lines),
        conclude=_compare_kinds,
        draw=_draw_kinds,
    )


def attenuation(size: Size) -> Recipe:
    """The recipe of A 3."""
    lines = [
        RecipeLine(
            label=f"{optimizer}, {kind}, strength {config.strength:g}", candidates=(config,), seeds=size.num_seeds(3)
        )
        for optimizer in ("SGD", "Adam")
        for kind in ("hyperbolic", "exponential")
        for config in around(wva(size, optimizer, attenuation=kind), _GRIDS[optimizer])
    ]
    return Recipe(
        name="attenuation",
        title="Hyperbolic or exponential attenuation",
        question="1/(1 + a) or exp(-a), and how sharply does accuracy fall away from the best strength?",
        source=AUTHORS,
        claim="Exponential attenuation is never worse than hyperbolic, but within the error; hyperbolic forgives a "
        "wrong strength more readily.",
        size=size,
        lines=tuple(lines),
        conclude=_compare_forms,
        draw=_draw_forms,
        notes="The best strengths are those of the grid, by validation data of the reported seeds. Between two of "
        "them accuracy may be higher than at both: where it is concave, up to the lines through the next two strengths "
        "on either side. A verdict that this could turn stays open.",
    )


def _compare_kinds(findings: RecipeFindings) -> str:
    pairs = {
        optimizer: [findings.answer(f"{optimizer}, {kind}") for kind in ("increments", "gradients")]
        for optimizer in _OPTIMIZERS
    }
    gap = {optimizer: findings.paired(pair[0], pair[1]) for optimizer, pair in pairs.items()}
    behind = findings.paired(pairs["SGD"][0], pairs["Adam"][0])
    return (
        f"Increments minus gradients, in points under the same seeds: SGD {points(gap['SGD'])}, momentum "
        f"{points(gap['momentum'])}, Adam {points(gap['Adam'])}. That both are the same under SGD "
        f"{stand_text(equivalent(gap['SGD']))}; that Adam needs increments {stand_text(above(gap['Adam']))}. With "
        f"increments SGD reaches {percent(pairs['SGD'][0].of(final))}% and Adam "
        f"{percent(pairs['Adam'][0].of(final))}%: that Adam stays below SGD {stand_text(above(behind))}."
    )


def _draw_kinds(findings: RecipeFindings, folder: Path) -> list[Path]:
    return [beside(findings.answers, folder / "beside.png", title=findings.recipe.title)]


def _compare_forms(findings: RecipeFindings) -> str:
    told = []
    for optimizer in ("SGD", "Adam"):
        hyperbolic, exponential = (findings.labelled(f"{optimizer}, {form}") for form in ("hyperbolic", "exponential"))
        top = best_answer(exponential), best_answer(hyperbolic)
        gain = findings.paired(top[0], top[1])
        worse = not_below(gain)
        at_most = Estimate(gain.mean + _above_grid(exponential), gain.half_width)
        coarse = worse == "disagrees" and not_below(at_most) != "disagrees"
        sharper = _falls(findings, exponential), _falls(findings, hyperbolic)
        difference = Estimate.of([a - b for a, b in zip(*sharper)])
        told.append(
            f"{optimizer}: at the best strength (hyperbolic {_strength(top[1])}, exponential {_strength(top[0])}) "
            f"exponential minus hyperbolic is {points(gain)} points: that exponential is not worse "
            f"{stand_text('open' if coarse else worse, coarse=coarse)}. Averaged over the grid, exponential loses "
            f"{percent(Estimate.of(sharper[0]))} points to its own best strength and hyperbolic "
            f"{percent(Estimate.of(sharper[1]))}: that hyperbolic forgives more {stand_text(above(difference))}."
        )
    return " ".join(told)


def _above_grid(answers: list[Answer]) -> float:
    """How far a strength between those of the grid may lie above its best one, where accuracy is concave there."""
    alive = [answer for answer in answers if answer.results]
    means, top = [answer.of(final).mean for answer in alive], alive.index(best_answer(alive))
    if top in (0, len(alive) - 1):
        return math.inf
    return max(_most_between(means, left) for left in (top - 1, top)) - means[top]


def _most_between(means: Sequence[float], left: int) -> float:
    """The most that evenly spaced values allow between two neighbours: the lines through the next pairs bound it."""
    right, most = left + 1, -math.inf
    for share in (step / 100 for step in range(101)):
        lines = [means[left] + share * (means[left] - means[left - 1])] if left > 0 else []
        if right + 1 < len(means):
            lines.append(means[right] + (1 - share) * (means[right] - means[right + 1]))
        most = max(most, min(lines))
    return most


def _falls(findings: RecipeFindings, answers: list[Answer]) -> list[float]:
    """For each seed how much accuracy the grid's strengths lose, on average, to the best one."""
    top = best_answer(answers).by_seed(final)
    tables = [answer.by_seed(final) for answer in answers]
    return [
        sum(top[seed] - table.get(seed, 0.0) for table in tables) / len(tables)
        for seed in findings.recipe.lines[0].seeds
        if seed in top
    ]


def _strength(answer: Answer) -> str:
    return f"{answer.line.candidates[0].strength:g}"


def _draw_forms(findings: RecipeFindings, folder: Path) -> list[Path]:
    series = []
    for optimizer in ("SGD", "Adam"):
        for form in ("hyperbolic", "exponential"):
            answers = [answer for answer in findings.labelled(f"{optimizer}, {form}") if answer.outcomes]
            places = [answer.line.candidates[0].strength or 0.0 for answer in answers]
            values = [answer.of(final) if answer.results else None for answer in answers]
            series.append(Series(f"{optimizer}, {form}", places, values))
    return [
        curves(
            series,
            folder / "strength.png",
            title=findings.recipe.title,
            remark="WVA on signal, after the last task: mean and 95% interval over seeds",
            across="strength",
            logarithmic=True,
        )
    ]

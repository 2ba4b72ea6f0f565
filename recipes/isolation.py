"""Weights of a task's own: the family of hard attention, beside methods that share all weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.lab.metrics import forgetting_ratio
from holdfast.lab.result import RunResult
from holdfast.lab.tables import Estimate
from recipes.findings import Answer, Recipe, RecipeFindings, final, percent
from recipes.lines import RecipeLine, Size, around
from recipes.page import markdown, settings_of
from recipes.pictures import beside
from recipes.which_fisher import TRAINING

SOURCE = (
    "Rusu et al. 2016, arXiv 1606.04671; Mallya and Lazebnik 2018, arXiv 1711.05769; Fernando et al. 2017, arXiv "
    "1701.08734; Serra et al. 2018, arXiv 1801.01423; Jung et al. 2016, arXiv 1607.00122"
)
JOINT, PLAIN = "joint", "plain"


@dataclass(frozen=True)
class _IsolationRow:
    """A row: a method, and what is tried of it.

    Attributes:
        method: its name.
        isolates: whether a task has weights of its own, that no later one changes.
        strengths: times the protocol's own.
        tried: an option, and its values.
    """

    method: str
    isolates: bool = False
    strengths: tuple[float, ...] = ()
    tried: tuple[str, tuple[float, ...]] | None = None


_ROWS: dict[str, _IsolationRow] = {
    JOINT: _IsolationRow("joint"),
    "HAT": _IsolationRow("hat", True, tried=("hat_sparsity", (0.1, 0.75, 2.5))),
    "PackNet": _IsolationRow("packnet", True, tried=("pack_retrain", (0.2, 0.33, 0.5))),
    "progressive": _IsolationRow("progressive", True),
    "PathNet": _IsolationRow("pathnet", True, tried=("path_generations", (10, 30, 100))),
    "LwF": _IsolationRow("lwf", tried=("temperature", (1.0, 2.0, 4.0))),
    "LFL": _IsolationRow("lfl", tried=("lfl_weight", (1e-3, 1e-2, 0.1, 1.0))),
    "IMM": _IsolationRow("imm", tried=("l2_transfer", (1e-4, 1e-3, 1e-2))),
    "EWC": _IsolationRow("ewc-fisher", strengths=(0.01, 0.1, 1, 10)),
    PLAIN: _IsolationRow("none"),
}
_SECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "split": ("split", {"iterations": 500}),
    "permuted": ("permuted", {"num_tasks": 5, "iterations": 500, "batch_size": 128}),
}
"""Stream, and settings beside those of all."""


def isolation(size: Size) -> Recipe:
    """The recipe."""
    lines = []
    for section, (stream, settings) in _SECTIONS.items():
        for label, kind in _ROWS.items():
            base = size.config(stream, kind.method, scenario="task", **{**TRAINING, **settings})
            candidates = around(base, kind.strengths) if kind.strengths else (base,)
            if kind.tried is not None:
                name, values = kind.tried
                candidates = tuple(base.changed(**{name: value}) for value in values)
            lines.append(
                RecipeLine(label=f"{label}, {section}", candidates=candidates, seeds=size.num_seeds(3), section=section)
            )
    return Recipe(
        name="isolation",
        title="Weights of a task's own",
        question="Told which task it is, and with a head for each: what do methods keep and cost that give a task "
        "units, weights or layers of its own, beside those that share all of them?",
        source=SOURCE,
        claim="Weights that no later task may change forget nothing; they cost memory, or room.",
        size=size,
        lines=tuple(lines),
        conclude=_conclude,
        draw=_draw,
        table=_table,
        notes="Tasks are learned in 500 steps of 128. All methods have the same two hidden layers of 400 units; those "
        "of PathNet are of modules, progressive networks have these for every task. The forgetting ratio is that of "
        "Serra et al. 2018: 0 as good as joint training, -1 no better than an untrained network. Held is what a method "
        "keeps beside the network and the optimizer; progressive networks and PathNet keep it as weights. What these "
        "papers print is of other data and networks (CIFAR-100, eight data sets, Atari): none stands beside these.",
    )


def _table(findings: RecipeFindings) -> str:
    titles = ["method", "settings", "accuracy %", "forgetting ratio", "learning %", "weights", "held, MB", "s", "seeds"]
    rows = []
    for answer, settings in zip(findings.answers, settings_of(findings.answers), strict=True):
        figures = [""] * 6
        if answer.results:
            count, held = (_mean(answer, name) for name in ("num_parameters", "held_bytes"))
            figures = [
                percent(answer.of(final)),
                _ratio(findings, answer).text(digits=3),
                percent(answer.of(lambda result: result.learning_accuracy)),
                f"{count:,.0f}",
                f"{held / 1e6:.2f}",
                f"{answer.of(lambda result: result.seconds).mean:.0f}",
            ]
        rows.append([answer.line.label, settings, *figures, str(len(answer.outcomes))])
    return markdown([titles, *rows])


def _mean(answer: Answer, name: str) -> float:
    return answer.of(lambda result: float(getattr(result, name) or 0)).mean


def _ratio(findings: RecipeFindings, answer: Answer) -> Estimate:
    joint = findings.answer(f"{JOINT}, {answer.line.section}").by_seed_results()

    def ratio(result: RunResult) -> float:
        if result.seed not in joint:
            return float("nan")
        best = joint[result.seed].accuracy_matrix[-1]
        return forgetting_ratio(result.accuracy_matrix[-1], joint=best, chance=result.baseline_accuracy)

    return answer.of(ratio)


def _conclude(findings: RecipeFindings) -> str:
    told = []
    for section in _SECTIONS:
        own = {
            answer.line.label.removesuffix(f", {section}"): answer
            for answer in findings.answers
            if answer.line.section == section
        }
        isolated = {label: answer for label, answer in own.items() if _ROWS[label].isolates}
        worst = max(result.forgetting for answer in isolated.values() for result in answer.results)
        order = sorted(own, key=lambda label: -own[label].of(final).mean)
        ranked = ", ".join(f"{label} {percent(own[label].of(final))}" for label in order)
        weights = _grown(own)
        told.append(
            f"{section}: {ranked}; of those that isolate the most that any run forgets is {100 * worst:.2f} points; "
            f"weights over the plain network's: {weights}"
        )
    return f"Average accuracy in %. {'. '.join(told)}."


def _grown(answers: Mapping[str, Answer]) -> str:
    plain = _mean(answers[PLAIN], "num_parameters") or math.inf  # not counted by earlier versions
    grown = {label: _mean(answer, "num_parameters") / plain for label, answer in answers.items()}
    return ", ".join(f"{label} {times:.1f}" for label, times in grown.items() if abs(times - 1) > 0.05) or "all alike"


def _draw(findings: RecipeFindings, folder: Path) -> list[Path]:
    return [beside(findings.answers, folder / "beside.png", title=findings.recipe.title)]

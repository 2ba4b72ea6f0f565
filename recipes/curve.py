"""A 1: the curve of every method on ten tasks of permuted MNIST."""

from __future__ import annotations

from pathlib import Path

from holdfast.lab.plots import accuracy_curves, accuracy_matrices
from recipes.findings import (
    Recipe,
    RecipeFindings,
    as_groups,
    best_answer,
    final,
    percent,
    points,
)
from recipes.lines import CitedFigure, RecipeLine, Size, around
from recipes.pictures import beside
from recipes.verdict import above, stand_text

AUTHORS = "Kutalev, arXiv 2005.07107, 2109.10021, 2208.05791, 2211.17012"

_REFERENCE = {
    "none": 0.44,
    "ewc-fisher": 0.88,
    "ewc-mas": 0.85,
    "ewc-si": 0.70,
    "ewc-signal": 0.885,
    "wva-signal": 0.82,
    "ewc-kfac": 0.959,
}
"""Of an independent program, which nobody has published."""
SETTINGS = {"ewc-si": {"si_variant": "zenke"}}
"""Importances are compared as their authors define them."""
_LABELS = {
    "joint": "joint",
    "ewc-kfac": "EWC K-FAC",
    "ewc-fisher": "EWC Fisher",
    "ewc-signal": "EWC signal",
    "ewc-mas": "EWC MAS",
    "ewc-si": "EWC SI",
    "wva-signal": "WVA signal",
    "none": "plain",
}
TUNED_EWC, TUNED_WVA = "EWC Fisher, tuned", "WVA signal, tuned"


def curve(size: Size) -> Recipe:
    """The recipe."""
    few, many = size.num_seeds(3), size.num_seeds(5)
    lines = [
        RecipeLine(
            label=label,
            candidates=(size.config("permuted", method, **SETTINGS.get(method, {})),),
            seeds=few if method in ("joint", "ewc-kfac") else many,
            reference=_reference(method),
        )
        for method, label in _LABELS.items()
    ]
    ewc, wva = (size.config("permuted", method, schedule="cosine") for method in ("ewc-fisher", "wva-signal"))
    lines += [
        RecipeLine(label=TUNED_EWC, candidates=around(ewc, (1, 2, 4)), seeds=many),
        RecipeLine(label=TUNED_WVA, candidates=around(wva, (1, 2, 4)), seeds=many),
    ]
    return Recipe(
        name="curve",
        title="Ten tasks of permuted MNIST, every method",
        question="How does the mean accuracy on all tasks learned so far fall as tasks are added?",
        source=AUTHORS,
        claim="EWC keeps skills better, WVA costs less memory; Fisher, MAS and signal are about equally good for EWC.",
        size=size,
        lines=tuple(lines),
        conclude=_conclude,
        draw=_draw,
        notes="Strengths and learning rates are the authors', except those of K-FAC and of the tuned rows. The pull is "
        "the implicit one, the Fisher is exact, where theirs samples a label, and SI is Zenke's.",
    )


def _reference(method: str) -> CitedFigure | None:
    return CitedFigure(_REFERENCE[method], kind="program", seeds=1) if method in _REFERENCE else None


def _conclude(findings: RecipeFindings) -> str:
    ewc, wva, plain = (findings.answer(label) for label in ("EWC Fisher", "WVA signal", "plain"))
    lead = findings.paired(ewc, wva)
    diagonal = [findings.answer(_LABELS[f"ewc-{name}"]) for name in ("fisher", "mas", "signal")]
    told = ", ".join(f"{answer.line.label.removeprefix('EWC ')} {percent(answer.of(final))}" for answer in diagonal)
    spread = findings.paired(best_answer(diagonal), min(diagonal, key=lambda answer: answer.of(final).mean))
    tuned_ewc, tuned_wva = findings.answer(TUNED_EWC), findings.answer(TUNED_WVA)
    return (
        f"Plain training ends at {percent(plain.of(final))}%. EWC with Fisher lies {points(lead)} points above WVA on "
        f"signal under the same seeds: that EWC keeps skills better {stand_text(above(lead))}. Of the importances for "
        f"EWC at the authors' strengths and learning rates, with the implicit pull and the exact Fisher: {told}; the "
        f"best lies {points(spread)} points above the last. With a "
        "learning rate that falls to zero within each task, and the strength chosen on validation data, EWC with "
        f"Fisher reaches {percent(tuned_ewc.of(final))}% and WVA on signal {percent(tuned_wva.of(final))}%."
    )


def _draw(findings: RecipeFindings, folder: Path) -> list[Path]:
    groups = as_groups(findings.answers)
    title = findings.recipe.title
    return [
        accuracy_curves(groups, folder / "accuracy.png", title=title),
        beside(findings.answers, folder / "beside.png", title=title),
        accuracy_matrices(groups, folder / "matrix.png", title=title),
    ]

"""B: which Fisher, on split MNIST with one head a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.findings import Answer, Recipe, RecipeFindings, final, points
from recipes.lines import CitedFigure, RecipeLine, Size, around
from recipes.pictures import beside
from recipes.verdict import above, equivalent

SOURCE = "van de Ven, ICLR blog 2025, arXiv 2502.11756"
TRAINING = {"hidden": (400, 400), "slope": 0.0, "optimizer": "adam", "lr": 1e-3, "importance_data": "train"}


def _printed(figure: float, spread: float) -> CitedFigure:
    return CitedFigure(figure, spread, source=SOURCE, seeds=30)


_KINDS: dict[str, tuple[dict[str, Any], CitedFigure]] = {
    "exact": ({"fisher": "exact", "strength": 1e4}, _printed(0.9912, 0.0016)),
    "exact on 500": ({"fisher": "exact", "strength": 1e4, "importance_examples": 500}, _printed(0.9893, 0.0015)),
    "sampled": ({"fisher": "sampled", "strength": 1e8}, _printed(0.9912, 0.0012)),
    "empirical": ({"fisher": "empirical", "strength": 1e8}, _printed(0.9912, 0.0012)),
    "batched": ({"fisher": "batched", "strength": 1e10}, _printed(0.9911, 0.0016)),
}


def which_fisher(size: Size) -> Recipe:
    """The recipe."""
    seeds = size.num_seeds(5)
    lines = [
        RecipeLine(
            label=f"EWC, Fisher {kind}",
            candidates=around(size.config("split", "ewc-fisher", **TRAINING, **settings), (0.01, 1, 100)),
            seeds=seeds,
            reference=reference,
        )
        for kind, (settings, reference) in _KINDS.items()
    ]
    plain = size.config("split", "none", **TRAINING)
    lines.append(RecipeLine(label="plain", candidates=(plain,), seeds=seeds, reference=_printed(0.854, 0.009)))
    return Recipe(
        name="which-fisher",
        title="Which Fisher: split MNIST, task-incremental, online EWC",
        question="Does it matter how the Fisher information is computed?",
        source=SOURCE,
        claim="At its own best strength every way does about equally well; the exact one has the widest and earliest "
        "plateau of strengths.",
        size=size,
        lines=tuple(lines),
        conclude=_conclude,
        draw=_draw,
        notes="Strengths: where the printed plateau starts, and a hundredth and a hundred times of it.",
    )


def _conclude(findings: RecipeFindings) -> str:
    exact, *others, plain = findings.answers
    reached = f"Exact reaches {exact.of(final).text(scale=100, digits=2)}%"
    lead = findings.paired(exact, plain)
    if above(lead) != "agrees":
        return f"{reached}, and plain training no less (exact less plain: {points(lead)} points): no way is told apart."
    told = []
    for answer in others:
        difference = findings.paired(answer, exact)
        stands = {"agrees": "as good as exact", "disagrees": "another than exact", "open": "open"}
        told.append(f"{_kind(answer)} {points(difference)} points, {stands[equivalent(difference)]}")
    strengths = ", ".join(
        f"{_kind(answer)} {answer.config.strength:g}"
        for answer in (exact, *others)
        if answer.config is not None and answer.config.strength is not None
    )
    return (
        f"{reached}. Against it, under the same seeds: {'; '.join(told)}. Strengths chosen on validation data: "
        f"{strengths}."
    )


def _kind(answer: Answer) -> str:
    return answer.line.label.removeprefix("EWC, Fisher ")


def _draw(findings: RecipeFindings, folder: Path) -> list[Path]:
    return [beside(findings.answers, folder / "beside.png", title=findings.recipe.title)]

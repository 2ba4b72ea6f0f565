"""B: which Fisher, on split MNIST with one head a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.findings import Recipe, RecipeFindings, final, points
from recipes.lines import Published, RecipeLine, Size, around
from recipes.pictures import beside
from recipes.verdict import equivalent

SOURCE = "van de Ven, ICLR blog 2025, arXiv 2502.11756"
TRAINING = {"hidden": (400, 400), "slope": 0.0, "optimizer": "adam", "lr": 1e-3, "importance_data": "train"}

_KINDS: dict[str, tuple[dict[str, Any], Published]] = {
    "exact": ({"fisher": "exact", "strength": 1e4}, Published(0.9912, 0.0016)),
    "exact on 500": ({"fisher": "exact", "strength": 1e4, "importance_examples": 500}, Published(0.9893, 0.0015)),
    "sampled": ({"fisher": "sampled", "strength": 1e8}, Published(0.9912, 0.0012)),
    "empirical": ({"fisher": "empirical", "strength": 1e8}, Published(0.9912, 0.0012)),
    "batched": ({"fisher": "batched", "strength": 1e10}, Published(0.9911, 0.0016)),
}


def which_fisher(size: Size) -> Recipe:
    """The recipe."""
    seeds = size.num_seeds(5)
    lines = [
        RecipeLine(
            label=f"EWC, Fisher {kind}",
            candidates=around(size.config("split", "ewc-fisher", **TRAINING, **settings), (0.01, 1, 100)),
            seeds=seeds,
            published=published,
        )
        for kind, (settings, published) in _KINDS.items()
    ]
    plain = size.config("split", "none", **TRAINING)
    lines.append(RecipeLine(label="plain", candidates=(plain,), seeds=seeds, published=Published(0.854, 0.009)))
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
        notes="The published figures are of 30 seeds. Strengths: where the published plateau starts, and a hundredth "
        "and a hundred times of it.",
    )


def _conclude(findings: RecipeFindings) -> str:
    exact, *others = findings.answers[:-1]
    told = []
    for answer in others:
        difference = findings.paired(answer, exact)
        alike = "as good as" if equivalent(difference) == "agrees" else "another than"
        told.append(f"{answer.line.label.removeprefix('EWC, Fisher ')} {points(difference)} points, {alike} exact")
    strengths = ", ".join(
        f"{answer.line.label.removeprefix('EWC, Fisher ')} {answer.config.strength:g}"
        for answer in findings.answers[:-1]
        if answer.config is not None and answer.config.strength is not None
    )
    return (
        f"Exact reaches {exact.of(final).text(scale=100, digits=2)}%. Against it, under the same seeds: "
        f"{'; '.join(told)}. Strengths chosen on validation data: {strengths}."
    )


def _draw(findings: RecipeFindings, folder: Path) -> list[Path]:
    return [beside(findings.answers, folder / "beside.png", title=findings.recipe.title)]

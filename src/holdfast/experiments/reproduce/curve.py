"""A 1: the curve of every method on ten tasks of permuted MNIST."""

from __future__ import annotations

from pathlib import Path

from holdfast.experiments.reproduce.findings import Findings
from holdfast.experiments.reproduce.recipe import Line, Published, Recipe, Size, around

AUTHORS = "Kutalev, arXiv 2005.07107, 2109.10021, 2208.05791, 2211.17012"
REFERENCE = "an independent reference, one seed"

_PUBLISHED = {
    "none": 0.44,
    "ewc-fisher": 0.88,
    "ewc-mas": 0.85,
    "ewc-si": 0.70,
    "ewc-signal": 0.885,
    "wva-signal": 0.82,
    "ewc-kfac": 0.959,
}
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
TUNED_EWC, TUNED_WVA = "EWC Fisher, tuned", "WVA Fisher, tuned"


def curve(size: Size) -> Recipe:
    """The recipe."""
    few, many = size.num_seeds(3), size.num_seeds(5)
    lines = [
        Line(
            label=label,
            candidates=(size.config("permuted", method),),
            seeds=few if method in ("joint", "ewc-kfac") else many,
            published=Published(_PUBLISHED[method], source=REFERENCE) if method in _PUBLISHED else None,
        )
        for method, label in _LABELS.items()
    ]
    slower = {"lr": 0.1, "schedule": "cosine"}
    ewc, wva = (size.config("permuted", method, **slower) for method in ("ewc-fisher", "wva-fisher"))
    lines += [
        Line(label=TUNED_EWC, candidates=around(ewc, (1, 2, 4, 8)), seeds=many),
        Line(label=TUNED_WVA, candidates=around(wva, (0.3, 1, 3, 10)), seeds=many),
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
    )


def _conclude(findings: Findings) -> str:
    return ""


def _draw(findings: Findings, folder: Path) -> list[Path]:
    return []

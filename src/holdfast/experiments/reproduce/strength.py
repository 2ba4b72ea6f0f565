"""A 4 and A 5: the best strength, and the importance that suits EWC and WVA best."""

from __future__ import annotations

from pathlib import Path

from holdfast.experiments.reproduce.attenuation import FACTORS
from holdfast.experiments.reproduce.curve import AUTHORS
from holdfast.experiments.reproduce.findings import Findings
from holdfast.experiments.reproduce.recipe import Line, Recipe, Size, around

_GRIDS = {"ewc-fisher": (*FACTORS, 30.0), "wva-signal": FACTORS, "wva-fisher": FACTORS}
_LABELS = {"ewc-fisher": "EWC Fisher", "wva-signal": "WVA signal", "wva-fisher": "WVA Fisher"}
_TRIALS = {
    "ewc-mas": (0.1, 1, 10),
    "ewc-si": (0.1, 1, 10),
    "ewc-signal": (0.1, 1, 10),
    "ewc-taylor": (0.1, 1, 10),
    "wva-mas": (0.1, 1, 10, 100),
    "wva-si": (0.1, 1, 10, 100),
    "wva-taylor": (0.1, 1, 10, 100),
}
_IMPORTANCES = {"fisher": "Fisher", "mas": "MAS", "si": "SI", "signal": "signal", "taylor": "Taylor"}


def strength(size: Size) -> Recipe:
    """The recipe of A 4."""
    lines = [
        Line(
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
        conclude=_conclude,
        draw=_draw,
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
                Line(
                    label=f"{mechanism.upper()} {label}",
                    candidates=around(size.config("permuted", method), _GRIDS.get(method) or _TRIALS[method]),
                    seeds=seeds,
                    trial_seeds=seeds if shared else (9,),
                    trial_tasks=None if shared or size.name == "quick" else 5,
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
        conclude=_conclude,
        draw=_draw,
    )


def _conclude(findings: Findings) -> str:
    return ""


def _draw(findings: Findings, folder: Path) -> list[Path]:
    return []

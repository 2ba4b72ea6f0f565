"""A 2 and A 3: how WVA slows a weight: its gradients or its increments, hyperbolically or exponentially."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.experiments.config import RunConfig
from holdfast.experiments.reproduce.curve import AUTHORS
from holdfast.experiments.reproduce.findings import Findings
from holdfast.experiments.reproduce.recipe import Line, Recipe, Size, around

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Half decades around the strength that the authors or a first trial found best."""

_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "momentum": {"optimizer": "momentum", "lr": 0.02},  # as far as SGD at 0.2 goes: lr / (1 - 0.9)
    "Adam": {"optimizer": "adam", "lr": 1e-3},
}
ADAM_FACTOR = 10.0
"""Under Adam all weights move alike, important or not, so that WVA must be stronger to hold as much."""


def wva(size: Size, optimizer: str, **settings: Any) -> RunConfig:
    """WVA on signal, of a strength that suits the optimizer."""
    config = size.config("permuted", "wva-signal", **_OPTIMIZERS[optimizer], **settings)
    return around(config, (ADAM_FACTOR,))[0] if optimizer == "Adam" else config


def increments(size: Size) -> Recipe:
    """The recipe of A 2."""
    seeds = size.num_seeds(3)
    tasks = None if size.name == "quick" else 5
    lines = []
    for optimizer in _OPTIMIZERS:
        for kind in ("increments", "gradients"):
            base = wva(size, optimizer, attenuate=kind)
            shared = optimizer == "Adam" and kind == "increments"  # the strengths that A 3 runs anyhow
            lines.append(
                Line(
                    label=f"{optimizer}, {kind}",
                    candidates=(base,) if optimizer == "SGD" else around(base, FACTORS if shared else (0.1, 1, 10)),
                    seeds=seeds,
                    trial_seeds=seeds if shared else (9,),
                    trial_tasks=None if shared else tasks,
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
        conclude=_conclude,
        draw=_draw,
    )


def attenuation(size: Size) -> Recipe:
    """The recipe of A 3."""
    lines = [
        Line(label=f"{optimizer}, {kind}, strength {config.strength:g}", candidates=(config,), seeds=size.num_seeds(3))
        for optimizer in ("SGD", "Adam")
        for kind in ("hyperbolic", "exponential")
        for config in around(wva(size, optimizer, attenuation=kind), FACTORS)
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
        conclude=_conclude,
        draw=_draw,
    )


def _conclude(findings: Findings) -> str:
    return ""


def _draw(findings: Findings, folder: Path) -> list[Path]:
    return []

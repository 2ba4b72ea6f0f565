"""A 8: convolution and attention, where the textbook pull explodes or gradient clipping drowns the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.experiments.reproduce.curve import AUTHORS
from holdfast.experiments.reproduce.findings import Findings
from holdfast.experiments.reproduce.recipe import Line, Recipe, Size

PULLS: dict[str, dict[str, Any]] = {
    "implicit": {"pull": "implicit"},
    "textbook": {"pull": "gradient"},
    "textbook, clipped": {"pull": "penalty", "clip": 1.0},
}
NETS = {"convolution": {"lr": 0.1}, "attention": {"lr": 0.1}}
STRENGTHS = (1.0, 100.0, 1e4)


def nets(size: Size) -> Recipe:
    """The recipe."""
    seeds = size.num_seeds(3)
    lines = []
    for net, training in NETS.items():
        shared = {"net": net, "epochs": 1, "optimizer": "sgd", **training}
        lines.append(
            Line(
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
                    Line(label=f"{net}, {name}, {strength:g}", candidates=(config,), seeds=seeds, section=net)
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
    )


def _conclude(findings: Findings) -> str:
    return ""


def _draw(findings: Findings, folder: Path) -> list[Path]:
    return []

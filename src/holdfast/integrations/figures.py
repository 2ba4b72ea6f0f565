"""What a keeper has to say in somebody else's logs, and what it has to know of somebody else's training."""

from __future__ import annotations

from typing import Any

import torch

from holdfast.replay import Rehearsal
from holdfast.retention import Keeper


def logged_figures(keeper: Any, *, name: str = "") -> dict[str, float]:
    """Figures by name: nothing before a task is retained, and nothing that is not known.

    Args:
        keeper: a `Keeper`, or what has a `report` with the same figures.
        name: stands before each of them.
    """
    report = keeper.report()
    if report.num_tasks == 0:
        return {}
    found: dict[str, float | None] = {"predicted_rise": report.predicted_rise, "pull_ratio": report.pull_ratio}
    skills: tuple[tuple[float, float, float | None], ...] = report.skills if isinstance(keeper, Keeper) else ()
    if any(budget is not None for _, _, budget in skills):
        found["strength"] = report.strength
    for number, (increment, rise, _) in enumerate(skills):
        found |= {f"rise_{number}": rise, f"increment_{number}": increment}
    prefix = f"{name}/" if name else ""
    return {prefix + key: value for key, value in found.items() if value is not None}


def train_together(helper: Any, *, num_processes: int) -> None:
    """Tell a keeper or rehearsal that so many processes train its model, which their Trainer wraps; each calls this."""
    if isinstance(helper, Keeper | Rehearsal) and num_processes > 1 and helper.group is None:
        helper.group = torch.distributed.group.WORLD


def close_lesson(keeper: Any) -> None:
    """End the lesson of a keeper; what records a path has none."""
    if isinstance(keeper, Keeper):
        keeper.close()

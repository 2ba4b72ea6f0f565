"""The pictures of a report beside those of `plots`: transfer, strength, time and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.lab.canvas import FONT, GRID, INK, MUTED, axes_at, new_figure, write_picture
from holdfast.lab.escaping import picture_text
from holdfast.lab.groups import RunGroup, setting_text
from holdfast.lab.plots import (
    accuracy_curves,
    accuracy_matrices,
    bare,
    head,
    limits,
    name_ends,
    seeds_told,
    stroke,
)
from holdfast.lab.report.charts import final, lane_scale
from holdfast.lab.report.content import Section
from holdfast.lab.report.families import strength_of
from holdfast.lab.report.scales import StrengthScale
from holdfast.lab.tables import Estimate, ResultRow, result_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")

TRANSFER = (
    ("forgetting", "forgetting"),
    ("backward_transfer", "backward transfer"),
    ("forward_transfer", "forward transfer"),
    ("learning_accuracy", "learning accuracy"),
)
"""Field of `ResultRow`, and its name."""

_ROW = 0.24


def write_pictures(section: Section, folder: Path) -> list[Path]:
    """Draw everything that can be drawn of a section, each as PNG and SVG.

    Returns:
        The paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    shown, title = section.shown, section.title
    drawings: dict[str, Callable[[Path], Path]] = {
        "accuracy": lambda path: accuracy_curves(shown, path),
        "matrix": lambda path: accuracy_matrices(shown, path),
        "transfer": lambda path: transfer(shown, path, title=title),
        "cost": lambda path: cost(shown, path, title=title),
    }
    if section.searched:
        drawings["strength"] = lambda path: strengths(section, path)
    return [draw(folder / f"{section.name}-{kind}{suffix}") for kind, draw in drawings.items() for suffix in SUFFIXES]


def transfer(groups: Sequence[RunGroup], path: str | os.PathLike[str], *, title: str) -> Path:
    """Draw forgetting, transfer and learning accuracy of each group, in points, with 95% intervals."""
    rows = [result_row(group) for group in groups]
    panels = {name: [_points(getattr(row, field)) for row in rows] for field, name in TRANSFER}
    return _lanes(groups, panels, path, title=title, remark=f"{seeds_told(groups)}, in points", draw=_dot)


def cost(groups: Sequence[RunGroup], path: str | os.PathLike[str], *, title: str) -> Path:
    """Draw the seconds of training and of measuring importances, and the memory held where runs recorded it."""
    rows = [result_row(group) for group in groups]
    panels = {
        "training, s": [Estimate(row.seconds_training.mean) for row in rows],
        "importances, s": [Estimate(row.seconds_importance.mean) for row in rows],
    }
    if any(row.held_bytes for row in rows):
        panels["held, MB"] = [Estimate(held_megabytes(row)) for row in rows]
    return _lanes(groups, panels, path, title=title, remark="mean over seeds", draw=_bar)


def held_megabytes(row: ResultRow) -> float:
    """The memory that a method holds; zero where it was not recorded."""
    return 1e-6 * row.held_bytes.mean if row.held_bytes else 0.0


def strengths(section: Section, path: str | os.PathLike[str]) -> Path:
    """Draw the average accuracy after the last task against the strength, a ring around what validation data chooses.

    What has no strength, the ceiling and the floor, is a level line.
    """
    searched = section.searched
    level = [family for family in section.families if family.has_no_hold]
    scale = StrengthScale([strength_of(group) or 0.0 for family in searched for group in family.by_strength])
    width, height = 5.4, max(3.6, 0.19 * (len(searched) + len(level)))
    margin = 0.5 + 0.072 * max(len(family.label) + 6 for family in (*searched, *level))
    figure = new_figure(0.75 + width + margin, height + 1.15)
    axes = axes_at(figure, 0.75, 0.6, width, height)
    axes.set_xlim(scale.low, scale.high)
    low, high = limits([final(g).mean for family in (*searched, *level) for g in (*family.by_strength, family.best)])
    axes.set_ylim(low, high)
    ends = []
    for family in searched:
        look, estimates = stroke(family.best), [final(group) for group in family.by_strength]
        places = [scale.place(strength_of(group) or 0.0) for group in family.by_strength]
        means, halves = [e.mean for e in estimates], [e.half_width or 0.0 for e in estimates]
        axes.errorbar(places, means, yerr=halves, **look, linewidth=1.6, elinewidth=0.8, markersize=4.5, clip_on=True)
        ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": look["color"]}
        for place, mean, group in zip(places, means, family.by_strength, strict=True):
            if group.settings == family.best.settings:  # none, where a budget is best
                axes.plot(place, mean, marker="o", linestyle="", **ring, clip_on=False, zorder=4)
        budget = family.best.settings.get("budget")
        by = "" if budget is None else f", {setting_text('budget', budget)}"
        ends.append((family.best, places[-1], means[-1], f"{family.label}{by}  {100 * final(family.best).mean:.1f}"))
    for family in level:
        mean = final(family.best).mean
        axes.axhline(mean, **{**stroke(family.best), "marker": ""}, linewidth=1.4, zorder=1)
        ends.append((family.best, scale.high, mean, f"{family.label}  {100 * mean:.1f}"))
    ticks = scale.ticks()
    axes.set_xticks([scale.low + (scale.high - scale.low) * tick.at / 100 for tick in ticks])
    axes.set_xticklabels([tick.text for tick in ticks])
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    bare(axes, ("left", "bottom"))
    axes.set_xlabel("strength (ring: best on validation data)", fontsize=FONT, color=INK)
    axes.set_ylabel("average accuracy after the last task", fontsize=FONT, color=INK)
    head(figure, axes, section.title, seeds_told(section.groups))
    name_ends(axes, ends, gap=(high - low) * 0.175 / height)
    return write_picture(figure, path)


def _lanes(
    groups: Sequence[RunGroup],
    panels: Mapping[str, list[Estimate]],
    path: str | os.PathLike[str],
    *,
    title: str,
    remark: str,
    draw: Callable[[Axes, float, Estimate, dict[str, Any]], None],
) -> Path:
    """A panel a quantity, a row a group; `draw` puts an estimate on its row."""
    left = 0.3 + 0.075 * max(len(group.label) for group in groups)
    width, gap, height = 1.75, 0.3, max(1.0, _ROW * len(groups))
    figure = new_figure(max(left + len(panels) * (width + gap) + 0.15, 5.0), height + 1.15)
    for number, (name, estimates) in enumerate(panels.items()):
        axes = axes_at(figure, left + number * (width + gap), 0.35, width, height)
        from_zero = name != "learning accuracy"
        scale = lane_scale(estimates, from_zero=from_zero)
        margin = 0.05 * (scale.high - scale.low) or 0.01
        axes.set_xlim(scale.low - margin * (scale.low != 0), scale.high + margin)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        if from_zero:
            axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        for place, (group, estimate) in enumerate(zip(groups, estimates)):
            draw(axes, place, estimate, stroke(group))
        bare(axes, ())
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(name, fontsize=FONT, color=INK, loc="left", pad=4)
        names = [picture_text(group.label) if number == 0 else "" for group in groups]
        axes.set_yticks(range(len(groups)), names)
        if number == 0:
            head(figure, axes, title, remark, lift=0.24)
    return write_picture(figure, path)


def _dot(axes: Axes, place: float, estimate: Estimate, look: dict[str, Any]) -> None:
    marked = {"marker": look["marker"] or "o", "color": look["color"], "markersize": 4.5}
    axes.errorbar(estimate.mean, place, xerr=estimate.half_width, **marked, elinewidth=1.2, zorder=2)


def _bar(axes: Axes, place: float, estimate: Estimate, look: dict[str, Any]) -> None:
    axes.barh(place, estimate.mean, height=0.6, color=look["color"], zorder=2)


def _points(estimate: Estimate) -> Estimate:
    half = estimate.half_width
    return Estimate(100 * estimate.mean, None if half is None else 100 * half)

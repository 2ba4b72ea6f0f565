"""The pictures of a report beside those of `plots`: transfer, strength, time and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.lab.canvas import FONT, GRID, INK, MUTED, axes_at, new_figure, write_picture
from holdfast.lab.escaping import one_line, picture_text
from holdfast.lab.frame import DataFrame, is_missing
from holdfast.lab.groups import setting_text
from holdfast.lab.plots import (
    bare,
    curves_figure,
    head,
    limits,
    look_of,
    matrices_figure,
    name_ends,
    percent_axis,
    seeds_told,
)
from holdfast.lab.report.sections import Section
from holdfast.lab.tables import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")

PICTURES = {
    "accuracy": "Average accuracy against the number of tasks learned",
    "matrix": "Accuracy on every task after every task",
    "transfer": "Forgetting and transfer",
    "strength": "Average accuracy after the last task against the strength",
    "cost": "Time and memory",
}
"""Kind of picture, and what it shows."""

WIDEST = 9.5
"""Inches that fit beside the contents of the page."""

_TRANSFER = ("forgetting", "backward_transfer", "forward_transfer", "learning_accuracy")
_COSTS = {
    "seconds_training": ("training, s", 1.0),
    "seconds_importance": ("importances, s", 1.0),
    "held_bytes": ("held, MB", 1e-6),
}
_ROW = 0.24


def write_pictures(section: Section, folder: Path) -> list[Path]:
    """Draw everything that can be drawn of a section, each as SVG and as PNG.

    Returns:
        The paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    shown, title = section.shown, section.title
    figures = {
        "accuracy": curves_figure(shown, title=title),
        "matrix": matrices_figure(shown, title=title, widest=WIDEST),
        "transfer": _transfer(shown, title),
        "cost": _cost(shown, title),
    }
    if _families(section.runs)[0]:
        figures["strength"] = _strengths(section.runs, title)
    return [
        write_picture(figure, folder / f"{section.name}-{kind}{suffix}")
        for kind, figure in figures.items()
        for suffix in SUFFIXES
    ]


def _transfer(runs: DataFrame, title: str) -> Figure:
    """Forgetting, transfer and learning accuracy of each configuration, in points, with 95% intervals."""

    def dot(axes: Axes, place: float, values: Sequence[float], look: dict[str, Any]) -> None:
        found = Estimate.of(np.round(values, 9).tolist())
        marked = {"marker": look["marker"] or "o", "color": look["color"], "markersize": 4.5}
        axes.errorbar(100 * found.mean, place, xerr=100 * (found.half_width or 0.0), **marked, elinewidth=1.2)

    panels = {name.replace("_", " "): (runs[name], name != "learning_accuracy") for name in _TRANSFER}
    return _lanes(runs, panels, dot, title=title, remark=f"{seeds_told(runs)}, in points")


def _cost(runs: DataFrame, title: str) -> Figure:
    """Seconds of training and of measuring importances, and the memory held where runs recorded it."""

    def bar(axes: Axes, place: float, values: Sequence[float], look: dict[str, Any]) -> None:
        axes.barh(place, np.mean(values), height=0.6, color=look["color"], zorder=2)

    panels = {title: (runs[name].astype(float).fillna(0) * scale, True) for name, (title, scale) in _COSTS.items()}
    if runs["held_bytes"].isna().all():
        del panels["held, MB"]
    return _lanes(runs, panels, bar, title=title, remark="mean over seeds")


def _lanes(
    runs: DataFrame,
    panels: dict[str, tuple[Any, bool]],
    draw: Callable[[Axes, float, Sequence[float], dict[str, Any]], None],
    *,
    title: str,
    remark: str,
) -> Figure:
    """A panel a quantity, from zero or not, a row a configuration; `draw` puts its values, one a run, on its row."""
    groups = [own for _, own in runs.groupby(["method", "variant"], sort=False)]
    labels = [own.iloc[0]["configuration"] for own in groups]
    left = 0.3 + 0.075 * max(map(len, labels))
    gap, height = 0.3, max(1.0, _ROW * len(groups))
    width = min(1.75, (WIDEST - left - 0.15) / len(panels) - gap)
    figure = new_figure(max(left + len(panels) * (width + gap) + 0.15, 5.0), height + 1.25)
    for number, (name, (values, from_zero)) in enumerate(panels.items()):
        axes = axes_at(figure, left + number * (width + gap), 0.4, width, height)
        for place, own in enumerate(groups):
            draw(axes, place, list(values[own.index]), look_of(own.iloc[0]))
        if from_zero:
            axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        bare(axes, ("bottom",))
        axes.locator_params(axis="x", nbins=3)
        axes.set_title(name, fontsize=FONT, color=INK, loc="left", pad=4)
        axes.set_yticks(range(len(groups)), [picture_text(label) if number == 0 else "" for label in labels])
        axes.tick_params(axis="y", length=0)
        if number == 0:
            head(figure, axes, title, remark, lift=0.24)
    return figure


def _families(runs: DataFrame) -> tuple[list[DataFrame], list[DataFrame]]:
    """Of each method and its other settings the runs: those of several strengths, and those without any hold."""
    holds = [name for name in ("strength", "budget") if name in runs]
    families = [own for _, own in runs.groupby(["method", "shade"], sort=False)]
    searched = [own for own in families if "strength" in own and own["strength"].nunique() > 1]
    return searched, [own for own in families if own[holds].isna().all(axis=None)]


def _strengths(runs: DataFrame, title: str) -> Figure:
    """Average accuracy after the last task against the strength, a ring around what validation data chooses.

    What has no strength and no budget, such as the ceiling and the floor, is a level line.
    """
    searched, level = _families(runs)
    names = [_ending(own) for own in (*searched, *level)]
    width, height = 5.4, max(3.6, 0.19 * len(names))
    figure = new_figure(1.15 + width + 0.072 * max(map(len, names)), height + 1.15)
    axes = axes_at(figure, 0.75, 0.6, width, height)
    place = _StrengthAxis([strength for own in searched for strength in own["strength"].dropna()])
    ends, reach = [], []
    for own in searched:
        run, curve = _best(own), own.groupby("strength")["accuracy"].agg(list).map(Estimate.of)
        places, means = [place(strength) for strength in curve.index], [estimate.mean for estimate in curve]
        halves, look = [estimate.half_width or 0.0 for estimate in curve], look_of(run)
        axes.errorbar(places, means, yerr=halves, **look, linewidth=1.6, elinewidth=0.8, markersize=4.5)
        if not is_missing(run["strength"]):  # else a budget is best
            ring = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": look["color"]}
            axes.plot(place(run["strength"]), curve[run["strength"]].mean, "o", **ring, clip_on=False, zorder=4)
        ends.append((run, places[-1], means[-1]))
        reach += [*means, own.loc[own["chosen"], "accuracy"].mean()]
    for own in level:
        run, mean = _best(own), own["accuracy"].mean()
        axes.axhline(mean, **{**look_of(run), "marker": ""}, linewidth=1.4, zorder=1)
        ends.append((run, place.high, mean))
        reach.append(mean)
    low, high = limits(reach)
    axes.set_xlim(place.low, place.high)
    axes.set_ylim(low, high)
    axes.set_xticks(*place.ticks())
    axes.set_xlabel("strength (ring: best on validation data)", fontsize=FONT, color=INK)
    percent_axis(axes, "average accuracy after the last task")
    head(figure, axes, title, seeds_told(runs))
    name_ends(axes, [(*end, name) for end, name in zip(ends, names, strict=True)], gap=(high - low) * 0.175 / height)
    return figure


def _best(own: DataFrame) -> Any:
    """A run of the chosen configuration of a family, which looks as the family does."""
    run = own[own["chosen"]].iloc[0]
    return {**run, "variant": run["shade"], "num_variants": run["num_shades"]}


def _ending(own: DataFrame) -> str:
    """What stands at the end of a family's line."""
    budget = _best(own).get("budget")
    by = "" if is_missing(budget) else f", {setting_text('budget', budget)}"
    mean = 100 * own.loc[own["chosen"], "accuracy"].mean()
    return f"{one_line(own.iloc[0]['family'], most=40)}{by}  {mean:.1f}"


class _StrengthAxis:
    """Where strengths stand: by their power of ten, and 0 and infinity a decade beyond the others."""

    def __init__(self, strengths: Sequence[float]) -> None:
        usual = [math.log10(strength) for strength in strengths if 0 < strength < math.inf] or [0.0]
        self._first, self._last = math.floor(min(usual)), math.ceil(max(usual))
        self._odd = sorted({0.0, math.inf} & set(strengths))
        places = [self(strength) for strength in strengths]
        margin = 0.04 * (max(places) - min(places)) or 0.5
        self.low, self.high = min(places) - margin, max(places) + margin

    def __call__(self, strength: float) -> float:
        beyond = {0.0: self._first - 1.0, math.inf: self._last + 1.0}
        return beyond[strength] if strength in beyond else math.log10(strength)

    def ticks(self) -> tuple[list[float], list[str]]:
        """Powers of ten, about seven at most, and 0 and infinity where they are held."""
        step = max(1, -(-(self._last - self._first + 1) // 7))
        shown = {float(power): f"{10.0**power:g}" for power in range(self._first, self._last + 1, step)}
        shown |= {self(strength): "0" if strength == 0 else "∞" for strength in self._odd}
        within = {place: text for place, text in shown.items() if self.low <= place <= self.high}
        return list(within), list(within.values())

"""Pictures of runs: how accuracy holds as tasks are learned, and what became of every task."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import OptionError
from holdfast.lab.canvas import FONT, GRID, INK, MUTED, axes_at, new_figure, write_picture
from holdfast.lab.escaping import picture_text
from holdfast.lab.frame import DataFrame
from holdfast.lab.styles import stroke
from holdfast.lab.tables import Estimate, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MATRIX_COLOURS = "YlGnBu"


def accuracy_curves(runs: DataFrame, path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Draw the average accuracy on the tasks so far against their number, and write the picture.

    Args:
        runs: what to compare, of one stream and scenario, as `holdfast.lab.groups.labelled` has them.
        path: of the picture, ending in .png or .svg.
        title: above the picture; without one, stream and scenario.

    Returns:
        The path.

    Raises:
        OptionError: there is nothing to draw, or matplotlib or, with several seeds, scipy is not installed.
        OutputError: the file cannot be written.
    """
    return write_picture(curves_figure(runs, title=title), path)


def accuracy_matrices(runs: DataFrame, path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Draw the accuracy on every task after every task, and write the picture; see `accuracy_curves`."""
    return write_picture(matrices_figure(runs, title=title), path)


def curves_figure(runs: DataFrame, *, title: str = "") -> Figure:
    """Average accuracy on the tasks so far against their number: a line a configuration, named at its end.

    With several seeds the line is the mean and the band its 95% confidence interval. Joint training, the ceiling, is
    dashed; plain training, the floor, is dotted.
    """
    groups = groups_in(runs, where="accuracy_curves")
    estimates = [[Estimate.of(list(values)) for values in np.stack(list(own["average_accuracy"])).T] for own in groups]
    ends = [
        (own.iloc[0], float(len(curve)), curve[-1].mean, f"{own.iloc[0]['configuration']}  {100 * curve[-1].mean:.1f}")
        for own, curve in zip(groups, estimates, strict=True)
    ]
    margin = 0.35 + 0.072 * max(len(text) for *_, text in ends)
    width, height = 5.4, max(3.6, 0.19 * len(groups))
    figure = new_figure(0.75 + width + margin, height + 1.15)
    axes = axes_at(figure, 0.75, 0.6, width, height)
    for (run, *_), curve in zip(ends, estimates, strict=True):
        _draw_curve(axes, run, curve)
    most = max(len(curve) for curve in estimates)
    axes.set_xlim(1 - 0.04 * max(1, most - 1), most + 0.02 * max(1, most - 1))
    axes.set_xticks(task_ticks(most))
    low, high = limits(np.concatenate(list(runs["average_accuracy"])))
    axes.set_ylim(low, high)
    axes.set_xlabel("tasks learned", fontsize=FONT, color=INK)
    percent_axis(axes, "average accuracy on the tasks so far")
    head(figure, axes, title or title_of(runs), seeds_told(runs))
    name_ends(axes, ends, gap=(high - low) * 0.175 / height)
    return figure


def matrices_figure(runs: DataFrame, *, title: str = "", widest: float = math.inf) -> Figure:
    """Accuracy on every task after every task: a heat map a configuration, on the scale from 0 to 100 per cent.

    Row t stands for the network after task t, column j for its test accuracy on task j: going down a column one sees
    task j learned on the diagonal, and then kept or fading. Right of the stepped line are tasks not learned yet.
    Numbers are per cent, the mean over seeds.

    Args:
        runs: see `accuracy_curves`.
        title: see `accuracy_curves`.
        widest: what the picture may measure, in inches, where that leaves room for a heat map.
    """
    groups = groups_in(runs, where="accuracy_matrices")
    most = max(len(own.iloc[0]["accuracy_matrix"]) for own in groups)
    side = min(3.2, max(1.5, 0.29 * most))
    left, right, gap, line = 0.65, 0.95, 0.3, side + 0.5
    fitting = max(1.0, (widest - left - right) / (side + gap))
    columns = int(min(len(groups), 4 if side < 2.6 else 3, fitting))
    lines = -(-len(groups) // columns)
    figure = new_figure(max(left + columns * (side + gap) + right, 4.6), lines * line + 0.95)
    image = None
    for number, own in enumerate(groups):
        row, column = divmod(number, columns)
        bottom = 0.55 + (lines - 1 - row) * line
        axes = axes_at(figure, left + column * (side + gap), bottom, side, side)
        image = _draw_matrix(axes, own, side)
        if column == 0:
            axes.set_ylabel("after task", fontsize=FONT, color=INK)
        if number + columns >= len(groups):
            axes.set_xlabel("accuracy on task", fontsize=FONT, color=INK)
        if number == 0:
            head(figure, axes, title or title_of(runs), seeds_told(runs, interval=False), lift=0.24)
    tall, above = (lines - 1) * line + side, max(0.0, (lines - 1) * line + side - 3.3)
    bar = axes_at(figure, left + columns * (side + gap) - 0.05, 0.55 + above, 0.13, tall - above)
    assert image is not None
    colours = figure.colorbar(image, cax=bar, ticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    colours.ax.set_yticklabels([f"{tick}%" for tick in (0, 20, 40, 60, 80, 100)])
    colours.ax.tick_params(labelsize=FONT - 1, colors=INK, length=2, width=0.6)
    colours.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def groups_in(runs: DataFrame, *, where: str) -> list[DataFrame]:
    """The runs of each configuration, in their order.

    Raises:
        OptionError: there are none; `where` is who says so.
    """
    if runs.empty:
        raise OptionError(f"{where}: there is nothing to draw; expected at least one group of runs.")
    return [own for _, own in runs.groupby(["method", "variant"], sort=False)]


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places moved as little as possible (in the mean square) so that neighbours in height are `gap` apart.

    With the i-th place lowered by i*gap the task is isotonic regression.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    moved = np.empty(len(places))
    moved[order] = isotonic_regression(np.asarray(places, float)[order] - steps).x + steps
    return moved.tolist()


def name_ends(axes: Axes, ends: Sequence[tuple[Any, float, float, str]], *, gap: float) -> None:
    """Name each line right of the plot; where ends crowd, names move apart and thin leaders lead to them.

    Args:
        axes: what the lines are drawn on, their limits set.
        ends: of each line a run of it, the place where it ends, and its name.
        gap: between names, on the axis that runs up.
    """
    edge, (low, high) = axes.get_xlim()[1], axes.get_ylim()
    span = edge - axes.get_xlim()[0]
    places = spread([y for _, _, y, _ in ends], gap)
    shift = min(0.0, high - max(places)) + max(0.0, low - min(places))
    leader: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.6, "clip_on": False, "zorder": 1}
    name: dict[str, Any] = {"fontsize": FONT, "va": "center", "clip_on": False}
    for (run, x, y, text), place in zip(ends, places, strict=True):
        axes.plot([x, edge, edge + 0.03 * span], [y, y, place + shift], color=look_of(run)["color"], **leader)
        ink = look_of(run, palest=0.4)["color"]
        axes.text(edge + 0.037 * span, place + shift, picture_text(text), color=ink, **name)


def look_of(run: Any, *, palest: float = 0.7) -> dict[str, Any]:
    """How the configuration of a run looks; see `stroke`."""
    return stroke(run["method"], run["variant"], run["num_variants"], palest=palest)


def head(figure: Figure, axes: Axes, title: str, remark: str, *, lift: float = 0.0) -> None:
    """A bold title and a muted remark over the figure, flush with the left edge of the axes."""
    up = figure.get_figheight()
    box = axes.get_position()
    figure.text(
        box.x0, box.y1 + (0.31 + lift) / up, picture_text(title), fontsize=FONT + 2, color=INK, fontweight="bold"
    )
    figure.text(box.x0, box.y1 + (0.12 + lift) / up, remark, fontsize=FONT, color=MUTED)


def bare(axes: Axes, spines: Sequence[str]) -> None:
    """Axes with these spines alone, and quiet ticks."""
    for name, spine in axes.spines.items():
        spine.set_visible(name in spines)
        spine.set_color("#9a9a9a")
    axes.tick_params(labelsize=FONT - 1, colors=INK, length=3 if spines else 0, width=0.6, color="#9a9a9a")
    axes.set_axisbelow(True)


def percent_axis(axes: Axes, label: str) -> None:
    """Accuracies that run up, in per cent, with a quiet grid."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    bare(axes, ("left", "bottom"))
    axes.set_ylabel(label, fontsize=FONT, color=INK)


def limits(accuracies: Any) -> tuple[float, float]:
    """An axis from a multiple of 5% below everything to a little above, never past what an accuracy can be."""
    low = max(0.0, np.floor((min(accuracies) - 0.02) * 20) / 20)
    high = min(1.0, np.ceil((max(accuracies) + 0.005) * 20) / 20)
    return float(low), float(max(high, low + 0.05))


def task_ticks(count: int) -> list[int]:
    """Numbers of tasks to be written on an axis, about ten of them at most, from 1."""
    step = 1 if count <= 12 else -(-count // 10)
    return [1, *range(step if step > 1 else 2, count + 1, step)] if count > 1 else [1]


def seeds_told(runs: DataFrame, *, interval: bool = True) -> str:
    """What the accuracies are means of, in a line."""
    counts = sorted(set(runs.groupby(["method", "variant"]).size()))
    if counts == [1]:
        seeds = set(runs["seed"])
        return f"test accuracy, seed {seeds.pop()}" if len(seeds) == 1 else "test accuracy, one seed each"
    told = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"test accuracy, mean{' and 95% confidence interval' if interval else ''} over {told} seeds"


def _draw_curve(axes: Axes, run: Any, curve: Sequence[Estimate]) -> None:
    tasks, mean = np.arange(1, len(curve) + 1), np.array([estimate.mean for estimate in curve])
    look = look_of(run)
    line: dict[str, Any] = {"linewidth": 1.8, "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
    if look["marker"] in ("1", "2"):  # of strokes alone, which would be white
        line["markeredgecolor"] = look["color"]
    axes.plot(tasks, mean, **look, **line, zorder=2 if run["method"] in ("joint", "none") else 3, clip_on=False)
    if curve[0].half_width is not None:
        half = np.array([estimate.half_width for estimate in curve])
        low, high = np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)
        axes.fill_between(tasks, low, high, color=look["color"], alpha=0.13, linewidth=0, zorder=1)


def _draw_matrix(axes: Axes, own: DataFrame, side: float) -> Any:
    matrix = np.mean(list(own["accuracy_matrix"]), axis=0)
    count = len(matrix)
    image = axes.imshow(matrix, cmap=_MATRIX_COLOURS, vmin=0, vmax=1, aspect="equal")
    size = min(8.5, 72 * side / count * 0.36)
    if size >= 5:
        for (t, j), value in np.ndenumerate(matrix):
            colour = "white" if value > 0.55 else (INK if j <= t else "#8a8a80")
            axes.text(j, t, f"{100 * value:.0f}", ha="center", va="center", fontsize=size, color=colour)
    steps = np.repeat(np.arange(count + 1), 2) - 0.5
    axes.plot(steps[2:-1], steps[1:-2], color=INK, linewidth=0.9, solid_joinstyle="miter")
    ticks = [task - 1 for task in task_ticks(count)]
    axes.set_xticks(ticks, [str(task + 1) for task in ticks])
    axes.set_yticks(ticks, [str(task + 1) for task in ticks])
    bare(axes, ())
    title = f"{own.iloc[0]['configuration']}  {100 * float(np.mean(matrix[-1])):.1f}"
    fitting = min(FONT, 72 * (side + 0.25) / (0.56 * len(title)))
    axes.set_title(picture_text(title), fontsize=fitting, color=INK, loc="left", pad=4)
    return image

"""Pictures of runs: how accuracy holds as tasks are learned, and what became of every task."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import OptionError
from holdfast.lab.canvas import FONT, GRID, INK, MUTED, axes_at, new_figure, write_picture
from holdfast.lab.escaping import one_line, picture_text
from holdfast.lab.groups import RunGroup
from holdfast.lab.methods import METHODS
from holdfast.lab.metrics import confidence_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A method's colour says its importance, or the mechanism that has none; stroke and marker say the mechanism. The hues
# of the importances are those of Okabe and Ito, which people who see no red or green can tell apart too, darkened until
# text in them reads well on white. Methods that replay share a red, methods that merge weights a grey blue.
_MATRIX_COLOURS = "YlGnBu"


def stroke(group: RunGroup, *, palest: float = 0.7) -> dict[str, Any]:
    """Colour, line style and marker of a group: the same in every picture, whatever else is drawn.

    Configurations of one method share its colour, from full to pale (`palest` is the share of white that none reaches).
    """
    style = {"color": MUTED, "linestyle": "-", "marker": "o", **getattr(METHODS.get(group.method), "style", {})}
    paleness = palest * group.variant / group.num_variants
    return {**style, "color": _mixed_with_white(style["color"], paleness)}


def accuracy_curves(groups: Sequence[RunGroup], path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Draw the average accuracy on the tasks so far against their number: a line a group, named at its end.

    With several seeds the line is the mean and the band its 95% confidence interval. Joint training, the ceiling, is
    dashed; plain training, the floor, is dotted.

    Args:
        groups: what to compare, of one stream and scenario.
        path: of the picture, ending in .png or .svg.
        title: above the picture; without one, stream and scenario.

    Returns:
        The path.

    Raises:
        OptionError: there is nothing to draw, or matplotlib or, with several seeds, scipy is not installed.
        OutputError: the file cannot be written.
    """
    _check_groups(groups, where="accuracy_curves")
    means = [[confidence_interval(values)[0] for values in by_task(group)] for group in groups]
    ends = [
        (group, float(group.num_tasks), mean[-1], f"{group.label}  {100 * mean[-1]:.1f}")
        for group, mean in zip(groups, means)
    ]
    margin = 0.35 + 0.072 * max(len(text) for *_, text in ends)
    width, height = 5.4, max(3.6, 0.19 * len(groups))
    figure = new_figure(0.75 + width + margin, height + 1.15)
    axes = axes_at(figure, 0.75, 0.6, width, height)
    for group, mean in zip(groups, means):
        _draw_curve(axes, group, mean)
    most = max(group.num_tasks for group in groups)
    axes.set_xlim(1 - 0.04 * max(1, most - 1), most + 0.02 * max(1, most - 1))
    axes.set_xticks(task_ticks(most))
    low, high = limits([accuracy for group in groups for accuracy in _all_accuracies(group)])
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    bare(axes, ("left", "bottom"))
    axes.set_xlabel("tasks learned", fontsize=FONT, color=INK)
    axes.set_ylabel("average accuracy on the tasks so far", fontsize=FONT, color=INK)
    head(figure, axes, title or title_of(groups[0]), seeds_told(groups))
    name_ends(axes, ends, gap=(high - low) * 0.175 / height)
    return write_picture(figure, path)


def accuracy_matrices(groups: Sequence[RunGroup], path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Draw the accuracy on every task after every task: a heat map a group, all on the scale from 0 to 100 per cent.

    Row t stands for the network after task t, column j for its test accuracy on task j: going down a column one sees
    task j learned on the diagonal, and then kept or fading. Right of the stepped line are tasks not learned yet.
    Numbers are per cent, the mean over seeds.

    Args:
        groups: what to compare, of one stream and scenario.
        path: of the picture, ending in .png or .svg.
        title: above the picture; without one, stream and scenario.

    Returns:
        The path.

    Raises:
        OptionError: there is nothing to draw, or matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    _check_groups(groups, where="accuracy_matrices")
    most = max(group.num_tasks for group in groups)
    side = min(3.2, max(1.5, 0.29 * most))
    columns = min(len(groups), 4 if side < 2.6 else 3)
    lines = -(-len(groups) // columns)
    left, right, gap, line = 0.65, 0.95, 0.3, side + 0.5
    figure = new_figure(max(left + columns * (side + gap) + right, 4.6), lines * line + 0.95)
    image = None
    for number, group in enumerate(groups):
        row, column = divmod(number, columns)
        bottom = 0.55 + (lines - 1 - row) * line
        axes = axes_at(figure, left + column * (side + gap), bottom, side, side)
        image = _draw_matrix(axes, group, side)
        if column == 0:
            axes.set_ylabel("after task", fontsize=FONT, color=INK)
        if number + columns >= len(groups):
            axes.set_xlabel("accuracy on task", fontsize=FONT, color=INK)
        if number == 0:
            head(figure, axes, title or title_of(group), seeds_told(groups, interval=False), lift=0.24)
    tall, above = (lines - 1) * line + side, max(0.0, (lines - 1) * line + side - 3.3)
    bar = axes_at(figure, left + columns * (side + gap) - 0.05, 0.55 + above, 0.13, tall - above)
    assert image is not None
    colours = figure.colorbar(image, cax=bar, ticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    colours.ax.set_yticklabels([f"{tick}%" for tick in (0, 20, 40, 60, 80, 100)])
    colours.ax.tick_params(labelsize=FONT - 1, colors=INK, length=2, width=0.6)
    colours.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return write_picture(figure, path)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places moved as little as possible (in the mean square) so that neighbours in height are `gap` apart.

    Pool adjacent violators: with the i-th place lowered by i*gap the task is isotonic regression.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([places[i] - rank * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [_mean(block) for block in blocks for _ in block]
    moved = [0.0] * len(places)
    for rank, i in enumerate(order):
        moved[i] = level[rank] + rank * gap
    return moved


def _draw_curve(axes: Axes, group: RunGroup, mean: Sequence[float]) -> None:
    tasks = np.arange(1, group.num_tasks + 1)
    outer = group.method in ("joint", "none") or group.method not in METHODS
    look = stroke(group)
    axes.plot(
        tasks,
        mean,
        **look,
        linewidth=1.8,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=2 if outer else 3,
        clip_on=False,
    )
    if len(group.results) > 1:
        half = np.array([confidence_interval(values)[1] for values in by_task(group)])
        low, high = np.clip(np.array(mean) - half, 0, 1), np.clip(np.array(mean) + half, 0, 1)
        axes.fill_between(tasks, low, high, color=look["color"], alpha=0.13, linewidth=0, zorder=1)


def name_ends(axes: Axes, ends: Sequence[tuple[RunGroup, float, float, str]], *, gap: float) -> None:
    """Name each line right of the plot; where ends crowd, names move apart and thin leaders lead to them.

    Args:
        axes: what the lines are drawn on, their limits set.
        ends: of each line its group, the place where it ends, and its name.
        gap: between names, on the axis that runs up.
    """
    edge, (low, high) = axes.get_xlim()[1], axes.get_ylim()
    span = edge - axes.get_xlim()[0]
    places = spread([y for _, _, y, _ in ends], gap)
    shift = min(0.0, high - max(places)) + max(0.0, low - min(places))
    for (group, x, y, text), place in zip(ends, places):
        colour = stroke(group)["color"]
        axes.plot(
            [x, edge, edge + 0.03 * span],
            [y, y, place + shift],
            color=colour,
            linewidth=0.7,
            alpha=0.6,
            clip_on=False,
            zorder=1,
        )
        ink = stroke(group, palest=0.4)["color"]
        axes.text(
            edge + 0.037 * span, place + shift, picture_text(text), color=ink, fontsize=FONT, va="center", clip_on=False
        )


def _draw_matrix(axes: Axes, group: RunGroup, side: float) -> Any:
    matrix = np.mean([result.accuracy_matrix for result in group.results], axis=0)
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
    title = f"{group.label}  {100 * float(np.mean(matrix[-1])):.1f}"
    fitting = min(FONT, 72 * (side + 0.25) / (0.56 * len(title)))
    axes.set_title(picture_text(title), fontsize=fitting, color=INK, loc="left", pad=4)
    return image


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


def by_task(group: RunGroup) -> list[list[float]]:
    """For each number of tasks the average accuracies of all seeds."""
    return [list(values) for values in zip(*(result.average_accuracy for result in group.results))]


def _all_accuracies(group: RunGroup) -> list[float]:
    return [accuracy for result in group.results for accuracy in result.average_accuracy]


def limits(accuracies: Sequence[float]) -> tuple[float, float]:
    """An axis from a multiple of 5% below everything to a little above, never past what an accuracy can be."""
    low = max(0.0, np.floor((min(accuracies) - 0.02) * 20) / 20)
    high = min(1.0, np.ceil((max(accuracies) + 0.005) * 20) / 20)
    return float(low), float(max(high, low + 0.05))


def task_ticks(count: int) -> list[int]:
    """Numbers of tasks to be written on an axis, about ten of them at most, from 1."""
    step = 1 if count <= 12 else -(-count // 10)
    return [1, *range(step if step > 1 else 2, count + 1, step)] if count > 1 else [1]


def title_of(group: RunGroup) -> str:
    """What a picture of groups of one stream and scenario is called."""
    return f"{one_line(group.stream)}, {one_line(group.scenario)}-incremental"


def seeds_told(groups: Sequence[RunGroup], *, interval: bool = True) -> str:
    """What the accuracies are means of, in a line."""
    counts = sorted({len(group.results) for group in groups})
    if counts == [1]:
        seeds = {group.seeds[0] for group in groups}
        return f"test accuracy, seed {seeds.pop()}" if len(seeds) == 1 else "test accuracy, one seed each"
    told = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"test accuracy, mean{' and 95% confidence interval' if interval else ''} over {told} seeds"


def _check_groups(groups: Sequence[RunGroup], *, where: str) -> None:
    if not groups:
        raise OptionError(f"{where}: there is nothing to draw; expected at least one group of runs.")


def _mixed_with_white(colour: str, share: float) -> str:
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(channel + (255 - channel) * share):02x}" for channel in channels)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

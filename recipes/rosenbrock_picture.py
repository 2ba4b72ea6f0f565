"""The picture of the elastic pull: two valleys, the paths through them, and the importances as ellipses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from holdfast.lab.canvas import FONT, INK, MUTED, new_figure, write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
TaskLoss = Callable[[Tensor], Tensor]

_X, _Y = (-1.6, 2.1), (-0.45, 3.35)
_NEAR_X, _NEAR_Y = (0.62, 1.28), (0.5, 1.6)
_LEVELS = tuple(0.1 * 10 ** (step / 2) for step in range(7))
_TASKS = ("#0068a8", "#c94f00")
_PATHS = (INK, "#b0438f", "#008361", "#a67600", "#7a5c3a")
_RISES = (0.25, 1.0, 4.0)


@dataclass(frozen=True)
class Path2D:
    """One training on task 2, from the anchor.

    Attributes:
        strength: of EWC; None without EWC.
        points: (x, y) before the first step and after every step.
        loss_1: of task 1 at the end.
        loss_2: of task 2 at the end.
        predicted_rise: of task 1's loss, as EWC foretells it from the importances; None without EWC.
    """

    strength: float | None
    points: list[Point]
    loss_1: float
    loss_2: float
    predicted_rise: float | None

    @property
    def label(self) -> str:
        """What tables and the picture call it."""
        return "without EWC" if self.strength is None else f"EWC, strength {self.strength:g}"


def draw(
    paths: Sequence[Path2D],
    target: Path,
    *,
    tasks: tuple[TaskLoss, TaskLoss],
    anchor: Point,
    importance: Point,
    first: Sequence[Point],
) -> Path:
    """Draw the plane with both valleys and all paths, the same near the anchor, and a key with the losses at the end.

    Args:
        paths: of task 2.
        target: the PNG.
        tasks: the losses of both tasks.
        anchor: where task 1 was learned.
        importance: of x and y there.
        first: the path of task 1.

    Returns:
        The path of the PNG.

    Raises:
        OptionError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure = new_figure(10.4, 6.2)
    wide = figure.add_axes((0.055, 0.085, 0.545, 0.80))
    near = figure.add_axes((0.665, 0.085, 0.30, 0.47))
    for axes, (low, high), (bottom, top) in ((wide, _X, _Y), (near, _NEAR_X, _NEAR_Y)):
        _draw_valleys(axes, tasks, x=(low, high), y=(bottom, top))
        _draw_ellipses(axes, anchor, importance, named=axes is near)
        _draw_paths(axes, anchor, first, paths)
        axes.set_xlim(low, high)
        axes.set_ylim(bottom, top)
        axes.set_xlabel("weight x", fontsize=FONT, color=INK)
        axes.set_ylabel("weight y", fontsize=FONT, color=INK)
        axes.tick_params(labelsize=FONT - 1, colors=INK, length=3, width=0.6)
        for spine in axes.spines.values():
            spine.set_color("#9a9a9a")
    near.set_title("near the anchor", fontsize=FONT, color=INK, loc="left", pad=5)
    _name_tasks(wide)
    _frame(wide)
    figure.text(
        0.055, 0.95, "Two tasks, two weights: the elastic pull of EWC", fontsize=FONT + 3, color=INK, weight="bold"
    )
    remark = "valleys of Rosenbrock's function; contours at losses 0.1, 0.32, 1, 3.2, ... 100"
    figure.text(0.055, 0.913, remark, fontsize=FONT, color=MUTED)
    _draw_key(figure, paths)
    return write_picture(figure, target)


def _draw_valleys(axes: Axes, tasks: tuple[TaskLoss, TaskLoss], *, x: Point, y: Point) -> None:
    across, up = np.meshgrid(np.linspace(*x, 500), np.linspace(*y, 500))
    points = torch.from_numpy(np.stack([across, up], axis=-1))
    for task, colour in zip(tasks, _TASKS):
        loss = task(points).numpy()
        for level in _LEVELS[:3]:
            axes.contourf(across, up, loss, levels=[0, level], colors=[colour], alpha=0.10)
        axes.contour(across, up, loss, levels=_LEVELS, colors=[colour], linewidths=0.6, alpha=0.35)


def _draw_ellipses(axes: Axes, anchor: Point, importance: Point, *, named: bool) -> None:
    """Where 1/2 sum Omega d^2, the predicted rise of task 1's loss, has the same value."""
    angle = np.linspace(0, 2 * math.pi, 200)
    across, up = (np.sqrt(2 / omega) for omega in importance)
    for rise in _RISES:
        x = anchor[0] + math.sqrt(rise) * across * np.cos(angle)
        y = anchor[1] + math.sqrt(rise) * up * np.sin(angle)
        axes.plot(x, y, color=_TASKS[0], linewidth=1.1, linestyle=(0, (4, 2)), zorder=3)
        height = anchor[1] + math.sqrt(rise) * up
        if named and height < _NEAR_Y[1]:
            axes.text(anchor[0], height + 0.012, f"+{rise:g}", color=_TASKS[0], fontsize=FONT - 1.5, ha="center")


def _draw_paths(axes: Axes, anchor: Point, first: Sequence[Point], paths: Sequence[Path2D]) -> None:
    x, y = np.array(first).T
    axes.plot(x, y, color=_TASKS[0], linewidth=1.6, linestyle=(0, (1, 1.3)), zorder=3)
    axes.plot(x[:1], y[:1], marker="o", markersize=4.5, color=_TASKS[0], zorder=4)
    for path, colour in zip(paths, cycle(_PATHS)):
        x, y = np.array(path.points).T
        width = 3.4 if path.strength is None else 1.7  # seen on both sides where another runs on top of it
        axes.plot(x, y, color=colour, linewidth=width, zorder=5, solid_capstyle="round")
        axes.plot(x[-1:], y[-1:], marker="o", markersize=7.5, color=colour, markeredgecolor="white", zorder=7)
    axes.plot(*anchor, marker="*", markersize=15, color=_TASKS[0], markeredgecolor="white", zorder=6)


def _name_tasks(axes: Axes) -> None:
    axes.text(-1.17, 0.78, "start", color=_TASKS[0], fontsize=FONT, ha="center", va="top")
    axes.text(0.66, 0.1, "task 1", color=_TASKS[0], fontsize=FONT + 2, weight="bold")
    axes.text(0.1, 2.95, "task 2", color=_TASKS[1], fontsize=FONT + 2, weight="bold")


def _frame(axes: Axes) -> None:
    """On the wide picture, the frame of the near one."""
    (left, right), (bottom, top) = _NEAR_X, _NEAR_Y
    axes.plot(
        [left, right, right, left, left], [bottom, bottom, top, top, bottom], color=MUTED, linewidth=0.7, zorder=2
    )


def _draw_key(figure: Figure, paths: Sequence[Path2D]) -> None:
    """What the strokes mean, and where the paths of task 2 end."""
    axes = figure.add_axes((0.635, 0.62, 0.35, 0.31))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    told = [
        (path.label, colour, f"{path.loss_1:.2f}", f"{path.loss_2:.2f}") for path, colour in zip(paths, cycle(_PATHS))
    ]
    step = 1 / (len(told) + 4)
    heights = [1 - (row + 0.5) * step for row in range(len(told) + 4)]
    axes.text(0.1, heights[0], "learning task 2", fontsize=FONT, color=INK, weight="bold", va="center")
    axes.text(0.74, heights[0], "task 1 loss", fontsize=FONT, color=_TASKS[0], weight="bold", va="center", ha="right")
    axes.text(0.98, heights[0], "task 2 loss", fontsize=FONT, color=_TASKS[1], weight="bold", va="center", ha="right")
    for height, (label, colour, loss_1, loss_2) in zip(heights[1:], told):
        axes.plot([0, 0.07], [height, height], color=colour, linewidth=2)
        axes.plot([0.07], [height], color=colour, marker="o", markersize=6.5, markeredgecolor="white")
        axes.text(0.1, height, label, fontsize=FONT, color=INK, va="center")
        axes.text(0.74, height, loss_1, fontsize=FONT, color=INK, va="center", ha="right")
        axes.text(0.98, height, loss_2, fontsize=FONT, color=INK, va="center", ha="right")
    first, anchor, ellipse = heights[-3:]
    axes.plot([0, 0.08], [first, first], color=_TASKS[0], linewidth=1.6, linestyle=(0, (1, 1.3)))
    axes.text(0.1, first, "learning task 1", fontsize=FONT, color=INK, va="center")
    axes.plot([0.04], [anchor], color=_TASKS[0], marker="*", markersize=13, markeredgecolor="white")
    axes.text(0.1, anchor, "the anchor: where task 1 was learned", fontsize=FONT, color=INK, va="center")
    axes.plot([0, 0.08], [ellipse, ellipse], color=_TASKS[0], linewidth=1.1, linestyle=(0, (4, 2)))
    text = f"importances: task 1's predicted rise of {', '.join(f'{rise:g}' for rise in _RISES)}"
    axes.text(0.1, ellipse, text, fontsize=FONT, color=INK, va="center")

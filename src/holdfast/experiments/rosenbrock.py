"""The elastic pull, drawn: two valleys of Rosenbrock's function, learned one after the other by two weights."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.errors import NotFiniteError, OptionError, OutputError
from holdfast.experiments.plots import FONT, INK, MUTED, check_matplotlib, new_figure, write_png
from holdfast.files import write_json
from holdfast.records import Importance, ImportanceInfo
from holdfast.retention import EWC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEEPNESS = 10.0
START = (-1.2, 1.0)
STRENGTHS = (0.01, 1.0)

Point = tuple[float, float]


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


@dataclass(frozen=True)
class Rosenbrock:
    """What the experiment found.

    Attributes:
        anchor: where task 1 was learned.
        importance: of x and y there.
        first: the path of task 1.
        paths: those of task 2, without EWC first.
        picture: the PNG.
        data: the JSON with all of this.
    """

    anchor: Point
    importance: Point
    first: list[Point]
    paths: list[Path2D]
    picture: Path
    data: Path


class Plane(nn.Module):
    """A model whose two weights are a point of the plane."""

    def __init__(self, point: Point) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor(point, dtype=torch.float64))

    def forward(self) -> Tensor:
        """The point, [2]."""
        return self.point


def task_1(point: Tensor) -> Tensor:
    """Rosenbrock's function f1 = (1 - x)^2 + b (y - x^2)^2 with b = 10: a valley along y = x^2, lowest (0) at (1, 1).

    The usual b = 100 makes the same valley so narrow that nothing can be seen in it.

    Args:
        point: [..., 2].

    Returns:
        [...], >= 0.

    Source: Rosenbrock 1960, The Computer Journal 3.
    """
    x, y = point[..., 0], point[..., 1]
    return (1 - x) ** 2 + STEEPNESS * (y - x**2) ** 2


def task_2(point: Tensor) -> Tensor:
    """Task 1 upside down, and half a step to the left: f2(x, y) = f1(x + 1/2, 3 - y), lowest (0) at (1/2, 2).

    Its valley y = 3 - (x + 1/2)^2 crosses that of task 1 near (0.9, 0.9), where both tasks are nearly solved.
    """
    return task_1(torch.stack([point[..., 0] + 0.5, 3 - point[..., 1]], dim=-1))


def curvature(point: Point) -> Point:
    """The importance of x and y for task 1: the diagonal of its Hessian at a minimum, >= 0.

    A loss without data has no per-example gradients to square. But where a model is fitted, the Fisher information is
    the expected Hessian of its negative log-likelihood, so that with f1 read as one this is what `hf.fisher` would
    measure: 1/2 sum Omega_i d_i^2 is the rise of f1 that a small step d from the minimum causes, but for the coupling of
    x and y. Here that coupling is strong, and it is what any diagonal importance leaves out: along the valley the true
    rise is far smaller than across it, and the ellipse, upright by construction, cannot lean with the valley.
    """
    hessian = torch.autograd.functional.hessian(task_1, torch.tensor(point, dtype=torch.float64))
    assert isinstance(hessian, Tensor)
    across, up = hessian.diagonal().clamp(min=0).tolist()
    return across, up


def rosenbrock(
    *,
    output: str | os.PathLike[str] = "runs",
    strengths: Sequence[float] = STRENGTHS,
    steps: int = 2000,
    lr: float = 0.01,
) -> Rosenbrock:
    """Learn task 1, then task 2 without and with EWC, and draw the paths: `output`/rosenbrock/rosenbrock.png and .json.

    The optimizer is Adam and the keeper `holdfast.EWC` with the implicit pull, as they serve any other model.

    Args:
        output: parent of the folder.
        strengths: of EWC, a path each, >= 0.
        steps: of the optimizer, a task.
        lr: its learning rate.

    Raises:
        OptionError: matplotlib is not installed, or an option is out of its range.
        NotFiniteError: training diverged.
        OutputError: `output` cannot be written.
    """
    check_matplotlib()
    _check(steps, lr)
    folder = _folder(output)
    first = _descend(Plane(START), task_1, steps=steps, lr=lr)
    anchor = first[-1]
    importance = curvature(anchor)
    told = (None, *strengths)
    paths = [_second(anchor, importance, strength, steps=steps, lr=lr) for strength in told]
    picture = _draw(anchor, importance, first, paths, folder / "rosenbrock.png")
    data = folder / "rosenbrock.json"
    settings = {"steps": steps, "lr": lr, "steepness": STEEPNESS, "start": START}
    content = {"anchor": anchor, "importance": importance, "first": first, "paths": [asdict(path) for path in paths]}
    write_json(data, {"settings": settings, **content})
    return Rosenbrock(anchor, importance, first, paths, picture, data)


def _second(anchor: Point, importance: Point, strength: float | None, *, steps: int, lr: float) -> Path2D:
    """Train on task 2 from the anchor, with EWC of that strength."""
    model = Plane(anchor)
    keeper = None
    if strength is not None:
        info = ImportanceInfo(kind="hessian-diagonal", num_examples=1, unit="nats/weight^2", nats_per_unit=1.0)
        keeper = EWC(model, strength=strength)
        keeper.retain(Importance({"point": torch.tensor(importance)}, info))
    points = _descend(model, task_2, steps=steps, lr=lr, keeper=keeper)
    end = torch.tensor(points[-1], dtype=torch.float64)
    rise = None if keeper is None else keeper.predicted_rise()
    return Path2D(strength, points, float(task_1(end)), float(task_2(end)), rise)


def _descend(model: Plane, task: Any, *, steps: int, lr: float, keeper: EWC | None = None) -> list[Point]:
    """The points of a plain training loop; the keeper is attached, and the loop does not know of it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    if keeper is not None:
        keeper.attach(optimizer)
    points = [_at(model)]
    for _ in range(steps):
        optimizer.zero_grad()
        task(model()).backward()
        optimizer.step()
        points.append(_at(model))
    if not all(math.isfinite(value) for value in points[-1]):
        raise NotFiniteError(f"rosenbrock: the weights are {points[-1]} after {steps} steps. Lower lr, which is {lr}.")
    return points


def _at(model: Plane) -> Point:
    x, y = model.point.detach().tolist()
    return x, y


def _check(steps: int, lr: float) -> None:
    if not steps >= 1:
        raise OptionError(f"rosenbrock: steps is {steps!r}; expected a whole number >= 1.")
    if not (math.isfinite(lr) and lr > 0):
        raise OptionError(f"rosenbrock: lr is {lr!r}; expected a finite number above 0.")


def _folder(output: str | os.PathLike[str]) -> Path:
    folder = Path(output) / "rosenbrock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error}. Choose another --output.") from error
    return folder


# --- the picture

_X, _Y = (-1.6, 2.1), (-0.45, 3.35)
_NEAR_X, _NEAR_Y = (0.62, 1.28), (0.5, 1.6)
_LEVELS = tuple(0.1 * 10 ** (step / 2) for step in range(7))
_TASKS = ("#0068a8", "#c94f00")
_PATHS = (INK, "#b0438f", "#008361", "#a67600", "#7a5c3a")
_RISES = (0.25, 1.0, 4.0)


def _draw(anchor: Point, importance: Point, first: Sequence[Point], paths: Sequence[Path2D], target: Path) -> Path:
    """The plane with both valleys and all paths, the same near the anchor, and a key with the losses at the end."""
    figure = new_figure(10.4, 6.2)
    wide = figure.add_axes((0.055, 0.085, 0.545, 0.80))
    near = figure.add_axes((0.665, 0.085, 0.30, 0.47))
    for axes, (low, high), (bottom, top) in ((wide, _X, _Y), (near, _NEAR_X, _NEAR_Y)):
        _draw_valleys(axes, low, high, bottom, top)
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
    return write_png(figure, target)


def _draw_valleys(axes: Axes, low: float, high: float, bottom: float, top: float) -> None:
    x, y = np.meshgrid(np.linspace(low, high, 500), np.linspace(bottom, top, 500))
    points = torch.from_numpy(np.stack([x, y], axis=-1))
    for task, colour in zip((task_1, task_2), _TASKS):
        loss = task(points).numpy()
        for level in _LEVELS[:3]:
            axes.contourf(x, y, loss, levels=[0, level], colors=[colour], alpha=0.10)
        axes.contour(x, y, loss, levels=_LEVELS, colors=[colour], linewidths=0.6, alpha=0.35)


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

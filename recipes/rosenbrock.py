"""The elastic pull, drawn: two valleys of Rosenbrock's function, learned one after the other by two weights."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import NotFiniteError, OptionError
from holdfast.files import check_output, new_folder, write_json
from holdfast.lab.canvas import check_matplotlib
from holdfast.records import Importance, ImportanceInfo
from holdfast.retention import EWC
from holdfast.steps.descent import descend
from recipes.rosenbrock_picture import Path2D, Point, draw

STEEPNESS = 10.0
START = (-1.2, 1.0)
STRENGTHS = (0.01, 1.0)


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

    A loss without data has no per-example gradients to square. But where a model is fitted, the Fisher information
    is the expected Hessian of its negative log-likelihood, so that with f1 read as one this is what `hf.fisher`
    would measure: 1/2 sum Omega_i d_i^2 is the rise of f1 that a small step d from the minimum causes, without the
    coupling of x and y. Here that coupling is strong, and it is what any diagonal importance leaves out: along the
    valley the true rise is far smaller than across it, and the ellipse, upright by construction, cannot lean with
    the valley.
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
        OutputError: the folder may not be written; see `holdfast.files.check_output`.
    """
    check_matplotlib()
    _check(steps, lr)
    folder = Path(output) / "rosenbrock"
    check_output(folder, names=("rosenbrock.png", "rosenbrock.json"))
    first = _descend(Plane(START), task_1, steps=steps, lr=lr)
    anchor = first[-1]
    importance = curvature(anchor)
    told = (None, *strengths)
    paths = [_second(anchor, importance, strength, steps=steps, lr=lr) for strength in told]
    settings = {"steps": steps, "lr": lr, "steepness": STEEPNESS, "start": START}
    content = {"anchor": anchor, "importance": importance, "first": first, "paths": [asdict(path) for path in paths]}
    points = {"anchor": anchor, "importance": importance, "first": first}
    with new_folder(folder) as fresh:
        draw(paths, fresh / "rosenbrock.png", tasks=(task_1, task_2), **points)
        write_json(fresh / "rosenbrock.json", {"settings": settings, **content})
    return Rosenbrock(anchor, importance, first, paths, folder / "rosenbrock.png", folder / "rosenbrock.json")


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
    descend(optimizer, range(steps), lambda _: (task(model()), None), after_step=lambda _: points.append(_at(model)))
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

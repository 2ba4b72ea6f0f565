"""The classic picture: what a generator draws of every class after every task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.files import read_state
from holdfast.lab.canvas import FONT, INK, MUTED, axes_at, new_figure, write_picture
from holdfast.lab.generation.run import samples_path

CELL = 0.32
"""Side of an image, in inches."""


def draw_samples(folder: Path, *, title: str) -> list[Path]:
    """Draw `plots/classes.png` and `plots/tasks.png` of a run's folder.

    Raises:
        OptionError: matplotlib is not installed.
        FileFormatError: the run's samples are missing or damaged.
        OutputError: a picture cannot be written.
    """
    tensors, notes = read_state(samples_path(folder))
    samples, classes = tensors["samples"], notes["classes"]
    return [
        tasks_picture(samples, classes, folder / "plots" / "tasks.png", title=title),
        classes_picture(samples[-1], classes, folder / "plots" / "classes.png", title=title),
    ]


def tasks_picture(samples: Tensor, classes: Sequence[int], path: Path, *, title: str) -> Path:
    """A row a task, two images a class: what the generator drew after each task of the classes learned by then.

    The same latents in every row: what is kept stays as it was all the way down.

    Args:
        samples: [T, K, n >= 2, 1, H, W] in 0..1: after task t, of class k, image i.
        classes: what the K columns show.
        path: of the PNG.
        title: above it.
    """
    num_tasks, count = len(samples), len(classes)
    shown = samples[:, :, :2].clone()
    for t in range(num_tasks):
        shown[t, t + 1 :] = float("nan")
    cells = _laid_out(shown.flatten(1, 2))
    labels = [f"after task {t + 1}" for t in range(num_tasks)]
    return _picture(cells, (num_tasks, 2 * count), labels, list(map(str, classes)), path, title=title)


def classes_picture(samples: Tensor, classes: Sequence[int], path: Path, *, title: str) -> Path:
    """A row a class: images drawn at the end, [K, n, 1, H, W] in 0..1."""
    return _picture(
        _laid_out(samples), samples.shape[:2], [f"class {label}" for label in classes], [], path, title=title
    )


def _laid_out(images: Tensor) -> Tensor:
    """One image from [R, C, 1, H, W]: R rows of C, a line of NaN between each and the next."""
    framed = F.pad(images.squeeze(2), (0, 1, 0, 1), value=float("nan"))
    return framed.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)


def _picture(
    cells: Tensor, grid: Sequence[int], rows: Sequence[str], columns: Sequence[str], path: Path, *, title: str
) -> Path:
    down, across = grid[0] * CELL, grid[1] * CELL
    height = down + (0.75 if columns else 0.5)
    figure = new_figure(across + 1.2, height)
    axes = axes_at(figure, 1.0, 0.12, across, down)
    ink = np.ma.masked_invalid(1 - cells.to(torch.float32).numpy())
    axes.imshow(ink, cmap="gray", vmin=0, vmax=1, extent=(0, grid[1], grid[0], 0), aspect="auto")
    axes.set_yticks([place + 0.5 for place in range(grid[0])], rows, fontsize=FONT - 1, color=INK)
    each = grid[1] / max(1, len(columns))
    axes.set_xticks([(place + 0.5) * each for place in range(len(columns))], columns, fontsize=FONT - 1, color=INK)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_color(MUTED)
        side.set_linewidth(0.5)
    figure.text(1.0 / (across + 1.2), 1 - 0.2 / height, title, fontsize=FONT, color=INK)
    return write_picture(figure, path)

"""The same images seen in other ways, one way a task: their pixels permuted, or the images rotated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.errors import OptionError
from holdfast.lab.streams.stream import Stream, Task, check_num_tasks
from holdfast.likelihoods.masks import Scenario


def permuted(
    images: Task,
    num_tasks: int,
    *,
    seed: int,
    fraction: float = 1.0,
    scenario: Scenario = "domain",
    name: str | None = None,
) -> Stream:
    """Task 0 is the images as they are; each later one has one fixed permutation of their pixels.

    Args:
        images: the images, with classes 0..C-1.
        num_tasks: at least 1.
        seed: of the permutations; task k has the same one whatever `num_tasks` is.
        fraction: the share of the pixels, chosen at random for each task, that change places; above 0, up to 1.
        scenario: "domain": C output columns for all tasks; "task" or "class": C of its own for each.
        name: of the stream; default "permuted-" and that of the images.

    Raises:
        OptionError: `num_tasks` or `fraction` is out of its range.
        UnknownNameError: there is no such scenario.

    Cost: a task is one gather of columns; of bytes one for each batch.

    Source: Goodfellow et al. 2013, arXiv 1312.6211; Kirkpatrick et al. 2017.
    """
    check_num_tasks(num_tasks, where="permuted")
    if not 0 < fraction <= 1:
        raise OptionError(f"permuted: fraction={fraction}, expected a share of the pixels above 0 and up to 1.")
    generator = torch.Generator().manual_seed(seed)
    orders = [_order(math.prod(images.train.input_shape), fraction, generator) for _ in range(num_tasks - 1)]

    def view(inputs: Tensor, k: int) -> Tensor:
        if k == 0:
            return inputs
        return inputs.flatten(1).index_select(1, orders[k - 1].to(inputs.device)).view_as(inputs)

    names = ["plain", *(f"permutation {k}" for k in range(1, num_tasks))]
    return _views(images, names, view, scenario=scenario, name=name or f"permuted-{images.name}")


def rotated(
    images: Task,
    num_tasks: int,
    *,
    max_angle: float = 90.0,
    scenario: Scenario = "domain",
    name: str | None = None,
) -> Stream:
    """Task k is the images rotated counterclockwise by k/(num_tasks - 1) of `max_angle`, bilinear, zeros from outside.

    Args:
        images: the images [C, H, W], with classes 0..C-1.
        num_tasks: at least 1.
        max_angle: of the last task, in degrees.
        scenario: as for `permuted`.
        name: of the stream; default "rotated-" and that of the images.

    Raises:
        OptionError: `num_tasks` is out of its range, or the inputs are no images.
        UnknownNameError: there is no such scenario.

    Cost: a task is one `grid_sample`; of bytes one for each batch.

    Source: Lopez-Paz & Ranzato 2017, arXiv 1706.08840, there with random angles.
    """
    check_num_tasks(num_tasks, where="rotated")
    shape = list(images.train.input_shape)
    if len(shape) != 3:
        raise OptionError(f"rotated: found inputs of shape {shape}, expected images [C, H, W].")
    angles = [max_angle * k / max(num_tasks - 1, 1) for k in range(num_tasks)]
    names = ["plain", *(f"rotated {angle:g}°" for angle in angles[1:])]
    return _views(
        images,
        names,
        lambda inputs, k: _rotate(inputs, angles[k]) if k else inputs,
        scenario=scenario,
        name=name or f"rotated-{images.name}",
    )


def _order(length: int, fraction: float, generator: torch.Generator) -> Tensor:
    """The numbers 0..length-1, of which a random fraction has changed places."""
    moved = torch.randperm(length, generator=generator)[: round(fraction * length)]
    order = torch.arange(length)
    order[moved] = moved[torch.randperm(len(moved), generator=generator)]
    return order


def _rotate(images: Tensor, angle: float) -> Tensor:
    """Images [N, C, H, W] turned counterclockwise about their centre by an angle in degrees."""
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # where each pixel comes from, in coordinates that run from -1 to 1 along either axis, y downward
    source = images.new_tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = F.affine_grid(source.unsqueeze(0), [1, 1, height, width], align_corners=False)
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=False)


def _views(
    images: Task, names: Sequence[str], view: Callable[[Tensor, int], Tensor], *, scenario: Scenario, name: str
) -> Stream:
    """The stream whose task k has the inputs view(inputs, k), with columns shared ("domain") or of its own."""
    width = len(images.classes)
    first = [0 if scenario == "domain" else width * k for k in range(len(names))]
    classes = tuple(tuple(range(start, start + width)) for start in first)

    def build(k: int) -> Task:
        return images.map(
            lambda examples: examples.through(lambda inputs: view(inputs, k), targets=examples.targets + first[k]),
            name=names[k],
            classes=classes[k],
        )

    return Stream(name, scenario, first[-1] + width, images.train.input_shape, classes, build)

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.lab.methods import Moment, Setting
from holdfast.lab.methods.sfa import AveragingOptions, SequentialAveraging
from holdfast.lab.streams import Examples
from holdfast.lab.training import build_optimizer, mlp
from holdfast.likelihoods.masks import Mask

EXAMPLES = Examples(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
INPUTS, TARGETS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 4


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def second_task(
    num_steps: int, *, mask: Mask = "all", **options: Any
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The weights after every step of a second task, and those it began from; the gradient is one for every weight."""
    model = mlp(3, (5,), 4)
    learner = SequentialAveraging(model, Setting(((0, 1), (2, 3)), mask=mask), AveragingOptions(**options))
    learner.attach(optimizer := build_optimizer("sgd", model.parameters(), lr=1.0))
    learner.close_task(EXAMPLES, classes=None, task=0)
    start, path = weights_of(model), []
    for step in range(num_steps):
        learner.before_step(Moment(step, num_steps, step, num_steps))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        path.append(weights_of(model))
    return path, start


def distances(path: list[dict[str, Tensor]], start: dict[str, Tensor]) -> list[float]:
    """How far every weight is from where it began, the same for all."""
    found = []
    for weights in path:
        moved = torch.cat([(start[name] - weights[name]).flatten() for name in start])
        torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=1e-4, atol=1e-5)
        found.append(round(float(moved[0]), 4))
    return found


@pytest.mark.parametrize(
    ("period", "share", "expected"),
    [
        (0.25, 0.5, [1, 1, 2, 1.5, 2.5, 1.75, 2.75, 1.875]),
        (0.5, 0.5, [1, 2, 3, 2, 3, 4, 5, 3]),
        (1.0, 0.5, [1, 2, 3, 4, 5, 6, 7, 4]),
        (1.0, 0.25, [1, 2, 3, 4, 5, 6, 7, 6]),
        (0.4, 0.5, [1, 2, 1.5, 2.5, 3.5, 2.25, 3.25, 2.125]),  # every third step, and the last
        (0.0, 1.0, [0] * 8),
        (0.25, 0.0, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_every_averaging_by_hand(period, share, expected):
    assert distances(*second_task(8, sfa_period=period, sfa_share=share)) == expected


@pytest.mark.parametrize("mask", ["task", "seen"])
def test_columns_without_a_past_are_left_out(mask):
    (*_, last), start = second_task(4, mask=mask, sfa_period=1.0)
    moved = (start["3.weight"] - last["3.weight"]).mean(1)
    torch.testing.assert_close(moved, torch.tensor([2.0, 2.0, 4.0, 4.0]))
    torch.testing.assert_close(start["1.bias"] - last["1.bias"], torch.full((5,), 2.0))


def test_a_new_optimizer_takes_the_place_of_the_old():
    learner = SequentialAveraging(mlp(3, (5,), 4), Setting(((0, 1), (2, 3))), AveragingOptions())
    old, new = (build_optimizer("sgd", learner.model.parameters(), lr=0.1) for _ in range(2))
    learner.attach(old)
    learner.attach(new)
    assert not old._optimizer_step_post_hooks
    assert new._optimizer_step_post_hooks

from __future__ import annotations

import pytest
import torch
from torch import nn

from holdfast.lab.methods import Setting
from holdfast.lab.methods.distillation import DistillationOptions, distillation
from holdfast.lab.methods.lwf import LearningWithoutForgetting
from holdfast.lab.streams import Examples
from holdfast.lab.training import mlp, task_loss
from holdfast.likelihoods.masks import Mask

EMPTY = Examples(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def softened(values: torch.Tensor, temperature: float) -> torch.Tensor:
    powers = (values / temperature).exp()
    return powers / powers.sum()


def slow(logits, teacher, temperature, old, now) -> float:
    """One example and one class at a time."""
    total = 0.0
    for answer, taught in zip(logits, teacher):
        p, q = softened(answer[now], temperature), softened(taught[old], temperature)
        total -= sum(float(q[i]) * float(p[now.index(column)].log()) for i, column in enumerate(old))
    return temperature**2 * total / len(logits)


def batch() -> tuple[nn.Module, torch.Tensor]:
    return mlp(3, (5,), 6, seed=1).double(), torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize(("old", "now"), [([0, 1, 2, 3], [0, 1, 2, 3]), ([2, 0], [0, 2, 3, 5])])
def test_distillation_term_by_term(temperature, old, now):
    logits, teacher = torch.randn(2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = distillation(logits, teacher, temperature=temperature, old=old, now=now)
    assert float(found) == pytest.approx(slow(logits, teacher, temperature, old, now), rel=1e-12)


def test_its_gradient_vanishes_at_the_teacher():
    teacher = torch.randn(7, 4, dtype=torch.float64)
    logits = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distillation(logits, teacher, temperature=2.0), logits)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("mask", "heads"),
    [
        ("task", [([0, 1], [0, 1]), ([2, 3], [2, 3])]),
        ("seen", [([0, 1, 2, 3], [0, 1, 2, 3, 4, 5])]),
        ("all", [(list(range(6)), list(range(6)))]),
    ],
)
def test_the_loss_of_the_third_task(mask: Mask, heads):
    """1/3 of the new loss, 2/3 of the mean over the heads of what is distilled from the network before."""
    model, inputs = batch()
    learner = LearningWithoutForgetting(model, Setting(((0, 1), (2, 3), (4, 5)), mask=mask), DistillationOptions())
    before = model(inputs).detach()
    assert learner.loss(inputs, torch.tensor([0] * 7), None)[1] is None
    learner.close_task(EMPTY, classes=None, task=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    columns = torch.zeros(6, 6, dtype=torch.bool)
    columns[4:, {"task": [4, 5], "seen": range(6), "all": range(6)}[mask]] = True
    targets = torch.tensor([4, 5, 4, 5, 4, 5, 4])
    own, added = learner.loss(inputs, targets, columns)
    assert added is not None
    new = task_loss(model, inputs, targets, columns).item()
    after = model(inputs).detach()
    old = sum(slow(after, before, 2.0, *head) for head in heads) / len(heads)
    assert own.item() == pytest.approx(new)
    assert (own + added).item() == pytest.approx(new / 3 + old * 2 / 3, rel=1e-9)


def test_the_teacher_is_a_copy_that_does_not_learn():
    model, inputs = batch()
    learner = LearningWithoutForgetting(model, Setting(((0, 1), (2, 3))), DistillationOptions())
    learner.close_task(EMPTY, classes=None, task=0)
    before = {name: value.clone() for name, value in learner.state()[0].items()}
    own, added = learner.loss(inputs, torch.zeros(7, dtype=torch.long), None)
    assert added is not None
    (own + added).backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert all(torch.equal(before[name], value) for name, value in learner.state()[0].items())
    assert not torch.equal(before["1.weight"], model.state_dict()["1.weight"])

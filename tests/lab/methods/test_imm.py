from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.lab.methods.test_learner import epoch, net, same, task
from torch import Tensor, nn

import holdfast as hf
from holdfast.lab.methods import Setting
from holdfast.lab.methods.imm import MergingOptions, MomentMatching, merged_mode
from holdfast.lab.streams import Examples
from holdfast.lab.training import build_optimizer, mlp


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def learn(num_tasks: int, **options: Any) -> tuple[MomentMatching, list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """The learner; after every task its own weights, and their Fisher."""
    learner = MomentMatching(net(), Setting(((0, 1), (2, 3))), MergingOptions(**options))
    own, fishers = [], []
    for t in range(num_tasks):
        learner.attach(optimizer := build_optimizer("sgd", learner.model.parameters(), lr=0.1))
        epoch(learner, optimizer, t=t, seed=t)
        own.append(weights_of(learner.model))
        fishers.append(dict(hf.fisher(learner.model, task(t))))
        learner.close_task(task(t), classes=None, task=t)
    return learner, own, fishers


def evaluated(learner: MomentMatching) -> dict[str, Tensor]:
    with learner.evaluating(0):
        return weights_of(learner.model)


def test_the_mean_of_all_tasks_weights():
    learner, own, _ = learn(3)
    for name, found in evaluated(learner).items():
        torch.testing.assert_close(found, torch.stack([weights[name] for weights in own]).mean(0))


def test_the_mode_in_closed_form():
    learner, own, fishers = learn(3, imm="mode")
    for name, found in evaluated(learner).items():
        total = torch.stack([fisher[name].double() for fisher in fishers]).sum(0)
        weighted = torch.stack([fisher[name].double() * weights[name] for fisher, weights in zip(fishers, own)]).sum(0)
        expected = torch.where(total > 0, weighted / total, own[-1][name].double())
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)


def test_mode_and_mean_differ_and_kinds_of_fisher_too():
    mean, mode, empirical = (
        evaluated(learn(2, **o)[0]) for o in ({}, {"imm": "mode"}, {"imm": "mode", "fisher": "empirical"})
    )
    assert not same(mean, mode)
    assert not same(mode, empirical)


def test_merging_where_nothing_is_known():
    mean, weights = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 3.0, 3.0])
    found = merged_mode(mean, torch.tensor([0.0, 1.0, 1.0]), weights, torch.tensor([0.0, 0.0, 3.0]))
    assert found.tolist() == [3.0, 1.0, 2.5]


def test_training_goes_on_from_the_tasks_own_weights():
    learner, own, _ = learn(2)
    assert same(weights_of(learner.model), own[1])
    assert not same(evaluated(learner), own[1])
    assert same(weights_of(learner.model), own[1])
    with pytest.raises(KeyError), learner.evaluating(0):
        raise KeyError
    assert same(weights_of(learner.model), own[1])


def test_untrained_it_is_tested_as_it_is():
    learner = MomentMatching(net(), Setting(((0, 1), (2, 3))), MergingOptions())
    assert same(evaluated(learner), weights_of(net()))


def test_l2_transfer_holds_the_weights_near_those_of_the_task_before():
    distances = []
    for strength in (0.0, 0.1, 10.0):
        learner, own, _ = learn(3, l2_transfer=strength)
        distances.append(sum(float((own[2][name] - own[1][name]).square().sum()) for name in own[2]))
        assert learner.report().startswith("EWC: ") == (strength > 0)
    assert distances == sorted(distances, reverse=True)


def test_l2_transfer_is_the_papers_penalty():
    """One step from the anchor's side: theta' = (theta - lr g + 2 lr c theta_0)/(1 + 2 lr c), the implicit step."""
    c, lr = 0.7, 0.1
    learner, own, _ = learn(1, l2_transfer=c)
    learner.attach(optimizer := build_optimizer("sgd", learner.model.parameters(), lr=lr))
    start = {}
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            start[name] = parameter.add_(0.3).clone()
    loss, _ = learner.loss(task(1).inputs, task(1).targets, None)
    loss.backward()
    optimizer.step()
    for name, parameter in learner.model.named_parameters():
        expected = (start[name] - lr * parameter.grad + 2 * lr * c * own[0][name]) / (1 + 2 * lr * c)
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("imm", ["mean", "mode"])
def test_a_head_is_merged_over_the_tasks_that_train_it(imm):
    model = mlp(4, (5,), 4)
    learner = MomentMatching(model, Setting(((0, 1), (2, 3))), MergingOptions(imm=imm))
    heads = []
    for t, classes in enumerate(((0, 1), (2, 3))):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(t)))
        heads.append(weights_of(model)["3.weight"])
        examples = Examples(torch.randn(30, 4), torch.tensor(classes).repeat(15))
        learner.close_task(examples, classes=classes, task=t)
    found = evaluated(learner)["3.weight"]
    torch.testing.assert_close(found, torch.cat([heads[0][:2], heads[1][2:]]))

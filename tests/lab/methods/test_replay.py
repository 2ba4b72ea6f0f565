"""er, der and agem: each loss against the same one, worked out at length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.lab.methods.test_learner import epoch, net, same, task
from torch import Tensor

from holdfast.lab.methods import Setting, build_learner, method_named
from holdfast.lab.methods.agem import AveragedGem, project_
from holdfast.lab.methods.buffered import BufferOptions
from holdfast.lab.training import build_optimizer, task_loss

SETTING = Setting(task_classes=((0, 1, 2, 3),) * 2)


def after_one_task(method: str, *, epochs: int = 1, **options: Any) -> Any:
    learner = build_learner(method_named(method), net(), SETTING, dict(buffer_size=20, **options))
    learner.attach(optimizer := build_optimizer("sgd", learner.model.parameters(), lr=0.1))
    for seed in range(epochs):
        epoch(learner, optimizer, t=0, seed=seed)
    learner.close_task(task(0), classes=None, task=0)
    return learner


def batch() -> tuple[Tensor, Tensor]:
    return task(1).inputs[:10], task(1).targets[:10]


def test_er_is_the_mean_over_new_and_replayed_examples():
    learner = after_one_task("er")
    torch.manual_seed(5)
    old = learner.buffer.draw(10)
    torch.manual_seed(5)
    own, added = learner.loss(*batch(), None)
    together = [torch.cat(pair) for pair in zip(batch(), (old["inputs"], old["targets"]))]
    assert own.item() == pytest.approx(task_loss(learner.model, *batch(), None).item())
    torch.testing.assert_close(own + added, task_loss(learner.model, *together, None))


def test_er_replays_no_more_than_there_is():
    learner = build_learner(method_named("er"), net(), SETTING, {"buffer_size": 4})
    learner.loss(*batch(), None)
    learner.close_task(task(0), classes=None, task=0)
    kept = learner.buffer["inputs"].clone(), learner.buffer["targets"].clone()
    own, added = learner.loss(*batch(), None)
    together = [torch.cat(pair) for pair in zip(batch(), kept)]
    torch.testing.assert_close(own + added, task_loss(learner.model, *together, None))


@pytest.mark.parametrize("columns", [None, torch.eye(4, dtype=torch.bool) | torch.eye(4, dtype=torch.bool).flip(1)])
def test_der_plus_plus_term_by_term(columns):
    learner = after_one_task("der", der_alpha=0.3, der_beta=0.7)
    torch.manual_seed(5)
    first, second = (learner.buffer.draw(10) for _ in range(2))
    assert not torch.equal(first["inputs"], second["inputs"])
    torch.manual_seed(5)
    own, added = learner.loss(*batch(), columns)
    squares = [
        (kept - learner.model(x[None])[0]).square().sum().item() / 4
        for x, kept in zip(first["inputs"], first["logits"])
    ]
    labelled = task_loss(learner.model, second["inputs"], second["targets"], columns).item()
    expected = 0.3 * sum(squares) / 10 + 0.7 * labelled
    assert own.item() == pytest.approx(task_loss(learner.model, *batch(), columns).item())
    assert added.item() == pytest.approx(expected, rel=1e-5)


def test_the_logits_that_are_kept_are_those_of_the_moment():
    learner = build_learner(method_named("der"), net(), SETTING, {"buffer_size": 99})
    answers = learner.model(batch()[0]).detach()
    learner.loss(*batch(), None)
    assert torch.equal(learner.buffer["logits"], answers)


@pytest.mark.parametrize(
    ("method", "report"),
    [
        ("er", "replay: 10 examples kept of room for 99"),
        ("der", "replay: 10 examples kept of room for 99, with their logits"),
        ("agem", "A-GEM: 10 examples kept of room for 99"),
    ],
)
def test_nothing_is_replayed_in_the_first_task_but_all_is_offered(method, report):
    learner = build_learner(method_named(method), net(), SETTING, {"buffer_size": 99})
    assert learner.loss(*batch(), None)[1] is None
    assert len(learner.buffer) == 10
    assert learner.report() == report


class TestProjection:
    def vectors(self, seed: int) -> tuple[list[Tensor], list[Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return tuple([torch.randn(*shape, generator=generator) for shape in ((4, 3), (4,))] for _ in range(2))

    @pytest.mark.parametrize("seed", range(10))
    def test_against_the_formula_on_one_long_vector(self, seed):
        gradients, reference = self.vectors(seed)
        g, ref = (torch.cat([part.flatten() for part in parts]) for parts in (gradients, reference))
        expected = g - (g @ ref) / (ref @ ref) * ref if g @ ref < 0 else g
        project_(gradients, reference)
        found = torch.cat([part.flatten() for part in gradients])
        torch.testing.assert_close(found, expected)
        assert found @ ref > -1e-5

    def test_what_does_not_conflict_is_left_to_the_bit(self):
        gradients, reference = self.vectors(0)
        if sum((g * ref).sum() for g, ref in zip(gradients, reference)) < 0:
            reference = [-ref for ref in reference]
        before = [g.clone() for g in gradients]
        project_(gradients, reference)
        assert all(torch.equal(g, old) for g, old in zip(gradients, before))

    def test_a_reference_of_zero(self):
        gradients, reference = self.vectors(0)
        before = [g.clone() for g in gradients]
        project_(gradients, [torch.zeros_like(ref) for ref in reference])
        assert all(torch.equal(g, old) for g, old in zip(gradients, before))


class TestAveragedGem:
    def test_the_step_is_along_the_projected_gradient(self):
        """With the labels turned round, the new gradient is opposed to the one on past examples."""
        learner = after_one_task("agem", epochs=20)
        parameters = list(learner.model.parameters())
        old = learner.buffer["inputs"].clone(), learner.buffer["targets"].clone()
        reference = torch.autograd.grad(task_loss(learner.model, *old, None), parameters)
        wrong = (old[0], (old[1] + 1) % 4)
        plain = torch.autograd.grad(task_loss(learner.model, *wrong, None), parameters)
        assert sum((g * ref).sum() for g, ref in zip(plain, reference)) < 0
        expected = [g.clone() for g in plain]
        project_(expected, reference)

        learner.attach(optimizer := build_optimizer("sgd", parameters, lr=1.0))
        before = [p.detach().clone() for p in parameters]
        optimizer.zero_grad()
        own, added = learner.loss(*wrong, None)  # all 20 are drawn
        assert added is None
        own.backward()
        optimizer.step()
        for p, start, gradient in zip(parameters, before, expected):
            torch.testing.assert_close(start - p, gradient, rtol=1e-4, atol=1e-6)

    def test_past_examples_are_those_of_earlier_tasks(self):
        learner = after_one_task("agem")
        drawn = []
        draw = learner.buffer.draw
        learner.buffer.draw = lambda count, among: drawn.append(draw(count, among=among)) or drawn[-1]
        for _ in range(5):
            learner.loss(*batch(), None)
        assert {0, 1} == set(learner.buffer["tasks"].tolist())
        assert all((each["tasks"] == 0).all() for each in drawn)

    def test_without_past_examples_it_is_plain_training(self):
        learner = after_one_task("agem")
        learner.buffer["tasks"].fill_(1)
        own, _ = learner.loss(*batch(), None)
        own.backward()
        optimizer = build_optimizer("sgd", learner.model.parameters(), lr=1.0)
        learner.attach(optimizer)
        expected = [p.detach() - p.grad for p in learner.model.parameters()]
        optimizer.step()
        assert all(torch.equal(p, value) for p, value in zip(learner.model.parameters(), expected))

    def test_a_new_optimizer_takes_the_place_of_the_old(self):
        learner = AveragedGem(net(), SETTING, BufferOptions())
        old, new = (build_optimizer("sgd", learner.model.parameters(), lr=0.1) for _ in range(2))
        learner.attach(old)
        learner.attach(new)
        assert not old._optimizer_step_pre_hooks
        assert not old._optimizer_step_post_hooks
        assert new._optimizer_step_pre_hooks


def test_the_gradient_that_is_left_behind_is_the_tasks_own():
    """The pass over past examples adds nothing to the gradients of the parameters."""
    learner = after_one_task("agem")
    learner.model.zero_grad()
    learner.loss(*batch(), None)
    assert all(p.grad is None for p in learner.model.parameters())


def test_balanced_and_reservoir_differ_where_classes_do():
    learners = [after_one_task("er", buffer=keep) for keep in ("reservoir", "balanced")]
    assert not same(learners[0].buffer.state()[0], learners[1].buffer.state()[0])

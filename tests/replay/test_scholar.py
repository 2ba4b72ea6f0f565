import math

import pytest
import torch
from tests.replay.drawers import Stuck
from torch import nn

from holdfast.lab.training import task_loss
from holdfast.replay import Replay, ReplayHead, Scholar, mixed, replay_heads, replay_loss

TASKS = ((0, 1), (2, 3), (4, 5))
LOGITS = torch.tensor([[2.0, 0.0, 1.0, -1.0, 0.5, 3.0], [0.0, 1.0, 4.0, 0.0, 0.0, 0.0]])
OLD = torch.tensor([[1.0, 2.0, 0.0, 3.0, 9.0, 9.0], [0.5, 0.0, 2.0, 1.0, 9.0, 9.0]])


def replay(*, asked: bool = False) -> Replay:
    return Replay(torch.zeros(2, 1), OLD, torch.tensor([3, 2]), asked)


class TestHeads:
    def test_one_head_a_task(self):
        assert replay_heads("task", TASKS, 2) == (ReplayHead((0, 1), (0, 1)), ReplayHead((2, 3), (2, 3)))

    def test_the_classes_seen(self):
        assert replay_heads("seen", TASKS, 1) == (ReplayHead((0, 1), (0, 1, 2, 3)),)
        assert replay_heads("seen", TASKS, 2) == (ReplayHead((0, 1, 2, 3), (0, 1, 2, 3, 4, 5)),)

    def test_all_columns(self):
        assert replay_heads("all", TASKS, 1) == (ReplayHead((0, 1), (0, 1, 2, 3, 4, 5)),)

    def test_the_same_classes_in_every_task(self):
        assert replay_heads("all", ((0, 1),) * 3, 2) == (ReplayHead((0, 1), (0, 1)),)
        assert replay_heads("task", ((0, 1),) * 3, 2) == (ReplayHead((0, 1), (0, 1)),)


class TestLoss:
    def test_hard_answers_over_the_classes_seen(self):
        """The old solver says 3 and 2 among its own 0..3; the new softmax has six columns."""
        expected = nn.functional.cross_entropy(LOGITS, torch.tensor([3, 2]))
        torch.testing.assert_close(replay_loss(LOGITS, replay(), replay_heads("seen", TASKS, 2)), expected)

    def test_hard_answers_of_every_old_head(self):
        """Head 1 says 1 and 0, head 2 says 3 and 2."""
        first = nn.functional.cross_entropy(LOGITS[:, :2], torch.tensor([1, 0]))
        second = nn.functional.cross_entropy(LOGITS[:, 2:4], torch.tensor([1, 0]))
        found = replay_loss(LOGITS, replay(), replay_heads("task", TASKS, 2))
        torch.testing.assert_close(found, (first + second) / 2)

    def test_classes_that_were_asked_for(self):
        """The class is the answer, whatever the old solver says; with heads by task its own head alone."""
        asked = Replay(torch.zeros(2, 1), OLD, torch.tensor([0, 3]), asked=True)
        expected = nn.functional.cross_entropy(LOGITS, torch.tensor([0, 3]))
        torch.testing.assert_close(replay_loss(LOGITS, asked, replay_heads("seen", TASKS, 2)), expected)
        columns = torch.zeros(6, 6, dtype=torch.bool)
        for own in ((0, 1), (2, 3)):
            for column in own:
                columns[column, list(own)] = True
        expected = task_loss(nn.Identity(), LOGITS, torch.tensor([0, 3]), columns)
        torch.testing.assert_close(replay_loss(LOGITS, asked, replay_heads("task", TASKS, 2)), expected)

    @pytest.mark.parametrize("asked", [False, True])
    def test_distilled_answers_by_hand(self, asked):
        total = 0.0
        for new, old in zip(LOGITS.tolist(), OLD.tolist()):
            olds = [math.exp(value / 2) for value in old[:4]]
            news = [math.exp(value / 2) for value in new]
            total -= sum(o / sum(olds) * math.log(n / sum(news)) for o, n in zip(olds, news))
        found = replay_loss(LOGITS, replay(asked=asked), replay_heads("seen", TASKS, 2), temperature=2.0)
        torch.testing.assert_close(found, torch.tensor(4 * total / 2))

    def test_distillation_rests_where_the_old_solver_is_matched(self):
        logits = OLD.clone().requires_grad_()
        replay_loss(logits, replay(), replay_heads("task", TASKS, 2), temperature=2.0).backward()
        assert logits.grad.abs().max() < 1e-7


class TestScholar:
    solver = nn.Sequential(nn.Flatten(), nn.Linear(4, 6))

    def test_an_unconditional_generator_is_answered_by_the_solver(self):
        heads = replay_heads("seen", TASKS, 2)
        found = Scholar(self.solver, Stuck()).replay(50, heads)
        assert not found.asked
        assert torch.equal(found.logits, self.solver(found.inputs))
        assert torch.equal(found.classes, found.logits[:, :4].argmax(1))
        assert not found.logits.requires_grad

    def test_a_conditional_one_is_asked_for_each_known_class(self):
        found = Scholar(self.solver, Stuck(num_classes=6)).replay(80, replay_heads("task", TASKS, 2))
        assert found.asked
        assert set(found.classes.tolist()) == {0, 1, 2, 3}
        # class 3 is drawn without spread
        assert ((found.inputs.flatten(1).std(1) == 0) == (found.classes == 3)).all()


class TestMixed:
    def test_the_weighted_loss_is_the_mixture_of_the_means(self):
        new, old = (torch.rand(4, 2), torch.tensor([0, 1, 0, 1])), (torch.rand(6, 2), torch.tensor([2] * 6))
        inputs, classes, weights = mixed(new, old, new_share=0.25)
        assert weights is not None
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
        values = inputs.sum(1)
        torch.testing.assert_close(weights @ values, 0.25 * values[:4].mean() + 0.75 * values[4:].mean())
        assert classes.tolist() == [0, 1, 0, 1, *[2] * 6]

    def test_without_a_past(self):
        new = (torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))
        assert mixed(new, None, new_share=0.5) == (*new, None)

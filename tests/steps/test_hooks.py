from __future__ import annotations

import pytest
import torch
from tests.strange_optimizers import Lomo, OldLookahead, Private, Sam, SamAlone
from torch import nn
from torch.optim import LBFGS, SGD, Adam

from holdfast.errors import StateError
from holdfast.steps import StepHooks, bare_optimizer


class Recorder:
    """Writes down what happens around the steps of an optimizer over one weight."""

    def __init__(self, optimizer, weight):
        self.events = []
        self.hooks = StepHooks(
            optimizer,
            before=lambda _: self.events.append(("before", weight.item())),
            gradients=lambda _: self.events.append(("gradients", weight.grad.item())),
            after=lambda _: self.events.append(("after", weight.item())),
        )

    @property
    def names(self):
        return [name for name, _ in self.events]


def weight_and_sgd(kind=SGD, **options):
    weight = nn.Parameter(torch.ones(()))
    weight.grad = torch.ones(())
    return weight, kind([weight], lr=0.5, **options)


def closure_of(weight, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = weight.square()
        loss.backward()
        return loss

    return closure


def test_order_and_values_around_a_plain_step():
    weight, optimizer = weight_and_sgd()
    recorder = Recorder(optimizer, weight)
    optimizer.step()
    assert recorder.events == [("before", 1.0), ("gradients", 1.0), ("after", 0.5)]


@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_is_followed_by_gradients_and_its_loss_returned(keyword):
    weight, optimizer = weight_and_sgd()
    recorder = Recorder(optimizer, weight)
    closure = closure_of(weight, optimizer)
    loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert loss == 1.0
    assert recorder.events == [("before", 1.0), ("gradients", 2.0), ("after", 0.0)]


def test_a_closure_of_none_is_no_closure():
    weight, optimizer = weight_and_sgd()
    recorder = Recorder(optimizer, weight)
    optimizer.step(None)
    optimizer.step(closure=None)
    assert recorder.names == ["before", "gradients", "after"] * 2


def test_gradients_follow_every_evaluation_of_the_closure():
    weight, _ = weight_and_sgd()
    optimizer = LBFGS([weight], lr=0.1, max_iter=4)
    recorder = Recorder(optimizer, weight)
    calls = []

    def closure():
        calls.append(1)
        return closure_of(weight, optimizer)()

    optimizer.step(closure)
    assert len(calls) > 1
    assert recorder.names == ["before", *["gradients"] * len(calls), "after"]


def test_a_step_that_calls_its_parents_step_counts_once():
    class Chatty(SGD):
        def step(self, closure=None):
            return super().step(closure)

    weight_and_sgd()[1].step()  # torch puts hooks into SGD.step when the first SGD is built
    weight, optimizer = weight_and_sgd(Chatty)
    recorder = Recorder(optimizer, weight)
    optimizer.step()
    optimizer.step(closure_of(weight, optimizer))
    assert recorder.names == ["before", "gradients", "after"] * 2


def test_a_step_of_another_optimizer_within_a_step_counts_for_itself():
    weight, optimizer = weight_and_sgd()
    inner_weight, inner = weight_and_sgd()
    recorder = Recorder(inner, inner_weight)

    def closure():
        inner.step()
        return weight.detach()

    optimizer.step(closure)
    assert recorder.names == ["before", "gradients", "after"]


def test_the_step_after_one_that_failed_is_whole():
    weight, optimizer = weight_and_sgd()
    recorder = Recorder(optimizer, weight)

    def failing():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(failing)
    recorder.events.clear()
    optimizer.step()
    assert recorder.names == ["before", "gradients", "after"]


@pytest.mark.parametrize(("found", "follows"), [(0.0, True), (1.0, False)])
def test_a_fused_step_that_found_infinities_has_no_after(found, follows):
    weight, optimizer = weight_and_sgd(Adam, fused=True)
    recorder = Recorder(optimizer, weight)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(found)
    optimizer.step()
    assert ("after" in recorder.names) is follows
    assert (weight.item() != 1.0) is follows


def test_a_closure_runs_gradients_without_autograd():
    weight, optimizer = weight_and_sgd()
    modes = []
    StepHooks(optimizer, gradients=lambda _: modes.append(torch.is_grad_enabled()))
    optimizer.step(closure_of(weight, optimizer))
    assert modes == [False]


def test_removal_leaves_no_trace():
    weight, optimizer = weight_and_sgd()
    before = (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks), set(vars(optimizer)))
    recorder = Recorder(optimizer, weight)
    recorder.hooks.remove()
    recorder.hooks.remove()
    optimizer.step()
    after = (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks), set(vars(optimizer)))
    assert recorder.events == []
    assert before == after


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer


class OptimizerAround(torch.optim.Optimizer):
    """As accelerate's: an Optimizer that only hands on, and was never initialised as one."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_wrappers_are_seen_through():
    _, optimizer = weight_and_sgd()
    assert bare_optimizer(optimizer) is optimizer
    assert bare_optimizer(Wrapper(Wrapper(optimizer))) is optimizer
    assert bare_optimizer(OptimizerAround(optimizer)) is optimizer


def test_what_is_no_optimizer_is_named():
    with pytest.raises(StateError, match=r"attach: expected a torch.optim.Optimizer, found Linear. Pass the optimizer"):
        bare_optimizer(nn.Linear(1, 1))


def test_the_optimizer_within_sam_is_the_one_that_steps():
    weight = nn.Parameter(torch.ones(2))
    optimizer = Sam([weight], SGD, lr=0.1)
    assert bare_optimizer(optimizer) is optimizer.inner
    assert bare_optimizer(Wrapper(optimizer)) is optimizer.inner
    alone = SamAlone([weight], lr=0.1)
    assert bare_optimizer(alone) is alone


def test_steps_that_call_no_hooks_are_refused():
    _, optimizer = weight_and_sgd()
    for outer, name in ((Private(optimizer), "original_optimizer"), (OldLookahead(optimizer), "base")):
        kind = type(outer).__name__
        with pytest.raises(
            StateError, match=rf"no hooks around the steps of this {kind}, .* within: optimizer.{name}\."
        ):
            bare_optimizer(outer)
    outer = OldLookahead(optimizer)
    outer.base = None
    with pytest.raises(
        StateError, match=r"Call super\(\).__init__\(params, defaults\) in its constructor, or attach the"
    ):
        bare_optimizer(outer)


def test_a_step_within_the_backward_pass_is_refused():
    with pytest.raises(StateError, match=r"Lomo moves the weights within the backward pass .* such as torch.optim.SGD"):
        bare_optimizer(Lomo([nn.Parameter(torch.ones(2))], lr=0.1))


def test_an_argument_that_is_no_closure_is_left_alone():
    class Scaled(SGD):
        def step(self, scale):
            self.scale = scale

    weight, optimizer = weight_and_sgd(Scaled)
    recorder = Recorder(optimizer, weight)
    optimizer.step(2.0)
    optimizer.step(scale=2.0)
    assert optimizer.scale == 2.0
    assert recorder.names == ["before", "gradients", "after"] * 2

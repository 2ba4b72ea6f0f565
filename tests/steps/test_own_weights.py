from __future__ import annotations

import pytest
import torch
from tests.strange_optimizers import InnerLookahead, Lookahead, MasterWeights, Sam, ScheduleFree
from torch import nn
from torch.optim import ASGD, SGD, Adam

from holdfast.steps import Copies, bare_optimizer, weights_of_wrapper


class Handing:
    """A wrapper that only hands on, as accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)


def parameters():
    return [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]


def looking_sam(parameters):
    """As LookSAM, whose options are called as Lookahead's are."""
    optimizer = Sam(parameters, SGD, lr=0.1)
    optimizer.alpha, optimizer.k = 0.5, 10
    return optimizer


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (lambda p: Lookahead(SGD(p, lr=0.1)), "Lookahead"),
        (lambda p: Handing(Lookahead(Adam(p))), "Lookahead"),
        (lambda p: ScheduleFree(p, lr=0.1), "ScheduleFree"),
        (lambda p: Handing(Handing(SGD(p, lr=0.1))), None),
        (lambda p: Sam(p, SGD, lr=0.1), None),
        (looking_sam, None),
        (Adam, None),
    ],
)
def test_what_is_known_by_its_form(build, kind):
    optimizer = build(parameters())
    assert weights_of_wrapper(optimizer, bare_optimizer(optimizer)) == kind


class Remembering(SGD):
    """As Prodigy: it remembers where it began, and never goes there."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("start", p.detach().clone())
        super().step(closure)


class Masters(SGD):
    """Wider weights of its own, as fused optimizers of other packages have them; `masters` are those of a group."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.keep([[p.detach().double() for p in group["params"]] for group in self.param_groups])

    @torch.no_grad()
    def step(self, closure=None):
        for group, masters in zip(self.param_groups, self.masters()):
            for p, master in zip(group["params"], masters):
                p.copy_(master.add_(p.grad, alpha=-group["lr"]))


class InLists(Masters):
    def keep(self, masters):
        self.wide = masters

    def masters(self):
        return self.wide


class InGroups(Masters):
    def keep(self, masters):
        for group, own in zip(self.param_groups, masters):
            group["wide"] = tuple(own)

    def masters(self):
        return [group["wide"] for group in self.param_groups]


class ByParameter(Masters):
    def keep(self, masters):
        parameters = [group["params"] for group in self.param_groups]
        self.wide = {p: own for group, kept in zip(parameters, masters) for p, own in zip(group, kept)}

    def masters(self):
        return [[self.wide[p] for p in group["params"]] for group in self.param_groups]


class Fork(Adam):
    """An Adam of another package."""


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda p: MasterWeights(p, lr=0.01), "master"),
        (lambda p: InnerLookahead(p, lr=0.01), "slow_buffer"),
        (lambda p: ScheduleFree(p, lr=0.01), "z"),
        *((lambda p, kind=kind: kind(p, lr=0.01), "wide") for kind in (InLists, InGroups, ByParameter)),
        (lambda p: Remembering(p, lr=0.01), None),
        (lambda p: Fork(p, lr=0.01), None),
        (lambda p: ASGD(p, lr=0.01), None),
    ],
)
def test_copies_that_are_gone_on_from(build, key):
    weights = parameters()
    optimizer = build(weights)
    copies, found = Copies(optimizer, weights), []
    for _ in range(12):
        for p in weights:
            p.grad = torch.randn_like(p)
        found.append(copies.found())
        optimizer.step()
        for p in weights:
            p.data.mul_(0.999)  # a pull
    assert [name for name in found if name] == ([key] if key else [])

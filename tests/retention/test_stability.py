"""No strength gives a NaN; and one strength means the same under every optimizer."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from tests.retention.loops import batches, importance_of, network, train, weights_of
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import ExponentialLR

from holdfast import EWC, WVA, Importance, ImportanceInfo

STRENGTHS = [0.0, *(10.0**power for power in range(-3, 13)), math.inf]

FAST = {
    "sgd": partial(SGD, lr=0.2),
    "momentum": partial(SGD, lr=0.2, momentum=0.9),
    "nesterov": partial(SGD, lr=0.2, momentum=0.9, nesterov=True),
    "adam": partial(Adam, lr=0.2),
    "adamw": partial(AdamW, lr=0.2),
}

HELD = {
    "implicit": EWC,
    "viscous": WVA,
    "viscous exponential": partial(WVA, attenuation="exponential"),
}


@pytest.mark.parametrize("optimizer", FAST)
@pytest.mark.parametrize("mechanism", HELD)
def test_no_strength_gives_a_nan(mechanism, optimizer):
    for strength in STRENGTHS:
        for scale in (1e-8, 1.0, 1e6):
            model = network()
            its_optimizer = FAST[optimizer](model.parameters())
            keeper = HELD[mechanism](model, strength=strength).attach(its_optimizer)
            keeper.retain(scale * importance_of(model))
            train(model, its_optimizer, batches(6))
            largest = max(weight.abs().max().item() for weight in weights_of(model).values())
            assert largest < 100, (strength, scale)
            assert all(math.isfinite(value) for value in vars(keeper.report()).values() if isinstance(value, float)
                       and value != strength)  # fmt: skip


# --- a quadratic with known minimum

CURVATURE = torch.tensor([0.5, 1.0, 2.0, 1.0, 1.0, 3.0])
MINIMUM = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0, -1.0])
ANCHOR = torch.tensor([0.0, 1.0, -1.0, 2.0, 1.5, 1.0])
IMPORTANCE = torch.tensor([0.0, 0.2, 1.0, 5.0, 30.0, 0.01])


class Point(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.x = nn.Parameter(ANCHOR.to(dtype).clone())


def descend(build, *, strength, decay=None, steps=600, dtype=torch.float32, keeper=EWC, sign=1.0, **options):
    """Minimise 1/2 sum h (x - c)^2 from the anchor, held there; returns the point reached."""
    model = Point(dtype)
    optimizer = build(model.parameters())
    kept = keeper(model, strength=strength, **options).attach(optimizer)
    kept.retain(Importance({"x": IMPORTANCE}, ImportanceInfo("custom", 1)))
    schedule = ExponentialLR(optimizer, decay) if decay else None
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * sign * CURVATURE * (model.x - MINIMUM).square()).sum().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return model.x.detach()


def penalised_minimum(strength):
    """h (x - c) + lambda Omega (x - m) = 0."""
    force = strength * IMPORTANCE
    return (CURVATURE * MINIMUM + force * ANCHOR) / (CURVATURE + force)


REACHING = {
    "sgd": (partial(SGD, lr=0.1), None),
    "momentum": (partial(SGD, lr=0.02, momentum=0.9), None),
    "dampened": (partial(SGD, lr=0.1, momentum=0.9, dampening=0.5), None),
    "nesterov": (partial(SGD, lr=0.02, momentum=0.9, nesterov=True), None),
    "adam": (partial(Adam, lr=0.1, betas=(0.9, 0.99)), 0.99),
    "amsgrad": (partial(Adam, lr=0.3, betas=(0.9, 0.99), amsgrad=True), 0.995),
    "adamw without decay": (partial(AdamW, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0), 0.99),
}


@pytest.mark.parametrize("strength", [0.3, 3.0])
@pytest.mark.parametrize("optimizer", REACHING)
def test_the_implicit_pull_reaches_the_penalised_minimum(optimizer, strength):
    build, decay = REACHING[optimizer]
    found = descend(build, strength=strength, decay=decay, steps=1200 if decay else 600)
    torch.testing.assert_close(found, penalised_minimum(strength), rtol=0, atol=2e-3)


def test_in_double_it_reaches_it_closely():
    found = descend(partial(SGD, lr=0.3), strength=3.0, dtype=torch.float64)
    torch.testing.assert_close(found, penalised_minimum(3.0).double(), rtol=0, atol=1e-6)


def test_weight_decay_in_the_gradient_is_part_of_the_loss():
    found = descend(partial(SGD, lr=0.1, weight_decay=0.5), strength=3.0)
    force = 3.0 * IMPORTANCE
    expected = (CURVATURE * MINIMUM + force * ANCHOR) / (CURVATURE + force + 0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_adamws_decay_shifts_the_point_as_its_docstring_says():
    decay = 0.3
    found = descend(partial(AdamW, lr=0.1, betas=(0.9, 0.9), weight_decay=decay), strength=3.0, decay=0.99, steps=1000)
    gradient = CURVATURE * (found - MINIMUM)
    balance = gradient + 3.0 * IMPORTANCE * (found - ANCHOR)
    shift = decay * gradient.abs() * found  # decay * M * lr * theta, with M * lr = |g| where the gradient is steady
    torch.testing.assert_close(balance, -shift, rtol=0, atol=5e-3)
    assert shift.abs().max() > 0.2


@pytest.mark.parametrize("pull", ["gradient", "implicit"])
def test_textbook_and_implicit_pull_have_the_same_fixed_point(pull):
    found = descend(partial(SGD, lr=0.01), strength=3.0, pull=pull, steps=2000)
    torch.testing.assert_close(found, penalised_minimum(3.0), rtol=0, atol=1e-3)


def test_the_textbook_pull_diverges_where_the_implicit_one_holds():
    assert descend(partial(SGD, lr=0.1), strength=3.0, pull="gradient", steps=25).abs().max() > 1e3
    assert descend(partial(SGD, lr=0.1), strength=1e6, steps=100).abs().max() < 5


@pytest.mark.parametrize(
    "options",
    [{"keeper": EWC}, {"keeper": EWC, "pull": "gradient"}, {"keeper": WVA}, {"keeper": WVA, "on": "gradients"}],
)
def test_maximising_the_negated_loss_is_minimising(options):
    points = [descend(partial(SGD, lr=0.01), strength=3.0, steps=60, sign=1.0, **options)]
    points.append(descend(partial(SGD, lr=0.01, maximize=True), strength=3.0, steps=60, sign=-1.0, **options))
    assert torch.equal(*points)


def test_wva_slows_and_does_not_shift():
    slow = descend(partial(SGD, lr=0.1), strength=1.0, steps=20, keeper=WVA)
    share = (slow - ANCHOR) / (MINIMUM - ANCHOR)
    torch.testing.assert_close(share, 1 - (1 - 0.1 * CURVATURE / (1 + IMPORTANCE)) ** 20, rtol=1e-4, atol=1e-5)

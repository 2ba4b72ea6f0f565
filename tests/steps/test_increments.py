from __future__ import annotations

import pytest
import torch
from tests.optimizers import EXACT
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from holdfast.steps import CopiedIncrement, can_recompute, step_increments


def increments(optimizer, group, weights):
    return [
        increment.value(weight.detach())
        for increment, weight in zip(step_increments(optimizer, group, weights), weights, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_increments_are_what_a_real_step_adds(name, dtype):
    weights = [nn.Parameter(torch.randn(3, 2, dtype=dtype)), nn.Parameter(torch.randn(4, dtype=dtype))]
    optimizer = EXACT[name](weights)
    optimizer.add_param_group({"params": [nn.Parameter(torch.randn(5, dtype=dtype))], "lr": 0.003})
    for _ in range(4):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn_like(parameter)
            assert all(can_recompute(optimizer, group, parameter) for parameter in group["params"])
        before = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]
        optimizer.step()
        for group, old in zip(optimizer.param_groups, before, strict=True):
            found = increments(optimizer, group, group["params"])
            wanted = [p.detach() - b for p, b in zip(group["params"], old, strict=True)]
            tolerance = 2e-6 if dtype == torch.float32 else 1e-8  # float32: of weights of size 1
            torch.testing.assert_close(found, wanted, rtol=1e-4 if dtype == torch.float32 else 1e-6, atol=tolerance)


def test_a_learning_rate_of_zero_adds_nothing():
    for build in (SGD, Adam, AdamW):
        weight = nn.Parameter(torch.ones(2))
        optimizer = build([weight], lr=0.0)
        weight.grad = torch.ones(2)
        optimizer.step()
        assert torch.equal(increments(optimizer, optimizer.param_groups[0], [weight])[0], torch.zeros(2))


def test_asking_adds_nothing_to_the_optimizers_state():
    weight = nn.Parameter(torch.ones(2))
    optimizer = SGD([weight], lr=0.1)
    weight.grad = torch.ones(2)
    optimizer.step()
    increments(optimizer, optimizer.param_groups[0], [weight])
    assert not optimizer.state


class OwnStep(SGD):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize(
    ("build", "dtype"),
    [
        (lambda p: SGD(p, lr=0.1), torch.bfloat16),
        (lambda p: AdamW(p, lr=0.1), torch.float16),
        (lambda p: SGD(p, lr=0.1), torch.complex64),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True), torch.float32),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True), torch.float32),
        (lambda p: SGD(p, lr=0.1, fused=True), torch.float32),
        (lambda p: SGD(p, lr=2.0, weight_decay=0.5), torch.float32),
        (lambda p: AdamW(p, lr=2.0, weight_decay=0.5), torch.float32),
        (lambda p: RMSprop(p), torch.float32),
        (lambda p: Adagrad(p), torch.float32),
        (lambda p: OwnStep(p), torch.float32),
    ],
    ids=["bf16", "half", "complex", "nesterov-foreach", "nesterov-fused", "fused", "sgd-decay", "adamw-decay",
         "rmsprop", "adagrad", "own-step"],
)  # fmt: skip
def test_what_cannot_be_recomputed_says_so(build, dtype):
    weight = nn.Parameter(torch.ones(2, dtype=dtype))
    optimizer = build([weight])
    weight.grad = torch.ones_like(weight)
    assert not can_recompute(optimizer, optimizer.param_groups[0], weight)


def test_sparse_gradients_cannot_be_recomputed():
    layer = nn.Embedding(4, 2, sparse=True)
    layer(torch.tensor([1, 2])).sum().backward()
    optimizer = SGD(layer.parameters(), lr=0.1)
    assert not can_recompute(optimizer, optimizer.param_groups[0], layer.weight)


def test_torchs_foreach_nesterov_overwrites_the_gradient():
    """The reason for one of the exceptions above: if this fails, the exception may go."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = SGD([weight], lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    weight.grad = torch.ones(2)
    optimizer.step()
    assert not torch.equal(weight.grad, torch.ones(2))


def test_a_kept_copy_tells_the_increment_of_half_precision_in_full():
    before, after = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0078125], dtype=torch.bfloat16)
    found = CopiedIncrement(before).value(after)
    assert (found.dtype, found.item()) == (torch.float32, 0.0078125)

"""Weights that a forward pass changes are given back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tests.moments.zoo import Apply
from torch import Tensor, nn

import holdfast as hf
from holdfast.moments.state import measuring
from holdfast.moments.written import CopyOnWrite


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 3))


def frozen_embedding() -> nn.Module:
    model = embedding()
    model[0].requires_grad_(False)
    return model


def raw_table() -> nn.Module:
    model = Apply(lambda self, ids: self.head(F.embedding(ids, self.table, max_norm=1.0).sum(1)), head=nn.Linear(4, 3))
    model.table = nn.Parameter(torch.randn(7, 4))
    return model


def bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(7, 4, max_norm=0.5), nn.Linear(4, 3))


def normalised() -> nn.Module:
    """Scales its weights to length one before it uses them, by their data."""

    def forward(self: nn.Module, ids: Tensor) -> Tensor:
        self.head.weight.data = self.head.weight.data  # the same memory
        self.head.weight.data[:] = F.normalize(self.head.weight.data, dim=1)
        return self.head(ids.float())

    return Apply(forward, head=nn.Linear(3, 3))


MODELS = [embedding, frozen_embedding, raw_table, bag, normalised]
ESTIMATORS: dict[str, Callable[..., object]] = {
    **{f"fisher, {kind}": partial(hf.fisher, kind=kind) for kind in ("exact", "sampled", "empirical", "batched")},
    "mas": hf.mas,
    "mas, batched": partial(hf.mas, batched=True),
    "mas, local": partial(hf.mas, local=True, others="zero"),
    "taylor": hf.taylor,
    "signal": partial(hf.signal, others="zero"),
    **{f"kfac, {kind}": partial(hf.kfac, kind=kind) for kind in ("exact", "sampled", "empirical")},
}


@pytest.mark.filterwarnings("ignore:.*one example at a time", "ignore:kfac. in .* have the diagonal")
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("make", MODELS)
def test_weights_come_back(make: Callable[[], nn.Module], estimator: Callable[..., object]):
    model = make()
    data = [(torch.randint(0, 7, (5, 3)), torch.randint(0, 3, (5,))) for _ in range(2)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    estimator(model, data)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
    model(data[0][0])
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())  # it does change them


@pytest.mark.parametrize("make", [embedding, raw_table])
def test_a_table_of_bounded_norm_is_measured_at_what_its_rows_become(make: Callable[[], nn.Module]):
    model, ids = make(), torch.randint(0, 7, (5, 3))
    found = hf.mas(model, [(ids, torch.zeros(5))])
    model(ids)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for one in ids.split(1):
        model.zero_grad()
        model(one).square().sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            expected[name] += p.grad.abs() / 5
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), name


def test_only_what_is_changed_is_copied():
    model = embedding()
    written = CopyOnWrite(model.parameters())
    with written:
        model(torch.randint(0, 7, (2, 3)))
    assert [parameter.shape for parameter, _ in written._copies.values()] == [(7, 4)]


def test_views_lists_and_arguments_by_name():
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(4)]
    written = CopyOnWrite(weights)
    with torch.no_grad(), written:
        weights[0].t()[:1].zero_()
        torch._foreach_mul_([weights[1], torch.ones(2)], 3.0)
        torch.add(torch.ones(2, 2), 1, out=weights[2].detach())
    assert not any((weight == 1).all() for weight in weights[:3])
    written.restore()
    assert all((weight == 1).all() for weight in weights)


def test_a_model_that_fails_and_one_that_calls_itself():
    def fails(self: nn.Module, x: Tensor) -> Tensor:
        self.a.weight.data.zero_()
        raise KeyError("of the user")

    def calls_itself(self: nn.Module, x: Tensor, again: bool = True) -> Tensor:
        self.a.weight.data.zero_()
        return self(x, again=False) if again else self.a(x)

    for forward in (fails, calls_itself):
        model = Apply(forward, a=nn.Linear(2, 2))
        before = model.a.weight.detach().clone()
        try:
            with measuring(model):
                model(torch.ones(1, 2))
        except KeyError:
            assert forward is fails
        assert torch.equal(model.a.weight, before)
        assert not model._forward_hooks
        assert not model._forward_pre_hooks

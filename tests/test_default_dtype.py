"""`torch.set_default_dtype` is the user's choice for new networks: nothing that holdfast computes depends on it."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

import holdfast as hf


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.norm(self.conv(x))).mean((2, 3)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(x)).mean(1))


MODELS = {"images": (Images, lambda: torch.randn(8, 2, 5, 5)), "words": (Words, lambda: torch.randint(0, 11, (8, 5)))}
OPTIMIZERS = {"adam": partial(Adam, lr=0.02), "nesterov": partial(SGD, lr=0.05, momentum=0.9, nesterov=True)}
KEEPERS = {
    "strength": partial(hf.EWC, strength=3.0, log_every=2),
    "budget": partial(hf.EWC, budget=1e-4, log_every=2),
    "codes": partial(hf.EWC, strength=3.0, importance_dtype="int8", anchor_dtype="int16", log_every=2),
    "per_task": partial(hf.EWC, strength=3.0, accumulate="per_task"),
    "gradient": partial(hf.EWC, strength=3.0, pull="gradient"),
    "kfac": partial(hf.EWC, strength=3.0, log_every=2),
    "wva": partial(hf.WVA, strength=3.0, log_every=2),
    "wva exponential": partial(hf.WVA, strength=3.0, attenuation="exponential"),
}
DEFAULTS = pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def drawn(kind, dtype=torch.float32):
    build, draw = MODELS[kind]
    model, x = build().to(dtype), draw()
    return model, x.to(dtype) if x.is_floating_point() else x, torch.randint(0, 3, (8,))


def importance_of(model):
    drawn = {name: torch.rand(p.shape, dtype=torch.float32) for name, p in model.named_parameters()}
    return hf.Importance(drawn, hf.ImportanceInfo("custom", 1, nats_per_unit=1.0))


def trained(kind, keep, build, default, dtype):
    """Weights and reports of two tasks and a half; the model is of `dtype`, all else is done under `default`."""
    torch.manual_seed(1)
    model, x, y = drawn(kind, dtype)
    with default_dtype(default):
        optimizer = build(model.parameters())
        keeper, found = keep(model).attach(optimizer), []
        for task in range(3):
            for _ in range(3):
                optimizer.zero_grad()
                F.cross_entropy(model(x).float(), y).backward()
                optimizer.step()
            if task < 2:
                keeper.retain(hf.kfac(model, [(x, y)]) if keep is KEEPERS["kfac"] else importance_of(model))
            report = keeper.report()
            found += [report.pull_ratio, report.pinned, report.predicted_rise, report.protected]
    return [parameter.detach() for parameter in model.parameters()], found


@DEFAULTS
@pytest.mark.parametrize(
    ("kind", "optimizer", "dtype"), [("images", "adam", torch.float32), ("words", "nesterov", torch.float64)]
)
@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_keeper_holds_as_it_would_under_float32(kind, optimizer, keeper, dtype, default):
    train = partial(trained, kind, KEEPERS[keeper], OPTIMIZERS[optimizer], dtype=dtype)
    (expected, told), (found, also_told) = train(torch.float32), train(default)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert told == also_told


@DEFAULTS
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "measure",
    [
        hf.fisher,
        partial(hf.fisher, kind="sampled"),
        partial(hf.fisher, kind="empirical"),
        hf.mas,
        hf.kfac,
        partial(hf.signal, others="zero"),
        hf.taylor,
    ],
    ids=["exact", "sampled", "empirical", "mas", "kfac", "signal", "taylor"],
)
def test_an_importance_is_what_it_is_under_float32(measure, kind, default):
    model, x, y = drawn(kind)
    expected = measure(model, [(x, y)])
    with default_dtype(default):
        found = measure(model, [(x, y)])
    if measure is hf.kfac:
        expected, found = expected.to_diagonal(), found.to_diagonal()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert found.info == expected.info

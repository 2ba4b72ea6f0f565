import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.language.live_bytes import LiveBytes
from holdfast.moments.company import Company
from holdfast.moments.totals import Totals

WIDTH, DEPTH = 128, 12


def _net(dtype: torch.dtype) -> nn.Module:
    layers = [module for _ in range(DEPTH) for module in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 4)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", [hf.fisher, hf.mas, hf.taylor])
def test_a_measurement_takes_one_float32_copy_of_the_weights(estimator, dtype):
    model = _net(dtype)
    data = [(torch.randn(2, WIDTH, dtype=dtype), torch.tensor([0, 1])) for _ in range(2)]
    live = LiveBytes(model)
    with live:
        estimator(model, data)
    weights = sum(parameter.numel() for parameter in model.parameters())
    largest = max(parameter.numel() for parameter in model.parameters())
    assert 4 * weights < live.peak < 4 * weights + 4 * 3 * largest  # a product and the gradient on its way


def test_sums_take_memory_when_something_is_added():
    model = nn.Linear(4, 3)
    live = LiveBytes(model)
    with live:
        totals = Totals(model, Company(model))
        assert live.now == 0
        totals["weight"].add_(1)
        assert live.now == 4 * 12
        assert list(totals.kept) == ["weight", "bias"]
    assert totals.kept["bias"].tolist() == [0, 0, 0]


def test_sums_may_begin_elsewhere():
    model = nn.Linear(2, 1)
    start = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
    totals = Totals(model, Company(model), start=start)
    totals.add({"weight": torch.ones(1, 2)})
    assert totals.kept["weight"].tolist() == [[2, 2]]
    assert start["weight"].tolist() == [[2, 2]]

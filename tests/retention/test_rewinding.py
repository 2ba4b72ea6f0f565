"""The way back along the curvature, against dense algebra."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.retention.rewinding import mean_curvature, rewound, sought


def task(classes: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(40, 4), torch.randint(classes, (40,)))]


def trained(measure) -> tuple[nn.Module, hf.EWC, dict[str, torch.Tensor]]:
    """A network away from its anchors, the keeper that holds these, and the anchors."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    keeper = hf.EWC(model, strength=1.0).retain(measure(model, task()))
    anchors = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    return model, keeper, anchors


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("strength", [0.0, 3.0, 1e4])
def test_a_diagonal(strength):
    model, keeper, anchors = trained(hf.fisher)
    found = rewound(named(model), keeper.held, strength=strength, delta=0.01)
    for name, weight in named(model).items():
        omega = keeper.held.importance[name]
        expected = anchors[name] + (weight - anchors[name]) / (1 + strength * omega) / (1 + strength * 0.01)
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("strength", [0.0, 3.0, 100.0])
def test_layers_as_a_whole(strength):
    model, keeper, anchors = trained(hf.kfac)
    found = rewound(named(model), keeper.held, strength=strength, delta=0.01)
    for name, layer in keeper.held.layers.items():
        names = list(layer.shapes(name))
        sizes = [anchors[n].numel() for n in names]
        columns = []
        for place in range(sum(sizes)):  # K, column by column
            unit = torch.zeros(sum(sizes))
            unit[place] = 1.0
            parts = [part.view_as(anchors[n]) for n, part in zip(names, unit.split(sizes), strict=True)]
            columns.append(torch.cat([g.reshape(-1) for g in layer.gradient(parts, [0 * part for part in parts])]))
        K = torch.stack(columns, dim=1)
        d = torch.cat([(named(model)[n] - anchors[n]).reshape(-1) for n in names])
        expected = torch.linalg.solve(torch.eye(len(d)) + strength * K, d) / (1 + strength * 0.01)
        got = torch.cat([(found[n] - anchors[n]).reshape(-1) for n in names])
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("measure", [hf.fisher, hf.kfac])
def test_it_begins_at_the_weights_and_ends_at_the_anchors(measure):
    model, keeper, anchors = trained(measure)
    start = rewound(named(model), keeper.held, strength=0.0, delta=1.0)
    end = rewound(named(model), keeper.held, strength=1e12, delta=1.0)
    for name, weight in named(model).items():
        torch.testing.assert_close(start[name], weight)
        torch.testing.assert_close(end[name], anchors[name])


def test_without_curvature_it_is_linear_averaging():
    model, keeper, anchors = trained(lambda model, data: 0.0 * hf.fisher(model, data))
    found = rewound(named(model), keeper.held, strength=1.0, delta=3.0)
    for name, weight in named(model).items():
        torch.testing.assert_close(found[name], 0.75 * anchors[name] + 0.25 * weight)


@pytest.mark.parametrize("measure", [hf.fisher, hf.kfac])
def test_the_mean_of_the_diagonal(measure):
    model, keeper, _ = trained(measure)
    held = keeper.held
    diagonals = [*(value.reshape(-1) for value in held.importance.values())]
    diagonals += [layer.diagonal().reshape(-1) for layer in held.layers.values()]
    assert mean_curvature(held, named(model)) == pytest.approx(float(torch.cat(diagonals).mean()), rel=1e-4)


@pytest.mark.parametrize("least", [1e-6, 0.02, 1.0, 7.0, 3e5])
def test_the_least_multiplier_that_keeps(least):
    asked = []

    def kept(mu: float) -> bool:
        asked.append(mu)
        return mu >= least

    assert least <= sought(kept) <= 1.03 * least
    assert len(asked) < 30


def test_none_that_keeps():
    assert sought(lambda mu: False) == math.inf

"""The way back along the curvature, against dense algebra."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.errors import ParameterMismatchError
from holdfast.retention.rewinding import mean_curvature, new_task, rewound, sought
from holdfast.retention.task import as_importance


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
    found = rewound(named(model), keeper.held, strength=strength, rest=1 / (1 + 0.01 * strength))
    for name, weight in named(model).items():
        omega = keeper.held.importance[name]
        expected = anchors[name] + (weight - anchors[name]) / (1 + strength * omega) / (1 + strength * 0.01)
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("strength", [0.0, 3.0, 100.0])
def test_layers_as_a_whole(strength):
    model, keeper, anchors = trained(hf.kfac)
    found = rewound(named(model), keeper.held, strength=strength, rest=1 / (1 + 0.01 * strength))
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
    start = rewound(named(model), keeper.held, strength=0.0, rest=1.0)
    end = rewound(named(model), keeper.held, strength=1e12, rest=1e-12)
    for name, weight in named(model).items():
        torch.testing.assert_close(start[name], weight)
        torch.testing.assert_close(end[name], anchors[name])


def test_without_curvature_it_is_linear_averaging():
    model, keeper, anchors = trained(lambda model, data: 0.0 * hf.fisher(model, data))
    found = rewound(named(model), keeper.held, strength=1.0, rest=0.25)
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


# --- in the metric of the new task


@pytest.mark.parametrize("strength", [0.0, 3.0, 1e4])
def test_single_weights_in_the_metric_of_the_new_task(strength):
    model, keeper, anchors = trained(hf.fisher)
    importance = hf.fisher(model, task())
    new = new_task(importance, keeper.held, named(model), where="here")
    found = rewound(named(model), keeper.held, strength=strength, rest=0.5, new=new)
    for name, weight in named(model).items():
        M = importance[name] + importance[name].mean()
        expected = anchors[name] + 0.5 * M * (weight - anchors[name]) / (M + strength * keeper.held.importance[name])
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("strength", [0.0, 3.0, 100.0])
def test_layers_as_a_whole_in_the_metric_of_the_new_task(strength):
    model, keeper, anchors = trained(hf.kfac)
    importance = hf.kfac(model, task())
    new = new_task(importance, keeper.held, named(model), where="here")
    found = rewound(named(model), keeper.held, strength=strength, rest=0.5, new=new)
    for name, layer in keeper.held.layers.items():
        factors = importance[name].damped(0.1)
        M = torch.kron(factors.outputs, factors.inputs).double()
        U = torch.kron(layer.outputs_basis, layer.inputs_basis).double()
        K = (U * layer.spectrum.double().flatten()) @ U.T
        names = list(layer.shapes(name))
        d = layer.join(*(named(model)[n] - anchors[n] for n in names)).double().flatten()
        got = layer.join(*(found[n] - anchors[n] for n in names)).double().flatten()
        torch.testing.assert_close(got, 0.5 * torch.linalg.solve(M + strength * K, M @ d), rtol=1e-3, atol=1e-4)


def test_a_layer_without_factors_of_the_new_task_has_one_number():
    model, keeper, _ = trained(hf.kfac)
    importance = hf.fisher(model, task())
    new = new_task(importance, keeper.held, named(model), where="here")
    plain = rewound(named(model), keeper.held, strength=2.0, rest=1.0)
    for name, layer in keeper.held.layers.items():
        mean = torch.cat([importance[n].flatten() for n in layer.shapes(name)]).mean()
        assert new.layers[name] == pytest.approx(float(mean), rel=1e-5)
        found = rewound(named(model), keeper.held, strength=2.0 * new.layers[name], rest=1.0, new=new)
        for n in layer.shapes(name):
            torch.testing.assert_close(found[n], plain[n])


def test_the_mean_in_the_metric_of_the_new_task():
    model, keeper, _ = trained(hf.fisher)
    new = new_task(hf.fisher(model, task()), keeper.held, named(model), where="here")
    ratios = torch.cat([(keeper.held.importance[n] / new.weights[n]).flatten() for n in new.weights])
    assert mean_curvature(keeper.held, named(model), new) == pytest.approx(float(ratios.mean()), rel=1e-4)


def test_what_the_new_task_does_not_know_counts_a_little():
    model, keeper, _ = trained(hf.fisher)
    importance = dict(hf.fisher(model, task()))
    importance["0.weight"] = torch.zeros_like(importance["0.weight"])
    new = new_task(as_importance(importance, where="here"), keeper.held, named(model), where="here")
    mean = torch.cat([value.flatten() for value in importance.values()]).mean()
    torch.testing.assert_close(new.weights["0.weight"], torch.full((5, 4), 1e-3 * float(mean)))


def test_an_importance_that_does_not_fit():
    model, keeper, _ = trained(hf.fisher)
    importance = dict(hf.fisher(model, task()))
    with pytest.raises(ParameterMismatchError, match="is zero"):
        keeper.rewind(0.1, importance={name: 0 * value for name, value in importance.items()})
    del importance["2.bias"]
    with pytest.raises(ParameterMismatchError, match=r"'2.bias'. Measure it on this model"):
        keeper.rewind(0.1, importance=importance)

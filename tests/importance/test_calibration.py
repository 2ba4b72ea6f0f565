"""Nats per unit: measured on a parabola it is what algebra says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import ParameterMismatchError
from holdfast.importance import fisher, mas, signal, taylor


def regression() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A linear model at unit variance: its loss is an exact parabola whose Hessian is the Fisher."""
    model = nn.Linear(20, 4)
    x = torch.randn(200, 20)
    return model, [(x, model(x).detach() + 0.1 * torch.randn(200, 4))]


def test_the_fisher_of_a_gaussian_model_is_worth_one_nat():
    model, data = regression()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = fisher(model, data, loss="gaussian", calibrate=True)
    assert found.info.nats_per_unit == pytest.approx(1.0, rel=0.15)  # the diagonal of it, along random directions
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("estimator", [mas, signal, taylor])
def test_other_units_are_measured(estimator):
    model, data = regression()
    found = estimator(model, data, calibrate=True, loss="gaussian")
    factor = found.info.nats_per_unit
    direction = {name: 0.03 * torch.randn(p.shape) for name, p in model.named_parameters()}
    predicted = factor * sum(float((found[name] * d.square()).sum()) for name, d in direction.items()) / 2
    moved = nn.Linear(20, 4).requires_grad_(False)
    model.requires_grad_(False)
    rises = []
    for sign in (1, -1):
        moved.load_state_dict({name: p + sign * direction[name] for name, p in model.named_parameters()})
        ((x, y),) = data
        rises.append((moved(x) - y).square().sum(1).mean() / 2 - (model(x) - y).square().sum(1).mean() / 2)
    assert predicted == pytest.approx(float(sum(rises)) / 2, rel=0.4)
    assert (2.0 * found).info.nats_per_unit == pytest.approx(factor / 2)


def test_a_loss_that_does_not_rise_gives_no_factor():
    model = nn.Linear(3, 2)
    with pytest.warns(UserWarning, match=r"no factor found, nats_per_unit stays None.*Measure a trained model"):
        found = signal(model, [(torch.zeros(4, 3), torch.zeros(4, 2))], calibrate=True, loss=lambda o, b: 0 * o.sum(1))
    assert found.info.nats_per_unit is None


@pytest.mark.parametrize("estimator", [mas, signal])
def test_a_loss_without_calibration_has_no_effect(estimator):
    model, data = regression()
    with pytest.warns(UserWarning, match="loss= has no effect without calibrate=True"):
        assert estimator(model, data, loss="gaussian").info.nats_per_unit is None


def test_the_same_seed_gives_the_same_factor():
    model, data = regression()
    first, second, other = (
        mas(model, data, calibrate=True, loss="gaussian", seed=s).info.nats_per_unit for s in (0, 0, 1)
    )
    assert first == second != other


def test_an_importance_from_elsewhere_is_calibrated_as_an_estimators_own():
    model, data = regression()
    measured = mas(model, data, calibrate=True, loss="gaussian", seed=3)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = hf.calibrated(measured.with_info(nats_per_unit=None), model, data, loss="gaussian", seed=3)
    assert found.info == measured.info
    assert all(torch.equal(found[name], value) for name, value in measured.items())
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert (4.0 * found).info.nats_per_unit == pytest.approx(
        hf.calibrated(4.0 * found, model, data, loss="gaussian", seed=3).info.nats_per_unit
    )


def test_only_the_weights_of_an_importance_are_moved_to_calibrate_it():
    model, data = regression()
    exact = fisher(model, data, loss="gaussian")
    part = hf.Importance({"bias": exact["bias"]}, hf.ImportanceInfo("bias", 200))
    found = hf.calibrated(part, model, data, loss="gaussian")
    assert found.info.nats_per_unit == pytest.approx(1.0, rel=1e-3)  # without curvature between them


def test_kronecker_factors_are_calibrated_too():
    model, data = regression()
    found = hf.calibrated(hf.kfac(model, data, loss="gaussian"), model, data, loss="gaussian")
    assert found.info.nats_per_unit == pytest.approx(1.0, rel=0.15)
    assert list(found) == ["weight"]


def test_an_importance_of_another_model_is_not_calibrated():
    model, data = regression()
    with pytest.raises(
        ParameterMismatchError, match="calibrated: 2 names not among the trainable parameters of Linear"
    ):
        hf.calibrated(hf.uniform(nn.Sequential(model)), nn.Linear(20, 4), data, loss="gaussian")

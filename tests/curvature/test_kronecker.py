"""Sums of Kronecker products in a common eigenbasis."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from holdfast.curvature import Decayed, KroneckerCurvature
from holdfast.curvature.factored import KroneckerFactors
from holdfast.curvature.files import layers_from, layers_to_json, layers_to_tensors
from holdfast.curvature.kronecker import merged
from holdfast.errors import FileFormatError, NotFiniteError, OptionError
from holdfast.memory import Retained, retain

OUT, IN = 3, 4


def positive(size: int, seed: int, rank: int | None = None) -> Tensor:
    x = torch.randn(size, rank or size, generator=torch.Generator().manual_seed(seed))
    return x @ x.T


def factors(seed: int = 0) -> KroneckerFactors:
    return KroneckerFactors(positive(IN + 1, seed), positive(OUT, seed + 100), shape=(OUT, IN), bias="b")


def product(f: KroneckerFactors) -> Tensor:
    return torch.kron(f.outputs, f.inputs)


def dense(layer: KroneckerCurvature) -> Tensor:
    U = torch.kron(layer.outputs_basis, layer.inputs_basis)
    return (U * layer.spectrum.flatten()) @ U.T


def traces(K: Tensor) -> tuple[Tensor, Tensor]:
    K = K.reshape(OUT, IN + 1, OUT, IN + 1)
    return torch.einsum("aiaj->ij", K), torch.einsum("aibi->ab", K)


def test_one_task_is_exact():
    layer, own = merged(None, factors())
    torch.testing.assert_close(dense(layer), product(factors()), rtol=1e-4, atol=1e-4)
    assert torch.equal(own, layer.spectrum)
    assert (layer.shape, layer.bias) == ((OUT, IN), "b")
    D = torch.randn(OUT, IN + 1)
    expected = 0.5 * (D * (factors().outputs @ D @ factors().inputs)).sum()
    torch.testing.assert_close(layer.quadratic(D), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.matrix(layer.coordinates(D)), D)
    torch.testing.assert_close(layer.diagonal().flatten(), product(factors()).diagonal(), rtol=1e-4, atol=1e-4)
    weight, bias = layer.split(D)
    assert torch.equal(torch.cat([weight, bias[:, None]], 1), D)


def test_a_task_of_the_same_eigenvectors_is_exact():
    f = factors()
    other = KroneckerFactors(f.inputs @ f.inputs, torch.linalg.inv(f.outputs).contiguous(), shape=f.shape, bias=f.bias)
    layer, _ = merged(merged(None, f)[0], other, keep=0.5, add=2.0)
    expected = 0.5 * product(f) + 2 * product(other)
    torch.testing.assert_close(dense(layer), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_after_any_number_of_tasks_the_partial_traces_are_those_of_the_sum():
    layer, total = None, torch.zeros(OUT * (IN + 1), OUT * (IN + 1))
    for seed in range(6):
        layer, own = merged(layer, factors(seed), keep=0.9, add=1.5)
        total = 0.9 * total + 1.5 * product(factors(seed))
        assert (layer.spectrum >= own * (1 - 1e-5)).all()
    for found, expected in zip(traces(dense(layer)), traces(total)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    error = (dense(layer) - total).norm() / total.norm()
    assert error < 0.6
    # its spectrum is the best for its basis: the true diagonal along each direction, for the newest task exactly
    last = factors(5)
    U = torch.kron(layer.outputs_basis, layer.inputs_basis)
    torch.testing.assert_close(own.flatten(), (U.T @ (1.5 * product(last)) @ U).diagonal(), rtol=1e-3, atol=1e-3)


def test_damping_adds_a_share_of_the_mean_eigenvalue_to_every_direction():
    low = KroneckerFactors(positive(IN + 1, 0, rank=2), positive(OUT, 1, rank=1), shape=(OUT, IN), bias="b")
    A, G = (low.inputs.double(), low.outputs.double())
    expected = torch.kron(
        G + 0.1 * torch.linalg.eigvalsh(G).mean() * torch.eye(OUT).double(),
        A + 0.1 * torch.linalg.eigvalsh(A).mean() * torch.eye(IN + 1).double(),
    )
    damped = low.damped(0.1)
    torch.testing.assert_close(product(damped).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(low.damped(0.0)), product(low))
    layer, _ = merged(None, damped)
    assert (layer.spectrum > 0).all()
    torch.testing.assert_close(dense(layer), product(damped), rtol=1e-4, atol=1e-4)


def test_the_damping_of_several_tasks_adds_up_as_the_rest_does():
    layer, total = None, torch.zeros(OUT * (IN + 1), OUT * (IN + 1))
    for seed in range(3):
        layer, _ = merged(layer, factors(seed).damped(0.05), keep=0.5, add=2.0)
        total = 0.5 * total + 2 * product(factors(seed).damped(0.05))
    for found, expected in zip(traces(dense(layer)), traces(total)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(product(factors().damped(0.1).scaled(3.0)), product(factors().scaled(3.0).damped(0.1)))


def test_rounding_is_no_curvature():
    low = KroneckerFactors(positive(IN + 1, 0, rank=2), positive(OUT, 1, rank=1), shape=(OUT, IN), bias="b")
    layer, _ = merged(None, low)
    assert int((layer.spectrum > 0).sum()) == 2
    nothing = KroneckerFactors(torch.zeros(IN + 1, IN + 1), torch.zeros(OUT, OUT), shape=(OUT, IN), bias="b")
    assert not merged(None, nothing)[0].spectrum.any()
    torch.testing.assert_close(dense(merged(layer, nothing)[0]), dense(layer), rtol=1e-4, atol=1e-4)


# --- retain


def weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(OUT, IN, generator=generator), "b": torch.randn(OUT, generator=generator)}


def matrix(tensors) -> Tensor:
    return torch.cat([tensors["w"], tensors["b"][:, None]], dim=1)


def kept(rule, count: int = 2, **options) -> Retained:
    held = Retained()
    for seed in range(count):
        held = retain(
            held, {}, weights=weights(seed), layers={"w": factors(seed)}, rule=rule, num_targets=seed + 1, **options
        )
    return held


@pytest.mark.parametrize(
    ("rule", "shares"), [("sum", (1, 1)), ("mean", (0.5, 0.5)), (Decayed(0.25), (0.25, 1)), ("per_task", (1, 1))]
)
def test_rules_weigh_the_tasks(rule, shares):
    held = kept(rule)
    total = shares[0] * product(factors(0)) + shares[1] * product(factors(1))
    for found, expected in zip(traces(dense(held.layers["w"])), traces(total)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert held.covered.keys() == {"w", "b"}
    assert {name: value.shape for name, value in held.covered.items()} == {"w": (OUT, IN), "b": (OUT,)}
    if rule != "per_task":
        assert torch.equal(matrix(held.anchors), matrix(weights(1)))


def test_weighting_by_examples():
    found = kept("sum", weighting="examples").layers["w"]
    total = product(factors(0)) + 2 * product(factors(1))
    torch.testing.assert_close(traces(dense(found))[0], traces(total)[0], rtol=1e-4, atol=1e-3)


def test_separate_anchors_collapse_into_one():
    held, layer = kept("per_task"), kept("per_task").layers["w"]
    first, second = (matrix(weights(seed)) for seed in (0, 1))
    own = merged(merged(None, factors(0))[0], factors(1))[1]
    parts = [(layer.spectrum - own, first), (own, second)]
    for seed in (5, 6):
        x = matrix(weights(seed))
        separate = sum(0.5 * (S * layer.coordinates(x - anchor).square()).sum() for S, anchor in parts)
        together = layer.quadratic(x - matrix(held.anchors)) + held.constant
        torch.testing.assert_close(together, separate, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        torch.tensor(held.start), layer.quadratic(second - matrix(held.anchors)), rtol=1e-4, atol=1e-5
    )
    assert held.constant > 0


def test_max_is_no_rule_for_factors():
    with pytest.raises(OptionError, match=r"accumulate is 'max', a rule that Kronecker.*retain importance.to_diagonal"):
        kept("max")


def test_a_layer_that_a_task_leaves_out_counts_as_zero():
    held = retain(kept("mean", 1), {}, weights=weights(1), rule="mean")
    torch.testing.assert_close(held.layers["w"].spectrum, 0.5 * kept("mean", 1).layers["w"].spectrum)
    assert torch.equal(matrix(held.anchors), matrix(weights(1)))
    collapsed = retain(kept("per_task", 1), {}, weights=weights(1), rule="per_task")
    torch.testing.assert_close(matrix(collapsed.anchors), matrix(weights(0)), rtol=1e-4, atol=1e-4)


def test_the_factor_to_nats_is_averaged_by_traces():
    held = retain(Retained(), {}, weights=weights(0), layers={"w": factors(0)}, nats_per_unit=1.0)
    held = retain(held, {}, weights=weights(1), layers={"w": factors(1)}, nats_per_unit=3.0)
    a, b = factors(0).trace(), factors(1).trace()
    assert held.nats_per_unit == pytest.approx((a + 3 * b) / (a + b), rel=1e-4)


# --- as tensors and JSON


def described() -> tuple[dict, dict[str, Tensor]]:
    layers = {"w": merged(None, factors())[0]}
    return layers_to_json(layers), layers_to_tensors(layers)


def test_there_and_back():
    found = layers_from(*described(), where="here")["w"]
    layer = merged(None, factors())[0]
    assert (found.shape, found.bias) == (layer.shape, layer.bias)
    assert torch.equal(found.scaled(2.0).spectrum, 2 * layer.spectrum)
    assert torch.equal(found.inputs_basis, layer.inputs_basis)


def test_what_does_not_fit():
    layers, tensors = described()
    for wrong in ({}, {"v": layers["w"]}, None, []):
        with pytest.raises(FileFormatError, match="here: 'factors' does not list the layers of factors.safetensors"):
            layers_from(wrong, tensors, where="here")
    for entry in (None, {"shape": [3], "bias": "b"}, {"shape": [3, 4], "bias": 5}, {"shape": [3, -4], "bias": None}):
        with pytest.raises(FileFormatError, match="here: 'shape' or 'bias' of 'w' is damaged"):
            layers_from({"w": entry}, tensors, where="here")
    with pytest.raises(FileFormatError, match=r"the tensors of 'w' do not fit its shape \(3, 5\)"):
        layers_from({"w": {"shape": [3, 5], "bias": "b"}}, tensors, where="here")
    for bad in (torch.nan, -1.0):
        spectrum = tensors["w/spectrum"].clone()
        spectrum[0, 0] = bad
        with pytest.raises(NotFiniteError, match="the factors of 'w' hold entries that are not finite, or negative"):
            layers_from(layers, {**tensors, "w/spectrum": spectrum}, where="here")

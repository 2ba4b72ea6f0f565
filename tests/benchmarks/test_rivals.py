"""What is timed against each other measures the same."""

import pytest
import torch
from benchmarks import importance, rivals
from benchmarks.nets import GPT, convnet, residual_net
from benchmarks.variants import all_variants, truths
from benchmarks.workloads import part, singles
from tests.benchmarks.tiny import LANGUAGE, MLP

import holdfast as hf
from holdfast.lab.training import mlp


@pytest.mark.parametrize("workload", [MLP, LANGUAGE], ids=lambda workload: workload.name)
def test_all_agree_with_the_truth(workload):
    batch = part(workload.batches(1)[0], 0, 3)
    expected = dict(truths(workload, workload.model(), batch))
    compared = set()
    for name, variant in all_variants(workload, chunk=2).items():
        if variant.quantity is None or not (variant.ours or "one at a time" in name or "vmap" in name):
            continue
        compared.add(variant.quantity)
        found = variant.call(workload.model(), singles(batch, 3) if variant.alone else [batch])
        assert found.keys() == expected[variant.quantity].keys()
        for key, value in found.items():
            torch.testing.assert_close(value.double(), expected[variant.quantity][key], rtol=1e-4, atol=1e-7)
    assert compared == expected.keys()


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("backpack", "BackPACK SumGradSquared"),
        ("backpack", "BackPACK DiagGGNExact"),
        ("opacus", "Opacus GradSampleModule"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_packages_agree_with_the_truth_and_leave_the_model_alone(package, name):
    pytest.importorskip(package)
    model, batch = MLP.model(), part(MLP.batches(1)[0], 0, 3)
    variant = all_variants(MLP, chunk=2)[name]
    expected = dict(truths(MLP, MLP.model(), batch))[variant.quantity]
    for _ in range(2):
        found = variant.call(model, [batch, batch])
        for key, value in expected.items():
            torch.testing.assert_close(found[key].double(), value, rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._backward_hooks or module._forward_hooks for module in model.modules())


def test_one_at_a_time_is_the_same_quantity():
    model = mlp(7, (5,), 3, slope=0.2)
    inputs, targets = torch.randn(9, 7), torch.arange(9) % 3
    found = rivals.one_at_a_time(model, singles(((inputs,), targets), 9), rows=rivals.exact_rows, phi=torch.square)
    for name, value in hf.fisher(model, [(inputs, targets)]).items():
        torch.testing.assert_close(found[name], value)


def test_verdicts():
    expected = {"a": torch.ones(4), "b": torch.zeros(2)}
    assert importance.verdict({"a": torch.ones(4), "b": torch.zeros(2)}, expected) == "0e+00"
    assert importance.verdict({"a": torch.full((4,), 1.5), "b": torch.zeros(2)}, expected) == "wrong by 50%"
    assert importance.verdict({"a": torch.ones(4) + 2e-6}, expected) == "2e-06; lacks 1 of 2 parameters"


@pytest.mark.filterwarnings("ignore")  # of BackPACK and Opacus
def test_what_fails_is_a_row(monkeypatch):
    def fails(*_):
        raise RuntimeError("no rule for this layer\nand more")

    monkeypatch.setattr(rivals, "opacus_squares", fails)
    monkeypatch.setattr(importance, "vmapped", fails)
    monkeypatch.setattr(importance, "peaks_of", lambda *_, **__: {})
    rows = {row["what"]: row for row in importance.measured(MLP.trial(), quick=True).rows}
    failed = rows["Opacus GradSampleModule"]
    assert failed["plain passes"] == "fails: RuntimeError: no rule for this layer"
    assert failed["error"] is None
    assert rows["fisher, empirical"]["plain passes"].median > 0


def test_a_missing_package_leaves_a_line(monkeypatch):
    def missing():
        raise ImportError("No module named 'transformers'")

    workload = importance.WORKLOADS["encoder"].trial()
    part = importance.measured(type(workload)(**{**vars(workload), "build": missing}), quick=True)
    assert part.rows == []
    assert part.notes == ["Not measured: No module named 'transformers'. Install the extra `bench`."]


def test_the_nets_are_what_they_say():
    def count(model):
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(convnet(10)) == 582_026
    assert count(residual_net(10)) == 308_650
    gpt = GPT(vocabulary=8192, width=256, num_layers=4, num_heads=8, length=128)
    assert gpt.head.weight is gpt.tokens.weight
    assert count(gpt) == 8192 * 256 + 128 * 256 + 4 * (12 * 256**2 + 13 * 256) + 2 * 256

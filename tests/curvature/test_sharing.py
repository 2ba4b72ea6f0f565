"""Layers that read the same input: one basis of it, in memory, in files and after any number of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.factors import Block
from tests.moments.zoo import Apply
from torch import Tensor, nn

from holdfast import EWC, FactoredImportance, kfac
from holdfast.curvature import KroneckerCurvature, KroneckerFactors
from holdfast.curvature.sharing import joined_layers

TOGETHER = ["0.q.weight", "0.k.weight", "0.v.weight"]


def attention(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(width), nn.Linear(width, 3))


def data(num: int = 12, width: int = 8, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(num, 5, width, generator=generator), torch.randint(0, 3, (num, 5), generator=generator))
        for _ in range(2)
    ]


def one_tensor(tensors: list[Tensor]) -> bool:
    return len({tensor.data_ptr() for tensor in tensors}) == 1


@pytest.mark.parametrize("factors", ["expand", "reduce", "matched"])
def test_queries_keys_and_values_are_known_to_read_the_same(factors, tmp_path: Path):
    found = kfac(attention(), data(), factors=factors, share_inputs=factors == "matched")
    assert {name: f.reads for name, f in found.items() if f.reads is not None} == dict.fromkeys(TOGETHER, TOGETHER[0])
    found.save(tmp_path / "kfac")
    for each in (found, 2.0 * found, found.to("cpu"), found + found, FactoredImportance.load(tmp_path / "kfac")):
        assert [each[name].reads for name in TOGETHER] == [TOGETHER[0]] * 3
        if factors != "matched":
            assert one_tensor([each[name].inputs for name in TOGETHER])


def test_layers_whose_own_inputs_differ_share_a_basis_on_request_alone():
    assert all(f.reads is None for f in kfac(attention(), data()).values())
    apart, together = (kfac(attention(), data(), share_inputs=share) for share in (False, True))
    for name, f in apart.items():
        assert torch.equal(f.inputs, together[name].inputs)
        assert torch.equal(f.outputs, together[name].outputs)


def test_layers_part_where_a_batch_gives_them_other_inputs():
    def forward(self, x: Tensor) -> Tensor:
        other = x + 1 if len(x) > 3 else x
        return self.a(x) + self.b(x) + self.c(other)

    model = Apply(forward, a=nn.Linear(4, 3), b=nn.Linear(4, 3), c=nn.Linear(4, 3))
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    together = kfac(model, [(x[:3], y[:3])])
    assert {f.reads for f in together.values()} == {"a.weight"}
    found = kfac(model, [(x[:3], y[:3]), (x[3:], y[3:])])
    assert [f.reads for f in found.values()] == ["a.weight", "a.weight", None]


def test_a_keeper_holds_one_basis_through_tasks_files_and_states(tmp_path: Path):
    model = attention()
    keeper = EWC(model, strength=10.0, every=1)
    for seed in range(3):
        keeper.retain(kfac(model, data(seed=seed), share_inputs=True))
    keeper.save(tmp_path / "skills")
    copied = EWC(model, strength=1.0)
    copied.load_state_dict(keeper.state_dict())
    for each in (keeper, EWC.load(tmp_path / "skills", model), copied):
        layers = [each.held.layers[name] for name in TOGETHER]
        assert all(isinstance(layer, KroneckerCurvature) for layer in layers)
        assert one_tensor([layer.inputs_basis for layer in layers])
        assert not one_tensor([layers[0].inputs_basis, each.held.layers["0.o.weight"].inputs_basis])
        for layer, own in zip(layers, TOGETHER):
            assert torch.equal(layer.spectrum, keeper.held.layers[own].spectrum)


def positive(size: int, seed: int) -> Tensor:
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    return x @ x.T


def dense(layer: KroneckerCurvature) -> Tensor:
    U = torch.kron(layer.outputs_basis, layer.inputs_basis)
    return (U * layer.spectrum.flatten()) @ U.T


def tasks(seed: int, *, alike: bool) -> dict[str, KroneckerFactors]:
    outs = {"q": 4, "k": 2, "v": 2}
    return {
        name: KroneckerFactors(
            positive(5, seed if alike else 10 * seed + place),
            positive(out, seed + place + 50),
            shape=(out, 5),
            reads="q",
        )
        for place, (name, out) in enumerate(outs.items())
    }


def test_with_the_same_inputs_each_layer_is_as_exact_as_alone():
    new = tasks(0, alike=True)
    for name, (layer, own) in joined_layers(new, {}, "sum", num_tasks=0, share=1.0).items():
        expected = torch.kron(new[name].outputs, new[name].inputs)
        torch.testing.assert_close(dense(layer), expected, rtol=1e-4, atol=1e-3)
        assert torch.equal(own, layer.spectrum)


@pytest.mark.parametrize("alike", [True, False])
def test_after_several_tasks_the_curvature_among_the_inputs_is_that_of_all_layers_together(alike: bool):
    held, total, outputs = {}, torch.zeros(5, 5), {}
    for seed in range(4):
        new = tasks(seed, alike=alike)
        joint = joined_layers(new, held, "sum", num_tasks=seed, share=1.0)
        held = {name: layer for name, (layer, _) in joint.items()}
        total = total + sum(f.outputs.trace() * f.inputs for f in new.values())
        for name, f in new.items():
            outputs[name] = outputs.get(name, 0) + f.inputs.trace() * f.outputs
            assert (held[name].spectrum >= joint[name][1] * (1 - 1e-5)).all()
    found = torch.zeros(5, 5)
    for name, layer in held.items():
        K = dense(layer).reshape(len(layer.spectrum), 5, len(layer.spectrum), 5)
        found = found + torch.einsum("aiaj->ij", K)
        torch.testing.assert_close(torch.einsum("aibi->ab", K), outputs[name], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found, total, rtol=1e-3, atol=1e-2)
    assert one_tensor([layer.inputs_basis for layer in held.values()])

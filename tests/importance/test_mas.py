"""MAS and Taylor: closed forms, the batched and the local variant."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.moments.zoo import Apply, build
from torch import Tensor, nn

from holdfast.errors import OptionError, UnknownNameError, UnsupportedLayerError
from holdfast.importance import mas, taylor


def unlabelled(x: Tensor, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(some, torch.zeros(len(some), dtype=torch.long)) for some in x.split(size)]


def test_mas_of_a_linear_layer():
    model, x = nn.Linear(5, 3), torch.randn(11, 5)
    found = mas(model, unlabelled(x))
    f = model(x).detach()
    torch.testing.assert_close(found["weight"], (2 * f[:, :, None] * x[:, None, :]).abs().mean(0))
    torch.testing.assert_close(found["bias"], (2 * f).abs().mean(0))
    assert (found.info.kind, found.info.unit, found.info.nats_per_unit) == ("mas", "output^2/weight", None)
    batched = mas(model, unlabelled(x), batched=True)
    torch.testing.assert_close(batched["weight"], (2 * f[:, :, None] * x[:, None, :]).mean(0).abs())
    assert batched.info.kind == "mas-batched"


def test_mas_of_the_softmax():
    model, x = nn.Linear(5, 3), torch.randn(6, 5)
    found = mas(model, unlabelled(x), output="softmax")
    expected = torch.zeros(3, 5)
    for one in x:
        value = model(one).softmax(0).square().sum()
        expected += torch.autograd.grad(value, model.weight)[0].abs() / len(x)
    torch.testing.assert_close(found["weight"], expected)


def test_taylor_of_a_linear_layer():
    model, x, y = nn.Linear(5, 3), torch.randn(11, 5), torch.randint(0, 3, (11,))
    found = taylor(model, [(x, y)])
    g = (model(x).softmax(1) - F.one_hot(y, 3)).detach()
    expected = (model.weight * g[:, :, None] * x[:, None, :]).detach().abs().mean(0)
    torch.testing.assert_close(found["weight"], expected)
    assert found.info.unit == "nats"


def test_local_mas_of_relu_layers_is_hebbian():
    model, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), torch.randn(11, 5)
    found = mas(model, unlabelled(x), local=True)
    y = model[0](x).relu().detach()
    torch.testing.assert_close(found["0.weight"], 2 * torch.einsum("bj,bi->ji", y, x.abs()) / len(x))
    torch.testing.assert_close(found["0.bias"], 2 * y.mean(0))
    z = F.linear(y, model[2].weight, model[2].bias).detach()
    torch.testing.assert_close(found["2.weight"], 2 * torch.einsum("bj,bi->ji", z.abs(), y) / len(x))
    assert found.info.kind == "mas-local"


@pytest.mark.parametrize("name", ["mlp", "sequence", "conv1d", "grouped circular", "frozen"])
def test_local_mas_is_the_gradient_within_each_layer(name: str):
    """By hand: run every layer and its activation alone on its input, one example at a time."""
    model, call = build(name)
    x = call.args[0]
    found = mas(model, unlabelled(x, 3), local=True, chunk_bytes=2000)
    expected = {key: torch.zeros_like(p) for key, p in model.named_parameters() if p.requires_grad}
    layers = list(model)
    with torch.no_grad():
        inputs = [x]
        for layer in layers:
            inputs.append(layer(inputs[-1]))
    for place, layer in enumerate(layers):
        trained = {f"{place}.{key}": p for key, p in layer.named_parameters() if p.requires_grad}
        following = layers[place + 1] if place + 1 < len(layers) else nn.Identity()
        activation = nn.Identity() if isinstance(following, nn.Flatten) else following
        for b in range(len(x) if trained else 0):
            y = activation(layer(inputs[place][b : b + 1]))
            for key, value in zip(trained, torch.autograd.grad(y.square().sum(), list(trained.values()))):
                expected[key] += value.abs() / len(x)
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key].float())


def test_local_mas_names_what_it_cannot_measure_and_the_remedy_works():
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    words = r"mas\(local=True\): 2 .*'1.weight' \(by layer_norm\), '1.bias' \(by layer_norm\).*others='zero'"
    with pytest.raises(UnsupportedLayerError, match=words):
        mas(model, unlabelled(torch.randn(6, 5)), local=True)
    found = mas(model, unlabelled(torch.randn(6, 5)), local=True, others="zero")
    assert (found["1.weight"] == 0).all()
    assert (found["0.weight"] > 0).any()
    model[1].requires_grad_(False)
    assert "1.weight" not in mas(model, unlabelled(torch.randn(6, 5)), local=True)


def test_local_mas_needs_the_examples_first():
    model = Apply(lambda self, x: self.a(x.flatten(0, 1)).view(len(x), -1), a=nn.Linear(5, 2))
    data = unlabelled(torch.randn(4, 3, 5))
    with pytest.raises(
        UnsupportedLayerError, match=r"'a.weight' has an input of shape \[12, 5\] for 4 examples.*local=False"
    ):
        mas(model, data, local=True)
    mas(model, data, local=False)


def test_options_without_meaning():
    model, data = nn.Linear(5, 3), unlabelled(torch.randn(4, 5))
    with pytest.raises(OptionError, match="local=True goes with batched=False only"):
        mas(model, data, local=True, batched=True)
    with pytest.raises(UnknownNameError, match="unknown output of mas 'sofmax'. Did you mean 'softmax'"):
        mas(model, data, output="sofmax")
    with pytest.raises(UnknownNameError, match="unknown value of others 'zeros'. Did you mean 'zero'"):
        mas(model, data, local=True, others="zeros")
    with pytest.warns(UserWarning, match="output has no effect with local=True"):
        mas(model, data, local=True, output="softmax")
    with pytest.warns(UserWarning, match="others has no effect without local=True"):
        mas(model, data, others="zero")


def test_classes_leave_the_other_columns_out():
    torch.manual_seed(0)
    model, data = nn.Linear(4, 6), [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]
    head = nn.Linear(4, 2)
    with torch.no_grad():
        head.weight.copy_(model.weight[[1, 3]])
        head.bias.copy_(model.bias[[1, 3]])
    found, alone = mas(model, data, classes=(1, 3)), mas(head, data)
    torch.testing.assert_close(found["weight"][[1, 3]], alone["weight"])
    assert float(found["weight"][[0, 2, 4, 5]].abs().sum()) == 0
    with pytest.raises(OptionError, match="classes go with local=False only"):
        mas(nn.Sequential(model), data, classes=(1, 3), local=True)

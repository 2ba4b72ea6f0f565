"""What the recorder on Linear and convolution layers sees."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.moments.zoo import Apply, build
from torch import Tensor, nn

from holdfast.moments.layers import LayerRecorder, LayerUse


def watched(model: nn.Module, *args: Tensor, activations: bool = True) -> tuple[list[LayerUse], dict[str, set[str]]]:
    uses: list[LayerUse] = []
    recorder = LayerRecorder(model, uses.append, activations=activations)
    with recorder:
        outputs = model(*args)
    recorder.finish(outputs)
    return uses, recorder.elsewhere


ACTIVATIONS = {
    "function": lambda z: F.leaky_relu(z, 0.2),
    "torch": torch.tanh,
    "method": lambda z: z.sigmoid(),
    "module": nn.GELU(),
    "in place": lambda z: F.relu(z, inplace=True),
    "in-place module": nn.ELU(inplace=True),
    "in-place method": lambda z: z.relu_(),
    "softplus": nn.Softplus(beta=2.0),
    "silu": F.silu,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_is_found_in_every_form(name: str):
    activation = ACTIVATIONS[name]
    model = Apply(lambda self, x: self.b(activation(self.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    x = torch.randn(5, 3)
    (a, b), elsewhere = watched(model, x)
    z = F.linear(x, model.a.weight, model.a.bias).detach()
    torch.testing.assert_close(a.output, z)
    y = activation(z.clone())
    torch.testing.assert_close(a.activation(a.output), y)
    torch.testing.assert_close(b.input, y)
    assert (a.weight, a.bias, a.final) == ("a.weight", "a.bias", False)
    assert b.activation is None
    assert b.final
    assert not elsewhere


def test_an_output_changed_in_place_by_something_else_is_kept():
    model = Apply(lambda self, x: self.a(x).add_(1.0), a=nn.Linear(3, 4))
    x = torch.randn(5, 3)
    (use,), _ = watched(model, x)
    torch.testing.assert_close(use.output, model.a(x).detach())


def test_functional_uses_are_seen():
    model, call = build("functional second use")
    uses, _ = watched(model, *call.args)
    assert sorted(str(use.weight) for use in uses) == ["a.weight", "a.weight", "b.weight"]
    assert [use.bias for use in uses if use.weight == "a.weight"] == ["a.bias", None]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("norms", {"1.weight": "layer_norm", "1.bias": "layer_norm", "3.weight": "group_norm", "3.bias": "group_norm"}),
        ("tied", {"embedding.weight": "embedding"}),
        ("transposed", {"0.weight": "conv_transpose2d", "0.bias": "conv_transpose2d"}),
        ("raw parameter", {"scale": "mul", "shift": "matmul", "back": "sub"}),
        ("subclass", {"1.weight": "sum"}),
        (
            "attention",
            dict.fromkeys(
                ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"), "multi_head_attention_forward"
            ),
        ),
    ],
)
def test_other_uses_of_parameters_are_named(name: str, expected: dict[str, str]):
    model, call = build(name)
    _, elsewhere = watched(model, *call.args)
    prefix = "attention." if name == "attention" else ""
    assert elsewhere == {prefix + key: {function} for key, function in expected.items()}


def test_reading_a_parameter_is_no_use_of_it():
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        assert self.a.weight.shape[1] == len(self.a.weight.detach()[0])
        return self.a(x.to(self.a.weight.dtype)) * self.a.weight.data.norm()

    _, elsewhere = watched(Apply(forward, a=nn.Linear(3, 2)), torch.randn(4, 3))
    assert not elsewhere


def test_a_parameter_used_out_of_sight_is_found_in_the_graph():
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
            return x + weight.data.sum()

        @staticmethod
        def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
            return g, g.sum().expand(2, 3)

    model = Apply(lambda self, x: Hidden.apply(self.a(x), self.b.weight), a=nn.Linear(3, 2), b=nn.Linear(3, 2))
    _, elsewhere = watched(model, torch.randn(4, 3))
    assert elsewhere == {"b.weight": {"a function that cannot be watched"}}

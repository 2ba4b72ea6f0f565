"""A measured model is left as it was found."""

from __future__ import annotations

import gc
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import holdfast as hf
from holdfast.moments.state import measuring


class Stubborn(nn.Module):
    """Keeps its norm in training mode, counts its calls, and draws noise."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout()
        self.a = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.a(self.drop(self.norm(x))) + torch.randn(2)


def snapshot(model: nn.Module) -> dict[str, object]:
    return {
        "training": [module.training for module in model.modules()],
        "grads": [p.grad for p in model.parameters()],
        "grad values": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "buffers": [id(b) for b in model.buffers()],
        "buffer values": [b.clone() for b in model.buffers()],
        "weights": [p.detach().clone() for p in model.parameters()],
        "rng": torch.get_rng_state(),
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
    }


def assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    for key, old in before.items():
        new = after[key]
        if key == "rng":
            assert torch.equal(old, new)
        elif key == "grads":
            assert all(a is b for a, b in zip(old, new))
        elif key in ("grad values", "buffer values", "weights"):
            assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(old, new)), key
        else:
            assert old == new, key


@pytest.mark.parametrize("fail", [False, True])
def test_everything_comes_back(fail: bool):
    model = Stubborn()
    model.a.eval()
    model.a.bias.requires_grad_(False)
    model.a.weight.grad = torch.ones(2, 3)
    before = snapshot(model)
    try:
        with measuring(model):
            assert not model.drop.training
            assert model.norm.training  # the model's own will, which the probe reports
            model(torch.randn(4, 3)).sum().backward()
            model.requires_grad_(False)
            if fail:
                raise KeyError("of the user")
    except KeyError:
        assert fail
    expected = {key: value for key, value in before.items() if key != "grad values"}
    assert_same(expected, snapshot(model))
    assert float(model.calls) == 0


def test_gradients_are_enabled_whatever_the_callers_mode():
    model = nn.Linear(3, 2)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            with measuring(model):
                assert model(torch.ones(1, 3)).requires_grad
            assert not torch.is_grad_enabled()


def test_gradient_hooks_of_parameters_are_silent_and_come_back():
    model, seen = nn.Linear(3, 2), []
    model.weight.register_hook(seen.append)
    with measuring(model):
        torch.autograd.grad(model(torch.ones(1, 3)).sum(), model.weight)
    assert not seen
    model(torch.ones(1, 3)).sum().backward()
    assert len(seen) == 1


def test_compiled_parts_run_uncompiled():
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        calls.append(graph)
        return graph

    model = nn.Sequential(torch.compile(nn.Linear(3, 3), backend=backend), nn.ReLU())
    with measuring(model):
        model(torch.ones(2, 3))
    assert not calls
    model(torch.ones(2, 3))
    assert calls


def test_backward_hooks_of_modules_are_silent_and_come_back():
    """As those with which Opacus reads what a forward hook of its own kept in training mode."""
    model, seen = nn.Sequential(nn.Linear(3, 2), nn.ReLU()), []
    model[0].register_full_backward_hook(lambda *_: seen.append(1))
    model[1].register_full_backward_pre_hook(lambda *_: seen.append(2))
    model[0].weight.register_post_accumulate_grad_hook(seen.append)
    with measuring(model):
        model(torch.ones(1, 3)).sum().backward()
    assert not seen
    assert model[0].weight.grad is None
    model(torch.ones(1, 3, requires_grad=True)).sum().backward()
    assert len(seen) == 3


def test_attributes_and_gradients_come_back():
    class Caching(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            self.last = super().forward(input)
            self.last.sum().backward(retain_graph=True)
            return self.last

    model = Caching(3, 2)
    grad = model.weight.grad = torch.ones(2, 3)
    with measuring(model):
        model(torch.ones(1, 3))
    assert not hasattr(model, "last")
    assert model.weight.grad is grad
    assert (grad == 1).all()


@pytest.mark.parametrize(
    "measure",
    [
        hf.fisher,
        partial(hf.fisher, kind="batched"),
        hf.mas,
        partial(hf.mas, local=True, others="zero"),
        partial(hf.signal, others="zero"),
        hf.taylor,
        hf.kfac,
    ],
)
def test_no_tensor_waits_for_the_garbage_collector(measure):
    """Which comes late: what a study noted of a large model would be in memory beside the first batch."""
    model = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 5), nn.ReLU())
    data = [(torch.randint(20, (6, 3)), torch.randint(5, (6,))) for _ in range(3)]
    measure(model, data)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        measure(model, data)
        gc.collect()
        assert not [found for found in gc.garbage if isinstance(found, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()

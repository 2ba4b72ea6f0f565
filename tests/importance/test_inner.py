"""Every estimator on models whose forward pass takes gradients itself, or changes in place what no gradient needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.moments.inner import INNER, ByTransform, Hamiltonian, mapped
from tests.moments.zoo import build
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import OptionError, UnsupportedLayerError
from holdfast.moments.calls import Call

pytestmark = pytest.mark.filterwarnings("ignore:.*one example at a time", "ignore:kfac. in .* have the diagonal")


def data_for(name: str) -> tuple[nn.Module, Call, Tensor, list[tuple[Tensor, Tensor]]]:
    """A model, a call of all examples, their targets, and the same in two batches."""
    model, call = build(name)
    with torch.enable_grad():
        answers = call(model).detach()
    targets = answers + torch.randn_like(answers)
    (x,) = call.args
    return model, call, targets, [(x[:3], targets[:3]), (x[3:], targets[3:])]


def gradients(
    model: nn.Module, call: Call, score: Callable[[Tensor, int], Tensor], each: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Mean over examples of a function of each one's gradient, a forward and backward pass for each."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    totals = {name: torch.zeros_like(p) for name, p in named.items()}
    for b in range(call.size):
        value = score(call.examples(b, b + 1)(model), b)
        model.zero_grad()
        value.backward()
        for name, p in named.items():
            totals[name] += each(p.grad) / call.size if p.grad is not None else 0.0
    model.zero_grad()
    return {name: total.detach() for name, total in totals.items()}


def nll(targets: Tensor) -> Callable[[Tensor, int], Tensor]:
    return lambda outputs, b: (outputs - targets[b : b + 1]).square().sum() / 2


def squares(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A loss that keeps batches as they are."""
    return (outputs - batch[1]).square().sum(dim=1) / 2


def assert_close(found: hf.Importance, expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(
            found[name].double(), value, rtol=1e-5, atol=1e-6 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", INNER)
def test_empirical_fisher(name: str):
    model, call, targets, data = data_for(name)
    expected = gradients(model, call, nll(targets), torch.square)
    assert_close(hf.fisher(model, data, kind="empirical", loss="gaussian"), expected)


@pytest.mark.parametrize("name", INNER)
def test_exact_fisher(name: str):
    """For a unit variance the Fisher is the sum over outputs of the squares of their gradients."""
    model, call, targets, data = data_for(name)
    terms = [gradients(model, call, lambda o, b, k=k: o[0, k], torch.square) for k in range(targets.shape[1])]
    expected = {key: torch.stack([term[key] for term in terms]).sum(dim=0) for key in terms[0]}
    assert_close(hf.fisher(model, data, loss="gaussian"), expected)


@pytest.mark.parametrize("name", ["hamiltonian", "settling", "checkpointed forces", "pushed", "biases"])
def test_sampled_and_batched_fisher(name: str):
    model, call, targets, data = data_for(name)
    exact = hf.fisher(model, data, loss="gaussian")
    sampled = hf.fisher(model, data, kind="sampled", loss="gaussian", num_draws=20)
    total, found = (sum(float(value.sum()) for value in values.values()) for values in (exact, sampled))
    assert abs(found / total - 1) < 0.5
    batched = hf.fisher(model, [(call.args[0], targets)], kind="batched", loss="gaussian")
    mean = gradients(model, Call(call.args, {}, 1), lambda *_: nll_of_all(model, call, targets), torch.square)
    assert_close(batched, mean)


def nll_of_all(model: nn.Module, call: Call, targets: Tensor) -> Tensor:
    return (call(model) - targets).square().sum() / 2 / call.size


@pytest.mark.parametrize("name", INNER)
def test_taylor_and_mas(name: str):
    model, call, targets, data = data_for(name)
    slopes = gradients(model, call, nll(targets), torch.abs)
    weights = dict(model.named_parameters())
    expected = {key: value * weights[key].detach().abs() for key, value in slopes.items()}
    assert_close(hf.taylor(model, data, loss="gaussian"), expected)
    assert_close(hf.mas(model, data), gradients(model, call, lambda o, _: o.square().sum(), torch.abs))


@pytest.mark.parametrize("name", INNER)
def test_kfac_has_factors_only_where_they_are_right(name: str):
    model, call, targets, data = data_for(name)
    found = hf.kfac(model, data, kind="empirical", loss="gaussian")
    expected = gradients(model, call, nll(targets), torch.square)
    for key, value in found.diagonal.items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6 * float(expected[key].max()))
    one = Call((call.args[0][:1],), {}, 1)
    if call.args[0].ndim == 2:  # exact for one example without positions
        single = hf.kfac(model, [(call.args[0][:1], targets[:1])], kind="empirical", loss="gaussian")
        expected = gradients(model, one, nll(targets), torch.square)
        for key, factors in single.items():
            diagonal = torch.outer(factors.outputs.diagonal(), factors.inputs.diagonal())
            torch.testing.assert_close(
                diagonal[:, : expected[key].shape[1]].double(), expected[key], rtol=1e-4, atol=1e-8
            )


def test_signal_of_a_model_that_takes_gradients():
    """The same as of its parts, which see the same inputs."""
    model, call, _, data = data_for("hamiltonian without a guard")
    assert isinstance(model, Hamiltonian)
    found = hf.signal(model, data)
    (x,) = call.args
    weight, inner = model.features.weight, model.energy[0].weight
    assert torch.allclose(found["features.weight"].double(), weight.abs() * x.abs().mean(dim=0), rtol=1e-5)
    assert torch.allclose(found["energy.0.weight"].double(), inner.abs() * model.features(x).abs().mean(0), rtol=1e-5)


@pytest.mark.parametrize("name", ["pushed", "mapped", "adapting by torch.func"])
def test_signal_inside_a_transform_is_refused(name: str):
    model, _, _, data = data_for(name)
    with pytest.raises(UnsupportedLayerError, match=r"signal: .*\(by (linear|sub) inside a transform of torch.func\)"):
        hf.signal(model, data)
    assert hf.signal(model, data, others="zero").info.details["others"] == "zero"


def test_kfac_of_a_layer_that_a_transform_hides():
    model, _, _, data = data_for("mapped")
    assert isinstance(model, ByTransform)
    with pytest.warns(UserWarning, match=r"kfac: .*'inner.0.weight': it is called inside a transform of torch.func"):
        found = hf.kfac(model, data, loss="gaussian")
    assert set(found) == {"outer.weight"}

    model._transform = lambda network, x: mapped(network, x) if (x[:, 0] > 5).any() else network(x)
    late = [*data, (torch.full((1, 6), 9.0, dtype=torch.float64), data[0][1][:1])]
    with pytest.raises(
        UnsupportedLayerError, match=r"kfac: the layer of 'inner.0.weight' is called inside a transform"
    ):
        hf.kfac(model, late, loss="gaussian")
    with pytest.warns(UserWarning, match="have the diagonal"):
        hf.kfac(model, late[::-1], loss="gaussian")


def test_inputs_that_ask_for_gradients_keep_to_themselves():
    model, call, _, data = data_for("second derivatives")
    hf.fisher(model, data, loss="gaussian")
    assert not any(x.requires_grad for x, _ in data)

    class Places(nn.Module):
        """Takes the gradient at its input, which the data must ask for."""

        def __init__(self) -> None:
            super().__init__()
            self.u = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.autograd.grad(self.u(x).sum(), x, create_graph=True)[0]

    net, x = Places().double(), call.args[0].clone().requires_grad_()
    expected = gradients(net, Call((x,), {}, len(x)), lambda o, _: o.square().sum() / 2, torch.square)
    found = hf.fisher(net, [(x, torch.zeros(4, 6).double())], kind="empirical", loss="gaussian")
    assert_close(found, expected)
    assert x.grad is None


def test_gradients_taken_in_some_batches_only():
    """What the first batch does not show makes a later one be looked at anew."""
    model, _ = build("hamiltonian")
    call, targets = Call((torch.randn(8, 6).double(),), {}, 8), torch.randn(8, 4).double()
    assert isinstance(model, Hamiltonian)

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = model

        def forward(self, x: Tensor) -> Tensor:
            state = self.field.features(x)
            return self.field(x) if x[0, 0] > 5 else state * self.field.energy(state)

    net, x = Sometimes(), call.args[0].clone()
    x[4:, 0] = 9.0
    expected = gradients(net, Call((x,), {}, 8), nll(targets), torch.square)
    batches = [(x[i : i + 2], targets[i : i + 2]) for i in range(0, 8, 2)]
    assert_close(hf.fisher(net, batches, kind="empirical", loss=squares), expected)


def test_a_step_that_lacks_a_gradient_does_not_pass_unnoticed():
    """A forward pass that skips its inner step where `torch.autograd.grad` brings None."""

    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

        def one(self, x: Tensor) -> Tensor:
            h = self.a(x)
            (slope,) = torch.autograd.grad(
                self.b(h).square().sum(), self.b.weight, create_graph=True, allow_unused=True
            )
            weight = self.b.weight if slope is None else self.b.weight - 0.1 * slope
            return F.linear(h, weight, self.b.bias)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.one(one[None]) for one in x])

    net, x = Skipping().double(), torch.randn(4, 6, dtype=torch.float64)
    expected = gradients(net, Call((x,), {}, 4), lambda o, _: o.square().sum() / 2, torch.square)
    found = hf.fisher(net, [(x, torch.zeros(4, 3).double())], kind="empirical", loss="gaussian")
    assert_close(found, expected)


def test_lazy_modules_are_refused_until_they_have_shapes():
    model = nn.Sequential(nn.LazyLinear(3))
    data = [(torch.randn(4, 5), torch.randint(0, 3, (4,)))]
    with pytest.raises(
        OptionError, match=r"fisher: 2 tensors of Sequential have no shape yet: '0.weight', '0.bias'. Call"
    ):
        hf.fisher(model, data)
    model(data[0][0])
    hf.fisher(model, data)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("half", [False, True])
def test_torchscript(half: bool):
    plain = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model = torch.jit.script(plain)
    model = nn.Sequential(model, nn.Linear(3, 3).double()) if half else model
    model.train()
    x, targets = torch.randn(4, 6).double(), torch.randn(4, 3).double()
    expected = gradients(model, Call((x,), {}, 4), nll(targets), torch.square)
    assert_close(hf.fisher(model, [(x, targets)], kind="empirical", loss="gaussian"), expected)
    assert hf.kfac(model, [(x, targets)], loss="gaussian").info.num_examples == 4
    for refused in (lambda: hf.signal(model, [(x, targets)]), lambda: hf.mas(model, [(x, targets)], local=True)):
        with pytest.raises(UnsupportedLayerError, match=r"no layer can be seen inside TorchScript: '0'"):
            refused()
    with pytest.raises(UnsupportedLayerError, match="SignalRecorder: no layer can be seen inside TorchScript"):
        hf.SignalRecorder(model)
    assert model.training

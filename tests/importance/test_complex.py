"""Complex weights are refused by every estimator and keeper, and their real form has the right importance."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.strange_optimizers import clearing
from torch import nn
from torch.optim import SGD

import holdfast as hf
from holdfast.errors import UnsupportedLayerError


class Rotation(nn.Module):
    """A complex factor for each input, as in a diagonal state space; `real`: kept as pairs of real numbers."""

    def __init__(self, *, real=False):
        super().__init__()
        self.out = nn.Linear(3, 2)
        self.turn = nn.Parameter(_parts(3) if real else torch.view_as_complex(_parts(3)))

    def forward(self, x):
        turn = self.turn if self.turn.is_complex() else torch.view_as_complex(self.turn)
        return self.out((x * turn).abs() + (x * turn).imag)


class Mixing(nn.Module):
    """A complex matrix between spectra."""

    def __init__(self, *, real=False):
        super().__init__()
        self.matrix = nn.Parameter(_parts(3, 2) if real else torch.view_as_complex(_parts(3, 2)))
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        matrix = self.matrix if self.matrix.is_complex() else torch.view_as_complex(self.matrix)
        return (torch.fft.fft(x) @ matrix).real * self.scale


def _parts(*shape):
    return torch.randn(*shape, 2, generator=torch.Generator().manual_seed(1))


models = pytest.mark.parametrize(("build", "name"), [(Rotation, "turn"), (Mixing, "matrix")])


def data():
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(6, 3, generator=generator), torch.randn(6, 2, generator=generator))]


ESTIMATORS = {
    "fisher": lambda m: hf.fisher(m, data(), loss="gaussian"),
    "fisher batched": lambda m: hf.fisher(m, data(), loss="gaussian", kind="batched"),
    "mas": lambda m: hf.mas(m, data()),
    "signal": lambda m: hf.signal(m, data(), others="zero"),
    "taylor": lambda m: hf.taylor(m, data(), loss="gaussian"),
    "kfac": lambda m: hf.kfac(m, data(), loss="gaussian"),
    "uniform": hf.uniform,
    "SynapticIntelligence": hf.SynapticIntelligence,
    "EWC": hf.EWC,
    "WVA": partial(hf.WVA, strength=1.0),
}


@models
@pytest.mark.parametrize("what", ESTIMATORS)
def test_complex_weights_are_refused(what, build, name):
    model = build()
    message = (
        rf"^{what.split()[0]}: 1 of \d trainable parameters hold no real .* '{name}' \(complex64\). Keep complex weig"
        r"hts as a real parameter of shape \[..., 2\], .* torch.view_as_complex in forward.*, or freeze them"
    )
    with pytest.raises(UnsupportedLayerError, match=message):
        ESTIMATORS[what](model)
    ESTIMATORS[what](build(real=True))  # the remedies
    getattr(model, name).requires_grad_(False)
    ESTIMATORS[what](model)


@models
def test_complex_weights_that_came_later_are_refused(build, name):
    model = build()
    weight = getattr(model, name).requires_grad_(False)
    keeper = hf.EWC(model, strength=1.0, new_parameters="free").retain(hf.uniform(model))
    path, held = hf.SynapticIntelligence(model), keeper.held
    importance = dict(hf.uniform(model))
    weight.requires_grad_(True)
    optimizer = SGD(model.parameters(), lr=0.1)
    for where, act in (
        ("EWC.attach", lambda: keeper.attach(optimizer)),
        ("EWC.retain", lambda: keeper.retain(importance)),
        ("SynapticIntelligence", lambda: path.attach(optimizer)),
    ):
        with pytest.raises(UnsupportedLayerError, match=rf"^{where}: 1 of .* '{name}' \(complex64\)"):
            act()
    assert keeper.held is held
    assert not optimizer._optimizer_step_post_hooks


@models
def test_the_real_form_has_the_fisher_of_both_parts(build, name):
    """Against one example at a time, in float64."""
    model = build(real=True).double()
    (inputs, targets), *_ = data()
    inputs, targets = inputs.double(), targets.double()
    found = hf.fisher(model, [(inputs, targets)], loss="gaussian", kind="empirical")[name]
    expected = torch.zeros_like(getattr(model, name))
    for x, y in zip(inputs, targets, strict=True):
        loss = 0.5 * (model(x[None]) - y).square().sum()
        expected += torch.autograd.grad(loss, getattr(model, name))[0].square() / len(inputs)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-7)
    assert found[..., 1].sum() > 0


def test_numbers_of_eight_bits_are_refused():
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(model.weight.detach().to(torch.float8_e4m3fn))
    with pytest.raises(
        UnsupportedLayerError, match=r"'weight' \(float8_e4m3fn\). Train them in bfloat16 or float32, or"
    ):
        hf.EWC(model, strength=1.0)
    hf.EWC(model.to(torch.bfloat16))


class Packed(nn.Module):
    """A linear layer in whole numbers, as quantised ones are."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randint(-8, 8, (3, 3), dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return x @ self.codes.to(x.dtype)


class Adapted(nn.Module):
    """An adapter beside it."""

    def __init__(self):
        super().__init__()
        self.base_layer, self.adapter = Packed(), nn.Linear(3, 3)

    def forward(self, x):
        return self.base_layer(x) + self.adapter(x)


@pytest.mark.parametrize("what", ["fisher", "mas"])
def test_quantised_weights_that_cannot_be_measured_are_told(what):
    model = nn.Sequential(Packed(), nn.Linear(3, 2))
    with pytest.warns(
        UserWarning, match=f"{what}: 1 parameters are quantised and .*'0.codes'; .* of the 2 others"
    ) as c:
        ESTIMATORS[what](model)
    assert len(c) == 1
    ESTIMATORS[what](nn.Sequential(Adapted(), nn.Linear(3, 2)))
    of_floats = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2))
    ESTIMATORS[what](of_floats)
    of_floats[0].weight.quant_state = object()  # bitsandbytes' codes in the memory of float32
    with pytest.warns(UserWarning, match=f"{what}: 1 parameters are quantised and .*'0.weight'; .* of the 2 others"):
        ESTIMATORS[what](of_floats)
    of_buffers = nn.Sequential(nn.Linear(3, 2))
    of_buffers.is_quantized = True  # GPTQ's codes are no parameters; transformers marks the model
    with pytest.warns(UserWarning, match=f"{what}: layers of Sequential are quantised and .*; .* of the 2 others"):
        ESTIMATORS[what](of_buffers)


def test_synaptic_intelligence_over_a_step_that_clears_its_gradients():
    found = []
    for kind in (SGD, clearing(SGD)):
        torch.manual_seed(4)
        model = nn.Linear(3, 2)
        path = hf.SynapticIntelligence(model).attach(optimizer := kind(model.parameters(), lr=0.1))
        for inputs, targets in 3 * data():
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()
        found.append(path.importance())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

"""Optimizers, models and copies other than one bare optimizer on one float32 network: held, or one word about it.

By public names alone.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tests.strange_optimizers import WeightedSam
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, RMSprop

import holdfast as hf


class Words(nn.Module):
    """An embedding, a recurrent layer, and an output layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cell, self.head = nn.Embedding(11, 6), nn.GRU(6, 5, batch_first=True), nn.Linear(5, 3)
        self.output = self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.cell(self.table(x))[0][:, -1])


class Images(nn.Module):
    """A convolution, a norm, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(F.gelu(self.norm(self.conv(x))).mean((2, 3)))


MODELS = pytest.mark.parametrize("build", [Words, Images])
KINDS = pytest.mark.parametrize("kind", [hf.EWC, hf.WVA])
PULLED = pytest.mark.filterwarnings("ignore:.*is no optimizer whose metric is known")


def data_for(model: nn.Module) -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    x = torch.randint(0, 11, (8, 4)) if isinstance(model, Words) else torch.randn(8, 2, 5, 5)
    return x, torch.randint(0, 3, (8,))


def loss_of(model):
    x, y = data_for(model)
    dtype = next(model.parameters()).dtype
    return F.cross_entropy(model(x.to(dtype) if x.is_floating_point() else x).float(), y)


def train(model, optimizers, steps=5, *, every=1):
    """The second optimizer takes only every so many steps."""
    for number in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model).backward()
        for place, optimizer in enumerate(optimizers):
            if place == 0 or number % every == 0:
                optimizer.step()


def importance_of(model, *, scale=1.0):
    torch.manual_seed(3)
    values = {name: scale * torch.rand(p.shape) for name, p in model.named_parameters()}
    return hf.Importance(values, hf.ImportanceInfo("custom", 1, nats_per_unit=1.0))


def weights_of(model):
    return [p.detach().clone() for p in model.parameters()]


def same(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def halves(model, *builds):
    parameters = list(model.parameters())
    middle = len(parameters) // 2
    return [build(some) for build, some in zip(builds, (parameters[:middle], parameters[middle:]), strict=True)]


# --- several optimizers


@MODELS
@pytest.mark.parametrize("every", [1, 2, 3])
def test_each_optimizer_is_pulled_at_its_own_rhythm(build, every):
    """Two optimizers of one keeper, one of which steps half as often, are as two keepers of one optimizer each."""
    results = []
    for apart in (False, True):
        torch.manual_seed(0)
        model = build()
        optimizers = halves(model, partial(Adam, lr=0.05), partial(SGD, lr=0.1, momentum=0.9))
        keeper = hf.EWC(model, 4.0, every=every)
        keepers = [keeper, hf.EWC(model, 4.0, every=every) if apart else keeper]
        for one, optimizer in zip(keepers, optimizers):
            one.attach(optimizer)
        for one in {id(one): one for one in keepers}.values():
            one.retain(importance_of(model))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each of two keepers sees the other's half move
            train(model, optimizers, 12, every=2)
        results.append(weights_of(model))
    assert same(*results)


@MODELS
@KINDS
@PULLED
@pytest.mark.parametrize("inner", [partial(RMSprop, lr=0.01), partial(Adam, lr=0.01)])
def test_an_optimizer_that_steps_within_the_closure_of_another(build, kind, inner):
    """As one optimizer for a large table, stepped in the backward pass, and another for the rest."""
    results, reports = [], []
    for nested in (True, False):
        torch.manual_seed(0)
        model = build()
        first, *others = model.parameters()
        outer, own = RMSprop(others, lr=0.01), inner([first])
        keeper = kind(model, 2.0, log_every=1).retain(importance_of(model)).attach(outer).attach(own)

        def step(parameter, own=own):
            own.step()
            own.zero_grad()

        def closure(model=model, outer=outer):
            outer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        if nested:
            first.register_post_accumulate_grad_hook(step)
        for _ in range(4):
            if nested:
                outer.step(closure)
            else:
                closure()
                step(first)
                outer.step()
        results.append(weights_of(model))
        reports.append(str(keeper.report()))
    assert same(*results)
    assert reports[0] == reports[1]


@MODELS
@KINDS
@pytest.mark.parametrize("log_every", [1, 2])
def test_a_report_is_of_all_optimizers(build, kind, log_every):
    """One whose weights are pinned and one whose weights are free: some weights are pinned."""
    model = build()
    optimizers = halves(model, partial(Adam, lr=0.05), partial(SGD, lr=0.1))
    importance = dict(importance_of(model, scale=1e-9))
    held = [
        name for name, p in model.named_parameters() if any(p is q for q in optimizers[0].param_groups[0]["params"])
    ]
    importance |= {name: torch.full_like(importance[name], 1e9) for name in held}
    keeper = kind(model, 1.0, log_every=log_every).retain(importance)
    for optimizer in optimizers:
        keeper.attach(optimizer)
    train(model, optimizers, 4)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    expected = sum(sizes[name] for name in held) / sum(sizes.values())
    assert keeper.report().pinned == pytest.approx(expected, abs=1e-6)


# --- infinite strength, in every form and precision


@MODELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("form", "error"), [("float32", 0.0), ("bfloat16", 2.0**-8), ("int16", 2.0**-14)])
def test_an_infinite_strength_pins_to_the_anchor_as_it_is_held(build, dtype, form, error):
    torch.manual_seed(0)
    model = build().to(dtype)
    start, optimizer = weights_of(model), SGD(model.parameters(), lr=0.1)
    hf.EWC(model, float("inf"), anchor_dtype=form).retain(hf.uniform(model)).attach(optimizer)
    train(model, [optimizer], 3)
    for now, before in zip(weights_of(model), start, strict=True):
        rounding = 0.0 if form == "float32" else torch.finfo(dtype).eps
        limit = (error + rounding) * before.double().abs().max()
        assert (now.double() - before.double()).abs().max() <= limit
        assert torch.equal(now == 0, before == 0)


# --- what is not real


@MODELS
@KINDS
def test_a_complex_parameter_is_refused_wherever_it_appears(build, kind):
    model = build()
    model.wave = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(hf.HoldfastError, match=r"'wave' \(complex64\)\. Keep complex weights as a real parameter"):
        kind(model, 1.0)
    model.wave.requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = kind(model, 1.0, new_parameters="free").retain(importance_of_real(model)).attach(optimizer)
    model.wave.requires_grad_(True)
    before = keeper.held
    with pytest.raises(hf.HoldfastError, match=r"'wave' \(complex64\)"):
        keeper.retain(importance_of_real(model))
    assert keeper.held is before


def importance_of_real(model):
    return {name: torch.rand(p.shape) for name, p in model.named_parameters() if not p.is_complex()}


@MODELS
@KINDS
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature", "ignore:Casting complex values to real")
def test_a_model_cast_to_complex_numbers_is_refused_before_it_moves(build, kind):
    model = build()
    optimizer = SGD(model.parameters(), lr=0.1)
    kind(model, 1.0).retain(hf.uniform(model)).attach(optimizer)
    model.to(torch.complex64)
    before = weights_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1 + 1j)
    with pytest.raises(hf.HoldfastError, match="complex64"):
        optimizer.step()
    assert same(weights_of(model), before)


# --- copies and pickles

OPTIMIZERS = {
    "adam": lambda model: [Adam(model.parameters(), lr=0.05)],
    "two": lambda model: halves(model, partial(SGD, lr=0.1, momentum=0.9, nesterov=True), partial(AdamW, lr=0.05)),
}
KEEPERS = {
    "strength": partial(hf.EWC, strength=3.0, log_every=2),
    "every": partial(hf.EWC, strength=3.0, every=3, log_every=3),
    "budget": partial(hf.EWC, budget=1e-4),
    "codes": partial(hf.EWC, strength=3.0, importance_dtype="int8", anchor_dtype="int16"),
    "per task": partial(hf.EWC, strength=3.0, accumulate="per_task"),
    "gradient": partial(hf.EWC, strength=3.0, pull="gradient"),
    "wva": partial(hf.WVA, strength=3.0, log_every=2),
}


def halfway(build, keep, optimizers, *, dtype=torch.float32):
    torch.manual_seed(0)
    model = build().to(dtype)
    optimizers, keeper = OPTIMIZERS[optimizers](model), keep(model)
    for optimizer in optimizers:
        keeper.attach(optimizer)
    train(model, optimizers, 3)
    keeper.retain(importance_of(model))
    train(model, optimizers, 4, every=2)
    return model, optimizers, keeper


@MODELS
@pytest.mark.parametrize(
    ("optimizers", "order", "dtype"),
    [
        ("adam", (0, 1, 2), torch.float32),
        ("two", (2, 1, 0), torch.float32),
        ("two", (0, 1, 2), torch.bfloat16),
        ("adam", (0, 2), torch.float32),
    ],
)
@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS)
def test_a_deep_copy_is_held_as_the_original_is(build, keep, optimizers, dtype, order):
    """To the bit, apart from it, and whichever of the three is copied first."""
    parts = halfway(build, keep, optimizers, dtype=dtype)
    model, own, keeper = parts
    copies = dict(zip(order, copy.deepcopy([parts[place] for place in order])))
    twin = copies[2]
    assert twin.model is copies[0]
    assert [id(o) for o in twin.optimizers] == [id(o) for o in copies.get(1, twin.optimizers)]
    assert str(twin.report()) == str(keeper.report())
    before = weights_of(model)
    train(twin.model, twin.optimizers, 5, every=2)
    assert same(weights_of(model), before)
    assert not same(weights_of(twin.model), before)
    train(model, own, 5, every=2)
    assert same(weights_of(model), weights_of(twin.model))
    assert str(twin.report()) == str(keeper.report())


@MODELS
@KINDS
@pytest.mark.parametrize("steps", [0, 2, 20])
def test_a_deep_copy_pins_as_well(build, kind, steps):
    """Before, while and after the first steps are watched."""
    model = build()
    optimizer = Adam(model.parameters(), lr=0.05)
    keeper = kind(model, float("inf")).retain(hf.uniform(model)).attach(optimizer)
    train(model, [optimizer], steps)
    twin, again, _ = copy.deepcopy((model, optimizer, keeper))
    start = weights_of(twin)
    train(twin, [again], 5)
    for now, before in zip(weights_of(twin), start, strict=True):
        torch.testing.assert_close(now, before, rtol=0, atol=1e-6)


@MODELS
def test_a_deep_copy_repeats_no_warning(build):
    model = build()
    optimizer = RMSprop(model.parameters(), lr=0.01)
    with pytest.warns(UserWarning, match="no optimizer whose metric is known"):
        keeper = hf.EWC(model, 1.0).attach(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy.deepcopy((model, optimizer, keeper))


@MODELS
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_copied_keepers_of_one_optimizer_act_in_the_order_of_attaching(build, order):
    """Whatever the order of copying, and copies of copies too."""
    model = build()
    optimizer = Adam(model.parameters(), lr=0.05)
    first = hf.EWC(model, 30.0).retain(importance_of(model)).attach(optimizer)
    second = hf.WVA(model, 2.0).retain(importance_of(model)).attach(optimizer)
    parts = model, optimizer, second, first
    for _ in range(2):
        train(model, [optimizer], 3)
        copies = dict(zip(order, copy.deepcopy([parts[place] for place in order])))
        twin, its = copies[0], copies[1]
        train(model, [optimizer], 3)
        train(twin, [its], 3)
        assert same(weights_of(model), weights_of(twin))
        parts = model, optimizer, *_ = tuple(copies[place] for place in range(4))


@MODELS
@KINDS
@pytest.mark.parametrize("copied", [False, True])
def test_an_optimizer_around_is_told_of_after_a_copy_too(build, kind, copied):
    model = build()
    optimizer = WeightedSam(model.parameters(), SGD, lr=0.1)
    keeper = kind(model, 1.0).retain(hf.uniform(model)).attach(optimizer)
    if copied:
        model, optimizer, keeper = copy.deepcopy((model, optimizer, keeper))

    def closure():
        loss = loss_of(model)
        loss.backward()
        return loss

    def steps():
        for _ in range(8):
            optimizer.step(closure)

    with pytest.warns(UserWarning, match="changes the weights after each step"):
        steps()


@MODELS
@KINDS
@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, lambda keeper: torch.save(keeper, io.BytesIO())])
def test_a_pickle_is_refused_and_the_remedy_works(build, kind, how):
    model = build()
    optimizer = Adam(model.parameters(), lr=0.05)
    keeper = kind(model, 1.0).retain(hf.uniform(model)).attach(optimizer)
    with pytest.raises(TypeError, match=r"save\(folder\) and load\(folder, model\), state_dict\(\), or copy.deepcopy"):
        how(keeper)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "keeper": keeper.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = build()
    again.load_state_dict(saved["model"])
    fresh = kind(again, 1.0)
    fresh.load_state_dict(saved["keeper"])
    assert str(fresh.report()) == str(keeper.report())
    pickle.dumps((model, optimizer))  # a keeper that is attached to them is no part of them


@MODELS
@pytest.mark.parametrize("optimizers", OPTIMIZERS)
@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS)
def test_a_fresh_keeper_goes_on_from_a_state_dict(build, keep, optimizers):
    model, own, keeper = halfway(build, keep, optimizers)
    again, its = copy.deepcopy((model, own))
    fresh = keep(again)
    fresh.load_state_dict(copy.deepcopy(keeper.state_dict()))
    for optimizer in its:
        fresh.attach(optimizer)
    for one, optimizers_ in ((model, own), (again, its)):
        train(one, optimizers_, 5, every=2)
    assert same(weights_of(model), weights_of(again))
    assert str(keeper.report()) == str(fresh.report())


@KINDS
def test_a_state_dict_of_another_model_changes_nothing(kind):
    keeper = kind(Words(), 1.0)
    keeper.retain(hf.uniform(keeper.model))
    other = kind(Images(), 1.0)
    other.retain(hf.uniform(other.model))
    before = other.held
    with pytest.raises(hf.HoldfastError, match="'cell"):
        other.load_state_dict(keeper.state_dict())
    assert other.held is before

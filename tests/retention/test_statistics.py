"""Statistics that a forward pass in training changes: warned of, held, or free."""

from __future__ import annotations

import copy
import io
import math
import sys
import warnings
from functools import partial

import pytest
import torch
from tests.moments.zoo import Apply
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.optim import SGD, Adam

import holdfast as hf
from holdfast import EWC, WVA, uniform
from holdfast.errors import FileFormatError, NotFiniteError, OptionError, ParameterMismatchError
from holdfast.replay.images import ConditionalBatchNorm
from holdfast.retention.statistics import moved, statistics_of

MOVES = "forward passes in training have changed"
both = pytest.mark.parametrize("kind", [EWC, WVA])


class Centre(nn.Module):
    """Takes off a moving average: a module without others within."""

    def __init__(self, features: int, *, persistent: bool = True):
        super().__init__()
        self.register_buffer("average", torch.zeros(features), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.average.data.lerp_(x.detach().mean(0), 0.1)  # by .data, without a new version
        return x - self.average


class Codebook(nn.Module):
    """Gives the nearest code, which follows its inputs."""

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("codes", torch.randn(4, features))
        self.register_buffer("sizes", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach(), self.codes).argmin(1)
        out = x + (self.codes[nearest] - x).detach()
        if self.training:
            chosen = nn.functional.one_hot(nearest, 4).float()
            self.sizes.lerp_(chosen.sum(0), 0.1)
            self.codes.lerp_((chosen.T @ x.detach()) / chosen.sum(0).clamp(min=1)[:, None], 0.1)
        return out


class Whole(nn.Module):
    """Has a statistic of its own beside modules within, and behaves otherwise in training."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 5), nn.Linear(5, 2)
        self.register_buffer("scale", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        out = self.head(hidden / self.scale.clone())
        if self.training:
            self.scale.mul_(0.9).add_(0.1 * hidden.detach().abs().mean(0))
            return out + 0.0 * x.sum()
        return out


class Images(nn.Module):
    """A network of small images, made of the examples' three numbers."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), norm
        self.head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))

    def forward(self, x: Tensor) -> Tensor:
        image = (x[:, :, None] * x[:, None, :])[:, None]
        return self.head(self.norm(self.first(image)))


def perceptron(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), norm, nn.Tanh(), nn.Linear(5, 2))


def conditional() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        members = torch.stack([x[:, 0] > 0, x[:, 0] <= 0], dim=1).to(x)
        return self.head(self.norm(self.first(x)[:, :, None, None], members).flatten(1))

    return Apply(forward, first=nn.Linear(3, 5), norm=ConditionalBatchNorm(2, 5), head=nn.Linear(5, 2))


NORMS = {
    "batch": lambda: perceptron(nn.BatchNorm1d(5)),
    "batch, cumulative": lambda: perceptron(nn.BatchNorm1d(5, momentum=None)),
    "batch, images": lambda: Images(nn.BatchNorm2d(4)),
    "synchronised": lambda: Images(nn.SyncBatchNorm(4)),
    "instance": lambda: Images(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
}
OTHERS = {
    "average": lambda: perceptron(Centre(5)),
    "codebook": lambda: perceptron(Codebook(5)),
    "conditional": conditional,
    "whole": Whole,
    "spectral": lambda: perceptron(parametrizations.spectral_norm(nn.Linear(5, 5))),
    "old spectral": lambda: perceptron(spectral_norm(nn.Linear(5, 5))),
}
norms = pytest.mark.parametrize("build", NORMS.values(), ids=NORMS)
others = pytest.mark.parametrize("build", OTHERS.values(), ids=OTHERS)
models = pytest.mark.parametrize("build", [*NORMS.values(), *OTHERS.values()], ids=[*NORMS, *OTHERS])

OLD = torch.randn(32, 3, generator=torch.Generator().manual_seed(5))
"""Inputs of the old task; those of the new one are elsewhere."""


def batch(step: int, *, new: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 3, generator=generator)
    return (2 * inputs + 3 if new else inputs), torch.randn(16, 2, generator=generator)


def train(model, optimizer, steps=range(8), *, new=True):
    for step in steps:
        model.train()
        inputs, targets = batch(step, new=new)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()


def learned(build):
    """A network and its optimizer after some steps of the old task."""
    torch.manual_seed(0)
    model = build()
    optimizer = SGD(model.parameters(), lr=0.05)
    train(model, optimizer, new=False)
    return model, optimizer


def answers(model):
    model.eval()
    with torch.no_grad():
        found = model(OLD)
    model.train()
    return found


def statistics(model):
    return {name: module._buffers[key].clone() for name, (module, key) in statistics_of(model).items()}


def hold(model, optimizer, kind=EWC, **options):
    return kind(model, strength=math.inf, statistics="hold", **options).retain(uniform(model)).attach(optimizer)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


# --- held


@models
@both
def test_the_old_task_is_answered_as_before(build, kind):
    (model, optimizer), (free, _) = learned(build), learned(build)
    before, values = answers(model), statistics(model)
    hold(model, optimizer, kind)
    train(model, optimizer, range(20, 40))
    assert same(statistics(model), values)
    assert torch.allclose(answers(model), before, rtol=0, atol=1e-5)
    assert values
    train(free, SGD(free.parameters(), lr=0.0), range(20, 40))  # nor does a weight move
    assert (answers(free) - before).abs().max() > 3e-5


@norms
def test_norms_use_what_is_held_in_training_from_the_first_pass_on(build):
    """Outputs and gradients are those of evaluation; the flags stay those of training."""
    model, optimizer = learned(build)
    expected = copy.deepcopy(model).eval()
    hold(model, optimizer)
    model.train()
    assert all(module.training for module in model.modules())
    inputs, targets = batch(30)
    for net in (model, expected):
        net.zero_grad()
        (net(inputs) - targets).square().mean().backward()
    assert torch.equal(model(inputs), expected(inputs))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), expected.parameters(), strict=True))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["average", "codebook", "conditional"])
def test_other_modules_use_what_is_held_once_they_were_seen_to_move(name):
    model, optimizer = learned(OTHERS[name])
    hold(model, optimizer)
    train(model, optimizer, [20])
    model.train()
    assert torch.equal(model(OLD), answers(model))
    assert model.training


def test_only_the_norms_are_in_evaluation_mode():
    model, optimizer = learned(lambda: nn.Sequential(*perceptron(nn.BatchNorm1d(5)), nn.Dropout(0.5)))
    hold(model, optimizer)
    model.train()
    assert (model(OLD) == 0).any()


def test_a_module_with_others_within_keeps_its_mode_and_gets_its_statistics_back():
    model, optimizer = learned(Whole)
    hold(model, optimizer)
    seen = []
    model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    train(model, optimizer, range(20, 23))
    assert seen == [True] * 3


@models
def test_a_later_task_moves_what_is_held(build):
    model, optimizer = learned(build)
    keeper = hold(model, optimizer)
    train(model, optimizer, range(20, 22))
    keeper.detach()
    train(model, optimizer, range(22, 26))
    second = statistics(model)
    keeper.retain(uniform(model)).attach(optimizer)
    train(model, optimizer, range(26, 30))
    assert same(statistics(model), second)


@models
def test_statistics_that_moved_between_retaining_and_attaching_are_put_back(build):
    model, optimizer = learned(build)
    values = statistics(model)
    keeper = EWC(model, strength=math.inf, statistics="hold").retain(uniform(model))
    train(model, optimizer)
    assert not same(statistics(model), values)
    keeper.attach(optimizer)
    assert same(statistics(model), values)


@both
def test_under_a_finite_strength_weights_move_and_statistics_do_not(kind):
    model, optimizer = learned(NORMS["batch, images"])
    values, weights = statistics(model), copy.deepcopy(list(model.parameters()))
    kind(model, strength=1.0, statistics="hold").retain(uniform(model)).attach(optimizer)
    train(model, optimizer)
    assert same(statistics(model), values)
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))


def test_two_optimizers_and_accumulation():
    model, _ = learned(lambda: nn.Sequential(perceptron(nn.BatchNorm1d(5)), Centre(2)))
    optimizers = [SGD(model[0][0].parameters(), 0.05), Adam([*model[0][1].parameters(), *model[0][3].parameters()])]
    before, keeper = answers(model), EWC(model, strength=math.inf, statistics="hold").retain(uniform(model))
    for optimizer in optimizers:
        keeper.attach(optimizer)
    for step in range(20, 30):
        inputs, targets = batch(step)
        (model(inputs) - targets).square().mean().backward()
        if step % 3 == 0:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for optimizer in optimizers:
        optimizer.step()
    assert torch.allclose(answers(model), before, rtol=0, atol=1e-6)


def test_moving_the_model_and_loading_other_values_in_between():
    model, optimizer = learned(lambda: nn.Sequential(*perceptron(nn.BatchNorm1d(5)), Centre(2)))
    hold(model, optimizer)
    train(model, optimizer, [20])
    values = statistics(model)
    model.double()
    model.float()  # other tensors of the same values
    model[4].average.fill_(7.0)
    train(model, optimizer, [21])
    assert same(statistics(model), values)


@models
def test_statistics_of_each_task_by_a_user_answer_the_old_task_too(build):
    """As docs/statistics.md has it."""
    model, optimizer = learned(build)
    before, own = answers(model), {name: buffer.clone() for name, buffer in model.named_buffers()}
    EWC(model, strength=math.inf, statistics="free").retain(uniform(model)).attach(optimizer)
    train(model, optimizer, range(20, 40))
    assert not torch.allclose(answers(model), before, rtol=0, atol=1e-5)
    model.load_state_dict(own, strict=False)
    assert torch.allclose(answers(model), before, rtol=0, atol=1e-5)


# --- on the model


def everything(model):
    """What is in the modules but the tensors."""
    return [{key: copy.copy(value) for key, value in vars(module).items()} for module in model.modules()]


@models
def test_detach_leaves_the_model_as_it_was(build):
    model, optimizer = learned(build)
    model[0].eval() if isinstance(model, nn.Sequential) else model.norm.eval() if hasattr(model, "norm") else None
    before, values = everything(model), statistics(model)
    keeper = hold(model, optimizer)
    modes = [module.training for module in model.modules()]
    for step in range(3):  # the user's modes stay
        inputs, targets = batch(step)
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
    assert [module.training for module in model.modules()] == modes
    keeper.detach()
    optimizer.zero_grad(set_to_none=True)
    assert [list(found) for found in everything(model)] == [list(found) for found in before]
    for found, was in zip(everything(model), before, strict=True):
        plain = {k: v for k, v in was.items() if isinstance(v, bool | int | float | str | dict) and k[0] != "_"}
        assert {key: found[key] for key in plain} == plain
        assert found["_forward_hooks"] == was["_forward_hooks"]
        assert found["_forward_pre_hooks"].keys() == was["_forward_pre_hooks"].keys()
        assert not found["_forward_hooks_always_called"]
    train(model, optimizer)
    assert not same(statistics(model), values)


@norms
def test_the_flag_comes_back_after_an_error(build):
    model, optimizer = learned(build)
    hold(model, optimizer)
    (norm,) = [module for module in model.modules() if hasattr(module, "running_mean")]
    with pytest.raises((RuntimeError, ValueError)):
        norm(torch.zeros(2, 9, 3, 3) if isinstance(model, Images) else torch.zeros(2, 9))
    assert norm.training


@pytest.mark.parametrize("build", [*NORMS.values(), *(OTHERS[n] for n in OTHERS if n != "old spectral")])
def test_copies_are_not_held(build):
    model, optimizer = learned(build)
    hold(model, optimizer)
    train(model, optimizer, range(20, 23))
    values = statistics(model)
    twins = [copy.deepcopy(model)]
    if not isinstance(model, Apply) and "Parametrized" not in str(model):  # which cannot be pickled
        torch.save(model, file := io.BytesIO())
        twins.append(torch.load(io.BytesIO(file.getvalue()), weights_only=False))
    for twin in twins:
        train(twin, SGD(twin.parameters(), lr=0.0))
        assert not same(statistics(twin), values)
        assert all(module.training for module in twin.modules())
    train(model, optimizer, range(23, 25))
    assert same(statistics(model), values)


def test_a_copy_is_held_by_a_keeper_of_its_own():
    model, optimizer = learned(NORMS["batch"])
    hold(model, optimizer)
    twin = copy.deepcopy(model)
    other = SGD(twin.parameters(), lr=0.05)
    values = statistics(twin)
    hold(twin, other)
    train(twin, other)
    assert same(statistics(twin), values)


@both
@pytest.mark.parametrize("name", ["batch", "average", "whole"])
def test_a_copy_with_its_keeper_is_held(name, kind):
    model, optimizer = learned((NORMS | OTHERS)[name])
    keeper = hold(model, optimizer, kind)
    train(model, optimizer, range(20, 22))
    values = statistics(model)
    twin, other, again = copy.deepcopy((model, optimizer, keeper))
    for net, its in ((twin, other), (model, optimizer)):
        train(net, its, range(22, 25))
        assert same(statistics(net), values)
    again.detach()
    train(twin, other)
    train(model, optimizer)
    assert not same(statistics(twin), values)
    assert same(statistics(model), values)


@pytest.mark.parametrize("when", ["before", "after"])
def test_compiled_models(when):
    model, optimizer = learned(lambda: nn.Sequential(*perceptron(nn.BatchNorm1d(5)), Centre(2)))
    before, values = answers(model), statistics(model)
    compiled = torch.compile(model, backend="eager")
    if when == "before":
        compiled(OLD)
        model.load_state_dict(values, strict=False)
    keeper = hold(compiled, optimizer)
    train(compiled, optimizer, range(20, 26))
    assert same(statistics(model), values)
    assert torch.allclose(answers(compiled), before, rtol=0, atol=1e-6)
    assert torch.equal(compiled(OLD), model(OLD))
    keeper.detach()
    train(compiled, optimizer)
    assert not any(torch.equal(value, values[name]) for name, value in statistics(model).items())
    torch._dynamo.reset()


def test_no_compiler_is_imported():
    """It takes seconds."""
    assert "torch._dynamo" in sys.modules or hold(*learned(NORMS["batch"])).report().num_tasks == 1
    assert "torch._dynamo" in sys.modules or "torch._inductor" not in sys.modules


@pytest.mark.parametrize("name", ["batch, images", "average"])
def test_in_distributed_data_parallel(name, tmp_path):
    """Whose buffers are sent to all processes before each forward pass."""
    distributed = torch.distributed
    model, optimizer = learned((NORMS | OTHERS)[name])
    values = statistics(model)
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        hold(parallel, optimizer)
        train(parallel, optimizer, range(20, 25))
    finally:
        distributed.destroy_process_group()
    assert same(statistics(model), values)


@pytest.mark.parametrize("estimator", [hf.fisher, hf.mas, hf.taylor, partial(hf.signal, others="zero"), hf.kfac])
@pytest.mark.parametrize("name", ["batch", "batch, images"])
def test_importances_are_the_same_and_what_is_held_stays(estimator, name):
    model, optimizer = learned(NORMS[name])
    data = [(OLD, torch.arange(32) % 2)]
    expected = estimator(model, data)
    hold(model, optimizer)
    values = statistics(model)
    found = estimator(model, data)
    expected, found = (getattr(i, "to_diagonal", lambda i=i: i)() for i in (expected, found))
    assert same(dict(found), dict(expected))
    train(model, optimizer)
    assert same(statistics(model), values)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("statistics", ["warn", "free"])
@pytest.mark.parametrize("make", ["trace", "script"])
def test_torchscript_models_are_held(make, statistics):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    inputs = torch.randn(5, 3)
    made = torch.jit.trace(model, inputs) if make == "trace" else torch.jit.script(model)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    keeper = hf.EWC(made, math.inf, statistics=statistics).retain(hf.uniform(made)).attach(optimizer)
    before = [p.detach().clone() for p in made.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        made(inputs).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))
    assert keeper.report().pull_ratio == pytest.approx(1.0)


def test_torchscript_is_refused_and_the_remedy_helps():
    model, _ = learned(lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)))
    model[1] = torch.jit.script(model[1])
    with pytest.raises(
        OptionError, match=r"EWC: statistics=\"hold\" needs hooks.*TorchScript.*'1'. Hold the Python mod"
    ):
        EWC(model, strength=1.0, statistics="hold")
    optimizer = SGD(model.parameters(), lr=0.05)
    values = statistics(model)
    EWC(model, strength=math.inf, statistics="free").retain(uniform(model)).attach(optimizer)
    model.eval()
    inputs, targets = batch(0)
    (model(inputs) - targets).square().mean().backward()
    optimizer.step()
    assert same(statistics(model), values)


# --- saved


@models
@both
def test_save_load_continue_is_continue(build, kind, tmp_path):
    model, optimizer = learned(build)
    optimizer.param_groups[0]["lr"] = 1e-3
    keeper = kind(model, strength=2.0, statistics="hold").retain(uniform(model)).attach(optimizer)
    train(model, optimizer, range(20, 25))
    keeper.save(tmp_path / "skills")
    tensors, notes = copy.deepcopy(keeper.state())
    state, options = copy.deepcopy(model.state_dict()), optimizer.state_dict()
    train(model, optimizer, range(25, 30))
    for way in ("load", "state"):
        torch.manual_seed(1)
        twin = build()
        other = SGD(twin.parameters(), lr=0.05)
        if way == "load":
            again = kind.load(tmp_path / "skills", twin).attach(other)  # before the weights: the order is the user's
            assert again.statistics == "hold"
        else:
            again = kind(twin, strength=2.0, statistics="hold").attach(other)
            again.load_state(tensors, notes)
        twin.load_state_dict(state)
        other.load_state_dict(options)
        train(twin, other, range(25, 30))
        assert same(twin.state_dict(), model.state_dict())
        assert all(bool(p.isfinite().all()) for p in twin.parameters())
        assert same(again.state()[0], keeper.state()[0])


@both
def test_what_was_saved_under_another_option(kind, tmp_path):
    model, optimizer = learned(NORMS["batch"])
    kind(model, strength=1.0, statistics="free").retain(uniform(model)).save(tmp_path / "free")
    keeper = kind.load(tmp_path / "free", model, statistics="hold").attach(optimizer)
    values = statistics(model)
    train(model, optimizer)
    assert same(statistics(model), values)
    keeper.save(tmp_path / "held")
    keeper.detach()
    kind.load(tmp_path / "held", model, statistics="free").attach(optimizer)
    train(model, optimizer)
    assert not same(statistics(model), values)


def test_statistics_that_do_not_match_are_refused():
    model, optimizer = learned(NORMS["batch"])
    tensors, notes = hold(model, optimizer).state()
    name = "moving_statistics/1.running_mean"
    other = EWC(perceptron(Centre(5)), new_parameters="free", statistics="hold")
    for change, error, words in (
        ({name: torch.zeros(4)}, ParameterMismatchError, r"1 statistics that were held.*'1.running_mean' \(4,\)"),
        ({name: torch.full((5,), math.nan)}, (FileFormatError, NotFiniteError), "moving_statistics.*not finite"),
        ({name: torch.zeros(5, dtype=torch.int64)}, FileFormatError, r"no floating-point numbers: '1.running_mean'"),
    ):
        with pytest.raises(error, match=words):
            EWC(model, strength=1.0).load_state({**tensors, **change}, notes)
    kept = {key: value for key, value in tensors.items() if not key.startswith(("importance/1.", "anchors/1."))}
    with pytest.raises(
        ParameterMismatchError, match=r"2 statistics .* buffers of Sequential: '1.running_mean' \(5,\), "
    ):
        other.load_state(kept, notes)


def test_nothing_is_saved_where_nothing_is_held():
    model, optimizer = learned(NORMS["batch"])
    keeper = EWC(model, strength=1.0, statistics="free").retain(uniform(model)).attach(optimizer)
    train(model, optimizer)
    assert not [name for name in keeper.state()[0] if "statistics" in name]


# --- warned of


def warned(model, optimizer, kind=EWC, *, before=lambda: None, steps=range(20, 40), **options):
    keeper = kind(model, strength=math.inf, **options).retain(uniform(model)).attach(optimizer)
    before()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        train(model, optimizer, steps)
        keeper.retain(uniform(model))
        train(model, optimizer, steps)
    return [str(warning.message) for warning in found if MOVES in str(warning.message)]


@pytest.mark.parametrize("name", [name for name in (*NORMS, *OTHERS) if "spectral" not in name])
@both
def test_it_is_said_once_with_what_moves_and_the_remedy(name, kind):
    model, optimizer = learned((NORMS | OTHERS)[name])
    (text,) = warned(model, optimizer, kind)
    assert text.startswith(f"{kind.__name__}: {MOVES}")
    moving = [repr(found) for found in statistics_of(model)]
    assert all(found in text for found in moving)
    assert f'{kind.__name__}(model, statistics="hold")' in text
    assert not warned(*learned((NORMS | OTHERS)[name]), kind, statistics="free")
    assert not warned(*learned((NORMS | OTHERS)[name]), kind, statistics="hold")


def test_many_are_counted():
    layers = [layer for n in (3, 2, 2) for layer in (nn.Linear(n, 2), nn.BatchNorm1d(2))]
    model, optimizer = learned(lambda: nn.Sequential(*layers))
    (text,) = warned(model, optimizer)
    assert "changed 6 buffers" in text
    assert "'1.running_mean', '1.running_var', '3.running_mean', '3.running_var' and 2 more. A" in text


def test_only_those_that_move_are_named():
    model, optimizer = learned(lambda: nn.Sequential(perceptron(nn.BatchNorm1d(5)), Centre(2)))
    model[1].register_buffer("mask", torch.ones(2))
    model[0][1].momentum = 0.0
    (text,) = warned(model, optimizer)
    assert "changed 1 buffer since" in text
    assert "'1.average'" in text


def frozen(model: nn.Module) -> None:
    model[1].eval()
    model[1].train = lambda mode=True: model[1]


def test_nothing_is_said_where_nothing_moves():
    for build, change in (
        (lambda: perceptron(nn.LayerNorm(5)), lambda model: None),
        (lambda: perceptron(nn.BatchNorm1d(5)), frozen),
        (lambda: perceptron(nn.BatchNorm1d(5, track_running_stats=False)), lambda model: None),
        (lambda: perceptron(Centre(5, persistent=False)), lambda model: None),  # a cache
        (lambda: perceptron(nn.BatchNorm1d(5)), lambda model: setattr(model[1], "momentum", 0.0)),  # but a counter
    ):
        model, optimizer = learned(build)
        change(model)
        assert not warned(model, optimizer)


def test_nothing_is_said_of_values_that_a_user_loads_before_training():
    model, optimizer = learned(NORMS["batch"])
    frozen(model)
    assert not warned(model, optimizer, before=lambda: model[1].running_mean.fill_(3.0))


def test_another_option_is_refused():
    for kind in (EWC, WVA):
        with pytest.raises(OptionError, match=f'{kind.__name__}: statistics is \'held\'; expected "warn", "hold" or '):
            kind(nn.Linear(2, 2), strength=1.0, statistics="held")


# --- what both are made of


def test_statistics_are_saved_buffers_of_floating_point_numbers():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.LazyBatchNorm1d(), Centre(2, persistent=False), nn.Module())
    model[3].register_buffer("narrow", torch.zeros(2, dtype=torch.bfloat16))
    model[3].register_buffer("nothing", None)
    model.register_buffer("whole", torch.zeros(2, dtype=torch.int8))
    model.register_buffer("empty", torch.zeros(2, device="meta"))
    wrapped = torch.compile(model, backend="eager")
    assert list(statistics_of(wrapped)) == ["0.running_mean", "0.running_var", "3.narrow"]
    assert statistics_of(model)["3.narrow"] == (model[3], "narrow")


def test_moved_agrees_with_one_entry_at_a_time():
    generator = torch.Generator().manual_seed(0)
    for tolerance in (0.0, 1e-5):
        held = {str(i): torch.randn(3, generator=generator) for i in range(8)}
        held["nan"] = torch.tensor([math.nan, 1.0])
        now = {name: value.clone() for name, value in held.items()}
        now["1"][2] += 1e-3
        now["3"] *= 1 + 1e-6
        now["5"][0] = math.nan
        now["6"] = torch.zeros(4)
        now["new"] = torch.zeros(1)

        def differs(a: float, b: float, tolerance: float = tolerance) -> bool:
            return not (a == b or (a != a and b != b) or abs(a - b) <= tolerance * (1e-3 + abs(b)))

        expected = [
            name
            for name in now
            if name in held and len(now[name]) == len(held[name]) and any(map(differs, now[name], held[name]))
        ]
        assert moved(now, held, tolerance=tolerance) == expected
        assert expected == (["1", "3", "5"] if tolerance == 0 else ["1", "5"])
    assert moved({}, {}) == []

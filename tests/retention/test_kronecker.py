"""The elastic pull with Kronecker factors: its step, its fixed point, its stability, and what every keeper promises."""

from __future__ import annotations

import copy
import json
import math
from functools import partial

import pytest
import torch
from tests.files.folders import edit
from tests.optimizers import PLAIN
from tests.retention.loops import (
    batches,
    factored_of,
    importance_of,
    network,
    same,
    train,
    train_held,
    weights_of,
)
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import ExponentialLR

from holdfast import EWC, WVA, Decayed, FactoredImportance, ImportanceInfo, KroneckerFactors, kfac
from holdfast.curvature.form import LayerForm
from holdfast.curvature.implicit import layer_pull, share_of_spectrum
from holdfast.curvature.kronecker import KroneckerCurvature, merged
from holdfast.errors import FileFormatError, OptionError, ParameterMismatchError, StateError

every_optimizer = pytest.mark.parametrize("optimizer", PLAIN)
OUT, IN = 3, 4

layer_matrix = LayerForm(shape=(OUT, IN), bias="b").join


# --- the step as a function


def held_layer(seed: int = 0, *, rank: int | None = None) -> KroneckerCurvature:
    generator = torch.Generator().manual_seed(seed)
    A, G = (torch.randn(size, rank or size, generator=generator) for size in (IN + 1, OUT))
    return merged(None, KroneckerFactors(A @ A.T, G @ G.T, shape=(OUT, IN), bias="b"))[0].to(dtype=torch.float64)


def dense(layer: KroneckerCurvature) -> Tensor:
    U = torch.kron(layer.outputs_basis, layer.inputs_basis)
    return (U * layer.spectrum.flatten()) @ U.T


def dense_step(distance: Tensor, layer: KroneckerCurvature, strength: float, metric: Tensor) -> Tensor:
    """The pull of the exact proximal step, by a dense solve: -(M + strength K)^-1 strength K d."""
    K = strength * dense(layer)
    return -torch.linalg.solve(torch.diag(metric.flatten()) + K, K @ distance.flatten()).reshape(distance.shape)


@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_under_one_metric_the_step_is_the_dense_solve(strength):
    layer, distance = held_layer(), torch.randn(OUT, IN + 1).double()
    pull, share = layer_pull(distance, layer, strength, metric=2.5)
    expected = dense_step(distance, layer, strength, torch.full_like(distance, 2.5))
    torch.testing.assert_close(pull, expected, rtol=1e-5, atol=1e-6)
    assert ((share >= 0) & (share < 1)).all()
    # a table of one number is that number
    table, before = torch.full_like(distance, 2.5), torch.randn(OUT, IN + 1).double()
    again, _ = layer_pull(distance, layer, strength, metric=table, before=before)
    torch.testing.assert_close(again, pull)


@pytest.mark.parametrize("spread", [1.5, 30.0])
@pytest.mark.parametrize("strength", [0.1, 1.0, 100.0])
def test_under_a_metric_for_each_weight_repeated_steps_reach_the_dense_solve(strength, spread):
    """With theta' held still the pulls settle at the exact proximal step, whatever they began with."""
    layer, distance = held_layer(), torch.randn(OUT, IN + 1).double()
    metric = 1 + (spread - 1) * torch.rand(OUT, IN + 1).double()
    expected = dense_step(distance, layer, strength, metric)
    for before in (None, torch.randn(OUT, IN + 1).double()):
        pull = before
        for _ in range(600):
            pull, _ = layer_pull(distance, layer, strength, metric=metric, before=pull)
        torch.testing.assert_close(pull, expected, rtol=1e-4, atol=1e-5)


def test_each_of_these_steps_lowers_the_proximal_objective():
    layer, distance = held_layer(1), torch.randn(OUT, IN + 1).double()
    metric = 0.1 + 10 * torch.rand(OUT, IN + 1).double()

    def objective(pull: Tensor) -> float:
        return float(0.5 * (metric * pull.square()).sum() + 3.0 * layer.quadratic(distance + pull))

    pull = torch.randn(OUT, IN + 1).double()
    for _ in range(30):
        fresh, _ = layer_pull(distance, layer, 3.0, metric=metric, before=pull)
        assert objective(fresh) <= objective(pull) * (1 + 1e-6)
        pull = fresh


def test_shares_without_nan():
    spectrum = torch.tensor([0.0, 1e-30, 1.0, 1e30])
    for strength in (1e-300, 1e-12, 1.0, 1e12, 1e38, 1e300, math.inf):
        for metric in (1e-30, 1.0, 1e30):
            share = share_of_spectrum(spectrum, strength, metric=metric)
            assert share[0] == 0
            assert ((share >= 0) & (share <= 1)).all()
    assert share_of_spectrum(spectrum, math.inf, metric=1.0).tolist() == [0, 1, 1, 1]
    assert share_of_spectrum(spectrum, 3.0, metric=2.0)[2] == pytest.approx(0.6)


# --- under an optimizer


def two_tasks(optimizer_name, strength, *, steps=6, **options):
    model = network()
    optimizer = PLAIN[optimizer_name](model.parameters())
    keeper = EWC(model, strength=strength, log_every=2, **options).attach(optimizer)
    train(model, optimizer, batches(3))
    keeper.retain(factored_of(model))
    train_held(keeper, optimizer, batches(steps, seed=1))
    return keeper, optimizer


def bare(optimizer_name, *, steps=6):
    model = network()
    optimizer = PLAIN[optimizer_name](model.parameters())
    train(model, optimizer, [*batches(3), *batches(steps, seed=1)])
    return model, optimizer


@every_optimizer
@pytest.mark.parametrize("pull", ["implicit", "penalty"])
def test_strength_zero_is_the_bare_optimizer_to_the_bit(optimizer, pull):
    keeper, _ = two_tasks(optimizer, 0.0, pull=pull)
    assert same(weights_of(keeper.model), weights_of(bare(optimizer)[0]))


@every_optimizer
@pytest.mark.parametrize("pull", ["implicit", "penalty"])
def test_it_does_something(optimizer, pull):
    keeper, _ = two_tasks(optimizer, 10.0, pull=pull)
    model, _ = bare(optimizer)
    assert not any(torch.equal(a, b) for a, b in zip(keeper.model.parameters(), model.parameters(), strict=True))
    assert keeper.predicted_rise() > 0


@every_optimizer
@pytest.mark.parametrize("options", [{"every": 3}, {"accumulate": "per_task"}, {"accumulate": Decayed(0.5)}])
def test_save_load_continue_is_continue(optimizer, options, tmp_path):
    keeper, old_optimizer = two_tasks(optimizer, 10.0, steps=5, **options)
    keeper.save(tmp_path / "skills")
    model = network()
    loaded = EWC.load(tmp_path / "skills", model)
    model.load_state_dict(keeper.model.state_dict())
    new_optimizer = PLAIN[optimizer](model.parameters())
    new_optimizer.load_state_dict(copy.deepcopy(old_optimizer.state_dict()))
    loaded.attach(new_optimizer)
    for held, its_optimizer in ((keeper, old_optimizer), (loaded, new_optimizer)):
        train_held(held, its_optimizer, batches(5, seed=2))
    assert same(weights_of(keeper.model), weights_of(model))
    for held, its_optimizer in ((keeper, old_optimizer), (loaded, new_optimizer)):
        held.retain(factored_of(model, seed=1))
        train_held(held, its_optimizer, batches(5, seed=3))
    assert same(weights_of(keeper.model), weights_of(model))
    assert loaded.report() == keeper.report()


def test_state_and_load_state_continue_too():
    keeper, old_optimizer = two_tasks("adam", 10.0, steps=5)
    tensors, notes = copy.deepcopy(keeper.state())
    assert any(name.startswith("pulls/") for name in tensors)
    model = network()
    loaded = EWC(model, strength=10.0, log_every=2)
    loaded.load_state(tensors, json.loads(json.dumps(notes)))
    model.load_state_dict(keeper.model.state_dict())
    new_optimizer = PLAIN["adam"](model.parameters())
    new_optimizer.load_state_dict(copy.deepcopy(old_optimizer.state_dict()))
    loaded.attach(new_optimizer)
    for held, its_optimizer in ((keeper, old_optimizer), (loaded, new_optimizer)):
        train_held(held, its_optimizer, batches(5, seed=2))
    assert same(weights_of(keeper.model), weights_of(model))


@every_optimizer
def test_detach_leaves_the_bare_optimizer(optimizer):
    keeper, held_optimizer = two_tasks(optimizer, 10.0)
    keeper.detach()
    model, bare_optimizer = bare(optimizer)
    model.load_state_dict(keeper.model.state_dict())
    bare_optimizer.load_state_dict(copy.deepcopy(held_optimizer.state_dict()))
    train(keeper.model, held_optimizer, batches(3, seed=4))
    train(model, bare_optimizer, batches(3, seed=4))
    assert same(weights_of(keeper.model), weights_of(model))
    assert not held_optimizer._optimizer_step_pre_hooks


@every_optimizer
@pytest.mark.parametrize("strength", [1e12, 1e30, math.inf])
def test_a_huge_strength_pins(optimizer, strength):
    keeper, _ = two_tasks(optimizer, strength)
    for name, weight in weights_of(keeper.model).items():
        torch.testing.assert_close(weight, keeper.held.anchors[name], rtol=1e-4, atol=1e-5)


FAST = {
    "sgd": partial(SGD, lr=0.2),
    "momentum": partial(SGD, lr=0.2, momentum=0.9),
    "nesterov": partial(SGD, lr=0.2, momentum=0.9, nesterov=True),
    "adam": partial(Adam, lr=0.2),
    "adamw": partial(AdamW, lr=0.2),
}


@pytest.mark.parametrize("optimizer", FAST)
def test_no_strength_gives_a_nan(optimizer):
    for strength in [0.0, *(10.0**power for power in range(-3, 13)), math.inf]:
        for scale in (1e-8, 1.0, 1e6):
            model = network()
            its_optimizer = FAST[optimizer](model.parameters())
            keeper = EWC(model, strength=strength).attach(its_optimizer)
            keeper.retain(factored_of(model, scale=scale, rank=2))
            train(model, its_optimizer, batches(6))
            largest = max(weight.abs().max().item() for weight in weights_of(model).values())
            assert largest < 100, (strength, scale)
            figures = [value for value in vars(keeper.report()).values() if isinstance(value, float)]
            assert all(math.isfinite(value) for value in figures if value != strength)


class Quadratic(nn.Module):
    """A layer whose loss is 1/2 sum h (W - C)^2 over weight and bias."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.layer = nn.Linear(IN, OUT).to(dtype)
        self.curvature = 0.5 + torch.rand(OUT, IN + 1, generator=generator).to(dtype)
        self.minimum = torch.randn(OUT, IN + 1, generator=generator).to(dtype)

    def loss(self) -> Tensor:
        return 0.5 * (self.curvature * (layer_matrix(self.layer.weight, self.layer.bias) - self.minimum).square()).sum()


REACHING = {
    "sgd": (partial(SGD, lr=0.1), None),
    "momentum": (partial(SGD, lr=0.02, momentum=0.9), None),
    "dampened": (partial(SGD, lr=0.1, momentum=0.9, dampening=0.5), None),
    "nesterov": (partial(SGD, lr=0.02, momentum=0.9, nesterov=True), None),
    "adam": (partial(Adam, lr=0.1, betas=(0.9, 0.99)), 0.9975),
    "amsgrad": (partial(Adam, lr=0.3, betas=(0.9, 0.99), amsgrad=True), 0.997),
    "adamw without decay": (partial(AdamW, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0), 0.9975),
}


@pytest.mark.parametrize(
    ("optimizer", "pull"), [*((name, "implicit") for name in REACHING), ("sgd", "penalty"), ("adam", "penalty")]
)
def test_it_rests_where_the_penalised_loss_is_least(optimizer, pull):
    """h (W - C) + strength K (W - anchor) = 0; the slower the learning rate falls, the closer Adam comes."""
    strength, (build, decay) = 1.0, REACHING[optimizer]
    model = Quadratic()
    its_optimizer = build(model.parameters())
    keeper = EWC(model, strength=strength, pull=pull).attach(its_optimizer)
    keeper.retain(factored_of(model))
    anchor = layer_matrix(model.layer.weight, model.layer.bias).detach()
    schedule = ExponentialLR(its_optimizer, decay) if decay else None
    for _ in range(3500 if decay else 500):
        its_optimizer.zero_grad()
        (model.loss() + (keeper.penalty() if pull == "penalty" else 0.0)).backward()
        its_optimizer.step()
        if schedule is not None:
            schedule.step()
    K = strength * dense(keeper.held.layers["layer.weight"])
    h = torch.diag(model.curvature.flatten())
    expected = torch.linalg.solve(h + K, h @ model.minimum.flatten() + K @ anchor.flatten()).reshape(OUT, IN + 1)
    found = layer_matrix(model.layer.weight, model.layer.bias).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)


@pytest.mark.parametrize(("optimizer", "every"), [("sgd", 3), ("sgd", 10)])
def test_pulled_at_every_few_steps_it_rests_there_too(optimizer, every):
    build, decay = {"sgd": (partial(SGD, lr=0.1), 0.998), "adam": REACHING["adam"]}[optimizer]
    model = Quadratic()
    its_optimizer = build(model.parameters())
    keeper = EWC(model, strength=1.0, every=every).attach(its_optimizer).retain(factored_of(model))
    anchor = layer_matrix(model.layer.weight, model.layer.bias).detach()
    schedule = ExponentialLR(its_optimizer, decay) if decay else None
    for _ in range(3500):
        its_optimizer.zero_grad()
        model.loss().backward()
        its_optimizer.step()
        if schedule is not None:
            schedule.step()
    K = dense(keeper.held.layers["layer.weight"])
    h = torch.diag(model.curvature.flatten())
    expected = torch.linalg.solve(h + K, h @ model.minimum.flatten() + K @ anchor.flatten()).reshape(OUT, IN + 1)
    found = layer_matrix(model.layer.weight, model.layer.bias).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_between_pulls_the_step_is_the_optimizers_own():
    for importance in (factored_of, importance_of):
        model = network()
        optimizer = Adam(model.parameters(), lr=0.05)
        keeper = EWC(model, strength=5.0, every=3, log_every=2).attach(optimizer).retain(importance(model))
        train(model, optimizer, batches(3))
        ratio = keeper.report().pull_ratio
        assert ratio is not None
        free = copy.deepcopy(model)
        alone = Adam(free.parameters(), lr=0.05)
        alone.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for m, o in ((model, optimizer), (free, alone)):
            train(m, o, batches(2, seed=1))
        assert same(weights_of(model), weights_of(free))
        assert keeper.report().pull_ratio == ratio  # what is measured is a pull
        for m, o in ((model, optimizer), (free, alone)):
            train(m, o, batches(1, seed=2))
        assert not same(weights_of(model), weights_of(free))
        assert keeper.report().pull_ratio != ratio


def test_every_few_steps_without_meaning():
    for every in (0, 1.5, -1):
        with pytest.raises(OptionError, match=f"EWC: every is {every}; expected a whole number >= 1"):
            EWC(network(), strength=1.0, every=every)
    for options in ({"pull": "gradient"}, {"pull": "penalty"}):
        with pytest.raises(OptionError, match='EWC: every=2 belongs to pull="implicit".*Leave it at 1'):
            EWC(network(), strength=1.0, every=2, **options)
        EWC(network(), strength=1.0, every=1, **options)
    with pytest.raises(OptionError, match="every=2, and a budget without probes"):
        EWC(network(), every=2, budget=0.1).retain(factored_of(network()))


def test_in_double_it_comes_closely():
    model = Quadratic(torch.float64)
    optimizer = SGD(model.parameters(), lr=0.3)
    keeper = EWC(model, strength=3.0).attach(optimizer).retain(factored_of(model))
    anchor = layer_matrix(model.layer.weight, model.layer.bias).detach()
    for _ in range(800):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
    K = 3.0 * dense(keeper.held.layers["layer.weight"].to(dtype=torch.float64))
    h = torch.diag(model.curvature.flatten())
    expected = torch.linalg.solve(h + K, h @ model.minimum.flatten() + K @ anchor.flatten()).reshape(OUT, IN + 1)
    torch.testing.assert_close(layer_matrix(model.layer.weight, model.layer.bias).detach(), expected, rtol=0, atol=1e-5)


def test_one_step_under_sgd_by_hand():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = EWC(model, strength=7.0).attach(optimizer).retain(factored_of(model))
    anchors = weights_of(model)
    train(model, optimizer, batches(1))
    before = weights_of(model)
    train(model, optimizer, batches(1, seed=1))
    for prefix in ("0", "2"):
        layer = model.get_submodule(prefix)
        names = [f"{prefix}.weight", f"{prefix}.bias"]
        stepped = [before[n] - 0.1 * model.get_parameter(n).grad for n in names]
        distance = layer_matrix(*stepped) - layer_matrix(*(anchors[n] for n in names))
        K = 0.1 * 7.0 * dense(keeper.held.layers[names[0]])
        expected = torch.linalg.solve(torch.eye(len(K)) + K, distance.flatten()).reshape(distance.shape)
        found = layer_matrix(layer.weight, layer.bias).detach() - layer_matrix(*(anchors[n] for n in names))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_metrics_of_groups_and_of_the_users_own():
    def run(build, **options):
        model = network()
        optimizer = build(model)
        keeper = EWC(model, strength=5.0, **options).attach(optimizer).retain(factored_of(model))
        train(model, optimizer, batches(6))
        return weights_of(model), keeper

    alone, _ = run(lambda m: SGD(m.parameters(), lr=0.1))
    grouped, _ = run(
        lambda m: SGD([{"params": [m[0].weight, m[2].weight]}, {"params": [m[0].bias, m[2].bias]}], lr=0.1)
    )
    assert same(alone, grouped)
    with pytest.warns(UserWarning, match="metric= takes the place of the exact metric of SGD"):
        mine, _ = run(lambda m: SGD(m.parameters(), lr=0.1), metric=lambda group, p, state: 10.0)
    for name, weight in mine.items():
        torch.testing.assert_close(weight, alone[name])
    two_rates = lambda m: SGD(  # noqa: E731
        [{"params": [m[0].weight, m[2].weight], "lr": 0.1}, {"params": [m[0].bias, m[2].bias], "lr": 0.01}]
    )
    _, keeper = run(two_rates)
    assert keeper._holdings.pulls.keys() == {"0.weight", "2.weight"}
    still, _ = run(lambda m: SGD(m.parameters(), lr=0.0))
    assert same(still, weights_of(network()))


def test_layers_apart_are_an_error_with_a_remedy():
    model = network()
    optimizer = SGD([model[0].weight, model[2].weight], lr=0.1)
    keeper = EWC(model, strength=5.0).attach(optimizer).retain(factored_of(model))
    with pytest.raises(StateError, match="the optimizer moves '0.weight' without '0.bias'.*to_diagonal"):
        train(model, optimizer, batches(1))
    keeper.detach()
    keeper = EWC(model, strength=5.0).attach(optimizer).retain(factored_of(model).to_diagonal())
    train(model, optimizer, batches(1))
    model = network()
    optimizer = SGD([{"params": [model[0].weight], "lr": 0.1}, {"params": [model[0].bias], "lr": 0.0}])
    EWC(model, strength=5.0).attach(optimizer).retain(factored_of(model))
    with pytest.raises(StateError, match="the optimizer moves '0.weight' without '0.bias'"):
        train(model, optimizer, batches(1))


@pytest.mark.parametrize("options", [{"strength": 5.0}, {"strength": 5.0, "every": 2}, {"budget": 1e-3}])
def test_a_layer_that_would_move_in_parts_is_refused_before_it_moves(options):
    model = network()
    optimizer = Adam(model.parameters(), lr=0.01)
    EWC(model, **options).attach(optimizer).retain(factored_of(model))
    train(model, optimizer, batches(options.get("every", 1) - 1))
    before = weights_of(model)
    optimizer.zero_grad()
    inputs, targets = batches(1)[0]
    torch.nn.functional.mse_loss(model(inputs), targets).backward()
    model[0].bias.grad = None
    with pytest.raises(StateError, match="the optimizer moves '0.weight' without '0.bias'"):
        optimizer.step()
    assert same(before, weights_of(model))


@pytest.mark.parametrize("build", [SGD, Adam])
@pytest.mark.parametrize("options", [{"strength": 5.0}, {"budget": 1e-3}, {"strength": 5.0, "pull": "gradient"}])
def test_a_layer_with_one_learning_rate_of_zero_is_refused_before_it_moves(options, build):
    model = network()
    weight, bias, *others = model.parameters()
    groups = [{"params": [weight, *others], "lr": 0.1}, {"params": [bias], "lr": 0.0}]
    optimizer = build(groups, lr=0.1)
    EWC(model, **options).attach(optimizer).retain(factored_of(model))
    before = weights_of(model)
    message = r"EWC: the optimizer moves '0.weight' without '0.bias'.* at learning rates above 0, or retain"
    with pytest.raises(StateError, match=message):
        train(model, optimizer, batches(1))
    assert same(before, weights_of(model))
    optimizer.param_groups[1]["lr"] = 0.1
    train(model, optimizer, batches(1))
    assert not same(before, weights_of(model))


def test_layers_that_a_step_does_not_move_stay():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    EWC(model, strength=5.0).attach(optimizer).retain(factored_of(model))
    train(model, optimizer, batches(2))
    before = weights_of(model)
    model[0].requires_grad_(False)
    optimizer.zero_grad()
    train(model, optimizer, batches(2, seed=3))
    after = weights_of(model)
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["2.weight"], after["2.weight"])


def test_half_precision_weights():
    model = network(torch.bfloat16)
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = EWC(model, strength=1e6).attach(optimizer).retain(factored_of(model))
    train(model, optimizer, batches(3, dtype=torch.bfloat16))
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, keeper.held.anchors[name], rtol=1e-2, atol=1e-2)


# --- a keeper's life


def test_a_diagonal_for_the_rest_goes_its_own_way():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    data = [(torch.randn(8, 3), torch.randn(8, 2))]
    found = kfac(model, data, loss="gaussian")
    assert list(found.diagonal) == ["1.weight", "1.bias"]
    optimizer = Adam(model.parameters(), lr=0.05)
    keeper = EWC(model, strength=1e12).attach(optimizer).retain(found)
    before = weights_of(model)
    train(model, optimizer, batches(4))
    for name, weight in weights_of(model).items():
        protected = keeper.held.importance[name] > 0 if name in keeper.held.importance else torch.ones_like(weight) > 0
        if name.startswith("1."):
            assert torch.equal(weight[protected], before[name][protected])
    assert keeper.report().protected > 0.3


def test_the_predicted_rise_is_the_quadratic_form():
    model = network()
    found = factored_of(model)
    keeper = EWC(model, strength=1.0).retain(found)
    anchors = weights_of(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    expected = 0.0
    for name, f in found.items():
        D = layer_matrix(*(model.get_parameter(n).detach() - anchors[n] for n in (name, f.bias)))
        expected += 0.5 * float((D * (f.outputs @ D @ f.inputs)).sum())
    assert keeper.predicted_rise() == pytest.approx(expected, rel=1e-4)
    report = keeper.report()
    assert report.predicted_rise == pytest.approx(expected, rel=1e-4)
    assert (report.protected, report.rise_unit) == (1.0, "by the quadratic model")
    twice = EWC(model, strength=2.0, pull="penalty").retain(found)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    penalty = twice.penalty()
    assert float(penalty.detach()) == pytest.approx(2 * twice.predicted_rise(), rel=1e-4)
    penalty.backward()
    f = found["0.weight"]
    D = torch.full((5, 4), 0.1)
    torch.testing.assert_close(model[0].weight.grad, 2 * (f.outputs @ D @ f.inputs)[:, :-1], rtol=1e-3, atol=1e-4)


def test_the_report_measures_the_pull():
    keeper, _ = two_tasks("adam", 1e12, steps=4)
    report = keeper.report()
    assert report.num_steps == 4
    assert report.pinned == 1.0
    assert report.pull_ratio == pytest.approx(1.0, abs=0.05)
    weak, _ = two_tasks("adam", 1e-6, steps=4)
    assert weak.report().pinned == 0.0
    assert weak.report().pull_ratio < 1e-2


def test_convolutions_are_held_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
    x, y = torch.randn(8, 1, 3, 3), torch.randn(8, 2)
    optimizer = Adam(model.parameters(), lr=0.05)
    keeper = EWC(model, strength=100.0).attach(optimizer).retain(kfac(model, [(x, y)], loss="gaussian"))
    assert list(keeper.held.layers) == ["0.weight", "3.weight"]
    free = copy.deepcopy(model)
    before = weights_of(model)
    train(model, optimizer, [(x, 3 * y)] * 20)
    train(free, Adam(free.parameters(), lr=0.05), [(x, 3 * y)] * 20)
    moved, went = (sum(float((w - before[n]).square().sum()) for n, w in weights_of(m).items()) for m in (model, free))
    assert 0 < moved < went
    assert keeper.predicted_rise() > 0


# --- bad input


def test_wva_takes_the_diagonal_of_factors():
    results = []
    for of_factors in (lambda factors: factors, lambda factors: factors.to_diagonal()):
        model = network()
        optimizer = Adam(model.parameters(), lr=0.01)
        keeper = WVA(model, strength=3.0).attach(optimizer).retain(of_factors(factored_of(model)))
        train(model, optimizer, batches(5))
        assert not keeper.held.layers
        results.append((weights_of(model), str(keeper.report())))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_factors_have_no_maximum():
    model = network()
    keeper = EWC(model, strength=1.0, accumulate="max")
    with pytest.raises(OptionError, match="accumulate is 'max', a rule that Kronecker factors do not have"):
        keeper.retain(factored_of(model))
    assert keeper.held.num_tasks == 0
    keeper.retain(factored_of(model).to_diagonal())


# --- the textbook's pull, and budgets


@every_optimizer
@pytest.mark.parametrize("maximize", [False, True])
def test_the_pull_on_gradients_is_the_gradient_of_the_penalty(optimizer, maximize):
    """The same steps as with the penalty in the loss, which autograd differentiates."""
    if maximize and optimizer in ("nesterov", "dampened"):
        pytest.skip("one of each family is enough")
    found = []
    for pull in ("gradient", "penalty"):
        model = network().double()
        optimizer_ = PLAIN[optimizer](model.parameters())
        for group in optimizer_.param_groups:
            group["maximize"] = maximize
        keeper = EWC(model, strength=0.3, pull=pull).retain(factored_of(model)).attach(optimizer_)
        sign = -1 if maximize else 1
        for inputs, targets in batches(5, dtype=torch.float64):
            optimizer_.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            (sign * (loss + keeper.penalty() if pull == "penalty" else loss)).backward()
            optimizer_.step()
        found.append(weights_of(model))
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-5, atol=1e-7), name


@every_optimizer
def test_a_budget_holds_layers(optimizer):
    """Without it training goes far beyond; with it the rise comes up to the budget, and no further."""
    model = network()
    free = copy.deepcopy(model)
    optimizer_ = PLAIN[optimizer](model.parameters())
    keeper = EWC(model, budget=0.01).retain(factored_of(model)).attach(optimizer_)
    loose = EWC(free, strength=0.0).retain(factored_of(free))
    data, rises = batches(30), []
    for batch in data:
        train(model, optimizer_, [batch])
        rises.append(keeper.predicted_rise())
    train(free, PLAIN[optimizer](free.parameters()), data)
    assert loose.predicted_rise() > 0.03
    assert 0.0095 < max(rises) <= 0.01 * (1 + 1e-4)


def test_under_sgd_a_budget_projects_in_one_metric():
    """The nearest point of the ellipsoid, of layers and of single weights together, by bisection on dense matrices."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    layers = factored_of(model)
    norm = {f"1.{name}": torch.rand(4) for name in ("weight", "bias")}
    keeper = EWC(model, budget=0.02).retain(FactoredImportance(layers, norm, layers.info))
    anchors = weights_of(model)
    optimizer = SGD(model.parameters(), lr=0.5)
    step = copy.deepcopy(model)
    train(step, SGD(step.parameters(), lr=0.5), batches(1, dtype=torch.float64)[:1])
    keeper.attach(optimizer)
    train(model, optimizer, batches(1, dtype=torch.float64)[:1])
    held, names = keeper.held, list(anchors)
    blocks = {name: dense(layer.to(dtype=torch.float64)) for name, layer in held.layers.items()}
    groups = [(blocks[n], held.layers[n].names(n)) for n in blocks]
    groups += [(torch.diag(norm[n].double().flatten()), [n]) for n in norm]
    assert sorted(n for _, some in groups for n in some) == sorted(names)

    def distances(weights: dict[str, Tensor]) -> list[Tensor]:
        return [
            (held.layers[some[0]].join(*(weights[n] - anchors[n] for n in some)) if len(some) > 1 else
             weights[some[0]] - anchors[some[0]]).flatten()
            for _, some in groups
        ]  # fmt: skip

    start = distances(weights_of(step))

    def projected(mu: float) -> list[Tensor]:
        return [
            torch.linalg.solve(torch.eye(len(K)) + 0.5 * mu * K, d) for (K, _), d in zip(groups, start)
        ]  # M = 1/lr = 2

    def rise(way: list[Tensor]) -> float:
        return sum(float(0.5 * d @ K @ d) for (K, _), d in zip(groups, way))

    low, high = 0.0, 1e6
    assert rise(start) > 0.03
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if rise(projected(middle)) > 0.02 else (low, middle)
    found = distances(weights_of(model))
    for way, expected in zip(found, projected(high), strict=True):
        assert torch.allclose(way, expected, rtol=5e-3, atol=1e-4)
    assert rise(found) == pytest.approx(0.02, rel=3e-3)


def test_the_two_kinds_do_not_mix():
    model = network()
    keeper = EWC(model, strength=1.0).retain(factored_of(model))
    with pytest.raises(
        OptionError, match="'0.bias', '0.weight', .* held in a layer for some tasks and weight by weight for"
    ):
        keeper.retain(importance_of(model))
    keeper.retain(factored_of(model, seed=1))
    assert keeper.held.num_tasks == 2
    keeper = EWC(model, strength=1.0).retain(importance_of(model))
    with pytest.raises(OptionError, match="EWC.retain: '0.bias'.*every task's to_diagonal"):
        keeper.retain(factored_of(model))
    keeper.retain(factored_of(model).to_diagonal())


def test_names_shapes_and_missing_parameters():
    model = network()
    other = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    with pytest.raises(ParameterMismatchError, match=r"EWC.retain: .*'0.weight' is \(6, 3\), in Sequential \(5, 3\)"):
        EWC(model, strength=1.0).retain(factored_of(other))
    found = factored_of(model)
    half = FactoredImportance({"0.weight": found["0.weight"]}, {}, found.info)
    with pytest.raises(ParameterMismatchError, match="2 parameters have no importance: '2.weight', '2.bias'"):
        EWC(model, strength=1.0).retain(half)
    keeper = EWC(model, strength=1.0, new_parameters="free").retain(half)
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper.attach(optimizer)
    train(model, optimizer, batches(1))


def test_a_grown_layer_is_an_error_before_the_step():
    model = network()
    keeper = EWC(model, strength=1.0).retain(factored_of(model))
    model[2] = nn.Linear(5, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper.attach(optimizer)
    nn.functional.mse_loss(model(torch.randn(4, 3)), torch.randn(4, 3)).backward()
    with pytest.raises(ParameterMismatchError, match=r"'2.weight' is \(2, 5\), in Sequential \(3, 5\)"):
        optimizer.step()


# --- files


@pytest.mark.parametrize("name", ["factors.safetensors", "pulls.safetensors", "anchors.safetensors"])
def test_damaged_files(name, tmp_path):
    keeper, _ = two_tasks("adam", 10.0)
    keeper.save(tmp_path / "skills")
    path = tmp_path / "skills" / name
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(FileFormatError, match="damaged, truncated or edited"):
        EWC.load(tmp_path / "skills", network())
    path.unlink()
    with pytest.raises(FileFormatError, match=f"{name} is missing"):
        EWC.load(tmp_path / "skills", network())


def test_an_edited_description(tmp_path):
    two_tasks("sgd", 10.0)[0].save(tmp_path / "skills")
    path = tmp_path / "skills" / "keeper_config.json"
    described = json.loads(path.read_text())["factors"]
    described.pop("0.weight")
    edit(path, factors=described)
    with pytest.raises(FileFormatError, match="'factors' does not list the layers"):
        EWC.load(tmp_path / "skills", network())


def test_loaded_into_another_model(tmp_path):
    two_tasks("sgd", 10.0)[0].save(tmp_path / "skills")
    other = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    with pytest.raises(ParameterMismatchError, match=r"'0.weight' is \(5, 3\), in Sequential \(6, 3\)"):
        EWC.load(tmp_path / "skills", other)


def test_what_a_diagonal_keeper_saves_is_unchanged(tmp_path):
    model = network()
    EWC(model, strength=1.0).retain(importance_of(model)).save(tmp_path / "skills")
    assert sorted(p.name for p in (tmp_path / "skills").iterdir()) == [
        "README.md",
        "anchors.safetensors",
        "holdfast.json",
        "importance.safetensors",
        "keeper_config.json",
    ]
    assert "factors" not in json.loads((tmp_path / "skills" / "keeper_config.json").read_text())


def test_of_one_layer_at_the_root():
    model = nn.Linear(3, 2)
    keeper = EWC(model, strength=1.0).retain(factored_of(model))
    assert list(keeper.held.layers) == ["weight"]
    assert isinstance(keeper.held.layers["weight"], KroneckerCurvature)
    info = ImportanceInfo("kfac-exact", 1)
    assert FactoredImportance({}, {}, info).parameter_names() == []

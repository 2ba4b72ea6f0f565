"""EWC and WVA in loops that were written without them."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from tests.retention.loops import batches, importance_of, network, same, train, train_held, weights_of
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, RMSprop, SparseAdam
from torch.optim.lr_scheduler import OneCycleLR

from holdfast import EWC, WVA, Importance, ImportanceInfo
from holdfast.errors import OptionError, ParameterMismatchError
from holdfast.tensors import trainable_parameters

BOTH = {"ewc": EWC, "wva": WVA, "ewc-gradient": partial(EWC, pull="gradient")}
both = pytest.mark.parametrize("mechanism", BOTH)


def accumulating(model, optimizer, data, *, scheduler):
    """Three batches a step, clipped, with a schedule of learning rate and momentum."""
    for number, (inputs, targets) in enumerate(data, start=1):
        (nn.functional.mse_loss(model(inputs), targets) / 3).backward()
        if number % 3 == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()


def by_hand(model, optimizer, importance, *, strength, viscous):
    """What the mechanism should do after each step of SGD with momentum, written out, as torch hooks."""
    anchors = weights_of(model)

    def before(*_):
        if viscous:
            anchors.update(weights_of(model))

    @torch.no_grad()
    def after(*_):
        for group in optimizer.param_groups:
            metric = (1 - group["momentum"]) / group["lr"]
            for name, parameter in model.named_parameters():
                if any(parameter is p for p in group["params"]):
                    force = strength * importance[name] / (1.0 if viscous else metric)
                    parameter.copy_(anchors[name] + (parameter - anchors[name]) / (1 + force))

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


@pytest.mark.parametrize("kind", [EWC, WVA])
def test_accumulation_clipping_groups_and_schedules(kind):
    results = []
    for held in (True, False):
        model = network()
        groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "weight_decay": 0.1}]
        optimizer = SGD(groups, lr=0.1, momentum=0.9)
        scheduler = OneCycleLR(optimizer, max_lr=[0.3, 0.05], total_steps=12)
        if held:
            keeper = kind(model, strength=5.0).attach(optimizer).retain(importance_of(model))
        else:
            by_hand(model, optimizer, importance_of(model), strength=5.0, viscous=kind is WVA)
        accumulating(model, optimizer, batches(30), scheduler=scheduler)
        results.append(weights_of(model))
    assert keeper.report().num_steps == 10
    for name, weight in results[0].items():
        torch.testing.assert_close(weight, results[1][name], rtol=1e-4, atol=1e-6)


# --- GradScaler


def scaled(model, optimizer, data, *, scaler, bad=()):
    """Mixed precision as torch's examples have it; the gradients of the steps in `bad` are infinite."""
    for number, (inputs, targets) in enumerate(data):
        optimizer.zero_grad()
        scaler.scale(nn.functional.mse_loss(model(inputs), targets)).backward()
        if number in bad:
            next(model.parameters()).grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("build", [Adam, partial(SGD, momentum=0.9), SGD])
@both
def test_gradscaler_and_its_skipped_steps(mechanism, build, fused):
    results = []
    for good_only in (False, True):
        model = network()
        optimizer = build(model.parameters(), lr=0.01, fused=fused)
        keeper = BOTH[mechanism](model, strength=5.0).attach(optimizer).retain(importance_of(model))
        data, seen = batches(8), []
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # pyright: ignore
        for number, batch in enumerate(data):
            bad = number in (2, 5)
            if bad and good_only:
                continue
            before = weights_of(model)
            scaled(model, optimizer, [batch], scaler=scaler, bad=(0,) if bad else ())
            seen.append(same(before, weights_of(model)))
        assert keeper.report().num_steps == 6
        assert not any(seen) if good_only else [i for i, still in enumerate(seen) if still] == [2, 5]
        results.append(weights_of(model))
    for name, weight in results[0].items():
        torch.testing.assert_close(weight, results[1][name], rtol=1e-4, atol=1e-6)


@both
def test_a_fused_optimizer_under_a_scale_is_held_as_without(mechanism):
    results = []
    for fused in (False, True):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.05, fused=fused)
        BOTH[mechanism](model, strength=2.0).attach(optimizer).retain(importance_of(model))
        scaler = torch.amp.GradScaler("cpu", init_scale=512.0, enabled=fused)  # pyright: ignore
        scaled(model, optimizer, batches(6), scaler=scaler)
        results.append(weights_of(model))
    for name, weight in results[0].items():
        torch.testing.assert_close(weight, results[1][name], rtol=1e-4, atol=1e-5)


def test_a_step_that_was_skipped_while_measured_leaves_the_next_one_right():
    model = network()
    optimizer = Adam(model.parameters(), lr=0.01, fused=True)
    keeper = WVA(model, strength=torch.inf, log_every=1).attach(optimizer).retain(importance_of(model))
    start = weights_of(model)
    scaled(model, optimizer, batches(4), scaler=torch.amp.GradScaler("cpu"), bad=(0, 2))  # pyright: ignore
    for name, weight in weights_of(model).items():
        protected = keeper.held.importance[name] > 0
        torch.testing.assert_close(weight[protected], start[name][protected], rtol=1e-5, atol=1e-6)


# --- wrapped models and optimizers


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")], ids=["parallel", "compiled"]
)
@pytest.mark.parametrize("wrapped_first", [False, True])
@both
def test_wrapped_models(mechanism, wrap, wrapped_first):
    plain, inner = network(), network()
    outer = wrap(inner)
    for model, given in ((plain, plain), (outer, outer if wrapped_first else inner)):
        optimizer = Adam(model.parameters(), lr=0.01)
        keeper = BOTH[mechanism](given, strength=5.0).attach(optimizer)
        keeper.retain(importance_of(plain))
        train(model, optimizer, batches(4))
        assert list(keeper.held.importance) == list(trainable_parameters(plain))
    assert same(weights_of(plain), weights_of(inner))


class Accelerated:
    """As accelerate's: keeps the optimizer as `.optimizer`, is none itself."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self):
        self.optimizer.step()


@both
def test_wrapped_optimizers(mechanism):
    results = []
    for wrap in (lambda o: o, Accelerated):
        model = network()
        optimizer = wrap(Adam(model.parameters(), lr=0.01))
        BOTH[mechanism](model, strength=5.0).attach(optimizer).retain(importance_of(model))
        train(model, optimizer, batches(4))
        results.append(weights_of(model))
    assert same(*results)


# --- several optimizers


@pytest.mark.parametrize("mechanism", [*BOTH, "ewc-penalty"])
def test_two_optimizers_on_halves_are_one_on_the_whole(mechanism):
    kinds = {**BOTH, "ewc-penalty": partial(EWC, pull="penalty")}
    whole, halves = network(), network()

    class Pair:
        def __init__(self, *optimizers):
            self.optimizers = optimizers

        def zero_grad(self):
            for optimizer in self.optimizers:
                optimizer.zero_grad()

        def step(self):
            for optimizer in self.optimizers:
                optimizer.step()

    one = Adam(whole.parameters(), lr=0.01)
    pair = Pair(Adam(halves[0].parameters(), lr=0.01), Adam(halves[2].parameters(), lr=0.01))
    for model, optimizer in ((whole, one), (halves, pair)):
        keeper = kinds[mechanism](model, strength=5.0)
        for attached in getattr(optimizer, "optimizers", [optimizer]):
            keeper.attach(attached)
        keeper.retain(importance_of(model))
        train_held(keeper, optimizer, batches(5))
    assert same(weights_of(whole), weights_of(halves))


@both
def test_a_new_optimizer_for_every_task(mechanism):
    model = network()
    keeper = BOTH[mechanism](model, strength=torch.inf if mechanism == "ewc" else 5.0)
    for task in range(3):
        optimizer = Adam(model.parameters(), lr=0.01)
        keeper.attach(optimizer)
        before = weights_of(model)
        train(model, optimizer, batches(3, seed=task))
        assert not same(before, weights_of(model))
        keeper.retain(importance_of(model, seed=task))
    assert keeper.held.num_tasks == 3
    assert keeper.report().num_steps == 0


# --- closures and other optimizers


@pytest.mark.parametrize("mechanism", [*BOTH, "wva-gradients"])
def test_closures_are_held_as_loops_are(mechanism):
    kinds = {**BOTH, "wva-gradients": partial(WVA, on="gradients")}
    results = []
    for with_closure in (False, True):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.05)
        keeper = kinds[mechanism](model, strength=2.0).attach(optimizer).retain(importance_of(model))
        for inputs, targets in batches(5):

            def closure(inputs=inputs, targets=targets):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(inputs), targets)
                loss.backward()
                return loss

            if with_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        results.append((weights_of(model), keeper.report().pull_ratio))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_lbfgs_reaches_the_penalised_minimum_by_pulled_gradients():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = LBFGS(layer.parameters(), lr=0.5)
    keeper = EWC(layer, strength=3.0, pull="gradient").attach(optimizer)
    keeper.retain({"weight": torch.ones(1, 1)})

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (layer.weight - 4.0).square().sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert layer.weight.item() == pytest.approx(1.0, abs=1e-3)


class OwnStep(SGD):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("build", [RMSprop, Adagrad, OwnStep, partial(SGD, foreach=True, momentum=0.9, nesterov=True)])
def test_wva_under_optimizers_whose_increments_must_be_copied(build):
    model, free = network(), network()
    optimizer, alone = build(model.parameters(), lr=0.01), build(free.parameters(), lr=0.01)
    importance = importance_of(model)
    WVA(model, strength=2.0).attach(optimizer).retain(importance)
    start = weights_of(model)
    train(model, optimizer, batches(1))
    train(free, alone, batches(1))
    for name, weight in weights_of(model).items():
        step = free.get_parameter(name).detach() - start[name]
        torch.testing.assert_close(weight, start[name] + step / (1 + 2.0 * importance[name]), rtol=1e-5, atol=1e-6)


def test_ewc_under_an_unknown_optimizer_warns_once_and_takes_the_lr():
    model, free = network(), network()
    optimizer, alone = RMSprop(model.parameters(), lr=0.01), RMSprop(free.parameters(), lr=0.01)
    message = "EWC: RMSprop is no optimizer whose metric is known: .* Pass metric= for an exact one"
    with pytest.warns(UserWarning, match=message) as caught:
        keeper = EWC(model, strength=2.0).attach(optimizer)
    assert [warning.filename for warning in caught] == [__file__]
    keeper.retain(importance_of(model))
    anchors = weights_of(model)
    train(model, optimizer, batches(1))
    train(free, alone, batches(1))
    for name, weight in weights_of(model).items():
        force = 0.01 * 2.0 * keeper.held.importance[name]
        expected = anchors[name] + (free.get_parameter(name).detach() - anchors[name]) / (1 + force)
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)


def test_a_metric_of_the_users_own():
    """The remedy of the warning: RMSprop's denominator brings it to the penalised minimum."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = RMSprop(layer.parameters(), lr=0.1)
    metric = lambda group, parameter, state: (state["square_avg"].sqrt() + group["eps"]) / group["lr"]  # noqa: E731
    EWC(layer, strength=3.0, metric=metric).attach(optimizer).retain({"weight": torch.ones(1, 1)})
    for _ in range(400):
        optimizer.zero_grad()
        (0.5 * (layer.weight - 4.0).square().sum()).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.985
    assert layer.weight.item() == pytest.approx(1.0, abs=5e-3)


def test_a_metric_that_changes_nothing_or_replaces_an_exact_one_warns():
    model = network()
    with pytest.warns(
        UserWarning, match=r"metric= has no effect under pull='gradient'; it belongs to pull=\"implicit\""
    ):
        EWC(model, metric=lambda *_: 1.0, pull="gradient").attach(RMSprop(model.parameters()))
    with pytest.warns(UserWarning, match="metric= takes the place of the exact metric of SGD"):
        EWC(model, metric=lambda *_: 1.0).attach(SGD(model.parameters()))


@both
def test_a_step_that_calls_its_parents_step_is_held_once(mechanism):
    results = []
    for build in (SGD, OwnStep):
        model = network()
        optimizer = build(model.parameters(), lr=0.05)
        options = {"metric": lambda group, *_: 1 / group["lr"]} if mechanism == "ewc" and build is OwnStep else {}
        keeper = BOTH[mechanism](model, strength=3.0, **options).attach(optimizer).retain(importance_of(model))
        train(model, optimizer, batches(5))
        results.append(weights_of(model))
        assert keeper.report().num_steps == 5
    for name, weight in results[0].items():
        torch.testing.assert_close(weight, results[1][name], rtol=1e-5, atol=1e-6)


# --- unusual weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("mechanism", [*BOTH, "ewc-budget"])
@pytest.mark.parametrize("build", [SGD, AdamW])
def test_other_precisions(mechanism, build, dtype):
    kinds = {**BOTH, "ewc-budget": lambda model, strength: EWC(model, budget=1e-3)}
    model = network(dtype)
    optimizer = build(model.parameters(), lr=0.1)
    keeper = kinds[mechanism](model, strength=5.0).attach(optimizer).retain(importance_of(model))
    start = weights_of(model)
    train(model, optimizer, batches(4, dtype=dtype))
    assert all(weight.dtype == dtype and weight.isfinite().all() for weight in weights_of(model).values())
    assert not same(start, weights_of(model))
    ratio = keeper.report().pull_ratio
    assert ratio is not None


@pytest.mark.parametrize("kind", [EWC, WVA])
def test_bfloat16_is_pinned_to_the_bit(kind):
    model = network(torch.bfloat16)
    optimizer = AdamW(model.parameters(), lr=0.1)
    keeper = kind(model, strength=torch.inf).attach(optimizer).retain(importance_of(model))
    start = weights_of(model)
    train(model, optimizer, batches(4, dtype=torch.bfloat16))
    for name, weight in weights_of(model).items():
        protected = keeper.held.importance[name] > 0
        assert torch.equal(weight[protected], start[name][protected])
        assert not torch.equal(weight, start[name])


@both
def test_a_model_cast_after_it_was_retained(mechanism):
    model = network()
    keeper = BOTH[mechanism](model, strength=5.0).retain(importance_of(model))
    model.to(torch.float64)
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper.attach(optimizer)
    train(model, optimizer, batches(3, dtype=torch.float64))
    assert all(weight.isfinite().all() for weight in weights_of(model).values())
    keeper.retain(importance_of(model))


@pytest.mark.parametrize("keeper", [EWC, WVA, partial(WVA, on="gradients")])
def test_sparse_gradients_are_held_as_dense_ones(keeper):
    results = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(6, 2, sparse=sparse)
        optimizer = SGD(table.parameters(), lr=0.1)
        kept = keeper(table, strength=5.0, log_every=1).attach(optimizer).retain({"weight": torch.ones(6, 2)})
        for rows in ([1, 4], [4, 4], [0, 2]):
            optimizer.zero_grad()
            table(torch.tensor(rows)).square().sum().backward()
            optimizer.step()
        results.append(table.weight.detach())
        assert kept.report().pull_ratio
    torch.testing.assert_close(*results)


def test_sparse_gradients_cannot_be_pulled():
    table = nn.Embedding(6, 2, sparse=True)
    optimizer = SGD(table.parameters(), lr=0.1)
    keeper = EWC(table, pull="gradient").attach(optimizer).retain({"weight": torch.ones(6, 2)})
    table(torch.tensor([1, 4])).sum().backward()
    before = weights_of(table)
    with pytest.raises(OptionError, match=r"EWC: pull=\"gradient\" adds to every entry .* Use pull=\"implicit\""):
        optimizer.step()
    assert same(before, weights_of(table))
    keeper.detach()
    EWC(table, strength=1.0, pull="implicit").attach(optimizer).retain({"weight": torch.ones(6, 2)})
    optimizer.step()


def test_sparse_adam_by_snapshot():
    table = nn.Embedding(6, 2, sparse=True)
    optimizer = SparseAdam(list(table.parameters()), lr=0.1)
    start = weights_of(table)["weight"]
    WVA(table, strength=torch.inf).attach(optimizer).retain({"weight": torch.ones(6, 2)})
    table(torch.tensor([1, 4])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(table.weight.detach(), start)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 2, bias=False)
        self.decoder = nn.Linear(3, 2)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.encoder(x) + self.decoder(x)


@both
def test_tied_weights_are_held_once(mechanism):
    model, single = Tied(), Tied()
    single.load_state_dict(model.state_dict())
    keeper = BOTH[mechanism](model, strength=5.0)
    optimizer = SGD(model.parameters(), lr=0.05)
    keeper.attach(optimizer).retain(importance_of(model))
    assert list(keeper.held.importance) == ["encoder.weight", "decoder.bias"]
    train(model, optimizer, batches(3))
    assert model.decoder.weight is model.encoder.weight
    assert keeper.report().num_steps == 3


@pytest.mark.parametrize("mechanism", [*BOTH, "ewc-penalty", "ewc-budget", "ewc-per-task"])
def test_parameters_that_are_frozen_and_unfrozen(mechanism):
    kinds = {
        **BOTH,
        "ewc-penalty": partial(EWC, pull="penalty"),
        "ewc-budget": lambda model, strength: EWC(model, budget=1e-4),
        "ewc-per-task": partial(EWC, accumulate="per_task"),
    }
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = kinds[mechanism](model, strength=4.0).attach(optimizer).retain(importance_of(model))
    model[0].requires_grad_(False)
    frozen = weights_of(model[0])
    optimizer.zero_grad()
    train_held(keeper, optimizer, batches(3))
    assert same(frozen, weights_of(model[0]))
    assert keeper.report().protected <= 1
    keeper.retain(importance_of(model))  # of the trainable ones alone
    assert set(keeper.held.importance) == set(dict(model.named_parameters()))
    model[0].requires_grad_(True)
    free = copy.deepcopy(model)
    train_held(keeper, optimizer, batches(3, seed=1))
    train(free, SGD(free.parameters(), lr=0.1), batches(3, seed=1))
    distance, free_distance = ((m[0].weight - frozen["weight"]).norm() for m in (model, free))
    assert 0 < distance < free_distance


def test_a_parameter_frozen_since_it_moved_has_its_anchor_where_it_is():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = EWC(model, strength=1.0).attach(optimizer).retain(importance_of(model))
    train(model, optimizer, batches(3))
    model[0].requires_grad_(False)
    keeper.retain(importance_of(model))
    assert same(weights_of(model), dict(keeper.held.anchors))
    assert keeper.predicted_rise() == 0.0


@both
def test_parameters_that_were_frozen_when_training_began(mechanism):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = BOTH[mechanism](model, strength=4.0).retain(importance_of(model))
    keeper.attach(optimizer)
    model[0].requires_grad_(False)
    train(model, optimizer, batches(2))
    model[0].requires_grad_(True)
    free = copy.deepcopy(model)
    start = model[0].weight.detach().clone()
    train(model, optimizer, batches(6, seed=1))
    train(free, SGD(free.parameters(), lr=0.1), batches(6, seed=1))
    distance, free_distance = ((m[0].weight.detach() - start).norm() for m in (model, free))
    assert 0 < distance < 0.95 * free_distance


@both
def test_a_model_cast_in_the_middle_of_a_task(mechanism):
    model = network(torch.bfloat16)
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = BOTH[mechanism](model, strength=4.0).attach(optimizer).retain(importance_of(model))
    for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float32):
        model.to(dtype)
        optimizer.zero_grad()
        train(model, optimizer, batches(2, dtype=dtype))
    assert keeper.report().num_steps == 8
    assert all(weight.isfinite().all() for weight in weights_of(model).values())


@both
def test_parameters_without_a_gradient_stay_and_the_others_keep_their_anchors(mechanism):
    def model_of_two_heads():
        torch.manual_seed(2)
        model = Heads()
        model.heads.append(nn.Linear(4, 2))
        return model

    both_heads, second_head = model_of_two_heads(), model_of_two_heads()
    second_head.heads = nn.ModuleList([second_head.heads[1]])
    for model in (both_heads, second_head):
        optimizer = SGD(model.parameters(), lr=0.1)
        keeper = BOTH[mechanism](model, strength=4.0).attach(optimizer)
        keeper.retain({name: torch.ones_like(p) for name, p in model.named_parameters()})
        first = weights_of(model)
        train(model, optimizer, batches(4))
    assert same(weights_of(both_heads.heads[1]), weights_of(second_head.heads[0]))
    assert same(weights_of(both_heads.body), weights_of(second_head.body))
    assert not torch.equal(first["body.weight"], second_head.body.weight)


# --- models that grow


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 2)])

    def forward(self, x):
        return self.heads[-1](self.body(x).tanh())


def grown(kind, **options):
    """A keeper that has retained a task, on a model with a head added afterwards."""
    model = Heads()
    optimizer = SGD(model.parameters(), lr=0.05)
    keeper = kind(model, strength=5.0, **options).attach(optimizer).retain(importance_of(model))
    model.heads.append(nn.Linear(4, 2))
    optimizer.add_param_group({"params": model.heads[-1].parameters()})
    return keeper, model, optimizer


@both
def test_a_grown_head_is_an_error_before_anything_changes(mechanism):
    keeper, model, optimizer = grown(BOTH[mechanism])
    before = weights_of(model)
    with pytest.raises(ParameterMismatchError) as caught:
        train(model, optimizer, batches(1))
    assert str(caught.value) == (
        f"{keeper.name}: 2 parameters have no importance: 'heads.1.weight', 'heads.1.bias'. They appeared after "
        "task 1 was retained, or its importance left them out. "
        'Pass new_parameters="free" to train them unprotected.'
    )
    assert same(before, weights_of(model))
    with pytest.raises(ParameterMismatchError, match="2 parameters have no importance"):
        keeper.retain({name: v for name, v in importance_of(model).items() if not name.startswith("heads.1")})
    assert keeper.held.num_tasks == 1


@both
def test_a_grown_head_may_be_free_until_it_is_retained(mechanism):
    keeper, model, optimizer = grown(BOTH[mechanism], new_parameters="free")
    train(model, optimizer, batches(2))
    before = weights_of(model)
    keeper.retain(importance_of(model))
    if mechanism != "ewc-gradient":
        keeper.strength = torch.inf
    train(model, optimizer, batches(2, seed=1))
    new = "heads.1.weight"
    protected = keeper.held.importance[new] > 0
    moved = (weights_of(model)[new] - before[new]).abs()
    assert moved[~protected].max() > 1e-3
    if mechanism != "ewc-gradient":
        assert moved[protected].max() < 1e-6


@pytest.mark.parametrize("new_parameters", ["error", "free"])
@both
def test_a_parameter_that_changed_its_shape_is_an_error_before_anything_changes(mechanism, new_parameters):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    keeper = BOTH[mechanism](model, strength=5.0, new_parameters=new_parameters).retain(importance_of(model))
    model[1] = nn.Linear(4, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper.attach(optimizer)
    before = weights_of(model)
    model(torch.ones(1, 3)).sum().backward()
    message = (
        r"2 shapes not as in the model: '1.weight' is \(2, 4\), in Sequential \(3, 4\); '1.bias' is \(2,\), "
        r"in Sequential \(3,\). Let the model grow by parameters of their own beside the old ones, or start"
    )
    with pytest.raises(ParameterMismatchError, match=f"{keeper.name}: {message}"):
        optimizer.step()
    assert same(before, weights_of(model))
    with pytest.raises(ParameterMismatchError, match=f"{keeper.name}.retain: {message}"):
        keeper.retain(importance_of(model))
    keeper.detach()
    fresh = BOTH[mechanism](model, strength=5.0).attach(optimizer)  # the remedy
    fresh.retain(importance_of(model))
    optimizer.step()


def test_a_mapping_will_do_as_importance():
    model = network()
    keeper = EWC(model, strength=1.0).retain({name: torch.ones_like(p) for name, p in model.named_parameters()})
    assert keeper.report().rise_unit == "importance units"


def test_examples_weigh():
    model = network()
    keeper = EWC(model, strength=1.0, weighting="examples")
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for count in (10, 40):
        keeper.retain(Importance(ones, ImportanceInfo("l2", count)))
    assert keeper.held.largest == 5.0

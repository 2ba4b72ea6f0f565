"""What every mechanism promises under every optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.optimizers import PLAIN
from tests.retention.loops import (
    MECHANISMS,
    batches,
    importance_of,
    network,
    same,
    train,
    train_held,
    weights_of,
)

from holdfast import EWC, WVA
from holdfast.errors import ParameterMismatchError

pytestmark = pytest.mark.filterwarnings("ignore:WVA. on=.gradients. is cancelled")

every_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)
every_optimizer = pytest.mark.parametrize("optimizer", PLAIN)


def two_tasks(mechanism, optimizer_name, strength, *, steps=6):
    """Plain steps, retain, then held steps; returns the keeper and its optimizer."""
    model = network()
    optimizer = PLAIN[optimizer_name](model.parameters())
    keeper = MECHANISMS[mechanism](model, strength=strength, log_every=2).attach(optimizer)
    train(model, optimizer, batches(3))
    keeper.retain(importance_of(model))
    train_held(keeper, optimizer, batches(steps, seed=1))
    return keeper, optimizer


def bare(optimizer_name, *, steps=6):
    model = network()
    optimizer = PLAIN[optimizer_name](model.parameters())
    train(model, optimizer, [*batches(3), *batches(steps, seed=1)])
    return model, optimizer


@every_optimizer
@every_mechanism
def test_strength_zero_is_the_bare_optimizer_to_the_bit(mechanism, optimizer):
    keeper, held_optimizer = two_tasks(mechanism, optimizer, 0.0)
    model, bare_optimizer = bare(optimizer)
    assert same(weights_of(keeper.model), weights_of(model))
    states = [
        [value for state in o.state.values() for value in state.values()] for o in (held_optimizer, bare_optimizer)
    ]
    assert len(states[0]) == len(states[1])
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*states, strict=True))


@every_optimizer
@every_mechanism
def test_it_does_something(mechanism, optimizer):
    keeper, _ = two_tasks(mechanism, optimizer, 10.0)
    model, _ = bare(optimizer)
    assert not any(torch.equal(a, b) for a, b in zip(keeper.model.parameters(), model.parameters(), strict=True))


@every_optimizer
@every_mechanism
def test_save_load_continue_is_continue(mechanism, optimizer, tmp_path):
    keeper, old_optimizer = two_tasks(mechanism, optimizer, 10.0, steps=5)
    keeper.save(tmp_path / "skills")
    model = network()
    loaded = type(keeper).load(tmp_path / "skills", model)  # before the weights: the order is the user's
    model.load_state_dict(keeper.model.state_dict())
    new_optimizer = PLAIN[optimizer](model.parameters())
    new_optimizer.load_state_dict(copy.deepcopy(old_optimizer.state_dict()))
    loaded.attach(new_optimizer)
    for held, its_optimizer in ((keeper, old_optimizer), (loaded, new_optimizer)):
        train_held(held, its_optimizer, batches(5, seed=2))
    assert same(weights_of(keeper.model), weights_of(model))
    for held, its_optimizer in ((keeper, old_optimizer), (loaded, new_optimizer)):
        held.retain(importance_of(model, seed=1))
        train_held(held, its_optimizer, batches(5, seed=3))
    assert same(weights_of(keeper.model), weights_of(model))
    assert loaded.report() == keeper.report()


@every_mechanism
def test_restore_takes_what_was_saved_and_keeps_its_options(mechanism, tmp_path):
    keeper, _ = two_tasks(mechanism, "adam", 10.0, steps=5)
    keeper.save(tmp_path / "skills")
    other = MECHANISMS[mechanism](network(), strength=3.0, log_every=7)
    other.restore(tmp_path / "skills")
    assert same(dict(other.held.importance), dict(keeper.held.importance))
    assert other.report().num_steps == 5
    assert other.log_every == 7


def test_restore_changes_nothing_where_the_model_does_not_match(tmp_path):
    keeper, _ = two_tasks("ewc", "adam", 10.0)
    keeper.save(tmp_path / "skills")
    other = EWC(torch.nn.Linear(3, 5))
    with pytest.raises(ParameterMismatchError, match="EWC.restore"):
        other.restore(tmp_path / "skills")
    assert other.held.num_tasks == 0


@every_mechanism
def test_state_and_load_state_continue_too(mechanism):
    keeper, old_optimizer = two_tasks(mechanism, "adam", 10.0, steps=5)
    tensors, notes = copy.deepcopy(keeper.state())
    model = network()
    loaded = MECHANISMS[mechanism](model, strength=10.0, log_every=2)
    loaded.load_state(tensors, notes)
    model.load_state_dict(keeper.model.state_dict())
    new_optimizer = PLAIN["adam"](model.parameters())
    new_optimizer.load_state_dict(copy.deepcopy(old_optimizer.state_dict()))
    loaded.attach(new_optimizer)
    for held, its_optimizer in ((keeper, old_optimizer), (loaded, new_optimizer)):
        train_held(held, its_optimizer, batches(5, seed=2))
    assert same(weights_of(keeper.model), weights_of(model))


def traces(model, optimizer):
    """All that a mechanism could have left on a model and its optimizer."""
    found = [
        sorted(vars(optimizer)),
        len(optimizer._optimizer_step_pre_hooks),
        len(optimizer._optimizer_step_post_hooks),
    ]
    for module in model.modules():
        found.append({name: len(value) for name, value in vars(module).items() if "hooks" in name})
        found.append(sorted(vars(module)))
    for parameter in model.parameters():
        found += [sorted(vars(parameter)), parameter._backward_hooks, parameter._post_accumulate_grad_hooks]
        found += [parameter.requires_grad, type(parameter)]
    return [*found, sorted(optimizer.state_dict()), [sorted(group) for group in optimizer.param_groups]]


@every_optimizer
@every_mechanism
def test_detach_leaves_no_trace(mechanism, optimizer):
    keeper, held_optimizer = two_tasks(mechanism, optimizer, 10.0)
    keeper.detach()
    untouched = PLAIN[optimizer](network().parameters())
    train(network(), untouched, [])
    model, bare_optimizer = bare(optimizer)
    assert traces(keeper.model, held_optimizer) == traces(model, bare_optimizer)
    model.load_state_dict(keeper.model.state_dict())
    bare_optimizer.load_state_dict(copy.deepcopy(held_optimizer.state_dict()))
    train(keeper.model, held_optimizer, batches(3, seed=4))
    train(model, bare_optimizer, batches(3, seed=4))
    assert same(weights_of(keeper.model), weights_of(model))


@every_optimizer
@pytest.mark.parametrize("mechanism", ["ewc", "ewc-budget", "ewc-per-task", "wva", "wva-exponential"])
def test_what_pulls_after_the_step_leaves_the_gradients(mechanism, optimizer):
    model = network()
    its_optimizer = PLAIN[optimizer](model.parameters())
    keeper = MECHANISMS[mechanism](model, strength=10.0).attach(its_optimizer).retain(importance_of(model))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    its_optimizer.step()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True) if p.grad is not None)
    assert keeper.report().num_steps == 1


@every_optimizer
def test_an_infinite_strength_pins_elastically_to_the_bit(optimizer):
    for strength in (1e30, torch.inf):
        keeper, _ = two_tasks("ewc", optimizer, strength)
        assert isinstance(keeper, EWC)
        for name, weight in weights_of(keeper.model).items():
            protected = keeper.held.importance[name] > 0
            assert torch.equal(weight[protected], keeper.held.anchors[name][protected])
            assert not torch.equal(weight[~protected], keeper.held.anchors[name][~protected])
        assert keeper.predicted_rise() == 0.0


@every_optimizer
@pytest.mark.parametrize("mechanism", ["wva", "wva-exponential"])
def test_an_infinite_strength_pins_viscously_up_to_rounding(mechanism, optimizer):
    keeper, _ = two_tasks(mechanism, optimizer, torch.inf)
    model, _ = bare(optimizer, steps=0)
    for name, weight in weights_of(model).items():
        protected = keeper.held.importance[name] > 0
        now = keeper.model.get_parameter(name).detach()
        torch.testing.assert_close(now[protected], weight[protected], rtol=1e-5, atol=1e-6)
        assert not torch.equal(now[~protected], weight[~protected])


@every_optimizer
@pytest.mark.parametrize("mechanism", ["ewc", "ewc-per-task", "ewc-budget"])
def test_the_implicit_pull_never_crosses_the_anchor(mechanism, optimizer):
    keeper, held_optimizer = two_tasks(mechanism, optimizer, 30.0)
    for data in batches(4, seed=5):
        model = copy.deepcopy(keeper.model)
        alone = PLAIN[optimizer](model.parameters())
        alone.load_state_dict(copy.deepcopy(held_optimizer.state_dict()))
        train(model, alone, [data])
        train_held(keeper, held_optimizer, [data])
        for name, weight in weights_of(keeper.model).items():
            anchor, free = keeper.held.anchors[name], model.get_parameter(name).detach()
            assert torch.all(torch.minimum(anchor, free) <= weight)
            assert torch.all(weight <= torch.maximum(anchor, free))


def test_gradient_and_penalty_pulls_agree_under_plain_sgd():
    results = [weights_of(two_tasks(name, "sgd", 3.0)[0].model) for name in ("ewc-gradient", "ewc-penalty")]
    for name, weight in results[0].items():
        torch.testing.assert_close(weight, results[1][name], rtol=1e-5, atol=1e-6)


def test_attenuated_gradients_and_increments_agree_under_plain_sgd():
    results = [weights_of(two_tasks(name, "sgd", 3.0)[0].model) for name in ("wva-gradients", "wva")]
    for name, weight in results[0].items():
        torch.testing.assert_close(weight, results[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strength", [0.5, 20.0])
def test_one_implicit_step_under_sgd_by_hand(strength):
    model = network()
    optimizer = PLAIN["sgd"](model.parameters())
    keeper = EWC(model, strength=strength).attach(optimizer).retain(importance_of(model))
    anchors = weights_of(model)
    train(model, optimizer, batches(1))  # one step away from the anchors, itself held
    before = weights_of(model)
    train(model, optimizer, batches(1, seed=1))
    for name, parameter in model.named_parameters():
        force = 0.1 * strength * keeper.held.importance[name]
        assert parameter.grad is not None
        expected = (before[name] - 0.1 * parameter.grad + force * anchors[name]) / (1 + force)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attenuation", ["hyperbolic", "exponential"])
@every_optimizer
def test_attenuated_increments_by_hand(attenuation, optimizer):
    model = network()
    its_optimizer = PLAIN[optimizer](model.parameters())
    train(model, its_optimizer, batches(2))
    keeper = WVA(model, strength=2.0, attenuation=attenuation).attach(its_optimizer).retain(importance_of(model))
    for data in batches(3, seed=1):
        free = copy.deepcopy(model)
        alone = PLAIN[optimizer](free.parameters())
        alone.load_state_dict(copy.deepcopy(its_optimizer.state_dict()))
        before = weights_of(model)
        train(free, alone, [data])
        train(model, its_optimizer, [data])
        for name, weight in weights_of(model).items():
            force = 2.0 * keeper.held.importance[name]
            factor = 1 / (1 + force) if attenuation == "hyperbolic" else (-force).exp()
            expected = before[name] + factor * (free.get_parameter(name).detach() - before[name])
            torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)

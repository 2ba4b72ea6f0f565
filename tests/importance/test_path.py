"""Synaptic intelligence against the sum written out by hand, in every kind of loop."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import holdfast as hf
from holdfast.errors import FileFormatError, OptionError, ParameterMismatchError, StateError


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def batches(count: int, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)) for _ in range(count)
    ]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_hand(model, optimizer, data, *, gradient="before", clip=None, damping=0.1):
    """The sum of -g * increment over (displacement^2 + damping), with nothing but torch."""
    start, path = weights(model), {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    waiting = None
    for inputs, targets in data:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        g, before = gradients(model), weights(model)
        if gradient == "after" and waiting is not None:
            for name, increment in waiting.items():
                path[name] -= g[name] * increment
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        waiting = {name: p - before[name] for name, p in weights(model).items()}
        if gradient == "before":
            for name, increment in waiting.items():
                path[name] -= g[name] * increment
        last = g
    if gradient == "after":  # the last step has no next gradient: its own stands in
        for name, increment in waiting.items():
            path[name] -= last[name] * increment
    end = weights(model)
    return {name: path[name].clamp_min(0) / ((end[name] - start[name]) ** 2 + damping) for name in path}


def train(model, optimizer, data, *, clip=None):
    for inputs, targets in data:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def assert_same(importance, expected):
    assert set(importance) == set(expected)
    for name in expected:
        torch.testing.assert_close(importance[name], expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gradient", ["before", "after"])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
        lambda p: torch.optim.Adam(p, lr=0.01),
    ],
)
def test_equals_the_sum_by_hand(make, clip, gradient):
    data = batches(12)
    model = net()
    expected = by_hand(model, make(model.parameters()), data, gradient=gradient, clip=clip)
    model = net()
    optimizer = make(model.parameters())
    path = hf.SynapticIntelligence(model, gradient=gradient).attach(optimizer)
    train(model, optimizer, data, clip=clip)
    assert_same(path.importance(), expected)


def test_the_path_integral_is_the_drop_of_the_loss():
    (inputs, targets), model = batches(1)[0], net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    path = hf.SynapticIntelligence(model, damping=1e9).attach(optimizer)  # importance * damping is the integral
    before = F.cross_entropy(model(inputs), targets).item()
    train(model, optimizer, [(inputs, targets)] * 300)
    drop = before - F.cross_entropy(model(inputs), targets).item()
    assert float(sum(v.sum() for v in path.importance().values())) * 1e9 == pytest.approx(drop, rel=0.01)


def test_the_pull_moves_the_weights_but_is_no_gradient_whatever_was_attached_first():
    found = []
    for order in ("path first", "keeper first"):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        keeper, path = hf.EWC(model, strength=100.0), hf.SynapticIntelligence(model)
        for one in (path, keeper) if order == "path first" else (keeper, path):
            one.attach(optimizer)
        keeper.retain(hf.uniform(model))
        train(model, optimizer, batches(10))
        found.append(path.importance())
    assert_same(found[0], found[1])
    # pinned weights go nowhere, and a path of no length has no importance
    assert max(float(v.max()) for v in found[0].values()) < 0.05


def test_minibatch_noise_inflates_the_sum_by_lr_times_its_variance():
    """What one step of SGD on one example credits, in the mean over the examples, for the one weight of a model."""
    x, y, w, lr = torch.randn(50, generator=torch.Generator().manual_seed(0)), 0.7, 0.5, 0.1
    g = (w * x - y) * x  # of 1/2 (w x - y)^2
    curvature = x.square()

    def credited(**options) -> float:
        total = 0.0
        for example in x[:, None, None]:
            model = nn.Linear(1, 1, bias=False)
            nn.init.constant_(model.weight, w)
            optimizer = torch.optim.SGD(model.parameters(), lr=lr)
            path = hf.SynapticIntelligence(model, **options).attach(optimizer)

            def loss(inputs: torch.Tensor, model: nn.Module = model) -> torch.Tensor:
                return ((model(inputs) - y) ** 2 / 2).mean()

            for inputs in (example, x[:, None]):  # then a step of no length, on the whole data
                optimizer.zero_grad()
                loss(inputs).backward()
                optimizer.step()
                if options:
                    path.after_step(lambda inputs=inputs: loss(inputs))
                optimizer.param_groups[0]["lr"] = 0.0
            total += float(path.state_dict()["tensors"]["path/weight"])
        return total / len(x)

    for_whole_data = lr * g.mean() ** 2
    assert credited() == pytest.approx(float(for_whole_data + lr * g.var(correction=0)), rel=1e-5)
    assert credited(variant="kutalev") == pytest.approx(float(lr * (g**2 * (1 - lr * curvature)).mean()), rel=1e-5)


def test_the_next_gradient_is_free_of_noise():
    """As above: of a batch of its own, its mean is that of the whole data's gradient where the step led to."""
    x, y, w, lr = torch.randn(50, generator=torch.Generator().manual_seed(0)), 0.7, 0.5, 0.1
    g, total = (w * x - y) * x, 0.0
    for example in x[:, None, None]:
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, w)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        path = hf.SynapticIntelligence(model, gradient="after").attach(optimizer)
        for inputs in (example, x[:, None]):
            optimizer.zero_grad()
            ((model(inputs) - y) ** 2 / 2).mean().backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.0
        total += float(path.state_dict()["tensors"]["path/weight"])
    led_to = g.mean() - lr * x.square().mean() * g  # the whole data's gradient there, for each example stepped on
    assert total / len(x) == pytest.approx(float(lr * (g * led_to).mean()), rel=1e-5)


def kutalev_by_hand(model, optimizer, tasks, loss_of, *, damping=0.1):
    """Sums that are never reset, the gradient on the same batch after the step, the displacement of each task."""
    path, found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}, []
    for data in tasks:
        start = weights(model)
        for batch in data:
            before = weights(model)
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            after = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
            for (name, p), g in zip(model.named_parameters(), after, strict=True):
                path[name] -= g * (p.detach() - before[name])
        end = weights(model)
        found.append({n: path[n].clamp_min(0) / ((end[n] - start[n]) ** 2 + damping) for n in path})
    return found


def convolution() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Tanh(), nn.Linear(3, 3))


@pytest.mark.parametrize("make_net", [net, convolution])
@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.01)]
)
@pytest.mark.parametrize("saved", [False, True])
def test_kutalevs_variant_equals_the_sum_by_hand(make, make_net, saved):
    def loss_of(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    tasks = [batches(6, seed=1), batches(5, seed=2)]
    model = make_net()
    expected = kutalev_by_hand(model, make(model.parameters()), tasks, loss_of)
    model = make_net()
    optimizer = make(model.parameters())
    path = hf.SynapticIntelligence(model, variant="kutalev").attach(optimizer)
    for number, data in enumerate(tasks):
        for step, batch in enumerate(data):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            path.after_step(lambda batch=batch: loss_of(model, batch))
            if saved and step == 2:
                state = path.detach().state_dict()
                path = hf.SynapticIntelligence(model, variant="kutalev").attach(optimizer)
                path.load_state_dict(state)
        importance = path.importance()
        assert_same(importance, expected[number])
        assert importance.info.details["num_steps"] == len(data)
    assert not torch.allclose(expected[1]["4.weight" if make_net is convolution else "2.weight"], torch.tensor(0.0))


def test_the_look_back_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = hf.SynapticIntelligence(model, variant="kutalev").attach(optimizer)
    (inputs, targets), seen = batches(1)[0], []
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    before, grads, random = copy.deepcopy(model.state_dict()), gradients(model), torch.get_rng_state()

    def loss() -> torch.Tensor:
        seen.append([module.training for module in model])
        return F.cross_entropy(model(inputs), targets)

    path.after_step(loss)
    assert seen == [[True, False, True, True]] == [[module.training for module in model]]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, grads[name]) for name, value in gradients(model).items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_step_that_was_not_looked_back_on_is_an_error_with_its_remedy():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = hf.SynapticIntelligence(model, variant="kutalev").attach(optimizer)
    train(model, optimizer, batches(1))
    before = weights(model)
    for call in (lambda: train(model, optimizer, batches(1)), path.importance):
        with pytest.raises(
            StateError, match=r"not credited, of 4 parameters such as '0.weight'.*path.after_step\(lambda"
        ):
            call()
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    path.after_step(lambda: F.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]))
    assert float(path.importance()["0.weight"].sum()) > 0
    with pytest.raises(OptionError, match=r'after_step\(\) belongs to variant="kutalev", and this is \'zenke\''):
        hf.SynapticIntelligence(model).after_step(lambda: torch.zeros(()))
    with pytest.raises(OptionError, match=r"gradient is \'after\'; variant=\'kutalev\' has its own"):
        hf.SynapticIntelligence(model, variant="kutalev", gradient="after")


def test_each_call_begins_a_new_path_unless_told_not_to():
    data = batches(10)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = hf.SynapticIntelligence(model).attach(optimizer)
    train(model, optimizer, data[:5])
    peeked = path.importance(restart=False)
    assert_same(path.importance(num_examples=40), dict(peeked))
    train(model, optimizer, data[5:])
    second = path.importance()
    model = net()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), data[:5])
    assert_same(second, by_hand(model, torch.optim.SGD(model.parameters(), lr=0.1), data[5:]))
    assert second.info.details["num_steps"] == 5


@pytest.mark.parametrize("gradient", ["before", "after"])
def test_a_saved_state_goes_on_to_the_same_bits(gradient):
    data = batches(10)

    def made():
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, hf.SynapticIntelligence(model, gradient=gradient).attach(optimizer)

    model, optimizer, path = made()
    train(model, optimizer, data)
    whole = path.importance()
    model, optimizer, path = made()
    train(model, optimizer, data[:4])
    weights_then, state = model.state_dict(), path.state_dict()
    again, optimizer, path = made()
    again.load_state_dict(weights_then)
    path.load_state_dict(state)
    train(again, optimizer, data[4:])
    resumed = path.importance()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_gradient_scaler_is_taken_out_and_its_skipped_steps_count_nothing():
    data = batches(8)
    model = net()
    expected = by_hand(model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    path = hf.SynapticIntelligence(model, scaler=scaler).attach(optimizer)
    for number, (inputs, targets) in enumerate(data):
        for spoiled in (True, False) if number == 3 else (False,):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets) * (float("inf") if spoiled else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert_same(path.importance(), expected)


def test_a_closure_and_a_frozen_layer():
    data = batches(6)
    model = net()
    for p in model[0].parameters():
        p.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    path = hf.SynapticIntelligence(model).attach(optimizer)
    for inputs, targets in data:

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)
    importance = path.importance()
    assert set(importance) == {"2.weight", "2.bias"}
    assert all(float(v.sum()) > 0 for v in importance.values())


@pytest.mark.parametrize("options", [{}, {"gradient": "after"}, {"variant": "kutalev", "damping": 0.3}])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_deep_copy_watches_the_copies(options, order):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    path = hf.SynapticIntelligence(model, **options).attach(optimizer)

    def go(model, optimizer, path, data):
        for batch in data:
            train(model, optimizer, [batch])
            if options.get("variant") == "kutalev":
                path.after_step(lambda batch=batch: F.cross_entropy(model(batch[0]), batch[1]))

    triple = (model, optimizer, path)
    go(*triple, batches(3))
    copies = copy.deepcopy([triple[i] for i in order])
    twins = tuple(copies[order.index(i)] for i in range(3))
    go(*triple, batches(3, seed=2))
    go(*twins, batches(3, seed=2))
    ours, theirs = path.importance(), twins[2].importance()
    assert ours.info.details == theirs.info.details
    assert ours.info.details["num_steps"] == 6
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for act in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match=r"cannot copy it without them. Use state_dict\(\), or copy.deepcopy"):
            act(path)


def test_detach_leaves_no_trace():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hf.SynapticIntelligence(model).attach(optimizer).detach()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


def test_bad_input_is_named_with_its_remedy():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OptionError, match=r"damping is 0; expected a number above 0"):
        hf.SynapticIntelligence(model, damping=0)
    with pytest.raises(OptionError, match="unknown gradient of SynapticIntelligence 'now'. Known: after, before."):
        hf.SynapticIntelligence(model, gradient="now")
    path = hf.SynapticIntelligence(model)
    with pytest.raises(StateError, match=r"no optimizer step was watched .* Call attach\(optimizer\)"):
        path.importance()
    with pytest.raises(ParameterMismatchError, match="trains none of the model's parameters"):
        path.attach(torch.optim.SGD(net().parameters(), lr=0.1))
    path.attach(optimizer)
    with pytest.raises(StateError, match="already attached to this SGD"):
        path.attach(optimizer)
    for damaged in ({}, {"num_steps": 3}, {"num_steps": -1, "tensors": {}}, None):
        with pytest.raises(FileFormatError, match='"num_steps" or "tensors" of the state is missing or damaged'):
            path.load_state_dict(damaged)
    other = hf.SynapticIntelligence(net(), variant="kutalev").state_dict()
    with pytest.raises(FileFormatError, match="the state of variant='kutalev', and this is 'zenke'. Build Synaptic"):
        path.load_state_dict(other)
    with pytest.raises(FileFormatError, match="'start/9.weight' does not match the model"):
        path.load_state_dict({"num_steps": 1, "tensors": {"start/9.weight": torch.zeros(1)}})
    train(model, optimizer, batches(3))
    assert float(path.importance()["0.weight"].sum()) > 0

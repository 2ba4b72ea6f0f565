"""Weights that move by other means than a step that is held: held where that can be, else refused or warned of."""

from __future__ import annotations

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from tests.strange_optimizers import (
    InnerLookahead,
    Lomo,
    Lookahead,
    MasterWeights,
    NamelessLomo,
    OldLookahead,
    Private,
    RelativeSteps,
    Sam,
    SamAlone,
    ScheduleFree,
    WeightedSam,
    clearing,
)
from torch import nn
from torch.optim import LBFGS, SGD, Adam

from holdfast import EWC, WVA, uniform
from holdfast.errors import OptionError, StateError

both = pytest.mark.parametrize("kind", [EWC, WVA])
UNKNOWN = "ignore:EWC. .* is no optimizer whose metric is known"
pytestmark = pytest.mark.filterwarnings(UNKNOWN)


def perceptron():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


class Tagger(nn.Module):
    """A recurrent network over tokens, which the examples are made of."""

    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(7, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.lstm(self.embedding(x.abs().mul(10).long() % 7))[0].mean(1))


models = pytest.mark.parametrize("build", [perceptron, Tagger])


def loss_of(model):
    generator = torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)
    return (model(inputs) - targets).square().mean()


def held(model, optimizer, kind=EWC, *, strength=math.inf, **options):
    return kind(model, strength=strength, **options).retain(uniform(model)).attach(optimizer)


def moved(model, before):
    return max(float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters())


def plain(model, optimizer):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()


def by_hand(model, optimizer):
    for step in (optimizer.first_step, optimizer.second_step):
        loss_of(model).backward()
        step()


def by_closure(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    optimizer.step(closure)


def train(model, optimizer, loop, steps=4):
    before = copy.deepcopy(model.state_dict())
    for _ in range(steps):
        loop(model, optimizer)
    return moved(model, before)


# --- held


@models
@both
@pytest.mark.parametrize("loop", [by_hand, by_closure])
@pytest.mark.parametrize("base", [partial(SGD, momentum=0.9), Adam], ids=["momentum", "adam"])
def test_sam_is_held_by_hand_and_by_closure(build, kind, loop, base):
    model = build()
    optimizer = Sam(model.parameters(), base, lr=0.05)
    assert train(copy.deepcopy(model), Sam((free := build()).parameters(), base, lr=0.05), lambda *_: None) == 0
    assert train(free, Sam(free.parameters(), base, lr=0.05), loop) > 0.01
    keeper = held(model, optimizer, kind)
    assert train(model, optimizer, loop) < 1e-7
    assert keeper.report().num_steps == 4


@models
@both
@pytest.mark.parametrize("loop", [plain, by_closure])
@pytest.mark.parametrize("base", [partial(SGD, lr=0.1), partial(Adam, lr=0.1)], ids=["sgd", "adam"])
def test_a_step_that_clears_its_gradients_is_held(build, kind, loop, base):
    model = build()
    optimizer = clearing(base.func)(model.parameters(), **base.keywords)
    keeper = held(model, optimizer, kind)
    assert train(model, optimizer, loop) < 1e-7
    assert keeper.report().num_steps == 4
    keeper.detach()
    assert train(model, optimizer, loop) > 0.01


@models
@both
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_that_a_hook_after_the_step_clears(build, kind, momentum):
    """The increments of SGD are read off its gradient, which is gone by then."""
    kept, cleared = build(), build()
    cleared.load_state_dict(kept.state_dict())
    for model in (kept, cleared):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=momentum)
        if model is cleared:
            optimizer.register_step_post_hook(lambda opt, args, kwargs: opt.zero_grad())
        held(model, optimizer, kind, strength=2.0, log_every=1)
        train(model, optimizer, plain)
    assert all(torch.equal(p, q) for p, q in zip(kept.parameters(), cleared.parameters(), strict=True))


# --- refused


@both
def test_steps_that_cannot_be_followed_are_refused_before_anything_is_attached(kind):
    model = perceptron()
    keeper = kind(model, strength=1.0).retain(uniform(model))
    with pytest.raises(StateError, match=r"Lomo moves the weights within the backward pass \(fused_backward\)"):
        keeper.attach(Lomo(copy.deepcopy(model).parameters(), lr=0.1))
    base = SGD(model.parameters(), lr=0.1)
    for outer, name in ((Private(base), "original_optimizer"), (OldLookahead(base), "base")):
        with pytest.raises(StateError, match=rf"no hooks around .* {type(outer).__name__}.*within: optimizer.{name}\."):
            keeper.attach(outer)
        assert not keeper.detach().optimizers
        keeper.attach(getattr(outer, name))  # the remedy
        keeper.strength = math.inf
        assert train(model, outer, plain) < 1e-7
        keeper.detach()


def test_an_optimizer_without_a_learning_rate_needs_a_metric():
    model = perceptron()
    optimizer = RelativeSteps(model.parameters())
    with pytest.raises(
        OptionError, match=r"EWC: the parameter groups of this RelativeSteps have no learn.* \(lr=None\)"
    ):
        held(model, optimizer)
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(OptionError, match=r"no learning rate .* \(no lr\). Pass metric=, .* Give the optimizer a lea"):
        held(model, optimizer)
    optimizer.param_groups[0]["lr"] = None
    assert not optimizer._optimizer_step_post_hooks
    for options in ({"metric": lambda group, parameter, state: 1 / 1e-2}, {}):  # both remedies
        other = optimizer if options else RelativeSteps(model.parameters(), lr=torch.tensor(1e-2))
        keeper = held(model, other, **options)
        assert train(model, other, plain) < 1e-7
        keeper.detach()
    held(model, optimizer, WVA)
    assert train(model, optimizer, plain) < 1e-7


def test_a_learning_rate_of_zero_moves_nothing():
    model = perceptron()
    optimizer = RelativeSteps(model.parameters(), lr=0.0)
    keeper = held(model, optimizer, strength=1.0)
    assert train(model, optimizer, plain) == 0
    assert keeper.report().num_steps == 4


# --- warned of

MOVED = "the weights have moved since the last backward pass, and not by a step.. that could be held .attached: {}"


@models
@both
@pytest.mark.parametrize("ask", ["report", "retain", "save"])
def test_weights_that_move_without_a_step_are_told_when_the_keeper_is_asked(build, kind, ask, tmp_path):
    model = build()
    optimizer = SamAlone(model.parameters(), lr=0.1)
    keeper = held(model, optimizer, kind)
    train(model, optimizer, by_hand, 2)
    arguments = {"report": (), "retain": (uniform(model),), "save": (tmp_path / "skills",)}[ask]
    with pytest.warns(UserWarning, match=f"{kind.__name__}: {MOVED.format('SamAlone')}"):
        getattr(keeper, ask)(*arguments)
    keeper.report()  # once


@models
@pytest.mark.parametrize("build_optimizer", [SamAlone, NamelessLomo])
def test_weights_that_move_without_a_step_are_told_while_training(build, build_optimizer):
    model = build()
    optimizer = build_optimizer(model.parameters(), lr=0.01)
    held(model, optimizer)
    loop = by_hand if build_optimizer is SamAlone else lambda model, _: loss_of(model).backward()
    with pytest.warns(UserWarning, match=MOVED.format(build_optimizer.__name__)) as caught:
        train(model, optimizer, loop, 40)
    assert len(caught) == 1


@models
@both
def test_a_second_optimizer_that_was_never_attached(build, kind):
    model = build()
    first, second = SGD(model.parameters(), lr=0.1), Adam(model.parameters(), lr=0.1)
    keeper = held(model, first, kind)
    with pytest.warns(UserWarning, match=MOVED.format("SGD")):
        train(model, second, plain, 13)
    keeper.retain(uniform(model)).attach(second)  # the remedy
    assert train(model, second, plain, 20) < 1e-6


@models
@both
@pytest.mark.parametrize("loop", [by_hand, by_closure])
def test_an_optimizer_that_adds_to_the_steps_of_the_one_within_is_told(build, kind, loop):
    model = build()
    optimizer = WeightedSam(model.parameters(), SGD, lr=0.05)
    keeper = held(model, optimizer, kind)
    with pytest.warns(
        UserWarning, match=r"WeightedSam changes the weights after each step\(\) of the SGD within it"
    ) as c:
        train(model, optimizer, loop, 12)
    assert len(c) == 1
    keeper.detach()
    keeper.retain(uniform(model)).attach(optimizer.inner)  # the remedy
    assert train(model, optimizer.inner, plain) < 1e-7


@models
@both
@pytest.mark.parametrize("first", [True, False])
def test_an_optimizer_of_other_held_weights_that_was_never_attached(build, kind, first):
    model = build()
    body, head = list(model.parameters())[:-2], list(model.parameters())[-2:]
    attached, other = SGD(body, lr=0.1), SGD(head, lr=0.1)

    def loop(model, optimizers):
        model.zero_grad()
        loss_of(model).backward()
        for optimizer in optimizers:
            optimizer.step()

    keeper = held(model, attached, kind)
    both_steps = (attached, other) if first else (other, attached)
    with pytest.warns(UserWarning, match=MOVED.format("SGD")) as caught:
        train(model, both_steps, loop, 12)
    assert len(caught) == 1
    keeper.retain(uniform(model)).attach(other)  # the remedy
    assert train(model, both_steps, loop, 20) < 1e-7


@both
def test_a_step_that_moves_on_weights_whose_gradients_are_gone(kind):
    class Coasting(SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                last = self.state[p].get("last", p.grad) if p.grad is None else p.grad.clone()
                self.state[p]["last"] = last
                p.sub_(last, alpha=0.1)

    model = perceptron()
    optimizer = Coasting(model.parameters(), lr=0.1)
    held(model, optimizer, kind)
    plain(model, optimizer)
    optimizer.zero_grad()
    model[2](model[:2](torch.ones(4, 3)).detach()).sum().backward()
    with pytest.warns(UserWarning, match=MOVED.format("Coasting")):
        optimizer.step()


@both
def test_a_step_that_moves_weights_without_gradients(kind):
    class Drifting(SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.add_(0.1)

    model = perceptron()
    optimizer = Drifting(model.parameters(), lr=0.1)
    held(model, optimizer, kind)
    with pytest.warns(UserWarning, match=MOVED.format("Drifting")):
        optimizer.step()


@both
def test_what_a_user_does_to_the_weights_between_steps_is_not_minded(kind, tmp_path):
    """Loading, clipping, averaging, adversarial perturbations, accumulation, skipped steps, another task's head."""
    model = perceptron()
    average, start = copy.deepcopy(model.state_dict()), copy.deepcopy(model.state_dict())
    optimizer = Adam(model.parameters(), lr=0.01)
    keeper = held(model, optimizer, kind, strength=1.0)
    model.load_state_dict(average)
    keeper.report()
    for step in range(20):
        for _ in range(5):
            loss_of(model).backward()
            with torch.no_grad():
                model[0].weight.add_(0.1)
                loss = torch.enable_grad()(loss_of)(model)
            loss.backward()
            with torch.no_grad():
                model[0].weight.sub_(0.1)
        if step % 3 == 0:  # as a GradScaler skips one
            optimizer.zero_grad()
            continue
        optimizer.step()
        optimizer.zero_grad()
        for p in model.parameters():
            p.data.clamp_(-0.3, 0.3)
        own = copy.deepcopy(model.state_dict())
        model.load_state_dict(average)
        keeper.report()
        model.load_state_dict(own)
    with torch.no_grad():
        model[2].weight.mul_(0.5)
    keeper.retain(uniform(model)).save(tmp_path / "skills")
    model.load_state_dict(start)
    keeper.load_state(*keeper.state())
    keeper.detach()


def noise(model):
    for p in model.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.01)


def signs(model):
    for p in model.parameters():
        p.data.copy_(p.data.sign() * 0.1)


@models
@both
@pytest.mark.parametrize("perturb", [noise, signs])
@pytest.mark.parametrize("passes", [1, 30])
def test_passes_at_other_weights_that_are_taken_back_are_not_minded(build, kind, perturb, passes):
    """Noise on the weights, binary weights, and both with accumulated gradients."""
    model = build()
    optimizer = SGD(model.parameters(), lr=0.01)
    keeper = held(model, optimizer, kind, strength=1.0)
    for _ in range(20 if passes == 1 else 3):
        optimizer.zero_grad()
        for _ in range(passes):
            own = copy.deepcopy(model.state_dict())
            perturb(model)
            loss_of(model).backward()
            model.load_state_dict(own)
        optimizer.step()
    assert keeper.report().num_steps == (20 if passes == 1 else 3)


@models
@both
def test_weight_decay_by_hand_is_not_minded(build, kind):
    model = build()
    optimizer = SGD(model.parameters(), lr=0.01)
    keeper = held(model, optimizer, kind, strength=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model).backward()
        for p in model.parameters():
            p.data.mul_(0.99)
        optimizer.step()
    assert keeper.report().num_steps == 20


@both
def test_before_a_task_is_retained_nothing_is_held_and_nothing_told(kind):
    model = perceptron()
    optimizer = SGD(model.parameters(), lr=0.1)
    keeper = kind(model, strength=1.0).attach(optimizer)
    other = kind(model, strength=1.0).retain(uniform(model))
    empty = keeper.state()
    for state in (empty, other.state(), empty):
        keeper.load_state(*state)
        train(model, optimizer, plain, 20)
        keeper.report()


@both
def test_nothing_is_watched_after_some_steps_and_nothing_stays_on_the_model(kind):
    model = perceptron()
    optimizer = SGD(model.parameters(), lr=0.01)
    keeper = held(model, optimizer, kind)
    assert keeper._attachments._unheld._handles
    train(model, optimizer, plain, 20)
    assert not keeper._attachments._unheld._handles
    keeper.retain(uniform(model))
    assert keeper._attachments._unheld._handles
    copy.deepcopy(model)
    keeper.detach()
    assert not keeper._attachments._unheld._handles
    assert all(p._post_accumulate_grad_hooks is None and p._backward_hooks is None for p in model.parameters())


# --- weights of the optimizer's own

OWN = "keeps weights of its own beside the model's"


@both
def test_optimizers_known_to_keep_weights_of_their_own_are_told_at_once(kind):
    model = perceptron()
    wrapped = Lookahead(SGD(model.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match=f"Lookahead {OWN} and goes on from them") as caught:
        keeper = held(model, wrapped, kind)
    assert [warning.filename for warning in caught] == [__file__]
    keeper.detach()
    with pytest.warns(UserWarning, match=f"ScheduleFree {OWN}"):
        held(model, ScheduleFree(model.parameters(), lr=0.1), kind)


@models
@both
@pytest.mark.parametrize(
    ("build_optimizer", "key"), [(partial(MasterWeights, lr=0.1), "master"), (InnerLookahead, "slow_buffer")]
)
def test_copies_in_the_state_are_told_when_they_are_seen(build, kind, build_optimizer, key):
    model = build()
    if key == "master" and build is perceptron:
        model = model.to(torch.bfloat16)
        model.register_forward_pre_hook(lambda module, args: tuple(x.to(torch.bfloat16) for x in args))
    optimizer = build_optimizer(model.parameters())
    keeper = held(model, optimizer, kind, strength=1.0)
    with pytest.warns(
        UserWarning, match=rf"{OWN}, in its state under '{key}', and goes on from them. They are not"
    ) as c:
        train(model, optimizer, plain, 12)
    assert len(c) == 1
    assert keeper.report().num_steps == 12


@both
def test_ordinary_state_is_no_copy(kind):
    class Fork(Adam):
        """An Adam of another package."""

    model = perceptron()
    optimizer = Fork(model.parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held(model, optimizer, kind, strength=1.0)
        train(model, optimizer, plain, 20)


# --- LBFGS


def test_lbfgs_without_a_line_search_is_told_and_its_remedy_reaches_the_balance():
    """Pulled gradients are minimised with the loss; a pull after the steps is not."""
    model = perceptron()
    start = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match='EWC: LBFGS without a line search is not stable here: .*pull="gradient"'):
        held(model, LBFGS(model.parameters()), strength=1.0).detach()
    with pytest.warns(UserWarning, match='WVA: LBFGS without a line search .* line_search_fn="strong_wolfe"'):
        held(model, LBFGS(model.parameters()), WVA, strength=1.0).detach()
    held(model, LBFGS(model.parameters(), line_search_fn="strong_wolfe"), strength=1.0).detach()
    optimizer = LBFGS(model.parameters())
    keeper = held(model, optimizer, strength=1.0, pull="gradient")
    for _ in range(20):
        by_closure(model, optimizer)
    optimizer.zero_grad()
    (loss_of(model) + sum((p - start[n]).square().sum() for n, p in model.named_parameters()) / 2).backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-3
    assert keeper.report().num_steps == 20


# --- tables of bounded norm, whose rows a forward pass scales


def table():
    return nn.Sequential(nn.Embedding(50, 8, max_norm=0.5), nn.Flatten(), nn.Linear(24, 3))


def bag():
    return nn.Sequential(nn.EmbeddingBag(50, 8, max_norm=2.5), nn.Tanh(), nn.Linear(8, 3))


def tokens(model, optimizer, steps, *, passes):
    for step in range(steps):
        optimizer.zero_grad()
        for k in range(passes):
            ids = torch.randint(0, 50, (16, 3), generator=torch.Generator().manual_seed(10 * step + k))
            nn.functional.cross_entropy(model(ids), ids.sum(1) % 3).backward()
        optimizer.step()


@both
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("base", [partial(SGD, lr=0.1), partial(Adam, lr=0.1)], ids=["sgd", "adam"])
@pytest.mark.parametrize("build", [table, bag])
def test_a_table_of_bounded_norm_answers_as_before(build, base, passes, kind):
    """Rows that were never looked up are scaled by the forward pass that does so first, held or not."""
    torch.manual_seed(0)
    model = build()
    optimizer = base(model.parameters())
    tokens(model, optimizer, 5, passes=1)
    ids = torch.arange(48).view(16, 3)
    with torch.no_grad():
        before = copy.deepcopy(model)(ids)
    keeper = held(model, optimizer, kind)
    tokens(model, optimizer, 20, passes=passes)  # a warning is an error here
    with torch.no_grad():
        assert torch.allclose(copy.deepcopy(model)(ids), before, rtol=0, atol=1e-5)
    keeper.detach()
    tokens(model, optimizer, 5, passes=passes)
    with torch.no_grad():
        assert not torch.allclose(copy.deepcopy(model)(ids), before, rtol=0, atol=1e-2)


def test_beside_such_a_table_others_are_watched():
    model = table()
    attached, another = SGD(model.parameters(), lr=0.1), SGD(model.parameters(), lr=0.1)
    held(model, attached)
    ids = torch.arange(48).view(16, 3)

    def train_the_other():
        for _ in range(30):
            model(ids).square().mean().backward()
            another.step()

    with pytest.warns(UserWarning, match="the weights have moved since the last backward pass"):
        train_the_other()

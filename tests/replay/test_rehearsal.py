from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import EmptyDataError, NotFiniteError, OptionError, ParameterMismatchError, StateError
from holdfast.likelihoods import Categorical
from holdfast.replay import Rehearsal


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


def task(seed: int) -> tuple[list, list]:
    """Batches to train on, and as many that no training sees."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(256, 8, generator=generator)
    labels = (inputs @ torch.randn(8, 4, generator=generator)).argmax(dim=1)
    inputs[:, 0] += 3 if seed else -3  # the tasks can be told apart, so that both can be known
    batches = list(zip(inputs.split(16), labels.split(16)))
    return batches[:8], batches[8:]


def train(model: nn.Module, optimizer, data: list, *, steps: int) -> None:
    for step in range(steps):
        inputs, labels = data[step % len(data)]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def learned() -> nn.Module:
    model = network()
    train(model, torch.optim.Adam(model.parameters(), lr=1e-2), task(0)[0], steps=150)
    return model


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["answers", "data"])
def test_a_rehearsed_step_is_one_on_both_losses(kind, weight):
    model, by_hand = network(), network()
    (old, *_), (new, *_) = task(0)[0], task(1)[0]
    teacher = learned()
    past = hf.probes_of(teacher, [old]) if kind == "answers" else [old]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Rehearsal(model, past, share=0.5, weight=weight).attach(optimizer)
    for step in range(1, 5):
        before = weights(by_hand)
        loss = F.cross_entropy(by_hand(new[0]), new[1])
        if step % 2 == 0 and kind == "answers":
            p, q = teacher(old[0]).detach().log_softmax(1), by_hand(old[0]).log_softmax(1)
            loss = loss + weight * F.kl_div(q, p, log_target=True, reduction="batchmean")
        elif step % 2 == 0:
            loss = loss + weight * F.cross_entropy(by_hand(old[0]), old[1])
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), gradients):
                parameter -= 0.1 * gradient
        assert not torch.equal(weights(by_hand), before)
        train(model, optimizer, [new], steps=1)
        torch.testing.assert_close(weights(model), weights(by_hand))


@pytest.mark.parametrize("kind", ["answers", "data"])
@pytest.mark.parametrize("parts", [2, 4, 9])
def test_parts_of_a_batch_are_rehearsed_one_after_the_other(kind, parts):
    """In four steps; each with its share of the batch's gradient, so that it is there in full after them."""
    model, by_hand, teacher = network(), network(), learned()
    (old, *_), (new, *_) = task(0)[0], task(1)[0]
    past = hf.probes_of(teacher, [old]) if kind == "answers" else [old]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Rehearsal(model, past, share=0.25, weight=2.0, parts=parts).attach(optimizer)
    steps = [(0, 0), (0, 8), (8, 8), (8, 16)] if parts == 2 else [(0, 4), (4, 8), (8, 12), (12, 16)]
    for start, stop in steps * 2:
        inputs, labels = old[0][start:stop], old[1][start:stop]
        loss = F.cross_entropy(by_hand(new[0]), new[1])
        if kind == "answers":
            p, q = teacher(inputs).detach().log_softmax(1), by_hand(inputs).log_softmax(1)
            loss = loss + 2 * F.kl_div(q, p, log_target=True, reduction="sum") / 16
        else:
            loss = loss + 2 * F.cross_entropy(by_hand(inputs), labels, reduction="sum") / 16
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), gradients):
                parameter -= 0.1 * gradient
        train(model, optimizer, [new], steps=1)
        torch.testing.assert_close(weights(model), weights(by_hand))


def test_of_a_batch_with_fewer_examples_than_parts_each_is_rehearsed_once():
    model = network()
    inputs, labels = task(0)[0][0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rehearsal = Rehearsal(model, [(inputs[:3], labels[:3])], share=0.2, parts=5).attach(optimizer)
    seen = []
    for _ in range(5):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        seen.append(rehearsal.last_loss)
    assert seen.count(0.0) == 2
    assert all(loss is not None and math.isfinite(loss) for loss in seen)


@pytest.mark.parametrize("kind", ["answers", "data"])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr=10 * lr, momentum=0.9)])
def test_it_keeps_what_plain_training_loses(kind, optimizer):
    model = learned()
    old, held_out = task(0)
    probes = hf.probes_of(model, held_out, num_examples=None)
    past = hf.probes_of(model, old, num_examples=None) if kind == "answers" else old
    rises = []
    for rehearsed in (False, True):
        pupil = copy.deepcopy(model)
        inner = optimizer(pupil.parameters(), lr=5e-3)
        if rehearsed:
            Rehearsal(pupil, past, share=0.25).attach(inner)
        train(pupil, inner, task(1)[0], steps=200)
        rises.append(probes.rise(pupil))
    assert rises[1] < 0.4 * rises[0]


class Encoder(nn.Module):
    """Embeddings over a base that others learn through."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, inputs: Tensor) -> Tensor:
        return F.normalize(self.base(inputs), dim=-1)


def learn_through(head: nn.Module, base: nn.Module, *, old: nn.Module | None, past: hf.Probes) -> None:
    """Learn the new task through a head of its own, and rehearse the past of another module over the same base."""
    pupil = nn.Sequential(base, head)
    optimizer = torch.optim.Adam(pupil.parameters(), lr=5e-3)
    if old is not None:
        Rehearsal(old, past, share=0.25).attach(optimizer)
    train(pupil, optimizer, task(1)[0], steps=200)


def test_old_cosines_keep_an_encoder_whose_base_learns_through_another_head():
    old, held_out = ([{"inputs": inputs} for inputs, _ in part] for part in task(0))
    rises = []
    for rehearsed in (False, True):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 16))
        encoder, head = Encoder(base), nn.Linear(16, 4)
        probes = hf.probes_of(encoder, held_out, loss="similarity", num_examples=None)
        past = hf.probes_of(encoder, old, loss="similarity", num_examples=None)
        assert past.rise(encoder) < 1e-9
        learn_through(head, base, old=encoder if rehearsed else None, past=past)
        rises.append(probes.rise(encoder))
    assert rises[0] > 0.05
    assert rises[1] < 0.4 * rises[0]


def test_the_loss_of_old_cosines_by_hand():
    torch.manual_seed(0)
    base, changed = nn.Linear(8, 6), nn.Linear(8, 6)
    inputs = torch.randn(5, 8)
    past = hf.probes_of(Encoder(base), [{"inputs": inputs}], loss="similarity")
    before, now = (F.normalize(layer(inputs), dim=-1).detach().double() for layer in (base, changed))
    ring = [(n, (n + 1) % 5) for n in range(5)]
    by_hand = sum((float(now[a] @ now[b]) - float(before[a] @ before[b])) ** 2 / (2 * 0.04) for a, b in ring) / 5
    base.load_state_dict(changed.state_dict())
    optimizer = torch.optim.SGD(base.parameters(), lr=0.0)
    rehearsal = Rehearsal(Encoder(base), past, share=1.0).attach(optimizer)
    optimizer.step()
    assert rehearsal.last_loss == pytest.approx(by_hand, rel=1e-5)


def test_old_answers_to_new_inputs_keep_a_classifier_whose_base_learns_through_another_head():
    """Learning without forgetting: not one old input is needed."""
    old, held_out = task(0)
    new = [(inputs, torch.zeros(len(inputs), dtype=torch.int64)) for inputs, _ in task(1)[0]]
    rises = []
    for rehearsed in (False, True):
        torch.manual_seed(0)
        base, head = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()), nn.Linear(16, 4)
        teacher = nn.Sequential(base, head)
        train(teacher, torch.optim.Adam(teacher.parameters(), lr=1e-2), old, steps=150)
        head.requires_grad_(False)
        probes = hf.probes_of(teacher, held_out, num_examples=None)
        before = head.weight.clone()
        past = hf.probes_of(teacher, new, num_examples=None)
        learn_through(nn.Linear(16, 4), base, old=teacher if rehearsed else None, past=past)
        rises.append(probes.rise(teacher))
        assert torch.equal(head.weight, before)
    assert rises[1] < 0.6 * rises[0]


def test_every_batch_once_before_any_twice():
    model = network()
    seen: list[int] = []
    batches = [(torch.full((2, 8), float(number)), torch.tensor([0, 1])) for number in range(5)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Rehearsal(model, batches, share=1.0).attach(optimizer)
    model.register_forward_pre_hook(lambda module, args: seen.append(int(args[0][0, 0])))
    for _ in range(10):
        optimizer.step()
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
    assert seen[:5] != seen[5:]


def test_it_goes_on_where_it_stopped():
    old, new = task(0)[0], task(1)[0]
    ends = []
    for stops in ([30], [11, 19]):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        state, done = {"num_steps": 0}, 0
        for steps in stops:
            rehearsal = Rehearsal(model, old, share=1 / 3, seed=4).attach(optimizer)
            rehearsal.load_state_dict(state)
            train(model, optimizer, new[done % 8 :] + new[: done % 8], steps=steps)
            state, done = rehearsal.detach().state_dict(), done + steps
        ends.append(weights(model))
    assert torch.equal(*ends)


def test_beside_a_keeper_both_act():
    model = learned()
    old, held_out = task(0)
    probes = hf.probes_of(model, held_out)
    rises = {}
    for parts in ("plain", "held", "rehearsed", "both"):
        pupil = copy.deepcopy(model)
        optimizer = torch.optim.Adam(pupil.parameters(), lr=5e-3)
        if parts in ("rehearsed", "both"):
            Rehearsal(pupil, hf.probes_of(pupil, old), share=0.25).attach(optimizer)
        if parts in ("held", "both"):
            hf.EWC(pupil, strength=1.0).attach(optimizer).retain(hf.fisher(pupil, old))
        train(pupil, optimizer, task(1)[0], steps=200)
        rises[parts] = probes.rise(pupil)
    assert rises["both"] < min(rises["held"], rises["rehearsed"]) < rises["plain"]


def test_the_gradients_of_other_optimizers_are_left_alone():
    model = network()
    body, head = torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.SGD(model[2].parameters(), lr=0.1)
    Rehearsal(model, task(0)[0], share=1.0).attach(body)
    train(model, body, task(1)[0], steps=1)
    before = model[2].weight.grad.clone()
    F.cross_entropy(model(task(1)[0][1][0]), task(1)[0][1][1]).backward()
    expected = model[2].weight.grad.clone()
    assert not torch.equal(before, expected)
    body.step()
    assert torch.equal(model[2].weight.grad, expected)
    head.step()


def test_under_a_closure_and_in_the_models_own_mode():
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    rehearsal = Rehearsal(model, task(0)[0], share=1.0).attach(optimizer)
    inputs, labels = task(1)[0][0]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert rehearsal.last_loss is not None
    assert model.training
    assert int(model[1].num_batches_tracked) > 3


def test_answers_in_half_precision_and_few_integers():
    torch.manual_seed(0)
    categorical = Categorical()
    old, new = 3 * torch.randn(6, 2000), (3 * torch.randn(6, 2000)).requires_grad_()
    batch = (torch.zeros(6, 1), torch.zeros(6, dtype=torch.long))
    answers = categorical.answers(old, batch)
    narrow = {name: found.half() if found.is_floating_point() else found.int() for name, found in answers.items()}
    exact, found = (categorical.divergence(new, kept, batch) for kept in (answers, narrow))
    torch.testing.assert_close(found, exact, rtol=2e-3, atol=0)
    assert categorical.divergence(old, narrow, batch).abs().max() < 1e-5
    (slope,) = torch.autograd.grad(found.sum(), new)
    assert torch.isfinite(slope).all()
    assert slope.abs().sum() > 0


def test_nan_adds_nothing():
    model = network()
    past = task(0)[0][:1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Rehearsal(model, past, share=1.0).attach(optimizer)
    with torch.no_grad():
        model[0].bias[0] = torch.nan
    model[2].weight.grad = torch.ones_like(model[2].weight)
    with pytest.raises(NotFiniteError, match="Rehearsal: the loss of a batch of the past is nan"):
        optimizer.step()
    assert torch.equal(model[2].weight.grad, torch.ones_like(model[2].weight))
    assert model[0].weight.grad is None


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_fused_optimizer_under_a_scaler_steps_like_any_other(kind):
    ends = []
    for fused in (False, True):
        model, scaler = network(), torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer = kind(model.parameters(), lr=0.01, fused=fused)
        rehearsal = Rehearsal(model, task(0)[0], share=1.0).attach(optimizer)
        for step, (inputs, labels) in enumerate(task(1)[0]):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(inputs), labels) * (torch.inf if step == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert rehearsal.num_steps == 7  # one was skipped
        ends.append(weights(model))
    torch.testing.assert_close(*ends)


class Scaling(nn.Module):
    """Changes its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.mul_(2.0))


@pytest.mark.parametrize("kind", ["answers", "data"])
def test_a_model_that_changes_its_inputs_leaves_the_past_as_it_is(kind):
    model, (inputs, labels) = Scaling(), task(0)[0][0]
    past = hf.probes_of(gradient_free(model), [(inputs, labels)]) if kind == "answers" else [(inputs, labels)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rehearsal = Rehearsal(model, past, share=1.0).attach(optimizer)
    losses = []
    for _ in range(3):
        optimizer.step()
        losses.append(rehearsal.last_loss)
    assert len(set(losses)) == 1


def gradient_free(model: nn.Module) -> nn.Module:
    """Another of the same kind, with other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 0.5
    return other


def test_data_that_use_their_memory_again_are_copied():
    buffer = torch.empty(16, 8)

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        yield buffer[:0], torch.zeros(0, dtype=torch.long)
        for inputs, labels in task(0)[0]:
            yield buffer.copy_(inputs), labels

    losses = []
    for past in (loader(), task(0)[0]):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        rehearsal = Rehearsal(model, past, share=1.0).attach(optimizer)
        optimizer.step()
        losses.append(rehearsal.last_loss)
    assert losses[0] == losses[1]


def test_several_optimizers_have_a_rehearsal_each():
    split, whole = network(), network()
    both = [torch.optim.SGD(split[0].parameters(), lr=0.1), torch.optim.SGD(split[2].parameters(), lr=0.1)]
    for optimizer in both:
        Rehearsal(split, task(0)[0], share=1.0).attach(optimizer)
    one = torch.optim.SGD(whole.parameters(), lr=0.1)
    Rehearsal(whole, task(0)[0], share=1.0).attach(one)
    for optimizer in (*both, one):
        optimizer.step()
    torch.testing.assert_close(weights(split)[:288], weights(whole)[:288])  # the head has rehearsed on the new body


def test_a_frozen_model_rehearses_nothing():
    model = network().requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rehearsal = Rehearsal(model, task(0)[0], share=1.0).attach(optimizer)
    optimizer.step()
    assert rehearsal.last_loss is None


def _nothing() -> Iterator[tuple[Tensor, Tensor]]:
    yield from ()


def test_what_it_refuses():
    model, past = network(), task(0)[0]
    for share in (0, 1.5, True, "half", float("nan")):
        with pytest.raises(OptionError, match="Rehearsal: share="):
            Rehearsal(model, past, share=share)
    for weight in (0, -1.0, True, "much", float("inf")):
        with pytest.raises(OptionError, match="Rehearsal: weight="):
            Rehearsal(model, past, weight=weight)
    for parts in (0, -1, 1.5, True, "two"):
        with pytest.raises(OptionError, match="Rehearsal: parts="):
            Rehearsal(model, past, parts=parts)
    with pytest.raises(OptionError, match="parts=2, and similarity compares the examples of a batch"):
        Rehearsal(model, hf.probes_of(model, past, loss="similarity"), parts=2)
    with pytest.raises(OptionError, match="beside probes, which have their own"):
        Rehearsal(model, hf.probes_of(model, past), loss="categorical")
    with pytest.raises(OptionError, match=r"autocast=torch.float16, expected torch.bfloat16 or None"):
        Rehearsal(model, past, autocast=torch.float16)
    with pytest.raises(OptionError, match="seed='x', expected a whole number"):
        Rehearsal(model, past, seed="x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(OptionError, match=r"a past of type NoneType. Pass probes"):
        Rehearsal(model, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ParameterMismatchError, match="the optimizer trains none of the model's parameters"):
        Rehearsal(model, past).attach(torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(EmptyDataError, match="no batch with a target"):
        Rehearsal(model, _nothing())
    rehearsal = Rehearsal(model, past).attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(StateError, match="attached already"):
        rehearsal.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(StateError, match="num_steps is -1"):
        rehearsal.load_state_dict({"num_steps": -1})
    assert repr(rehearsal) == "Rehearsal(8 batches of the past, one every 10 steps)"

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from holdfast.errors import OptionError
from holdfast.lab.methods import Moment, Setting
from holdfast.lab.methods.gates import Gated, free
from holdfast.lab.methods.hat import GateOptions, HardAttention, sparsity
from holdfast.lab.streams import Examples
from holdfast.lab.training import build_net, build_optimizer, mlp, train_epoch

TASK_CLASSES = ((0, 1), (2, 3), (4, 5))
SETTING = Setting(TASK_CLASSES, mask="task", scenario="task")

SIZES = {"mlp": {"hidden": (8, 7), "slope": 0.2}, "convolution": {}}


def attention(model: nn.Module | None = None, **options: float) -> HardAttention:
    return HardAttention(model or mlp(6, (8, 7), 6, slope=0.2), SETTING, GateOptions(**options))  # pyright: ignore


def examples(t: int, *, shape: tuple[int, ...] = (6,)) -> Examples:
    generator = torch.Generator().manual_seed(t)
    inputs = torch.randn(60, *shape, generator=generator)
    return Examples(inputs, torch.tensor(TASK_CLASSES[t])[(inputs.flatten(1).sum(1) > 0).long()])


def columns(t: int) -> Tensor:
    table = torch.zeros(6, 6, dtype=torch.bool)
    for own in TASK_CLASSES[t]:
        table[own, list(TASK_CLASSES[t])] = True
    return table


def train(
    learner: HardAttention, t: int, *, optimizer: str = "sgd", lr: float = 0.1, epochs: int = 2, shape=(6,)
) -> None:
    learner.attach(trained_by := build_optimizer(optimizer, learner.model.parameters(), lr=lr))  # pyright: ignore
    learner.open_task(t, examples(t))
    for seed in range(epochs):
        train_epoch(
            learner.model,
            trained_by,
            examples(t, shape=shape),
            batch_size=10,
            seed=seed,
            columns=columns(t),
            loss=learner.loss,
            before_step=lambda step: learner.before_step(Moment(step, 6, step, 6)),
        )
    learner.close_task(examples(t), classes=TASK_CLASSES[t], task=t)


def answers(learner: HardAttention, t: int, *, shape: tuple[int, ...] = (6,)) -> Tensor:
    with learner.evaluating(t), torch.no_grad():
        return learner.model(examples(t, shape=shape).inputs)[:, list(TASK_CLASSES[t])]


def harden(learner: HardAttention, seed: int) -> None:
    """Half of the units open, half closed, for every task, at once and for ever."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for e in learner.gated.embeddings.parameters():
            e.copy_(torch.where(torch.rand(e.shape, generator=generator) < 0.5, 6.0, -6.0))


@pytest.mark.parametrize("net", ["mlp", "convolution"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_under_hard_gates_the_old_tasks_answers_do_not_change_in_a_bit(net, optimizer):
    shape = (1, 8, 8)
    learner = attention(build_net(net, shape, 6, **SIZES[net]), hat_sparsity=0.0)
    harden(learner, 3)
    before = []
    for t in range(3):
        train(learner, t, optimizer=optimizer, lr=0.05, shape=shape)
        assert all(torch.equal(answers(learner, k, shape=shape), old) for k, old in enumerate(before))
        before.append(answers(learner, t, shape=shape))
    untrained = attention(build_net(net, shape, 6, **SIZES[net]), hat_sparsity=0.0)
    harden(untrained, 3)
    assert all(not torch.equal(answers(untrained, t, shape=shape), before[t]) for t in range(3))


def test_what_a_task_has_opened_is_taken():
    learner = attention()
    train(learner, 0)
    (first, second), _ = learner.state()[0].values(), None
    with learner.evaluating(0):
        gates = learner.gated.gates()
    assert torch.equal(first, gates[0])
    assert torch.equal(second, gates[1])
    train(learner, 1)
    assert all((now >= before).all() for now, before in zip(learner.state()[0].values(), (first, second)))
    shares = [f"{100 * float(taken.mean()):.0f}%" for taken in learner.state()[0].values()]
    assert learner.report() == f"HAT: units taken by earlier tasks, layer by layer: {', '.join(shares)}"


def test_the_gates_stand_on_the_hidden_units():
    """Against the network unit by unit: a leaky ReLU of a gated sum is the gated leaky ReLU of it."""
    net = mlp(3, (4, 5), 2, slope=0.2)
    gated = Gated(net, 2, seed=0)
    gated.task, gated.scale = 1, 3.0
    inputs = torch.randn(6, 3)
    hidden = inputs
    for layer, e in ((net[1], gated.embeddings[1][0]), (net[3], gated.embeddings[1][1])):
        hidden = torch.sigmoid(3.0 * e) * nn.functional.leaky_relu(layer(hidden), 0.2)
    torch.testing.assert_close(gated(inputs), net[5](hidden))


def test_what_a_gradient_keeps_weight_by_weight():
    net = build_net("convolution", (1, 8, 8), 4)
    gated = Gated(net, 1, seed=0)
    taken = [torch.rand(len(e)) for e in gated.own()]
    first, second, linear = gated.hidden
    kept = {id(parameter): share.expand_as(parameter) for parameter, share in free(gated, taken)}
    assert len(kept) == 6
    assert torch.equal(kept[id(first.weight)][:, 0, 1, 2], 1 - taken[0])
    assert torch.equal(kept[id(second.bias)], 1 - taken[1])
    for i, j in ((0, 0), (3, 7), (31, 15)):
        assert float(kept[id(second.weight)][i, j, 2, 0]) == pytest.approx(1 - min(taken[1][i], taken[0][j]))
    for i, j in ((0, 0), (5, 100), (127, 127)):  # 4 places in each of 32 channels
        assert float(kept[id(linear.weight)][i, j]) == pytest.approx(1 - min(taken[2][i], taken[1][j // 4]))


def test_the_scale_hardens_within_the_epoch():
    learner = attention(hat_scale=100.0)
    scales = []
    for step in range(5):
        learner.before_step(Moment(20 + step, 25, step, 5))
        scales.append(learner.gated.scale)
    assert scales == pytest.approx([0.01 + (100 - 0.01) * b / 4 for b in range(5)])
    learner.before_step(Moment(0, 1, 0, 1))
    assert learner.gated.scale == 0.01


def test_the_embeddings_gradient_is_compensated():
    learner = attention(hat_scale=50.0, hat_sparsity=0.3)
    learner.attach(optimizer := build_optimizer("sgd", learner.model.parameters(), lr=1e-3))
    learner.before_step(Moment(1, 4, 1, 4))
    own, added = learner.loss(examples(0).inputs, examples(0).targets, columns(0))
    (own + added).backward()
    e = learner.gated.own()[0]
    before, gradient, s = e.detach().clone(), e.grad.clone(), learner.gated.scale
    optimizer.step()
    for i in range(len(e)):
        x = float(before[i])
        factor = 50.0 / s * (math.cosh(s * x) + 1) / (math.cosh(x) + 1)
        expected = max(-6.0, min(6.0, x - 1e-3 * factor * float(gradient[i])))
        assert float(e.detach()[i]) == pytest.approx(expected, rel=1e-4)
    assert learner.gated.own()[0].grad is not None
    assert all(other.grad is None for other in learner.gated.own(1))


def test_embeddings_stay_within_six():
    learner = attention()
    train(learner, 0, lr=10.0, epochs=1)
    largest = max(float(e.detach().abs().max()) for e in learner.gated.own(0))
    assert largest == 6.0


def test_the_price_of_units():
    gates = [torch.tensor([1.0, 0.5]), torch.tensor([0.25])]
    assert float(sparsity(gates, [torch.zeros(2), torch.zeros(1)])) == pytest.approx(1.75 / 3)
    assert float(sparsity(gates, [torch.tensor([1.0, 0.0]), torch.zeros(1)])) == pytest.approx(0.75 / 2)
    assert float(sparsity(gates, [torch.ones(2), torch.ones(1)])) == 0


def test_evaluating_leaves_no_trace():
    learner = attention()
    learner.open_task(1, examples(1))
    learner.gated.scale = 7.0
    with learner.evaluating(0):
        assert (learner.gated.task, learner.gated.scale) == (0, 400.0)
    with pytest.raises(KeyError), learner.evaluating(0):
        raise KeyError
    assert (learner.gated.task, learner.gated.scale) == (1, 7.0)


@pytest.mark.parametrize(
    ("scenario", "mask"), [("domain", "all"), ("class", "seen"), ("class", "task"), ("task", "all")]
)
def test_it_must_know_the_task(scenario, mask):
    with pytest.raises(
        OptionError, match=rf"hat: the scenario is '{scenario}' and the mask '{mask}'; .*Set scenario task"
    ):
        HardAttention(mlp(6, (8,), 6), Setting(TASK_CLASSES, mask=mask, scenario=scenario), GateOptions())


def test_networks_that_are_no_chain():
    with pytest.raises(OptionError, match=r"hat: the network has AttentionNet; .*Choose net mlp or convolution."):
        attention(
            build_net(
                "attention",
                (1, 8, 8),
                6,
            )
        )
    strange = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 6))
    with pytest.raises(
        OptionError, match=r"hat: the network has BatchNorm2d, grouped Conv2d; expected an nn.Sequential of"
    ):
        attention(strange)
    attention(
        build_net(
            "convolution",
            (1, 8, 8),
            6,
        )
    )


@pytest.mark.parametrize(("name", "decay", "fresh"), [("sgd", 0.1, True), ("momentum", 0.0, False)])
def test_what_moves_weights_behind_its_back_is_told(name, decay, fresh):
    learner = attention()
    parameters = list(learner.model.parameters())
    learner.attach(optimizer := build_optimizer(name, parameters, lr=0.1, weight_decay=decay))
    learner.open_task(0, examples(0))
    own, _ = learner.loss(examples(0).inputs, examples(0).targets, columns(0))
    own.backward()
    optimizer.step()
    if fresh:
        learner.attach(build_optimizer(name, parameters, lr=0.1, weight_decay=decay))
    with pytest.warns(
        UserWarning, match="hat: weight decay, and momentum .* Set weight_decay=0 and fresh_optimizer=True"
    ):
        learner.open_task(1, examples(1))
    learner.attach(build_optimizer(name, parameters, lr=0.1))
    learner.open_task(1, examples(1))  # without a warning

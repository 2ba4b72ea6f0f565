"""Methods that give each task weights of its own: what a task was answered by does not change in a bit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.errors import OptionError
from holdfast.lab import configure, run
from holdfast.lab.methods import METHODS, Learner, Moment, Setting, build_learner
from holdfast.lab.streams import Examples
from holdfast.lab.training import build_net, build_optimizer, train_epoch

TASK_CLASSES = ((0, 1), (2, 3), (4, 5))
SETTING = Setting(TASK_CLASSES, mask="task", scenario="task")
SHAPE = (1, 8, 8)
TOLD = [name for name, method in METHODS.items() if method.told]
NETS: dict[str, dict[str, Any]] = {"mlp": {"hidden": (12, 10), "slope": 0.2}, "convolution": {}}


def built(method: str, net: str = "mlp", **options: Any) -> Learner:
    return build_learner(METHODS[method], build_net(net, SHAPE, 6, **NETS[net]), SETTING, options)


def examples(t: int) -> Examples:
    generator = torch.Generator().manual_seed(t)
    inputs = torch.randn(60, *SHAPE, generator=generator)
    return Examples(inputs, torch.tensor(TASK_CLASSES[t])[(inputs.flatten(1).sum(1) > 0).long()])


def columns(t: int) -> Tensor:
    table = torch.zeros(6, 6, dtype=torch.bool)
    for own in TASK_CLASSES[t]:
        table[own, list(TASK_CLASSES[t])] = True
    return table


def train(learner: Learner, t: int, optimizer: Any, *, epochs: int = 2) -> None:
    learner.open_task(t, examples(t))
    for seed in range(epochs):
        train_epoch(
            learner.model,
            optimizer,
            examples(t),
            batch_size=10,
            seed=seed,
            columns=columns(t),
            loss=learner.loss,
            before_step=lambda step, seed=seed: learner.before_step(Moment(6 * seed + step, 6 * epochs, step, 6)),
        )
    learner.close_task(examples(t), classes=TASK_CLASSES[t], task=t)


def answers(learner: Learner, t: int) -> Tensor:
    learner.model.eval()
    with learner.evaluating(t), torch.no_grad():
        return learner.model(examples(t).inputs)[:, list(TASK_CLASSES[t])]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("method", [name for name in TOLD if name != "hat"])  # whose gates are soft
def test_the_old_tasks_answers_do_not_change_in_a_bit(method, optimizer, net):
    """One optimizer for all tasks, with momentum left from the task before, and weight decay."""
    learner = built(method, net)
    by = build_optimizer(optimizer, learner.model.parameters(), lr=0.01, weight_decay=0.01)
    learner.attach(by)
    before: list[Tensor] = []
    for t in range(3):
        untrained = answers(learner, t)
        train(learner, t, by)
        assert all(torch.equal(answers(learner, k), old) for k, old in enumerate(before))
        before.append(answers(learner, t))
        assert not torch.equal(before[t], untrained)


@pytest.mark.parametrize("method", TOLD)
def test_it_must_be_told_the_task(method):
    with pytest.raises(
        OptionError, match=f"{method}: the scenario is 'domain' and the mask 'all'; it must know the ta"
    ):
        build_learner(METHODS[method], build_net("mlp", SHAPE, 6, hidden=(4,)), Setting(TASK_CLASSES), {})


@pytest.mark.parametrize("method", ["hat", "progressive", "pathnet"])
def test_networks_that_are_no_chain_are_refused(method):
    net = build_net("attention", SHAPE, 6)
    with pytest.raises(OptionError, match=f"{method}: the network has AttentionNet; expected an nn.Sequential"):
        build_learner(METHODS[method], net, SETTING, {})


class TestPackNet:
    def test_tasks_get_alike_and_what_is_not_theirs_is_zero(self):
        learner: Any = built("packnet")
        by = build_optimizer("adam", learner.model.parameters(), lr=0.01)
        learner.attach(by)
        for t in range(3):
            train(learner, t, by)
            owners, _ = learner.state()
            shares = [float((owners["owner/1.weight"] == k + 1).float().mean()) for k in range(3)]
            assert shares == pytest.approx([1 / 3] * (t + 1) + [0] * (2 - t), abs=0.002)
            weight = learner.model.get_parameter("1.weight")
            assert not weight[owners["owner/1.weight"] == 0].any()
        assert "0% of" in learner.report()

    def test_a_network_with_norms_and_no_chain(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
        learner = build_learner(METHODS["packnet"], net, SETTING, {})
        by = build_optimizer("sgd", learner.model.parameters(), lr=0.1)
        learner.attach(by)
        train(learner, 0, by)
        old = answers(learner, 0)
        train(learner, 1, by)
        assert torch.equal(answers(learner, 0), old)


class TestProgressive:
    def test_a_column_reads_those_before_it(self):
        learner: Any = built("progressive")
        by = build_optimizer("adam", learner.model.parameters(), lr=0.01)
        learner.attach(by)
        train(learner, 0, by)
        train(learner, 1, by)
        old = answers(learner, 1)
        with torch.no_grad():
            learner.net.columns[0][1].weight.zero_()
        assert not torch.equal(answers(learner, 1), old)

    def test_memory_grows_with_the_square_of_the_tasks(self):
        counts = []
        for num_tasks in (1, 2, 3, 4):
            setting = Setting(tuple((k,) for k in range(num_tasks)), mask="task", scenario="task")
            learner: Any = build_learner(METHODS["progressive"], build_net("mlp", SHAPE, 6, hidden=(9, 9)), setting, {})
            counts.append(sum(weight.numel() for weight in learner.model.parameters()))
        steps = [after - before for before, after in pairwise(counts)]
        assert steps[1] - steps[0] == steps[2] - steps[1] == 1 + 9 * 9 + 1 + 9 * 9  # alpha and V of two layers


class TestPathNet:
    def test_modules_of_closed_tasks_stay_and_others_begin_anew(self):
        learner: Any = built("pathnet", path_modules=4, path_active=2, path_generations=3)
        by = build_optimizer("sgd", learner.model.parameters(), lr=0.1)
        learner.attach(by)
        train(learner, 0, by, epochs=4)
        path = learner.net.path.clone()
        kept = [{p: learner.net.layers[n][p].weight.clone() for p in path[n].tolist()} for n in range(2)]
        train(learner, 1, by, epochs=4)
        for number, modules in enumerate(kept):
            for place, weight in modules.items():
                assert torch.equal(learner.net.layers[number][place].weight, weight)
        with learner.evaluating(0):
            assert torch.equal(learner.net.path, path)

    def test_the_better_path_wins(self):
        torch.manual_seed(0)
        learner: Any = built("pathnet", path_modules=4, path_active=2, path_generations=1, path_population=2)
        learner.open_task(0, examples(0))
        for step in range(8):
            learner.before_step(Moment(step, 8, step, 8))
            tensors, _ = learner.state()
            if step < 6:  # the second of the pair has the smaller loss
                learner.load_state(
                    {**tensors, "fitness": torch.tensor([2.0, 1.0], dtype=torch.float64)}, {"turn": 2 * step // 6}
                )
                winner = tensors["genes"][tensors["pair"][1]]
        assert torch.equal(learner.net.path, winner)

    def test_more_active_than_there_are(self):
        with pytest.raises(OptionError, match="path_active is 3; expected at most path_modules, which is 2"):
            configure("split-digits", "pathnet", path_modules=2)


class TestLessForgetful:
    def test_it_keeps_more_than_plain_training_on_other_inputs(self, tmp_path):
        given = {"num_tasks": 2, "epochs": 6}
        plain, kept = (
            run(configure("permuted-digits", method, **given), output=tmp_path) for method in ("none", "lfl")
        )
        assert kept.forgetting < plain.forgetting - 0.02

    def test_the_last_layer_is_frozen_where_tasks_share_it(self):
        setting = Setting(((0, 1),) * 2)
        learner = build_learner(METHODS["lfl"], build_net("mlp", SHAPE, 2, hidden=(4,)), setting, {})
        learner.close_task(Examples(torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.long)), classes=None, task=0)
        assert [p.requires_grad for p in learner.model.parameters()] == [True, True, False, False]


def test_every_one_of_them_keeps_what_plain_training_forgets(tmp_path):
    """Permuted digits, each task with columns of its own: nothing is lost, and later tasks are learned."""
    given = {"scenario": "task", "num_tasks": 3, "epochs": 6}
    plain = run(configure("permuted-digits", "none", **given), output=tmp_path)
    for method in ("progressive", "packnet", "pathnet"):
        found = run(configure("permuted-digits", method, **given), output=tmp_path)
        assert found.forgetting == 0.0
        assert plain.forgetting > 0.03
        assert found.final_accuracy > (0.75 if method == "pathnet" else plain.final_accuracy)

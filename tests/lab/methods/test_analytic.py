from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from tests.lab.tiny import events, tiny
from torch import Tensor

import holdfast as hf
from holdfast.cli.idle import idle_settings
from holdfast.files import read_state
from holdfast.lab import configure, run
from holdfast.lab.folder import RunFolder
from holdfast.lab.methods import METHODS, Setting, build_learner
from holdfast.lab.methods.analytic import AnalyticLearner, Answering
from holdfast.lab.streams import Examples
from holdfast.lab.training import accuracy, build_net, mlp

METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "class-means": {},
    "slda": {"shrinkage": 0.01},
    "ranpac": {"projection": 40},
}
EVERY_METHOD = pytest.mark.parametrize("method", METHOD_OPTIONS)
CLASSES = ((0, 1), (2, 3), (4, 5))


@cache
def examples(task: int | None = None, *, seed: int = 0) -> Examples:
    """Six classes around six points; those of one task, or of all."""
    generator = torch.Generator().manual_seed(7)
    centres = 2 * torch.randn(6, 5, generator=generator)
    generator.manual_seed(seed)
    labels = torch.arange(240) % 6
    inputs = centres[labels] + torch.randn(240, 5, generator=generator)
    mine = labels >= 0 if task is None else torch.isin(labels, torch.tensor(CLASSES[task]))
    return Examples(inputs[mine], labels[mine])


def learner_of(method: str, **options: Any) -> AnalyticLearner:
    setting = Setting(CLASSES, mask="seen", scenario="class", input_shape=(5,), seed=3)
    made = build_learner(METHODS[method], mlp(5, (20,), 6), setting, {**METHOD_OPTIONS[method], **options})
    assert isinstance(made, AnalyticLearner)
    return made


def learned(method: str, order=(0, 1, 2), **options: Any) -> AnalyticLearner:
    learner = learner_of(method, **options)
    for task in order:
        learner.open_task(task, examples(task))
        learner.after_training(task, examples(task))
    return learner


@torch.no_grad()
def scores(learner: AnalyticLearner) -> Tensor:
    return learner.model.eval()(examples(seed=1).inputs)


@EVERY_METHOD
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_it_is_the_head_of_all_data_whatever_the_order_of_the_tasks(method, order):
    joint = learner_of(method)
    joint.after_training(0, examples())
    assert torch.allclose(scores(learned(method, order)), scores(joint), rtol=1e-5, atol=1e-5)
    assert accuracy(joint.model, examples(seed=1)) > 0.85


@EVERY_METHOD
def test_it_is_the_library_on_what_the_head_is_given(method):
    learner = learned(method)
    own = {"class-means": ("means", {}), "slda": ("slda", {"shrinkage": 0.01}),
           "ranpac": ("ridge", {"projection": 40, "seed": 3})}[method]  # fmt: skip
    head, net = hf.AnalyticHead(own[0], **own[1]), mlp(5, (20,), 6)
    for features, labels in hf.features_of(net, examples()):
        head.fit(features, labels)
    ((features, _),) = hf.features_of(net, examples(seed=1))
    assert torch.allclose(scores(learner), head(features), rtol=1e-5, atol=1e-5)


@EVERY_METHOD
def test_the_network_answers_itself_until_there_is_a_class_and_unseen_classes_never_win(method):
    learner, net = learner_of(method), mlp(5, (20,), 6)
    assert torch.equal(scores(learner), net(examples(seed=1).inputs))
    learner.after_training(1, examples(1))
    found = scores(learner)
    assert (found[:, [0, 1, 4, 5]] == -math.inf).all()
    assert torch.isfinite(found[:, [2, 3]]).all()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), learner.model.state_dict().values()))


@EVERY_METHOD
def test_state_and_back_to_the_bit(method):
    learner, successor = learned(method, (0, 1)), learner_of(method)
    successor.load_state(*learner.state())
    for each in (learner, successor):
        each.after_training(2, examples(2))
    assert torch.equal(scores(learner), scores(successor))
    assert learner.report() == successor.report()


def test_what_they_say():
    assert learned("class-means").report() == "means: 6 classes of 240 examples in 20 features"
    assert learned("slda").report() == "slda: 6 classes of 240 examples in 20 features, shrinkage 0.01"
    assert learned("ranpac").report().startswith("ridge: 6 classes of 240 examples in 40 features, ridge ")
    given = learned("ranpac", projection=0, ridge=2.5)
    assert given.report() == "ridge: 6 classes of 240 examples in 20 features, ridge 2.5"


@pytest.mark.parametrize(
    ("method", "options"),
    [("slda", {"shrinkage": 0.9}), ("ranpac", {"projection": 0}), ("ranpac", {"ridge": 1e3}), ("ranpac", {"seed": 1})],
)
def test_every_option_has_an_effect(method, options):
    other = learned(method, **options)
    if "seed" in options:
        setting = Setting(CLASSES, mask="seen", scenario="class", input_shape=(5,), seed=1)
        other = build_learner(METHODS[method], mlp(5, (20,), 6), setting, METHOD_OPTIONS[method])
        other.after_training(0, examples())
    assert not torch.allclose(scores(learned(method)), scores(other), atol=1e-3)


def test_the_network_of_any_shape_is_asked_for_what_its_head_is_given():
    net = build_net("attention", (1, 8, 8), 10)
    answering = Answering(net, hf.AnalyticHead("means"), num_columns=10)
    images = torch.rand(6, 1, 8, 8)
    for features, labels in hf.features_of(net, [(images, torch.arange(6))]):
        assert features.shape == (6, 64)
        answering.analytic.fit(features, labels)
    assert answering.eval()(images).argmax(1).tolist() == [0, 1, 2, 3, 4, 5]


SMALL = {"num_tasks": None, "hidden": (60,), "epochs": 2}


class TestRuns:
    @EVERY_METHOD
    def test_classes_of_different_tasks_are_told_apart(self, method, tmp_path):
        """Plain training ends at a fifth: the newest two of ten classes."""
        settings = {**SMALL, "stream": "split-digits", "scenario": "class"}
        found = run(tiny(method, **settings, **{"projection": 300} if method == "ranpac" else {}), output=tmp_path)
        plain = run(tiny("none", **settings), output=tmp_path)
        assert plain.final_accuracy < 0.25
        assert found.final_accuracy > (0.8 if method == "class-means" else 0.92)

    @EVERY_METHOD
    @pytest.mark.parametrize("scenario", ["task", "domain"])
    def test_other_scenarios(self, method, scenario, tmp_path):
        settings = {**SMALL, "stream": "split-digits", "scenario": scenario}
        found = run(tiny(method, **settings, **{"projection": 100} if method == "ranpac" else {}), output=tmp_path)
        assert found.final_accuracy > {"task": 0.97, "domain": 0.7 if method == "class-means" else 0.85}[scenario]

    def test_untrained_there_is_no_epoch_and_adapted_there_are_those_of_the_first_task(self, tmp_path):
        plain, adapted = tiny("slda"), tiny("slda", adapt=True)
        assert [(e["task"], e["epoch"]) for e in told(plain, tmp_path) if e["event"] == "epoch"] == []
        assert [(e["task"], e["epoch"]) for e in told(adapted, tmp_path) if e["event"] == "epoch"] == [(0, 1), (0, 2)]

    def test_adapted_the_network_is_that_of_plain_training_on_the_first_task(self, tmp_path):
        configs = [tiny("slda", adapt=True, num_tasks=2), tiny("none", num_tasks=1)]
        weights = []
        for config in configs:
            run(config, output=tmp_path)
            tensors, _ = read_state(RunFolder(tmp_path / config.name, config).checkpoint)
            weights.append([tensor for name, tensor in tensors.items() if name.startswith("model/")])
        assert len(weights[0]) == 4
        assert all(torch.equal(one, other) for one, other in zip(*weights))

    def test_memory_is_the_sums(self, tmp_path):
        found = run(tiny("slda"), output=tmp_path)
        assert found.held_bytes == 8 * (8 * 8 + 10 * 8 + 10)


def told(config, folder) -> list[dict[str, Any]]:
    run(config, output=folder)
    return events(config, folder)


def test_settings_of_training_have_no_effect_where_nothing_is_trained():
    given = ("lr", "seed", "epochs")
    assert idle_settings(configure("split-digits", "slda", lr=0.2), given) == [
        "--lr has no effect with slda, which trains nothing; or give --adapt.",
        "--epochs has no effect with slda, which trains nothing; or give --adapt.",
    ]
    assert idle_settings(configure("split-digits", "slda", lr=0.2, adapt=True), given) == []
    assert idle_settings(configure("split-digits", "none", lr=0.2), given) == []

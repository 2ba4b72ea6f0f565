from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.replay.drawers import Stuck, class_of, patterns
from torch import Tensor

from holdfast.errors import CollapseError, OptionError
from holdfast.lab.methods import Learner, Setting, build_learner, dgr, method_named
from holdfast.lab.methods.dgr import DGR
from holdfast.lab.streams.examples import Examples
from holdfast.lab.training import accuracy, build_optimizer, mlp, train_epoch
from holdfast.likelihoods.masks import active_classes

TASKS = ((0, 1), (2, 3), (4, 5))
SMALL: dict[str, Any] = {"generator_units": 32, "generator_latent": 4, "generator_lr": 5e-3}


def task(number: int, *, n: int = 160) -> Examples:
    return Examples(*patterns(n, classes=TASKS[number], seed=number))


def build(method: str = "dgr", *, mask: Any = "seen", **options: Any) -> Any:
    setting = Setting(TASKS, mask, input_shape=(1, 8, 8), past=task, seed=options.pop("seed", 0))
    model = mlp(64, (24,), 6, seed=0)
    return build_learner(method_named(method), model, setting, {**SMALL, **options})


def learn(learner: Any, *, tasks: int = 2, epochs: int = 1) -> dict[str, Tensor]:
    """Train on one task after the other with Adam; the solver's weights."""
    setting = Setting(TASKS, "seen") if type(learner) is Learner else learner.setting
    for t in range(tasks):
        optimizer = build_optimizer("adam", learner.model.parameters(), lr=5e-3)
        learner.attach(optimizer)
        learner.open_task(t, task(t))
        active = active_classes(setting.mask, TASKS, t)
        columns = torch.zeros(6, 6, dtype=torch.bool)
        columns[list(TASKS[t])] = torch.tensor([column in (active or range(6)) for column in range(6)])
        for epoch in range(epochs):
            train_epoch(
                learner.model,
                optimizer,
                task(t),
                batch_size=40,
                seed=10 * t + epoch,
                columns=columns,
                loss=learner.loss,
            )
        learner.close_task(task(t), classes=active, task=t)
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def remembered(learner: Any) -> float:
    """Accuracy on the first task, among all classes seen in two."""
    return accuracy(learner.model, Examples(*patterns(200, classes=TASKS[0], seed=9)), classes=(0, 1, 2, 3))


class TestRemembering:
    @pytest.mark.parametrize("method", ["dgr", "dgr-distilled"])
    @pytest.mark.parametrize("generator", ["vae", "cvae"])
    def test_with_replay_nothing_is_forgotten(self, method, generator):
        learner = build(method, generator=generator)
        learn(learner, epochs=25)
        assert remembered(learner) > 0.9
        assert accuracy(learner.model, task(1), classes=(0, 1, 2, 3)) > 0.95

    @pytest.mark.parametrize("method", ["dgr", "dgr-distilled"])
    def test_without_replay_all_is_forgotten(self, method):
        plain = build(method, replay="none")
        learn(plain, epochs=25)
        assert remembered(plain) < 0.1

    def test_the_controls_stand_in_their_order(self):
        """Of patterns so plain even noise reminds; nothing does not."""
        found = {}
        for replay in ("exact", "noise", "none"):
            learner = build("dgr-distilled", replay=replay)
            learn(learner, epochs=25)
            assert learner.generator is None
            found[replay] = remembered(learner)
        assert found["exact"] > 0.95
        assert found["exact"] >= found["noise"] > found["none"]


class TestLiveness:
    @pytest.mark.parametrize("generator", ["vae", "cvae", "wgan-gp"])
    def test_it_agrees_with_itself_and_with_plain_training_only_in_the_first_task(self, generator):
        plain = build("none")
        assert same(learn(build(generator=generator), tasks=1), learn(plain, tasks=1))
        both = learn(build(generator=generator))
        assert same(both, learn(build(generator=generator)))
        assert not same(both, learn(build("none")))

    @pytest.mark.parametrize(
        "options",
        [
            {"generator": "cvae"},
            {"generator_units": 16},
            {"generator_latent": 2},
            {"generator_lr": 1e-3},
            {"new_share": 0.3},
            {"replay": "exact"},
            {"replay": "noise"},
            {"replay": "none"},
            {"hold": "ewc-fisher", "strength": 1e3},
            {"hold": "wva-signal", "strength": 1e3},
            {"seed": 1},
        ],
        ids=str,
    )
    def test_every_option_has_an_effect(self, options):
        assert not same(learn(build()), learn(build(**options)))

    @pytest.mark.parametrize("mechanism", ["ewc", "wva"])
    def test_a_generator_that_is_held_draws_otherwise(self, mechanism):
        learners = [build(), build(hold_generator=mechanism, generator_strength=1e4)]
        weights = [learn(learner) for learner in learners]
        assert same(*weights)  # of the third task's solver on
        assert not same(*(learner.generator.state_dict() for learner in learners))

    def test_the_temperature_is_that_of_distilled_answers(self):
        assert same(learn(build()), learn(build(temperature=1.0)))
        assert not same(learn(build("dgr-distilled")), learn(build("dgr-distilled", temperature=1.0)))
        assert not same(learn(build()), learn(build("dgr-distilled")))

    @pytest.mark.parametrize("mask", ["task", "all"])
    def test_other_masks(self, mask):
        learner = build(mask=mask)
        learn(learner, epochs=25)
        assert accuracy(learner.model, task(0), classes=TASKS[0]) > 0.9


class TestShares:
    def test_the_loss_is_the_mixture_of_new_and_replayed(self, monkeypatch):
        learner = build()
        learn(learner, tasks=2)
        learner.open_task(2, task(2))
        monkeypatch.setattr(dgr, "replay_loss", lambda *args, **kwargs: torch.tensor(5.0))
        inputs, targets = patterns(8, classes=TASKS[2])
        own, added = learner.loss(inputs, targets, None)
        torch.testing.assert_close(own + added, own / 3 + 2 / 3 * 5.0)

    def test_a_batch_costs_the_same_however_many_tasks_there_were(self, monkeypatch):
        learner, sizes = build("dgr-distilled"), []
        fit = learner.generator.fit
        monkeypatch.setattr(learner.generator, "fit", lambda x, *a, **k: (sizes.append(len(x)), fit(x, *a, **k))[1])
        learn(learner, tasks=3)
        assert sizes == [40] * 4 + [80] * 8

    def test_exact_replay_takes_each_past_task_alike(self):
        learner = build(replay="exact")
        learn(learner, tasks=2)
        learner.open_task(2, task(2))
        counts = class_of(learner._past_inputs(400)).bincount(minlength=6)
        assert counts[4:].sum() == 0
        assert counts[:4].min() > 60


class TestHolding:
    def test_what_is_held_is_told(self):
        learner = build(hold="ewc-fisher", strength=10.0, hold_generator="ewc", generator_strength=10.0)
        learn(learner)
        said = learner.report()
        assert said.startswith("DGR: replays vae, tasks so far 2; generator's loss ")
        assert said.count("EWC: 2 tasks held") == 2
        assert build(replay="noise").report() == "DGR: replays noise, tasks so far 1"

    def test_a_generator_held_hard_stays_where_it_was(self):
        learner = build(hold_generator="ewc", generator_strength=1e12)
        learn(learner, tasks=1)
        weight = learner.generator.decoder[0].weight.detach().clone()
        importance = learner.keeper.held.importance["0.weight"]
        learn_more = build_optimizer("adam", learner.model.parameters(), lr=5e-3)
        learner.attach(learn_more)
        learner.open_task(1, task(1))
        train_epoch(learner.model, learn_more, task(1), batch_size=40, seed=1, loss=learner.loss)
        moved = (learner.generator.decoder[0].weight - weight).abs()
        assert importance.max() > 1e-3
        assert moved[importance > 1e-3].max() < 1e-5

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"hold": "frozen"}, "dgr: hold is 'frozen'; expected a method that holds weights: ewc-fisher, "),
            (
                {"hold": "ewc-fisher"},
                "'ewc-fisher' needs a strength or a budget, one of them; found none. Give one",
            ),
            ({"hold_generator": "ewc"}, "dgr: hold_generator='ewc' needs generator_strength; found None. Give one."),
        ],
    )
    def test_what_has_no_meaning_is_refused(self, options, message):
        with pytest.raises(OptionError, match=message):
            build(**options)

    def test_the_remedies(self):
        assert isinstance(build(hold="ewc-fisher", budget=0.1), DGR)
        assert isinstance(build(hold_generator="ewc", generator_strength=1.0), DGR)


def test_a_collapsed_generator_stops_the_run():
    learner = build()
    learner.generator = Stuck(1e-6)
    with pytest.raises(CollapseError, match="DGR, task 1: the generator has collapsed"):
        learn(learner, tasks=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"generator": "wgan-gp"},
        {"replay": "exact"},
        {"hold": "ewc-si", "strength": 1.0},
        {"generator": "cvae", "hold_generator": "ewc", "generator_strength": 100.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("t", [0, 1])
def test_going_on_in_mid_task_is_the_same_to_the_bit(t, options):
    def half(learner: Any, optimizer: Any, seed: int) -> None:
        train_epoch(learner.model, optimizer, task(t), batch_size=40, seed=seed, loss=learner.loss)

    whole = build(**options)
    if t:
        learn(whole, tasks=1)
    optimizer = build_optimizer("sgd", whole.model.parameters(), lr=0.1)
    whole.attach(optimizer)
    whole.open_task(t, task(t))
    half(whole, optimizer, 5)
    tensors, notes = whole.state()
    again = build(**options)
    again.model.load_state_dict({name: tensor.clone() for name, tensor in whole.model.state_dict().items()})
    other = build_optimizer("sgd", again.model.parameters(), lr=0.1)
    again.attach(other)
    again.load_state({name: tensor.clone() for name, tensor in tensors.items()}, notes)
    for learner, each in ((whole, optimizer), (again, other)):
        half(learner, each, 6)
        learner.close_task(task(t), classes=None, task=t)
    assert same(whole.model.state_dict(), again.model.state_dict())
    first, second = whole.state(), again.state()
    assert first[0].keys() == second[0].keys()
    assert same(first[0], second[0])

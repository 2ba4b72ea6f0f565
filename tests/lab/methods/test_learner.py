from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import holdfast as hf
from holdfast.curvature import Decayed
from holdfast.errors import OptionError
from holdfast.lab.config import configure
from holdfast.lab.methods import METHODS, Learner, Moment, Setting, build_learner, method_named
from holdfast.lab.methods.importances import PathEstimator
from holdfast.lab.methods.mechanisms import accumulation
from holdfast.lab.methods.registry import MethodEntry
from holdfast.lab.streams.examples import Examples
from holdfast.lab.training import build_optimizer, mlp, train_epoch
from holdfast.likelihoods.likelihood import Categorical

STRENGTHS = {"l2": 1.0, "ewc": 30.0, "wva": 300.0}


@cache
def task(number: int, *, n: int = 60) -> Examples:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(n, 6, generator=generator)
    return Examples(inputs, (inputs @ torch.randn(6, 4, generator=generator)).argmax(1))


def net() -> nn.Sequential:
    return mlp(6, (8,), 4, slope=0.1, seed=0)


def build(method: MethodEntry, model: nn.Module, options: dict[str, Any]) -> Any:
    told = {"scenario": "task", "mask": "task"} if method.told else {}
    setting = Setting(task_classes=((0, 1, 2, 3),) * 3, input_shape=(6,), seed=options.pop("seed", 0), **told)
    return build_learner(method, model, setting, options)


def epoch(learner: Learner, optimizer: Any, *, t: int, seed: int) -> None:
    """One epoch of task t, as the only one."""
    steps = -(-len(task(t)) // 10)
    train_epoch(
        learner.model,
        optimizer,
        task(t),
        batch_size=10,
        seed=seed,
        loss=learner.loss,
        before_step=lambda step: learner.before_step(Moment(step, steps, step, steps)),
        after_step=learner.after_step,
    )


def build_one(name: str) -> Any:
    held = method_named(name).holds_weights
    return build(method_named(name), net(), {"strength": 1.0 if held else None})


def learn(
    method: str,
    *,
    optimizer: str = "sgd",
    lr: float = 0.1,
    num_tasks: int = 2,
    fresh: bool = True,
    **options: Any,
) -> tuple[Learner, dict[str, Tensor]]:
    """Train on one task after the other; the learner and the weights that would be tested."""
    kind = method_named(method)
    if kind.holds_weights and "budget" not in options:
        options = {"strength": STRENGTHS.get(method, STRENGTHS.get(kind.mechanism)), **options}
    model = net()
    learner = build(kind, model, dict(**options))
    trained_by = None
    for t in range(num_tasks):
        if fresh or trained_by is None:
            trained_by = build_optimizer(optimizer, learner.model.parameters(), lr=lr)
            learner.attach(trained_by)
        learner.open_task(t, task(t))
        if learner.trains(t):
            epoch(learner, trained_by, t=t, seed=t)
        learner.after_training(t, task(t))
        learner.close_task(task(t), classes=None, task=t)
    with learner.evaluating(num_tasks - 1):
        return learner, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class TestLiveness:
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    @pytest.mark.parametrize(
        "method", [name for name in METHODS if name not in ("none", "cumulative", "joint", "dgr", "dgr-distilled")]
    )
    def test_every_method_differs_from_plain_training_and_agrees_with_itself(self, method, optimizer):
        lr = 0.1 if optimizer == "sgd" else 0.03
        learner, weights = learn(method, optimizer=optimizer, lr=lr)
        assert same(weights, learn(method, optimizer=optimizer, lr=lr)[1])
        assert not same(weights, learn("none", optimizer=optimizer, lr=lr)[1])
        first, plain = (learn(name, optimizer=optimizer, lr=lr, num_tasks=1)[1] for name in (method, "none"))
        changes = method in ("hat", "packnet", "pathnet")  # the first task, too
        assert same(first, plain) == (not changes and learner.trains(0))

    def test_plain_training_is_itself(self):
        assert same(learn("none")[1], learn("none")[1])
        assert type(learn("none")[0]) is Learner

    @pytest.mark.parametrize("method", ["ewc-fisher", "ewc-si", "wva-signal"])
    def test_without_strength_it_is_plain_training(self, method):
        assert same(learn(method, strength=0.0)[1], learn("none")[1])

    @pytest.mark.parametrize(
        ("method", "options"),
        [
            ("ewc-fisher", {"fisher": "sampled"}),
            ("ewc-fisher", {"fisher": "empirical"}),
            ("ewc-fisher", {"fisher": "batched"}),
            ("ewc-fisher", {"pull": "gradient", "strength": 1.0}),
            ("ewc-fisher", {"budget": 0.001}),
            ("ewc-mas", {"mas_output": "softmax"}),
            ("ewc-mas", {"mas_batched": True}),
            ("ewc-signal", {"signal_bias": "activation"}),
            ("ewc-kfac", {"fisher": "sampled"}),
            ("ewc-kfac", {"fisher": "empirical"}),
            ("ewc-kfac", {"pull": "penalty", "strength": 1.0}),
            ("ewc-si", {"damping": 0.01}),
            ("ewc-si", {"si_gradient": "after"}),
            ("ewc-si", {"si_variant": "kutalev"}),
            ("wva-signal", {"attenuation": "exponential"}),
            ("er", {"buffer": "balanced", "buffer_size": 20}),
            ("er", {"buffer_size": 20}),
            ("der", {"der_alpha": 0.0}),
            ("der", {"der_beta": 0.0}),
            ("agem", {"buffer_size": 20}),
            ("lwf", {"temperature": 1.0}),
            ("imm", {"imm": "mode"}),
            ("imm", {"l2_transfer": 0.1}),
            ("hat", {"hat_scale": 50.0}),
            ("hat", {"hat_sparsity": 0.0}),
            ("hat", {"seed": 1}),
            ("packnet", {"pack_prune": 0.9}),
            ("packnet", {"pack_retrain": 0.5}),
            ("lfl", {"lfl_weight": 1.0}),
            ("sfa", {"sfa_share": 0.3}),
            ("sfa", {"sfa_period": 1.0}),
        ],
    )
    def test_every_option_has_an_effect(self, method, options):
        assert not same(learn(method)[1], learn(method, **options)[1])

    @pytest.mark.parametrize("method", ["ewc-fisher", "wva-fisher"])
    @pytest.mark.parametrize("accumulate", ["mean", "max", "decayed:0.5"])
    def test_accumulation_has_an_effect_from_the_third_task_on(self, method, accumulate):
        assert not same(learn(method, num_tasks=3)[1], learn(method, num_tasks=3, accumulate=accumulate)[1])

    def test_sampled_labels_hang_on_the_seed(self):
        assert same(learn("ewc-fisher", fisher="sampled")[1], learn("ewc-fisher", fisher="sampled")[1])
        assert not same(learn("ewc-fisher", fisher="sampled")[1], learn("ewc-fisher", fisher="sampled", seed=1)[1])

    def test_attenuated_gradients_are_attenuated_increments_under_plain_sgd(self):
        on_gradients, on_increments = (learn("wva-signal", attenuate=on)[1] for on in ("gradients", "increments"))
        for name in on_gradients:
            torch.testing.assert_close(on_gradients[name], on_increments[name], rtol=1e-4, atol=1e-6)


class TestPenaltyThroughTheLoop:
    def test_it_is_the_pull_on_gradients(self):
        _, penalty = learn("ewc-fisher", strength=1.0, pull="penalty")
        _, gradient = learn("ewc-fisher", strength=1.0, pull="gradient")
        for name in penalty:
            torch.testing.assert_close(penalty[name], gradient[name], rtol=1e-4, atol=1e-6)
        assert not same(penalty, learn("none")[1])

    def test_only_a_penalty_adds_to_the_loss(self):
        for method, options, added in (
            ("ewc-fisher", {"strength": 1.0, "pull": "penalty"}, True),
            ("ewc-fisher", {"strength": 1.0, "pull": "implicit"}, False),
            ("ewc-fisher", {"strength": 1.0, "pull": "gradient"}, False),
            ("wva-si", {"strength": 1.0}, False),
            ("none", {}, False),
        ):
            learner = build(method_named(method), net(), dict(**options))
            assert (learner.loss(task(0).inputs, task(0).targets, None)[1] is not None) is added


class TestOptimizers:
    @pytest.mark.parametrize("method", ["ewc-fisher", "ewc-si", "wva-si"])
    def test_a_new_optimizer_takes_the_place_of_the_old(self, method):
        model = net()
        learner = build(method_named(method), model, {"strength": 1.0})
        old, new = (build_optimizer("sgd", model.parameters(), lr=0.1) for _ in range(2))
        learner.attach(old)
        assert old._optimizer_step_pre_hooks
        learner.attach(new)
        assert not old._optimizer_step_pre_hooks
        assert not old._optimizer_step_post_hooks
        assert new._optimizer_step_pre_hooks
        # and no hook doubled on the parameters: each is called once a step
        counts = [len(p._post_accumulate_grad_hooks or {}) for p in model.parameters()]
        assert counts == [1 if isinstance(learner.estimator, PathEstimator) else 0] * len(counts)

    @pytest.mark.parametrize("method", ["ewc-fisher", "ewc-si", "wva-si", "wva-signal"])
    @pytest.mark.parametrize("si_gradient", ["before", "after"])
    def test_plain_sgd_has_no_state_so_that_fresh_or_kept_is_the_same(self, method, si_gradient):
        fresh, kept = (learn(method, num_tasks=3, fresh=fresh, si_gradient=si_gradient) for fresh in (True, False))
        assert same(fresh[1], kept[1])
        assert same(dict(fresh[0].keeper.held.importance), dict(kept[0].keeper.held.importance))

    @pytest.mark.parametrize("method", ["none", "ewc-si", "wva-signal"])
    def test_momentum_makes_a_kept_optimizer_another_thing(self, method):
        fresh, kept = (learn(method, fresh=fresh, optimizer="momentum", lr=0.02)[1] for fresh in (True, False))
        assert not same(fresh, kept)

    def test_the_path_of_a_task_is_that_task_alone(self):
        """Importance of the second task = that of a path which began with it."""
        model = net()
        learner = build(method_named("ewc-si"), model, {"strength": 0.0})
        optimizer = build_optimizer("sgd", model.parameters(), lr=0.1)
        learner.attach(optimizer)
        train_epoch(model, optimizer, task(0), batch_size=10, seed=0)
        learner.close_task(task(0), classes=None, task=0)
        first = dict(learner.keeper.held.importance)
        path = hf.SynapticIntelligence(model, damping=0.1).attach(optimizer)
        train_epoch(model, optimizer, task(1), batch_size=10, seed=1)
        learner.close_task(task(1), classes=None, task=1)
        second = path.importance()
        for name, total in learner.keeper.held.importance.items():
            assert torch.equal(total, first[name] + second[name])


class TestCloseTask:
    CLASSES = (1, 3)

    def importance(self, method: str, *, examples: Examples, **options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
        model = net()
        learner = build(method_named(method), model, dict(strength=1.0, seed=5, **options))
        learner.close_task(examples, classes=self.CLASSES, task=2)
        return model, dict(learner.keeper.held.importance)

    def examples(self) -> Examples:
        return Examples(task(0).inputs, torch.tensor(self.CLASSES).repeat(30))

    @pytest.mark.parametrize("kind", ["exact", "sampled", "empirical", "batched"])
    def test_fisher_of_the_columns_in_the_loss(self, kind):
        model, found = self.importance("ewc-fisher", examples=self.examples(), fisher=kind)
        data = self.examples().batches(128) if kind == "batched" else self.examples()
        assert same(found, dict(hf.fisher(model, data, kind=kind, loss=Categorical(self.CLASSES), seed=2005)))
        assert not found["3.weight"][[0, 2]].any()
        assert found["3.weight"][[1, 3]].any()

    def test_the_other_estimators_take_their_options(self):
        data = self.examples()
        model, found = self.importance("ewc-mas", examples=data, mas_output="softmax", mas_batched=True)
        assert same(found, dict(hf.mas(model, data, output="softmax", batched=True, classes=self.CLASSES)))
        model, found = self.importance("wva-signal", examples=data, signal_bias="activation")
        expected = dict(hf.signal(model, data, bias="activation"))
        assert same({n: v for n, v in found.items() if n[0] == "1"}, {n: v for n, v in expected.items() if n[0] == "1"})
        assert torch.equal(found["3.weight"][[1, 3]], expected["3.weight"][[1, 3]])
        model, found = self.importance("wva-taylor", examples=data)
        assert same(found, dict(hf.taylor(model, data, loss=Categorical(self.CLASSES))))
        _, found = self.importance("l2", examples=data)
        assert all((value == 1).all() for name, value in found.items() if name[0] == "1")

    def test_methods_that_hold_nothing_measure_nothing(self):
        model = net()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        build(method_named("none"), model, {}).close_task(task(0, n=0), classes=None, task=0)
        assert same(before, model.state_dict())

    @pytest.mark.parametrize(
        "method",
        [
            "ewc-fisher",
            "ewc-kfac",
            "ewc-si",
            *(pytest.param(name, marks=pytest.mark.slow) for name in ("ewc-mas", "ewc-signal", "ewc-taylor", "l2")),
        ],
    )
    def test_a_budget_has_its_importance_in_nats(self, method):
        learner, _ = learn(method, budget=0.01)
        assert learner.keeper.held.nats_per_unit == 1
        assert learner.keeper.predicted_rise() == 0


class TestPastData:
    def test_joint_training_begins_anew_and_cumulative_training_goes_on(self):
        joint, cumulative = (learn(name, num_tasks=3)[1] for name in ("joint", "cumulative"))
        assert same(cumulative, learn("none", num_tasks=3)[1])
        model = net()
        train_epoch(model, build_optimizer("sgd", model.parameters(), lr=0.1), task(2), batch_size=10, seed=2)
        assert same(joint, model.state_dict())

    def test_they_alone_ask_for_past_data(self):
        asking = {name for name in METHODS if build_one(name).needs_past_data}
        assert asking == {"joint", "cumulative"}


class TestFrozen:
    def test_features_are_those_of_the_first_task_and_the_last_layer_learns_on(self):
        first, third = (learn("frozen", num_tasks=num_tasks)[1] for num_tasks in (1, 3))
        assert same({n: v for n, v in first.items() if n[0] == "1"}, {n: v for n, v in third.items() if n[0] == "1"})
        assert not torch.equal(first["3.weight"], third["3.weight"])


class TestState:
    @pytest.mark.parametrize(
        ("method", "options"),
        [
            ("none", {}),
            ("frozen", {}),
            ("cumulative", {}),
            ("joint", {}),
            ("ewc-fisher", {"strength": 10.0}),
            ("ewc-fisher", {"strength": 10.0, "accumulate": "per_task"}),
            ("ewc-fisher", {"budget": 0.001}),
            ("ewc-fisher", {"strength": 1.0, "pull": "penalty"}),
            ("ewc-si", {"strength": 1.0}),
            ("ewc-si", {"strength": 1.0, "si_gradient": "after"}),
            ("ewc-si", {"strength": 1.0, "si_variant": "kutalev"}),
            ("wva-si", {"strength": 10.0, "accumulate": "decayed:0.5", "weighting": "examples"}),
            ("ewc-kfac", {"strength": 10.0}),
            ("ewc-kfac", {"strength": 10.0, "accumulate": "per_task"}),
            ("er", {"buffer_size": 30}),
            ("er", {"buffer_size": 30, "buffer": "balanced"}),
            ("der", {"buffer_size": 30}),
            ("agem", {"buffer_size": 30}),
            ("lwf", {}),
            ("imm", {"imm": "mean"}),
            ("imm", {"imm": "mode", "l2_transfer": 0.1}),
            ("hat", {}),
            ("progressive", {}),
            ("packnet", {}),
            ("pathnet", {}),
            ("lfl", {}),
            ("sfa", {"sfa_period": 0.5}),
            ("class-means", {}),
            ("slda", {"adapt": True}),
            ("ranpac", {"projection": 30}),
            ("ranpac", {"projection": 0, "ridge": 1.0, "adapt": True}),
        ],
    )
    def test_going_on_in_the_middle_of_a_task_is_going_on(self, method, options):
        """Two tasks and a half, then the other half in this learner and in a new one: the same bits."""
        model = net()
        learner = build(method_named(method), model, dict(**options))
        optimizer = build_optimizer("sgd", learner.model.parameters(), lr=0.1)
        learner.attach(optimizer)
        for t in range(2):
            learner.open_task(t, task(t))
            if learner.trains(t):
                epoch(learner, optimizer, t=t, seed=t)
            learner.after_training(t, task(t))
            learner.close_task(task(t), classes=None, task=t)
        learner.open_task(2, task(2))
        if learner.trains(2):
            epoch(learner, optimizer, t=2, seed=2)

        successor = build(method_named(method), net(), dict(**options))
        successor.model.load_state_dict(learner.model.state_dict())
        tensors, notes = learner.state()
        successor.attach(other_optimizer := build_optimizer("sgd", successor.model.parameters(), lr=0.1))
        successor.load_state({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(notes)))

        for each, stepped in ((learner, optimizer), (successor, other_optimizer)):
            if each.trains(2):
                epoch(each, stepped, t=2, seed=3)
            each.after_training(2, task(2))
            each.close_task(task(2), classes=None, task=2)
        assert same(learner.model.state_dict(), successor.model.state_dict())
        first, second = learner.state(), successor.state()
        assert same(first[0], second[0])
        assert json.dumps(first[1]) == json.dumps(second[1])


class TestOptions:
    @pytest.mark.parametrize("rule", ["sum", "mean", "max", "per_task"])
    def test_rules_that_have_a_name(self, rule):
        assert accumulation(rule) == rule

    def test_decays(self):
        assert accumulation("decayed:0.9") == Decayed(0.9)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("summ", r"accumulate is 'summ'; expected sum, mean, max, per_task or decayed:GAMMA."),
            ("decayed", r"accumulate is 'decayed'; expected sum"),
            ("sum:1", r"accumulate is 'sum:1'; expected sum"),
            ("decayed:", r"accumulate: 'decayed:' names no decay; expected such as 'decayed:0.9'."),
            ("decayed:x", r"accumulate: 'decayed:x' names no decay; expected such as 'decayed:0.9'."),
            ("decayed:1.5", r"Decayed: gamma is 1.5; expected a number from 0 \(forget\) to 1 \(sum\)."),
        ],
    )
    def test_rules_that_are_none(self, text, message):
        with pytest.raises(OptionError, match=message):
            accumulation(text)

    def test_who_cannot_keep_a_budget_says_so_at_once(self):
        with pytest.raises(OptionError, match="budget has no effect with .* and wva-fisher; it belongs to ewc-fisher"):
            configure("permuted-digits", "wva-fisher", budget=0.1)
        with pytest.raises(OptionError, match="ewc: pull_every is 5, and a budget is kept at each step. Leave it"):
            build(method_named("ewc-mas"), net(), {"budget": 0.1, "pull_every": 5})
        build(method_named("ewc-mas"), net(), {"strength": 0.1, "pull_every": 5})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pull": "gradient"}, "ewc: pull is 'gradient'; with Kronecker factors it is implicit or penalty"),
            ({"fisher": "batched"}, "unknown fisher 'batched'. Known: empirical, exact, sampled."),
            (
                {"accumulate": "max"},
                "ewc: accumulate is 'max', a rule that Kronecker factors do not have. Use sum",
            ),
        ],
    )
    def test_what_kronecker_factors_lack_is_refused_at_once(self, options, message):
        with pytest.raises(OptionError, match=message):
            build(method_named("ewc-kfac"), net(), dict(strength=1.0, **options))

    def test_wva_needs_a_strength(self):
        with pytest.raises(OptionError, match="'wva-si' needs a strength; found none. Give one"):
            build(method_named("wva-si"), net(), {})


@pytest.mark.parametrize("name", ["ewc-fisher", "ewc-mas", "ewc-signal", "ewc-taylor", "l2"])
def test_a_task_holds_no_head_but_its_own(name):
    model = mlp(4, (5,), 6)
    learner = build(method_named(name), model, {"strength": 1.0})
    examples = Examples(torch.rand(8, 4), torch.tensor([2, 3] * 4))
    learner.close_task(examples, classes=(2, 3), task=0)
    *_, weight, bias = learner.keeper.held.importance.values()
    assert float(weight[[0, 1, 4, 5]].sum() + bias[[0, 1, 4, 5]].sum()) == 0
    assert float(weight[[2, 3]].sum()) > 0

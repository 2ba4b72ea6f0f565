"""Importances of base weights held on LoRA's product."""

from __future__ import annotations

import copy
import json
import math
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

pytest.importorskip("peft")

from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from tests.integrations.test_transformers import trainer_of
from tests.integrations.tiny import examples_for, gpt2, importance_of, llama, same, stacked, weights_of
from tests.strange_optimizers import Lookahead, RelativeSteps, clearing

import holdfast as hf
from holdfast.errors import (
    FileFormatError,
    NotFiniteError,
    OptionError,
    ParameterMismatchError,
    StateError,
    UnsupportedLayerError,
)
from holdfast.integrations.peft import LoraEWC, base_weights
from holdfast.integrations.transformers import HoldfastCallback

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def untied():
    """A Llama whose head is a weight of its own."""
    model = llama()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model


TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "down_proj"], "untied": ["q_proj", "down_proj"]}
BUILD = {"gpt2": gpt2, "llama": llama, "untied": untied}
MODELS = ["gpt2", "llama"]


def adapted(kind="gpt2", *, scale=1.0, **options):
    """A model with fresh adapters, and the importance of its base weights."""
    base = BUILD[kind]()
    importance = importance_of(base, scale=scale)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS[kind], fan_in_fan_out=kind == "gpt2", **options)
    return get_peft_model(base, config), importance


def disturb(model, *, by=0.1):
    """Move the adapters, as a training would."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "_B" in name:
                parameter.add_(by * torch.randn_like(parameter))


def held(kind="gpt2", *, scale=1.0, options=None, **of_keeper):
    """A model held to its base weights, whose adapters have moved since."""
    model, importance = adapted(kind, scale=scale, **(options or {}))
    keeper = LoraEWC(model, **of_keeper).retain(importance)
    disturb(model)
    return model, importance, keeper


def train(model, optimizer, *, steps=5):
    data = examples_for(model, 64)
    for step in range(steps):
        optimizer.zero_grad()
        model(**stacked(data[4 * step : 4 * step + 4])).loss.backward()
        optimizer.step()


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def products(model):
    """The base weights as the adapters change them, under the base model's names."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            found[f"{name.removeprefix('base_model.model.')}.weight"] = module.get_delta_weight("default").detach()
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_the_rise_is_that_of_the_merged_weights(kind):
    model, importance, keeper = held(kind)
    rise = sum(float((importance[name] * d.square()).sum()) for name, d in products(model).items()) / 2
    assert keeper.predicted_rise() == pytest.approx(rise, rel=1e-5)
    assert keeper.report().protected == pytest.approx(0.75, abs=0.03)
    doubled = held(kind, scale=2.0)[2]
    assert doubled.predicted_rise() == pytest.approx(2 * rise, rel=1e-5)
    model, importance = adapted(kind)
    doubled = LoraEWC(model, 2.0 * importance)  # retained at once
    disturb(model)
    assert doubled.predicted_rise() == pytest.approx(rise, rel=1e-5)  # nats are nats


@pytest.mark.parametrize("build", [torch.optim.AdamW, torch.optim.SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e4, 1e12, math.inf])
@pytest.mark.parametrize("kind", MODELS)
def test_it_is_stable_at_every_strength(kind, strength, build):
    """Without a task's gradient each step lowers the penalty; in the end what is stiff lies at zero."""
    model, _, keeper = held(kind, strength=strength)
    optimizer = build(trainable(model), lr=0.01, weight_decay=0.0)
    keeper.attach(optimizer)
    rises = [keeper.predicted_rise()]
    for _ in range(5):
        for parameter in trainable(model):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        rises.append(keeper.predicted_rise())
    assert all(after < before or after < 1e-9 * rises[0] for before, after in pairwise(rises))
    assert keeper.report().num_steps == 5
    if strength >= 1e12:
        assert rises[-1] < 1e-9 * rises[0]


def test_strength_zero_is_the_bare_optimizer_to_the_bit():
    trained = []
    for is_held in (False, True):
        model, _, keeper = held(options={"modules_to_save": ["ln_f"]}, strength=0.0)
        optimizer = torch.optim.AdamW(trainable(model), lr=0.01)
        if is_held:
            keeper.attach(optimizer)
        train(model, optimizer)
        trained.append(weights_of(model))
    assert same(*trained)


@pytest.mark.parametrize(("strength", "lr"), [(0.1, 0.2), (10.0, 0.02)])
def test_it_rests_where_gradient_and_penalty_balance(strength, lr):
    """Least squares, descended to the end: the gradient of loss + penalty vanishes, up to the step's length."""
    base = nn.Sequential(nn.Linear(5, 4, bias=False))
    importance = importance_of(base)
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
    optimizer = torch.optim.SGD(trainable(model), lr=lr)
    LoraEWC(model, strength=strength, log_every=0).retain(importance).attach(optimizer)
    nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
    inputs, targets = torch.randn(40, 5), torch.randn(40, 4)
    first, second = trainable(model)
    assert first.shape == (2, 5)

    def gradients(*, penalty: float) -> float:
        model.zero_grad()
        product = 2.0 * second @ first
        rise = (importance["0.weight"] * product.square()).sum() / 2
        (nn.functional.mse_loss(model(inputs), targets) + penalty * rise).backward()
        return float(sum(p.grad.square().sum() for p in trainable(model))) ** 0.5

    for _ in range(700):
        gradients(penalty=0.0)
        optimizer.step()
    assert gradients(penalty=strength) < 0.02 * gradients(penalty=0.0)


def test_it_holds_where_it_matters_and_lets_learn_elsewhere():
    """Half the outputs of a layer matter, the others are free."""
    model, importance = adapted("llama")
    values = {name: value.clone() for name, value in importance.items()}
    name = "model.layers.0.self_attn.q_proj.weight"
    values[name][8:] = 0
    optimizer = torch.optim.AdamW(trainable(model), lr=0.01)
    keeper = LoraEWC(model, strength=1e6, log_every=1).retain(hf.Importance(values, importance.info)).attach(optimizer)
    disturb(model)
    start = products(model)[name]
    train(model, optimizer)
    now = products(model)[name]
    assert now[:8].norm() < 1e-3 * start[:8].norm()
    assert (now - start)[8:].norm() > 0.05 * start[8:].norm()
    assert keeper.report().pull_ratio > 0


def test_in_a_trainer(tmp_path):
    model, _, keeper = held(strength=10.0, log_every=1)
    start = keeper.predicted_rise()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, saving a model that has no name on a hub
        trainer = trainer_of(model, tmp_path, callbacks=[HoldfastCallback(keeper)], save_strategy="steps", save_steps=3)
        trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entries[-1]["predicted_rise"] == keeper.predicted_rise() < start
    assert keeper.report().num_steps == len(entries)


def test_a_trainer_goes_on_from_a_checkpoint(tmp_path):
    """A fresh keeper, of which nothing is retained, gets all from the folder."""
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        model, importance = adapted("llama", modules_to_save=["norm"])
        keeper = LoraEWC(model, strength=10.0, log_every=1)
        if resume is None:
            keeper.retain(importance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT, saving a model that has no name on a hub
            callbacks = [HoldfastCallback(keeper)]
            trainer = trainer_of(model, tmp_path, callbacks=callbacks, save_strategy="steps", save_steps=2)
            trainer.train(resume_from_checkpoint=resume)
        ends.append((weights_of(model), keeper.report()))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert ends[0][1].num_steps > 2


def test_a_sequence_of_tasks_in_one_adapter():
    """EWC on the trainable parameters is EWC on the adapter: importances and anchors of its factors alone."""
    moved = []
    for strength in (0.0, 1e6):
        model, _ = adapted()
        optimizer = torch.optim.AdamW(trainable(model), lr=0.01, weight_decay=0.0)
        keeper = hf.EWC(model, strength=strength).attach(optimizer)
        train(model, optimizer)
        data = examples_for(model, 8, seed=5)
        importance = hf.fisher(model, [stacked(data)], kind="sampled")
        assert all("lora" in name for name in importance)
        assert len(importance) == len(trainable(model))
        keeper.retain(importance)
        before = weights_of(model)
        train(model, optimizer)
        moved.append(sum(float((w - before[n]).square().sum()) for n, w in weights_of(model).items()))
    assert moved[1] < 0.01 * moved[0]


def test_what_does_not_fit_is_told_before_anything_is_attached():
    model, importance = adapted("llama")
    name = "model.layers.0.self_attn.q_proj.weight"
    values = {**importance, name: importance[name][:3]}
    del values["model.layers.0.mlp.down_proj.weight"]
    keeper = LoraEWC(model)
    with pytest.raises(ParameterMismatchError, match=rf"2 of 2 .*'{name}' is \(3, 16\).*down_proj.*none"):
        keeper.retain(hf.Importance(values, importance.info))
    with pytest.raises(OptionError, match="dense tensors"):
        keeper.retain({name: [1.0]})
    assert keeper.report().num_tasks == 0
    with pytest.raises(ParameterMismatchError, match="has no LoRA adapter 'other'"):
        LoraEWC(model, adapter="other")
    with pytest.raises(OptionError, match="strength is -1"):
        LoraEWC(model, strength=-1)
    with pytest.raises(OptionError, match="log_every is -1"):
        LoraEWC(model, log_every=-1)
    with pytest.raises(OptionError, match='accumulate is "per_task"'):
        LoraEWC(model, accumulate="per_task")
    dora, _ = adapted("llama", use_dora=True)
    with pytest.raises(UnsupportedLayerError, match=r"q_proj.*adds more than the product of its factors \(DoRA\)"):
        LoraEWC(dora)
    biased, _ = adapted("gpt2", lora_bias=True)
    with pytest.raises(UnsupportedLayerError, match=r"c_attn.*adds more than the product"):
        LoraEWC(biased)


def test_each_factor_may_have_an_optimizer_of_its_own():
    """And one of them none: it rests, and the other is pulled alone."""
    model, _, keeper = held("llama", strength=1e6)
    firsts, seconds = ([p for n, p in model.named_parameters() if f"lora_{k}" in n] for k in "AB")
    optimizers = [torch.optim.SGD(firsts, lr=0.01), torch.optim.Adam(seconds, lr=0.01)]
    rise = keeper.predicted_rise()
    keeper.attach(optimizers[0])
    for parameter in trainable(model):
        parameter.grad = torch.zeros_like(parameter)
    before = [p.detach().clone() for p in seconds]
    optimizers[0].step()
    assert keeper.predicted_rise() < 0.5 * rise
    assert all(torch.equal(a, b) for a, b in zip(seconds, before, strict=True))
    keeper.attach(optimizers[1])
    between = keeper.predicted_rise()
    train(model, optimizers[1], steps=3)
    assert keeper.predicted_rise() < max(between, 1e-3 * rise)
    with pytest.raises(StateError, match="already attached to this SGD"):
        keeper.attach(optimizers[0])
    keeper.detach()
    for optimizer in optimizers:
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks


def packed(model, kind):
    """Base weights in whole numbers of another shape, as bitsandbytes has them; on one side 4 bits in a column."""
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = module.get_base_layer().weight
            shape = (weight.numel() // 2, 1) if kind == "4 bits" else weight.shape
            codes = torch.zeros(shape, dtype=torch.uint8 if kind == "4 bits" else torch.int8)
            module.get_base_layer().weight = nn.Parameter(codes, requires_grad=False)
    return model


@pytest.mark.parametrize("bits", ["4 bits", "8 bits"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_quantised_base_is_held_by_the_importance_of_its_weights(kind, bits):
    _, _, expected = held(kind)
    whole, importance = adapted(kind)
    names = list(products(whole))
    model = packed(whole, bits)
    keeper = LoraEWC(model, strength=1e3)
    values = {**importance, names[0]: torch.ones(2, 2)}
    with pytest.raises(ParameterMismatchError, match=rf"'{names[0]}' is \(2, 2\), its weight \(\d\d, \d\d\)"):
        keeper.retain(hf.Importance(values, importance.info))
    keeper.retain(importance)
    disturb(model)
    assert keeper.predicted_rise() == expected.predicted_rise() > 0
    rise = keeper.predicted_rise()
    keeper.attach(optimizer := torch.optim.SGD(trainable(model), lr=0.01))
    for parameter in trainable(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert keeper.predicted_rise() < 0.5 * rise
    with (
        pytest.raises(
            UnsupportedLayerError, match=rf"{len(names)} adapted weights are quantised .*'{names[0]}'.*before it is"
        ),
        base_weights(model),
    ):
        pass


BESIDE = {
    "norm": ("gpt2", {"modules_to_save": ["ln_f"]}, {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
    "head": ("untied", {"modules_to_save": ["lm_head"]}, {"lm_head.weight"}),
    "biases": ("gpt2", {"bias": "all"}, {name for name, _ in gpt2().named_parameters() if name.endswith("bias")}),
    "own biases": (
        "gpt2",
        {"bias": "lora_only"},
        {f"transformer.h.0.{name}.bias" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")},
    ),
    "tied head": (
        "llama",
        {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        {"model.embed_tokens.weight"},
    ),
}


def bare(name):
    """A parameter's name as the base model has it."""
    for piece in ("base_model.model.", "base_layer.", "modules_to_save.default."):
        name = name.replace(piece, "")
    return name


@pytest.mark.filterwarnings("ignore:.*tied:UserWarning", "ignore:.*tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("what", BESIDE)
def test_what_learns_beside_the_adapters_is_held(what):
    """To the penalty by hand: 1/2 sum Omega d^2 over products and weights; and a strong pull brings both back."""
    kind, options, names = BESIDE[what]
    model, importance, keeper = held(kind, options=options, strength=1e6)
    beside = {bare(name): p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert set(beside) == names
    assert {bare(name) for name in keeper.held.importance} == names
    rise, start = keeper.predicted_rise(), {name: p.detach().clone() for name, p in beside.items()}
    with torch.no_grad():
        for p in beside.values():
            p.add_(0.1)
    of_beside = sum(float(importance[n].sum()) * 0.005 for n in names)
    assert keeper.predicted_rise() == pytest.approx(rise + of_beside, rel=1e-4)
    weights = {n: importance[n] for n in {*products(model), *names}}
    share = sum(int((w > 0).sum()) for w in weights.values()) / sum(w.numel() for w in weights.values())
    assert keeper.report().protected == pytest.approx(share)
    keeper.attach(optimizer := torch.optim.SGD(trainable(model), lr=0.01))
    for parameter in trainable(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert keeper.predicted_rise() < 1e-5 * rise
    for name, p in beside.items():
        free = importance[name] == 0
        torch.testing.assert_close(p.detach(), torch.where(free, start[name] + 0.1, start[name]), rtol=0, atol=1e-4)


def test_what_changes_measured_weights_and_is_no_adapter_is_refused():
    """Rows of an embedding, another adapter, a base weight beside its own adapter; unless frozen or left out."""
    tokens = adapted("llama", trainable_token_indices=[1])
    other = adapted("llama")
    other[0].add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    other[0].base_model.set_adapter(["default", "other"])
    weight = adapted("llama")
    products_of = next(m for m in weight[0].modules() if hasattr(m, "get_delta_weight"))
    products_of.base_layer.weight.requires_grad_(True)
    for (model, importance), name in (
        (tokens, "embed_tokens.token_adapter.trainable_tokens_delta.default"),
        (other, "q_proj.lora_B.other.weight"),
        (weight, "q_proj.base_layer.weight"),
    ):
        keeper = LoraEWC(model)
        with pytest.raises(
            ParameterMismatchError, match=rf"LoraEWC.retain: \d of the parameters that are trained .*{name}'"
        ) as caught:
            keeper.retain(importance)
        named = str(caught.value).partition("adapters: ")[2].partition(". Leave")[0].replace("'", "").split(", ")
        assert keeper.report().num_tasks == 0
        for parameter_name, parameter in model.named_parameters():
            if parameter_name in named:
                parameter.requires_grad_(False)
        keeper.retain(importance)
    model, importance = adapted("llama", trainable_token_indices=[1])
    kept = {n: value for n, value in importance.items() if n in products(model)}
    LoraEWC(model).retain(hf.Importance(kept, importance.info))


def test_a_new_head_is_free():
    model, importance = adapted("llama")
    model.new_head = nn.Linear(4, 2)
    keeper = LoraEWC(model).retain(importance)
    assert not keeper.held.importance
    positive = sum(int((importance[name] > 0).sum()) for name in products(model))
    weights = sum(importance[name].numel() for name in products(model)) + 10
    assert keeper.report().protected == pytest.approx(positive / weights)


@pytest.mark.filterwarnings("ignore:.*tied:UserWarning", "ignore:.*tie_word_embeddings:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=str,
)
def test_one_use_of_a_tied_weight_is_held_by_an_importance_of_its_own(options):
    """Measured as one it says nothing of one use; a copy that is not tied does."""
    base = llama()
    importance = importance_of(base)
    model = get_peft_model(base, LoraConfig(r=2, **options))
    keeper = LoraEWC(model)
    with pytest.raises(UnsupportedLayerError, match=r"'[a-z_.]+': the weight is tied .* target_modules .* not tied"):
        keeper.retain(importance)
    assert keeper.report().num_tasks == 0
    own = importance_of(untied())
    keeper.retain(own)
    name = "lm_head.weight" if "lm_head" in str(options) else "model.embed_tokens.weight"
    disturb(model)
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            if "lm_head.modules_to_save" in parameter_name:
                p.add_(0.1)
    distance = products(model).get(name, torch.tensor(0.1))
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    expected = (own[name] * distance.square()).sum() + (own[q_proj] * products(model)[q_proj].square()).sum()
    assert keeper.predicted_rise() == pytest.approx(float(expected) / 2, rel=1e-4)
    base = llama()
    LoraEWC(get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))).retain(importance)


STARTS = [True, False, "gaussian", "pissa", "olora", "orthogonal"]


@pytest.mark.parametrize("build", [torch.optim.AdamW, torch.optim.SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("start", STARTS)
def test_every_start_is_held(start, build):
    """The effective weights are those that were measured, and at a high strength they stay where they were."""
    base = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    torch.manual_seed(3)
    for parameter in base.parameters():
        nn.init.normal_(parameter)
    measured = {name: p.detach().clone() for name, p in base.named_parameters()}
    importance = hf.uniform(base)
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"], init_lora_weights=start))
    effective = effective_weights(model)
    if start not in (False, "orthogonal"):  # which move the model itself
        for name, weight in effective.items():
            torch.testing.assert_close(weight, measured[name], rtol=1e-5, atol=1e-5)
    inputs, targets = torch.randn(64, 8), torch.randn(64, 4)
    ends = {}
    for strength in (0.0, 1e6):
        trained = copy.deepcopy(model)
        optimizer = build(trainable(trained), lr=0.02)
        keeper = LoraEWC(trained, strength=strength).retain(importance).attach(optimizer)
        assert keeper.predicted_rise() == 0
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.mse_loss(trained(inputs), targets).backward()
            optimizer.step()
        now = effective_weights(trained)
        expected = sum(float((now[n] - effective[n]).square().sum()) for n in now) / 2
        assert keeper.predicted_rise() == pytest.approx(expected, rel=1e-2, abs=1e-9)
        ends[strength] = expected
    assert ends[1e6] < 1e-6 * ends[0.0]


def effective_weights(model):
    """Base weights with what the adapters add, under the base model's names."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = module.get_base_layer().weight.detach() + module.get_delta_weight("default").detach()
            found[f"{name.removeprefix('base_model.model.')}.weight"] = weight
    return found


@pytest.mark.parametrize(
    ("rule", "joined"),
    [
        ("sum", lambda f, g: f + g),
        ("mean", lambda f, g: (f + g) / 2),
        ("max", torch.maximum),
        (hf.Decayed(0.5), lambda f, g: 0.5 * f + g),
    ],
    ids=["sum", "mean", "max", "decayed"],
)
@pytest.mark.parametrize("kind", MODELS)
def test_several_tasks_join_and_are_held_to_the_last(kind, rule, joined):
    """Against the penalty by hand, weights beside the adapters too; and by examples."""
    for weighting, share in (("task", 1.0), ("examples", 3.0)):
        model, importance = adapted(kind, modules_to_save=["ln_f" if kind == "gpt2" else "norm"])
        keeper = LoraEWC(model, accumulate=rule, weighting=weighting).retain(importance)
        disturb(model)
        drawn = {name: torch.rand_like(value) for name, value in importance.items()}
        second = hf.Importance(drawn, hf.ImportanceInfo("fisher-exact", 24, nats_per_unit=1.0))
        keeper.retain(second)
        assert keeper.predicted_rise() == 0
        assert keeper.report().num_tasks == 2
        before = products(model)
        disturb(model)
        with torch.no_grad():
            beside = {bare(n): p for n, p in model.named_parameters() if "modules_to_save" in n}
            for p in beside.values():
                p.add_(0.1)
        omega = {name: joined(value, share * second[name]) for name, value in importance.items()}
        rise = sum(float((omega[n] * (d - before[n]).square()).sum()) for n, d in products(model).items()) / 2
        rise += sum(float(omega[n].sum()) * 0.005 for n in beside)
        assert keeper.predicted_rise() == pytest.approx(rise, rel=1e-4)


def test_nats_are_averaged_by_what_the_tasks_weigh():
    model, importance = adapted("llama")
    keeper = LoraEWC(model).retain(importance.with_info(nats_per_unit=2.0))
    keeper.retain((3.0 * importance).with_info(nats_per_unit=4.0))
    disturb(model)
    units = sum(float((4 * importance[n] * d.square()).sum()) for n, d in products(model).items()) / 2
    assert keeper.predicted_rise() == pytest.approx(3.5 * units, rel=1e-5)
    assert keeper.report().rise_unit == "by the quadratic model"
    keeper.retain(importance.with_info(nats_per_unit=None))
    disturb(model)
    assert keeper.report().rise_unit == "importance units"


@pytest.mark.parametrize("kind", MODELS)
def test_a_later_task_is_measured_on_the_sum(kind):
    """Within `base_weights` the importance is that of the merged model; outside of it nothing has changed."""
    model, importance = adapted(kind, lora_dropout=0.5)
    keeper = LoraEWC(model).retain(importance)
    disturb(model)
    data = [stacked(examples_for(model, 6, seed=4))]
    requires = {name: p.requires_grad for name, p in model.named_parameters()}
    with base_weights(model):
        found = hf.fisher(model, data)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == requires
    merged = copy.deepcopy(model).merge_and_unload().requires_grad_(True)
    expected = hf.fisher(merged, data)
    assert {bare(name) for name in found} == set(products(model)) < set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[bare(name)], rtol=1e-3, atol=1e-7)
    keeper.retain(found)
    assert keeper.report().num_tasks == 2
    of_factors = hf.fisher(model, data)
    with pytest.raises(ParameterMismatchError, match="has none.*base_weights"):
        keeper.retain(of_factors)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")
@pytest.mark.parametrize("kind", ["embedding", "convolution"])
def test_embeddings_and_convolutions_are_held(kind):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Embedding(7, 4) if kind == "embedding" else nn.Conv2d(3, 5, (2, 3)))
    importance = importance_of(base)
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=["0"]))
    with torch.no_grad():  # a product that is not zero at the start
        for p in trainable(model):
            p.normal_()
    keeper = LoraEWC(model, strength=1e6).retain(importance)
    start = products(model)["0.weight"]
    disturb(model)
    expected = 0.5 * (importance["0.weight"] * (products(model)["0.weight"] - start).square()).sum()
    assert keeper.predicted_rise() == pytest.approx(float(expected), rel=1e-4)
    keeper.attach(optimizer := torch.optim.SGD(trainable(model), lr=0.01))
    for parameter in trainable(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert keeper.predicted_rise() < 1e-4 * float(expected)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 2, groups=2))
    model = get_peft_model(grouped, LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(UnsupportedLayerError, match=r"'base_model.model.0'.*no linear layer, embedding or convolution"):
        LoraEWC(model)


def test_adapters_injected_into_a_model_are_held():
    """Without PEFT's own model around it, and under DataParallel's name."""
    base = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    importance = importance_of(base)
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["0", "1"]), base)
    keeper = LoraEWC(nn.DataParallel(model)).retain(importance)
    disturb(model)
    expected = sum(float((importance[name] * d.square()).sum()) for name, d in products(model).items()) / 2
    assert keeper.predicted_rise() == pytest.approx(expected, rel=1e-5)


def test_one_factor_may_rest():
    """LoRA-FA freezes A: B alone is pulled."""
    model, _, keeper = held("llama", strength=1e6)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    start, rise = weights_of(model), keeper.predicted_rise()
    keeper.attach(optimizer := torch.optim.SGD(trainable(model), lr=0.01))
    for parameter in trainable(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert keeper.predicted_rise() < 1e-4 * rise
    assert all("lora_B" in n or torch.equal(w, start[n]) for n, w in weights_of(model).items())


def test_the_predicted_rise_is_the_real_one():
    """A trained classifier, exact Fisher, small ways: PiSSA's start, a head and all biases beside the adapters."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3))
    inputs = torch.randn(400, 10)
    with torch.no_grad():
        targets = (inputs @ torch.randn(10, 3)).argmax(1)
    optimizer = torch.optim.Adam(base.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (
            nn.functional.cross_entropy(base(inputs), targets) + 1e-3 * sum(p.square().sum() for p in base.parameters())
        ).backward()
        optimizer.step()
    importance = hf.fisher(base, [(inputs, targets)])
    old = base(inputs).log_softmax(1).detach()
    for start, low, high in (("gaussian", 0.7, 1.4), ("pissa", 0.2, 5.0)):  # whose directions are not random
        real = predicted = 0.0
        for seed in range(20):
            torch.manual_seed(seed)
            config = LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"], bias="all", init_lora_weights=start)
            model = get_peft_model(copy.deepcopy(base), config)
            keeper = LoraEWC(model).retain(importance)
            with torch.no_grad():
                for p in trainable(model):
                    p.add_(0.03 * torch.randn_like(p))
                new = model(inputs).log_softmax(1)
            real += float((old.exp() * (old - new)).sum(1).mean())
            predicted += keeper.predicted_rise()
        assert low < real / predicted < high


@pytest.mark.parametrize("kind", MODELS)
def test_saved_and_loaded_it_goes_on_to_the_same_bits(kind, tmp_path):
    """Two tasks, an infinite strength aside; state and folder; a fresh keeper and one that has learned."""
    options = {"modules_to_save": ["ln_f" if kind == "gpt2" else "norm"]}

    def build():
        model, importance = adapted(kind, **options)
        keeper = LoraEWC(model, strength=3.0, accumulate=hf.Decayed(0.7), log_every=2)
        return model, importance, keeper

    model, importance, keeper = build()
    keeper.save(tmp_path / "empty")
    optimizer = torch.optim.SGD(trainable(model), lr=0.01)
    keeper.retain(importance).attach(optimizer)
    train(model, optimizer)
    keeper.retain(2.0 * importance)
    train(model, optimizer, steps=3)
    keeper.save(tmp_path / "keeper")
    tensors, notes = keeper.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    weights, report = weights_of(model), keeper.report()
    train(model, optimizer)
    expected, last = weights_of(model), keeper.report()

    for way in ("load", "restore", "state"):
        model, _, other = build()
        model.load_state_dict({**model.state_dict(), **weights})
        if way == "load":
            other = LoraEWC.load(tmp_path / "keeper", model)
            assert other.accumulate == hf.Decayed(0.7)
            assert (other.strength, other.log_every) == (3.0, 2)
        elif way == "restore":
            other.restore(tmp_path / "keeper")
        else:
            other.load_state(tensors, json.loads(json.dumps(notes)))
        assert other.report() == report
        optimizer = torch.optim.SGD(trainable(model), lr=0.01)
        other.attach(optimizer)
        train(model, optimizer)
        assert same(weights_of(model), expected)
        assert other.report() == last
    assert other.restore(tmp_path / "empty").report().num_tasks == 0
    assert LoraEWC.load(tmp_path / "keeper", model, strength=math.inf).strength == math.inf


def test_what_was_saved_is_looked_at_before_it_is_taken(tmp_path):
    model, _, keeper = held("llama", strength=math.inf)
    keeper.save(tmp_path / "keeper")
    assert LoraEWC.load(tmp_path / "keeper", model).strength == math.inf
    tensors, notes = keeper.state()
    report = keeper.report()
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    name = f"factors/{first}/importance"
    other = get_peft_model(llama(), LoraConfig(r=5, target_modules=["q_proj"]))
    with pytest.raises(ParameterMismatchError, match="names not among the trainable parameters of PeftModel"):
        LoraEWC.load(tmp_path / "keeper", other)
    for damage, error, said in (
        ({**tensors, name: -tensors[name]}, NotFiniteError, "q_proj"),
        ({**tensors, name: tensors[name] * math.nan}, NotFiniteError, "q_proj"),
        ({n: t for n, t in tensors.items() if n != name}, FileFormatError, "does not list the layers"),
        ({**tensors, "factors/more/importance": tensors[name]}, FileFormatError, "does not list the layers"),
        ({**tensors, name: tensors[name][1:]}, FileFormatError, "do not fit its shape"),
        ({}, FileFormatError, "does not list the layers"),
    ):
        with pytest.raises(error, match=said):
            keeper.load_state(damage, notes)
        assert keeper.report() == report
    for damage in ({}, {**notes, "progress": {**notes["progress"], "multiplier": -1}}, {**notes, "held": 3}):
        with pytest.raises(FileFormatError, match=r"LoraEWC.load_state: the (notes have no|progress is damaged)"):
            keeper.load_state(tensors, damage)
        assert keeper.report() == report
    hf.EWC(model, strength=1.0).save(tmp_path / "ewc")
    with pytest.raises(FileFormatError, match="this keeper is 'EWC', to be loaded as 'LoraEWC'"):
        LoraEWC.load(tmp_path / "ewc", model)


def test_of_kronecker_factors_the_diagonal_is_held():
    base = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    data = [(torch.randn(8, 5), torch.randint(3, (8,)))]
    factored = hf.kfac(base, data)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0", "1"]))
    keeper = LoraEWC(model, factored)
    disturb(model)
    diagonal = factored.to_diagonal()
    expected = sum(float((diagonal[name] * d.square()).sum()) for name, d in products(model).items()) / 2
    assert keeper.predicted_rise() == pytest.approx(expected, rel=1e-5)


def test_a_copy_of_all_three_goes_on_alone():
    """`copy.deepcopy` of model, optimizer and keeper; and `state_dict` into a fresh keeper."""
    model, _, keeper = held("llama", options={"modules_to_save": ["norm"]}, strength=10.0)
    optimizer = torch.optim.AdamW(trainable(model), lr=0.01)
    keeper.attach(optimizer)
    train(model, optimizer, steps=2)
    twins = copy.deepcopy((model, optimizer, keeper))
    fresh = LoraEWC(twins[0])
    fresh.load_state_dict(keeper.state_dict())
    assert fresh.report() == replace(keeper.report(), strength=1.0)
    start, rise = weights_of(model), keeper.predicted_rise()
    train(twins[0], twins[1])
    assert same(weights_of(model), start)
    assert keeper.predicted_rise() == rise != twins[2].predicted_rise()
    train(model, optimizer)
    assert same(weights_of(model), weights_of(twins[0]))
    assert keeper.report() == twins[2].report()


def test_a_pull_every_few_steps_is_as_strong():
    model, _, keeper = held("llama", strength=0.5, every=2)
    single, _, other = held("llama", strength=1.0)
    for trained, of, steps in ((model, keeper, 2), (single, other, 1)):
        of.attach(optimizer := torch.optim.SGD(trainable(trained), lr=0.01))
        for _ in range(steps):
            for parameter in trainable(trained):
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
    assert keeper.predicted_rise() == other.predicted_rise()


def test_weights_that_move_without_a_step_are_told_of():
    """The factors too: by hand, while an attached optimizer stands still."""
    model, _, keeper = held("llama")
    keeper.attach(optimizer := torch.optim.SGD(trainable(model), lr=0.01))
    train(model, optimizer, steps=2)
    data = examples_for(model, 64)
    model(**stacked(data[:4])).loss.backward()
    with torch.no_grad():
        for parameter in trainable(model):
            parameter.sub_(0.1 * parameter.grad)
    model(**stacked(data[4:8])).loss.backward()
    with pytest.warns(UserWarning, match="LoraEWC: the weights have moved since"):
        keeper.report()


def test_optimizers_whose_steps_are_not_plain():
    model, _, keeper = held(strength=1e6)
    optimizer = RelativeSteps(trainable(model))
    with pytest.raises(
        OptionError, match=r"LoraEWC: the parameter groups of this RelativeSteps .*lr=None.*Give the opt"
    ):
        keeper.attach(optimizer)
    with pytest.warns(UserWarning, match="LoraEWC: Lookahead keeps weights of its own"):
        keeper.attach(Lookahead(torch.optim.SGD(trainable(model), lr=0.1))).detach()
    with pytest.warns(UserWarning, match="LoraEWC: .* is no optimizer whose metric is known"):
        keeper.attach(optimizer := clearing(torch.optim.SGD)(trainable(model), lr=0.01))
    start = keeper.predicted_rise()
    for parameter in trainable(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(parameter.grad is None for parameter in trainable(model))
    assert keeper.predicted_rise() < 0.01 * start


def test_adapters_rehearse_the_answers_of_the_model_without_them():
    tokens, rises = torch.full((4, 8), 5), []
    new = {"input_ids": tokens, "labels": tokens}
    for share in (None, 1.0):
        model, _ = adapted()
        with torch.no_grad():
            model.get_input_embeddings().weight *= 20  # for it to be sure of something
        disturb(model, by=0.02)
        with model.disable_adapter():
            old = hf.probes_of(model, [new])
        optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=5e-2)
        if share is not None:
            hf.Rehearsal(model, old, share=share).attach(optimizer)
        for _ in range(60):
            optimizer.zero_grad()
            model(**new).loss.backward()
            optimizer.step()
        rises.append(old.rise(model))
        with model.disable_adapter():
            assert old.rise(model) == pytest.approx(0, abs=1e-6)
    assert rises[1] < 0.7 * rises[0]

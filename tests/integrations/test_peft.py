"""Importances of base weights held on LoRA's product."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

pytest.importorskip("peft")

from peft import LoraConfig, get_peft_model
from tests.integrations.test_transformers import trainer_of
from tests.integrations.tiny import examples_for, gpt2, importance_of, llama, same, stacked, weights_of
from tests.strange_optimizers import Lookahead, RelativeSteps, clearing

import holdfast as hf
from holdfast.errors import OptionError, ParameterMismatchError, StateError, UnsupportedLayerError
from holdfast.integrations.peft import LoraEWC, ridge_pull
from holdfast.integrations.transformers import HoldfastCallback

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "down_proj"]}
MODELS = {"gpt2": gpt2, "llama": llama}


def adapted(kind="gpt2", *, scale=1.0, **options):
    """A model with adapters whose product is not zero, and the importance of its base weights."""
    base = MODELS[kind]()
    importance = importance_of(base, scale=scale)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS[kind], fan_in_fan_out=kind == "gpt2", **options)
    model = get_peft_model(base, config)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model, importance


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
    model, importance = adapted(kind)
    rise = sum(float((importance[name] * d.square()).sum()) for name, d in products(model).items()) / 2
    keeper = LoraEWC(model, importance)
    assert keeper.predicted_rise() == pytest.approx(rise, rel=1e-5)
    assert keeper.report().protected == pytest.approx(0.75, abs=0.03)
    doubled = LoraEWC(model, 2.0 * importance)
    assert doubled.predicted_rise() == pytest.approx(rise, rel=1e-5)  # nats are nats


@pytest.mark.parametrize("strength", [1e-2, 1.0, 1e3])
def test_the_pull_is_the_proximal_step(strength):
    """Of each row, solved in float64 from the whole quadratic."""
    n, m, r = 6, 9, 3
    values, other, importance = torch.randn(n, r), torch.randn(r, m), torch.rand(n, m)
    importance[2] = 0
    importance[3, 1:] = 0
    metric = torch.rand(n, r) * 10 + 0.1
    pull = ridge_pull(values, importance, other, metric=metric, strength=strength)
    for row in range(n):
        x, omega, d = other.double(), importance[row].double(), metric[row].double().diag()
        curvature = strength * x @ omega.diag() @ x.T
        expected = torch.linalg.solve(d + curvature, d @ values[row].double())
        torch.testing.assert_close((values - pull)[row].double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(pull[2], torch.zeros(r))


@pytest.mark.parametrize("build", [torch.optim.AdamW, torch.optim.SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e4, 1e12, math.inf])
@pytest.mark.parametrize("kind", MODELS)
def test_it_is_stable_at_every_strength(kind, strength, build):
    """Without a task's gradient each step lowers the penalty; in the end what is stiff lies at zero."""
    model, importance = adapted(kind)
    optimizer = build(trainable(model), lr=0.01, weight_decay=0.0)
    keeper = LoraEWC(model, importance, strength=strength).attach(optimizer)
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
    for held in (False, True):
        model, importance = adapted()
        optimizer = torch.optim.AdamW(trainable(model), lr=0.01)
        if held:
            LoraEWC(model, importance, strength=0.0).attach(optimizer)
        train(model, optimizer)
        trained.append(weights_of(model))
    assert same(*trained)


@pytest.mark.parametrize(("strength", "lr"), [(0.1, 0.2), (10.0, 0.02)])
def test_it_rests_where_gradient_and_penalty_balance(strength, lr):
    """Least squares, descended to the end: the gradient of loss + penalty vanishes, up to the step's length."""
    base = nn.Sequential(nn.Linear(5, 4, bias=False))
    importance = importance_of(base)
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
    nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
    inputs, targets = torch.randn(40, 5), torch.randn(40, 4)
    optimizer = torch.optim.SGD(trainable(model), lr=lr)
    keeper = LoraEWC(model, importance, strength=strength, log_every=0).attach(optimizer)
    (layer,) = keeper.layers

    def gradients(*, penalty: float) -> float:
        model.zero_grad()
        product = layer.scale * layer.second @ layer.first
        rise = (layer.importance * product.square()).sum() / 2
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
    keeper = LoraEWC(model, hf.Importance(values, importance.info), strength=1e6, log_every=1).attach(optimizer)
    start = products(model)[name]
    train(model, optimizer)
    now = products(model)[name]
    assert now[:8].norm() < 1e-3 * start[:8].norm()
    assert (now - start)[8:].norm() > 0.05 * start[8:].norm()
    assert keeper.report().pull_ratio > 0


def test_in_a_trainer(tmp_path):
    model, importance = adapted()
    keeper = LoraEWC(model, importance, strength=10.0, log_every=1)
    start = keeper.predicted_rise()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, saving a model that has no name on a hub
        trainer = trainer_of(model, tmp_path, callbacks=[HoldfastCallback(keeper)], save_strategy="steps", save_steps=3)
        trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entries[-1]["predicted_rise"] == keeper.predicted_rise() < start
    assert keeper.report().num_steps == len(entries)


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
    with pytest.raises(ParameterMismatchError, match=rf"2 of 2 .*'{name}' is \(3, 16\).*down_proj.*none"):
        LoraEWC(model, hf.Importance(values, importance.info))
    with pytest.raises(ParameterMismatchError, match="has no LoRA adapter 'other'"):
        LoraEWC(model, importance, adapter="other")
    with pytest.raises(OptionError, match="strength is -1"):
        LoraEWC(model, importance, strength=-1)
    with pytest.raises(OptionError, match="log_every is -1"):
        LoraEWC(model, importance, log_every=-1)
    dora, importance = adapted("llama", use_dora=True)
    with pytest.raises(UnsupportedLayerError, match=r"q_proj.*adds more than the product of its factors \(DoRA\)"):
        LoraEWC(dora, importance)


def test_both_factors_are_needed():
    model, importance = adapted("llama")
    keeper = LoraEWC(model, importance)
    some = [p for n, p in model.named_parameters() if "lora_A" in n]
    with pytest.raises(ParameterMismatchError, match="does not train both factors of the adapters of .*q_proj.weight"):
        keeper.attach(torch.optim.SGD(some))
    optimizer = torch.optim.SGD(trainable(model))
    keeper.attach(optimizer)
    with pytest.raises(StateError, match="already attached to this SGD"):
        keeper.attach(optimizer)
    keeper.detach().attach(optimizer).detach()
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
    whole, importance = adapted(kind)
    expected = LoraEWC(whole, importance)
    model = packed(adapted(kind)[0], bits)
    keeper = LoraEWC(model, importance, strength=1e3)
    assert keeper.predicted_rise() == expected.predicted_rise() > 0
    rise = keeper.predicted_rise()
    keeper.attach(optimizer := torch.optim.SGD(trainable(model), lr=0.01))
    for parameter in trainable(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert keeper.predicted_rise() < 0.5 * rise
    values = {**importance, (name := next(iter(products(whole)))): torch.ones(2, 2)}
    with pytest.raises(ParameterMismatchError, match=rf"'{name}' is \(2, 2\), its weight \(\d\d, \d\d\)"):
        LoraEWC(model, hf.Importance(values, importance.info))


OUTSIDE = {
    "head": ("llama", {"modules_to_save": ["lm_head"]}, "lm_head.modules_to_save.default.weight"),
    "norm": ("gpt2", {"modules_to_save": ["ln_f"]}, "ln_f.modules_to_save.default.bias"),
    "biases": ("gpt2", {"bias": "all"}, "c_attn.base_layer.bias"),
    "own biases": ("gpt2", {"bias": "lora_only"}, "c_attn.base_layer.bias"),
    "tokens": ("llama", {"trainable_token_indices": [1]}, "embed_tokens.token_adapter.trainable_tokens_delta.default"),
}


@pytest.mark.filterwarnings("ignore:.*tied:UserWarning", "ignore:.*tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("what", OUTSIDE)
def test_what_is_trained_outside_of_the_adapters_is_refused(what):
    """Unless it is new, frozen, or left out of the importance."""
    kind, options, name = OUTSIDE[what]
    model, importance = adapted(kind, **options)
    with pytest.raises(
        ParameterMismatchError, match=rf"LoraEWC: \d+ of the parameters that are trained .*{name}'"
    ) as caught:
        LoraEWC(model, importance)
    named = str(caught.value).partition("adapters: ")[2].partition(". Leave")[0].replace("'", "").split(", ")
    adapters = set(products(model))
    kept = {n: value for n, value in importance.items() if n in adapters}
    LoraEWC(model, hf.Importance(kept, importance.info))
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in named:
            parameter.requires_grad_(False)
    LoraEWC(model, importance)


def test_a_new_head_is_free():
    model, importance = adapted("llama")
    model.new_head = nn.Linear(4, 2)
    LoraEWC(model, importance)


@pytest.mark.filterwarnings("ignore:.*tied:UserWarning", "ignore:.*tie_word_embeddings:UserWarning")
def test_an_adapter_on_a_tied_weight_is_refused():
    base = llama()
    importance = importance_of(base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(
        UnsupportedLayerError, match=r"'base_model.model.lm_head': the weight is tied .* target_modules"
    ):
        LoraEWC(model, importance)
    base = llama()
    LoraEWC(get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])), importance)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_that_begin_as_a_part_of_the_base_weights_are_refused(start):
    base = nn.Sequential(nn.Linear(5, 4))
    importance = importance_of(base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"], init_lora_weights=start))
    with pytest.raises(OptionError, match=rf"init_lora_weights='{start}' moves a part .* init_lora_weights=True"):
        LoraEWC(model, importance)
    base = nn.Sequential(nn.Linear(5, 4))
    LoraEWC(get_peft_model(base, LoraConfig(r=2, target_modules=["0"], init_lora_weights=True)), importance)


def test_optimizers_whose_steps_are_not_plain():
    model, importance = adapted()
    optimizer = RelativeSteps(trainable(model))
    keeper = LoraEWC(model, importance, strength=1e6)
    with pytest.raises(
        OptionError, match=r"LoraEWC: the parameter groups of this RelativeSteps .*lr=None.*Give the opt"
    ):
        keeper.attach(optimizer)
    with pytest.warns(UserWarning, match="LoraEWC: Lookahead keeps weights of its own"):
        keeper.attach(Lookahead(torch.optim.SGD(trainable(model), lr=0.1))).detach()
    keeper.attach(optimizer := clearing(torch.optim.SGD)(trainable(model), lr=0.01))
    start = keeper.predicted_rise()
    for parameter in trainable(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(parameter.grad is None for parameter in trainable(model))
    assert keeper.predicted_rise() < 0.01 * start

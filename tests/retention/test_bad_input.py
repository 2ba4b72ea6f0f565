"""Bad input: an error that names what, where and the remedy, and nothing half done."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from tests.files.folders import edit
from tests.retention.loops import batches, importance_of, network, same, train, weights_of
from torch import nn
from torch.optim import SGD

from holdfast import EWC, WVA, Decayed
from holdfast.errors import (
    FileFormatError,
    NotFiniteError,
    OptionError,
    OutputError,
    ParameterMismatchError,
    StateError,
)

both = pytest.mark.parametrize("kind", [EWC, WVA])


def retained(kind, **options):
    model = network()
    keeper = kind(model, **{"strength": 3.0, **options})
    return keeper.retain(importance_of(model))


# --- importances


@both
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda values: None, "found None; expected a mapping from parameter names to tensors"),
        (lambda values: list(values), "found .'0.weight'"),
        (lambda values: {**values, "0.bias": 1.0}, "in memory; '0.bias' is 1.0."),
        (lambda values: {**values, "0.bias": values["0.bias"].to_sparse()}, "'0.bias' is sparse_coo of float32 on cpu"),
        (lambda values: {**values, "0.bias": values["0.bias"].to("meta")}, "'0.bias' is strided of float32 on meta"),
        (lambda values: {**values, "0.bias": values["0.bias"].cfloat()}, "'0.bias' is strided of complex64 on cpu"),
    ],
)
def test_what_is_no_mapping_to_dense_tensors_is_refused_and_changes_nothing(kind, wrong, text):
    keeper = retained(kind)
    held = keeper.held
    values = dict(importance_of(keeper.model))
    with pytest.raises(OptionError, match=f"{kind.__name__}.retain: .*{text}"):
        keeper.retain(wrong(values))
    tensors, notes = keeper.state()
    with pytest.raises(FileFormatError, match=f"{kind.__name__}.load_state: .*{text}"):
        keeper.load_state(wrong(values), notes)
    assert keeper.held is held
    keeper.retain(values).load_state(tensors, notes)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@both
def test_entries_that_are_no_importance(kind, bad):
    keeper = retained(kind)
    held = keeper.held
    values = {name: value.clone() for name, value in importance_of(keeper.model).items()}
    values["2.weight"][0, 0] = bad
    with pytest.raises(
        NotFiniteError, match=rf"1 parameter with entries .* '2.weight' \(1 of 10 entries, such as {bad}\)"
    ):
        keeper.retain(values)
    assert keeper.held is held


@both
def test_names_and_shapes_that_do_not_match(kind):
    keeper = retained(kind)
    held, values = keeper.held, dict(importance_of(keeper.model))
    with pytest.raises(ParameterMismatchError) as caught:
        keeper.retain({**values, "3.weight": torch.ones(1), "module.0.bias": torch.ones(5)})
    assert str(caught.value) == (
        f"{kind.__name__}.retain: 2 names not among the trainable parameters of Sequential: '3.weight', "
        "'module.0.bias'. It has '0.weight', '0.bias', '2.weight', '2.bias'. Use the model the importance was measured "
        "on, or unfreeze them."
    )
    with pytest.raises(
        ParameterMismatchError, match=r"retain: 1 shape not as in the model: '0.bias' is \(3,\), in Seq"
    ):
        keeper.retain({**values, "0.bias": torch.ones(3)})
    del values["0.bias"]
    with pytest.raises(ParameterMismatchError) as caught:
        EWC(keeper.model, strength=1.0).retain(values)
    assert str(caught.value) == (
        "EWC.retain: 1 parameter has no importance: '0.bias'. It appeared after task 0 was retained, or its importance "
        'left it out. Pass new_parameters="free" to train it unprotected.'
    )
    assert keeper.held is held
    EWC(keeper.model, strength=1.0, new_parameters="free").retain(values)


# --- optimizers


@both
def test_attaching_twice(kind):
    keeper = retained(kind)
    optimizer = SGD(keeper.model.parameters(), lr=0.1)
    keeper.attach(optimizer)
    with pytest.raises(StateError, match=rf"{kind.__name__}: already attached to this SGD. Call detach\(\) first"):
        keeper.attach(optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    keeper.detach()
    keeper.attach(optimizer)


@both
def test_an_optimizer_of_another_model(kind):
    keeper = retained(kind)
    with pytest.raises(
        ParameterMismatchError, match="this SGD trains none of the 4 trainable parameters of Sequential. Build"
    ):
        keeper.attach(SGD(network().parameters(), lr=0.1))
    with pytest.raises(StateError, match="attach: expected a torch.optim.Optimizer, found Sequential"):
        keeper.attach(keeper.model)
    keeper.attach(SGD(keeper.model.parameters(), lr=0.1))


# --- options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strength": -1.0}, "strength is -1.0; expected a number from 0 to infinity"),
        ({"strength": math.nan}, "strength is nan; expected a number from 0 to infinity"),
        ({"strength": "1"}, "strength is '1'; expected a number from 0 to infinity"),
        ({"accumulate": "add"}, 'accumulate is \'add\'; expected "sum", "mean", "max", "per_task" or Decayed'),
        ({"weighting": "size"}, 'weighting is \'size\'; expected "task" or "examples"'),
        ({"new_parameters": "ignore"}, 'new_parameters is \'ignore\'; expected "error" or "free"'),
        ({"log_every": -1}, "log_every is -1; expected a whole number >= 0"),
        ({"log_every": 1.5}, "log_every is 1.5; expected a whole number >= 0"),
    ],
)
@both
def test_options_out_of_range(kind, options, text):
    with pytest.raises(OptionError, match=f"{kind.__name__}: {text}".replace("(", r"\(")):
        kind(network(), **{"strength": 1.0, **options})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pull": "hard"}, 'EWC: pull is \'hard\'; expected "implicit", "gradient" or "penalty"'),
        ({"budget": 0.0}, "EWC: budget is 0.0; expected nats above 0"),
        ({"budget": math.nan}, "EWC: budget is nan; expected nats above 0"),
        ({"budget": 1.0, "strength": 2.0}, "EWC: strength 2.0 and budget 1.0 exclude each other. Give one of them"),
        ({"budget": 1.0, "pull": "gradient"}, "EWC: a budget is kept by projection; pull='gradient' has no part in it"),
        (
            {"strength": math.inf, "pull": "gradient"},
            "EWC: an infinite strength needs pull=\"implicit\"; pull is 'gradient'",
        ),
        (
            {"strength": math.inf, "pull": "penalty"},
            "EWC: an infinite strength needs pull=\"implicit\"; pull is 'penalty'",
        ),
    ],
)
def test_ewcs_options_out_of_range(options, text):
    with pytest.raises(OptionError, match=text):
        EWC(network(), **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strength": None}, "WVA: strength is None and budget is None; expected one of the two"),
        ({"attenuation": "linear"}, 'WVA: attenuation is \'linear\'; expected "hyperbolic" or "exponential"'),
        ({"on": "weights"}, 'WVA: on is \'weights\'; expected "increments" or "gradients"'),
        ({"accumulate": "per_task"}, 'WVA: accumulate="per_task" joins anchors, and WVA has none. Use "sum"'),
    ],
)
def test_wvas_options_out_of_range(options, text):
    with pytest.raises(OptionError, match=text):
        WVA(network(), **{"strength": 1.0, **options})


NUMBERS = {
    "float32": np.float32(3),
    "float64": np.float64(3),
    "int64": np.int64(3),
    "array": np.asarray(3.0)[()],
    "tensor": torch.tensor(3.0, requires_grad=True),
    "whole tensor": torch.tensor(3),
    "fraction": Fraction(3),
}


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_real_numbers_of_every_kind_are_strengths_and_budgets(number, tmp_path):
    keepers = [EWC(network(), strength=number), EWC(network(), budget=number), WVA(network(), strength=number)]
    for keeper in keepers:
        option = "strength" if keeper.options()["strength"] is not None else "budget"
        assert getattr(keeper, option) == 3
        assert type(getattr(keeper, option)) in (int, float)
        setattr(keeper, option, number)
        assert type(getattr(keeper, option)) in (int, float)
        keeper.save(tmp_path / "skills")
        assert getattr(type(keeper).load(tmp_path / "skills", network()), option) == 3


@pytest.mark.parametrize("number", [10**400, Fraction(10**400), np.float32("inf"), torch.tensor(math.inf)], ids=type)
def test_numbers_beyond_all_floats_pin(number):
    assert EWC(network(), strength=number).strength == math.inf
    assert EWC(network(), budget=number).budget == math.inf
    assert WVA(network(), strength=number).strength == math.inf


NO_NUMBERS = {
    "true": (True, "True"),
    "numpy's": (np.True_, "True"),
    "complex": (1j, "1j"),
    "vector": (torch.ones(2), r"tensor\(\[1., 1.\]\)"),
    "complex tensor": (torch.tensor(1j), r"tensor\(0.\+1.j\)"),
    "below": (np.float32(-1), "-1.0"),
    "far below": (-(10**5000), "-inf"),
    "none": (torch.tensor(math.nan), r"tensor\(nan\)"),
}


@pytest.mark.parametrize(("value", "text"), NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_what_is_no_strength_is_refused(value, text):
    for kind in (EWC, WVA):
        keeper = kind(network(), 2.0)
        with pytest.raises(OptionError, match=f"strength is .*{text}.*; expected a number from 0 to infinity"):
            kind(network(), strength=value)
        with pytest.raises(OptionError, match=f"strength is .*{text}.*; expected a number from 0 to infinity"):
            keeper.strength = value
        assert keeper.strength == 2.0
    with pytest.raises(OptionError, match=f"budget is .*{text}.*; expected nats above 0"):
        EWC(network(), budget=value)


@both
def test_a_model_that_trains_nothing(kind):
    with pytest.raises(OptionError, match="model is 'Sequential'; expected one with trainable parameters"):
        kind(network().requires_grad_(False), strength=1.0)


@both
def test_a_strength_set_later_is_checked(kind):
    keeper = retained(kind)
    for bad in (-1.0, math.nan, None):
        with pytest.raises(
            OptionError, match=f"{kind.__name__}: strength is {bad}; expected a number from 0 to infinity"
        ):
            keeper.strength = bad
    assert keeper.strength == 3.0
    keeper.strength = 0


def test_an_infinite_strength_set_later_needs_the_implicit_pull():
    keeper = retained(EWC, pull="gradient")
    with pytest.raises(OptionError, match="an infinite strength needs pull=\"implicit\"; pull is 'gradient'"):
        keeper.strength = math.inf
    assert keeper.strength == 3.0


# --- files


def saved(kind, path, **options):
    keeper = retained(kind, **options)
    keeper.save(path)
    return keeper


@pytest.mark.parametrize(
    "options",
    [
        {"strength": math.inf, "accumulate": Decayed(0.5)},
        {"accumulate": "per_task", "new_parameters": "free", "log_every": 7},
        {"strength": None, "budget": 0.5},
        {"weighting": "examples", "pull": "penalty"},
    ],
    ids=["decayed", "per task", "budget", "penalty"],
)
def test_options_and_what_is_held_come_back(tmp_path, options):
    keeper = saved(EWC, tmp_path / "skills", **options)
    loaded = EWC.load(tmp_path / "skills", network())
    for name in ("strength", "budget", "pull", "accumulate", "weighting", "new_parameters", "log_every"):
        assert getattr(loaded, name) == getattr(keeper, name)
    assert same(dict(loaded.held.importance), dict(keeper.held.importance))
    assert same(dict(loaded.held.anchors), dict(keeper.held.anchors))
    assert {p.name for p in (tmp_path / "skills").iterdir()} == {
        "importance.safetensors", "anchors.safetensors", "keeper_config.json", "README.md", "holdfast.json",
    }  # fmt: skip
    text = (tmp_path / "skills" / "keeper_config.json").read_text()
    json.loads(text, parse_constant=pytest.fail)  # Infinity is no JSON
    assert "hf.EWC.load" in (tmp_path / "skills" / "README.md").read_text()


def test_wva_has_no_anchors_on_disk(tmp_path):
    saved(WVA, tmp_path / "skills", attenuation="exponential", on="gradients")
    assert not (tmp_path / "skills" / "anchors.safetensors").exists()
    loaded = WVA.load(tmp_path / "skills", network())
    assert (loaded.attenuation, loaded.on) == ("exponential", "gradients")


@both
def test_a_keeper_that_holds_nothing_comes_back(kind, tmp_path):
    kind(network(), strength=2.0).save(tmp_path / "skills")
    loaded = kind.load(tmp_path / "skills", network())
    assert loaded.held.num_tasks == 0
    loaded.retain(importance_of(loaded.model))


def test_options_given_take_the_place_of_saved_ones(tmp_path):
    saved(EWC, tmp_path / "skills")
    assert EWC.load(tmp_path / "skills", network(), strength=9.0, new_parameters="free").strength == 9.0


def damage(path, how):
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif how == "edited":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "edited", "missing"])
@pytest.mark.parametrize("file", ["importance.safetensors", "anchors.safetensors", "keeper_config.json"])
def test_damaged_folders(tmp_path, file, how):
    saved(EWC, tmp_path / "skills")
    damage(tmp_path / "skills" / file, how)
    model = network()
    before = weights_of(model)
    with pytest.raises(FileFormatError, match=f"{file} (is|cannot)"):
        EWC.load(tmp_path / "skills", model)
    assert same(before, weights_of(model))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 4}, "format_version is 4; this holdfast reads version 3"),
        (
            {"format_version": 2},
            "keeper_config.json: format_version is 2: it is of means over .* Measure again",
        ),
        ({"mechanism": "WVA"}, r"this keeper is 'WVA', to be loaded as 'EWC'. Use hf.WVA.load"),
        ({"held": None}, "'held', 'options' or 'progress' is missing or damaged"),
        ({"options": 1}, "'held', 'options' or 'progress' is missing or damaged"),
        ({"progress": []}, "'held', 'options' or 'progress' is missing or damaged"),
        (
            {"held": {"constant": "no", "num_tasks": True, "nats_per_unit": -1}},
            r"'held' is damaged: num_tasks is True, expected a whole number >= 0; .*"
            "constant is 'no', expected a finite number; start is 'missing', .* nats_per_unit is -1, expected a finite",
        ),
        ({"options": {"strenght": 1.0}}, "unknown options of EWC: strenght"),
    ],
)
def test_edited_configurations(tmp_path, changes, text):
    saved(EWC, tmp_path / "skills")
    edit(tmp_path / "skills" / "keeper_config.json", **changes)
    with pytest.raises(FileFormatError, match=text):
        EWC.load(tmp_path / "skills", network())


def test_another_mechanisms_folder(tmp_path):
    saved(WVA, tmp_path / "skills")
    with pytest.raises(FileFormatError, match="this keeper is 'WVA', to be loaded as 'EWC'. Use hf.WVA.load"):
        EWC.load(tmp_path / "skills", network())
    WVA.load(tmp_path / "skills", network())
    importance_of(network()).save(tmp_path / "importance")
    with pytest.raises(FileFormatError, match="keeper_config.json is not among the files that holdfast saved"):
        EWC.load(tmp_path / "importance", network())


def test_a_folder_of_another_model(tmp_path):
    saved(EWC, tmp_path / "skills")
    other = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
    with pytest.raises(
        ParameterMismatchError, match=r"EWC.load\('.*skills'\): 2 shapes not as in the model: '2.bias' is"
    ):
        EWC.load(tmp_path / "skills", other)
    with pytest.raises(ParameterMismatchError, match="4 names not among the trainable parameters of Linear: '0.bias'"):
        EWC.load(tmp_path / "skills", nn.Linear(2, 2))


def test_negative_values_on_disk(tmp_path, monkeypatch):
    keeper = retained(EWC)
    keeper.held.importance["0.bias"].neg_()
    keeper.save(tmp_path / "skills")
    with pytest.raises(NotFiniteError, match=r"1 parameter with entries .* '0.bias'"):
        EWC.load(tmp_path / "skills", network())


@both
def test_an_unwritable_folder(kind, tmp_path):
    (tmp_path / "file").write_text("x")
    keeper = retained(kind)
    with pytest.raises(OutputError, match="cannot write .*skills: .* Choose a folder that can be written"):
        keeper.save(tmp_path / "file" / "skills")
    keeper.save(tmp_path / "skills")


def test_an_interrupted_save_leaves_the_old_folder_readable(tmp_path, monkeypatch):
    keeper = saved(EWC, tmp_path / "skills")

    def killed(*args, **options):
        raise KeyboardInterrupt

    optimizer = SGD(keeper.model.parameters(), lr=0.1)
    keeper.attach(optimizer)
    train(keeper.model, optimizer, batches(2))
    old = weights_of(network())
    keeper.retain(importance_of(keeper.model))
    with monkeypatch.context() as patch:
        patch.setattr("holdfast.retention.files.write_description", killed)
        with pytest.raises(KeyboardInterrupt):
            keeper.save(tmp_path / "skills")
    loaded = EWC.load(tmp_path / "skills", network())
    assert loaded.held.num_tasks == 1
    assert same(dict(loaded.held.anchors), old)
    assert [p.name for p in tmp_path.iterdir()] == ["skills"]


def test_a_keeper_in_shards(tmp_path, monkeypatch):
    def in_shards(folder, stem, tensors):
        return write_tensors(folder, stem, tensors, limit=64)

    from holdfast.retention import files

    write_tensors = files.write_tensors
    monkeypatch.setattr(files, "write_tensors", in_shards)
    keeper = saved(EWC, tmp_path / "skills")
    shards = sorted(p.name for p in (tmp_path / "skills").glob("anchors-*"))
    assert shards == [f"anchors-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    loaded = EWC.load(tmp_path / "skills", network())
    assert same(dict(loaded.held.anchors), dict(keeper.held.anchors))

"""What a keeper is given to hold is looked at whole before any of it is taken."""

from __future__ import annotations

import copy
import json
import math
from functools import partial

import pytest
import torch
from tests.files.folders import edit
from tests.retention.loops import batches, factored_of, importance_of, network, same, train, weights_of
from torch import nn
from torch.optim import SGD, Adam

from holdfast import EWC, WVA, Decayed
from holdfast.errors import FileFormatError, HoldfastError, NotFiniteError, OptionError, ParameterMismatchError

both = pytest.mark.parametrize("kind", [EWC, WVA])


class Scaled(nn.Module):
    """Weights that are no layer's."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Conv1d(1, 2, 2), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.inner(x.unsqueeze(1)).flatten(1) @ self.scale.view(4, 1).expand(4, 2)


models = pytest.mark.parametrize("build", [network, Scaled])


def trained(kind, build=network, *, dtype=torch.float32, optimizer=partial(SGD, lr=0.1), **options):
    """A keeper in the middle of its second task."""
    model = build().to(dtype)
    keeper = kind(model, **{"strength": 3.0, "log_every": 1, **options})
    keeper.retain(importance_of(model))
    keeper.attach(attached := optimizer(model.parameters()))
    train(model, attached, batches(3, dtype=dtype))
    return keeper


def picture(keeper):
    """All that decides the steps and reports to come."""
    tensors, notes = keeper.state()
    weights = {f"model/{name}": value for name, value in weights_of(keeper.model).items()}
    return {name: t.clone() for name, t in tensors.items()} | weights, json.dumps(notes, default=str), keeper.held


def unchanged(before, after):
    return same(before[0], after[0]) and before[1] == after[1] and before[2] is after[2]


DAMAGE = {
    "means over examples": (lambda t, n: n.pop("format_version"), "format_version is 2: it is of means over examples"),
    "no progress": (lambda t, n: n.pop("progress"), "the notes have no 'progress', or it is damaged"),
    "no held": (lambda t, n: n.pop("held"), "the notes have no 'held', or it is damaged"),
    "progress a list": (lambda t, n: n.update(progress=[]), "the notes have no 'progress', or it is damaged"),
    "empty progress": (lambda t, n: n.update(progress={}), "the progress is damaged: num_steps='missing'"),
    "steps a text": (lambda t, n: n["progress"].update(num_steps="3"), "the progress is damaged: num_steps='3'; exp"),
    "steps below zero": (lambda t, n: n["progress"].update(num_steps=-1), "the progress is damaged: num_steps=-1"),
    "a share of steps": (lambda t, n: n["progress"].update(num_steps=1.5), "the progress is damaged: num_steps=1.5"),
    "pinned a list": (lambda t, n: n["progress"].update(pinned=[1]), r"the progress is damaged: pinned=\[1\]"),
    "tasks a text": (lambda t, n: n["held"].update(num_tasks="1"), "num_tasks is '1', expected a whole number >= 0"),
    "no tasks": (lambda t, n: n["held"].update(num_tasks=0), "num_tasks is 0, and importances are held"),
    "largest NaN": (lambda t, n: n["held"].update(largest=math.nan), "largest is nan, expected a finite number >= 0"),
    "constant None": (lambda t, n: n["held"].update(constant=None), "constant is None, expected a finite number"),
    "one number more": (lambda t, n: n["held"].update(more=1), "'held' has 'more', which no keeper holds"),
    "another part": (lambda t, n: t.update({"weights/x": torch.ones(1)}), "'weights/x' are no tensors of a keeper's"),
    "importance NaN": (lambda t, n: t["importance/b"].fill_(math.nan), "with entries that are not finite numbers >= 0"),
    "importance below zero": (lambda t, n: t["importance/b"].neg_(), "with entries that are not finite numbers >= 0"),
    "importance of another shape": (lambda t, n: t.update({"importance/b": torch.ones(7)}), "not as in the model"),
    "of another model": (lambda t, n: t.update({"importance/z": torch.ones(7)}), "not among the trainable parameters"),
}
OF_ANCHORS = {
    "anchor NaN": (lambda t, n: t["anchors/b"].fill_(math.nan), r"anchors that are NaN or infinite: '.*' \(\d of"),
    "anchor infinite": (lambda t, n: t["anchors/b"][0].fill_(-math.inf), r"anchors that are NaN or infinite: '.*' \(1"),
    "no anchor": (lambda t, n: t.pop("anchors/b"), "have no anchor"),
    "no multiplier": (lambda t, n: n["progress"].pop("multiplier"), "the progress is damaged: multiplier='missing'"),
}


def damaged(keeper, damage):
    """The state with one damage; "b" stands for the model's last parameter."""
    tensors, notes = keeper.state()
    last = list(dict(keeper.model.named_parameters()))[-1]
    tensors = {name.replace(f"/{last}", "/b"): t.clone() for name, t in tensors.items()}
    notes = copy.deepcopy(notes)
    damage(tensors, notes)
    return {name.replace("/b", f"/{last}") if name.endswith("/b") else name: t for name, t in tensors.items()}, notes


@models
@pytest.mark.parametrize(
    ("kind", "damage"), [(k, d) for k in (EWC, WVA) for d in DAMAGE] + [(EWC, d) for d in OF_ANCHORS]
)
def test_a_refused_state_changes_nothing(kind, build, damage):
    act, text = {**DAMAGE, **OF_ANCHORS}[damage]
    source, keeper = trained(kind, build), trained(kind, build, optimizer=partial(Adam, lr=0.01))
    before = picture(keeper)
    with pytest.raises(HoldfastError, match=f"{kind.__name__}.load_state: .*{text}"):
        keeper.load_state(*damaged(source, act))
    assert unchanged(before, picture(keeper))
    keeper.load_state(*source.state())


@both
def test_a_refused_folder_changes_nothing(kind, tmp_path):
    source, keeper = trained(kind), trained(kind)
    source.save(tmp_path / "skills")
    path = tmp_path / "skills" / "keeper_config.json"
    whole = json.loads(path.read_text())
    before = picture(keeper)
    for part, change, text in (
        ("progress", {"num_steps": "3"}, "the progress is damaged: num_steps='3'"),
        ("held", {"num_tasks": 1.5}, "num_tasks is 1.5, expected a whole number >= 0"),
    ):
        edit(path, **{part: {**whole[part], **change}})
        with pytest.raises(FileFormatError, match=text):
            keeper.restore(tmp_path / "skills")
        assert unchanged(before, picture(keeper))
    edit(path, **whole)
    keeper.restore(tmp_path / "skills")
    assert same(picture(keeper)[0], picture(source)[0])


def test_what_contradicts_an_option_changes_nothing():
    """A unit that a budget cannot be in is seen before anything is taken."""
    model = network()
    plain = EWC(model, strength=1.0).retain(importance_of(model, nats_per_unit=None))
    keeper = EWC(model, budget=1.0).retain(importance_of(model))
    before = picture(keeper)
    with pytest.raises(OptionError, match="a budget is in nats"):
        keeper.load_state(*plain.state())
    assert unchanged(before, picture(keeper))


@pytest.mark.parametrize("part", ["residuals", "pulls"])
def test_tensors_beside_what_is_held(part):
    """What rounding took, and the last pull of a layer."""
    if part == "residuals":
        keeper = trained(EWC, dtype=torch.bfloat16)
        key, wrong = "residuals/2.bias", torch.zeros(3, dtype=torch.int16)
    else:
        model = network()
        keeper = EWC(model, strength=1.0, log_every=1).retain(factored_of(model))
        train(model, (adam := Adam(model.parameters(), lr=0.01)), batches(1))
        keeper.attach(adam)
        train(model, adam, batches(2))
        key, wrong = "pulls/0.weight", torch.full((5, 4), math.nan)
    tensors, notes = keeper.state()
    assert key in tensors
    before = picture(keeper)
    with pytest.raises(FileFormatError, match=f"{part} of another shape, or not finite: '{key.partition('/')[2]}'"):
        keeper.load_state({**tensors, key: wrong}, notes)
    assert unchanged(before, picture(keeper))
    keeper.load_state(tensors, notes)


@models
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", ["float32", "int16", "bfloat16"])
def test_weights_that_would_be_no_anchors(build, bad, form):
    model = build()
    keeper = EWC(model, strength=1.0, anchor_dtype=form)
    name, parameter = next(iter(model.named_parameters()))
    good = parameter.detach().clone()
    parameter.data.view(-1)[1] = bad
    held = keeper.held
    with pytest.raises(NotFiniteError, match=rf"EWC.retain: weights that are NaN or infinite: '{name}' \(1 of \d+ ent"):
        keeper.retain(importance_of(model))
    assert keeper.held is held
    parameter.data.copy_(good)
    assert keeper.retain(importance_of(model)).held.num_tasks == 1


def test_weights_of_a_layer_with_factors_that_would_be_no_anchors():
    model = network()
    model[2].bias.data.fill_(math.nan)
    with pytest.raises(NotFiniteError, match=r"weights that are NaN or infinite: '2.bias' \(2 of 2 entries\)"):
        EWC(model, strength=1.0).retain(factored_of(model))


def test_weights_without_importance_may_be_anything():
    model = network()
    model[2].bias.data.fill_(math.nan)
    importance = {name: value for name, value in importance_of(model).items() if name != "2.bias"}
    EWC(model, strength=1.0, new_parameters="free").retain(importance)


@pytest.mark.parametrize("unknown", ["metric", "model", "stength"])
def test_options_that_no_file_holds(tmp_path, unknown):
    trained(EWC).save(tmp_path / "skills")
    path = tmp_path / "skills" / "keeper_config.json"
    options = json.loads(path.read_text())["options"]
    edit(path, options={**options, unknown: "x"})
    with pytest.raises(FileFormatError, match=f"unknown options of EWC: {unknown}"):
        EWC.load(tmp_path / "skills", network())


def test_options_of_wrong_types():
    with pytest.raises(OptionError, match="EWC: anchors is 5; expected the path of a safetensors checkpoint, or None"):
        EWC(network(), strength=1.0, anchors=5)
    with pytest.raises(OptionError, match="Decayed: gamma is 'x'; expected a number from 0"):
        Decayed("x")


def test_another_models_state():
    keeper = trained(EWC)
    before = picture(keeper)
    with pytest.raises(ParameterMismatchError, match="EWC.load_state"):
        keeper.load_state(*trained(EWC, Scaled).state())
    assert unchanged(before, picture(keeper))

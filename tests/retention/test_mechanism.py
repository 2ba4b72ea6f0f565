"""A keeper with a mechanism of one's own, and what every keeper owes to torch's conventions."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.files.folders import edit
from tests.retention.loops import (
    MECHANISMS,
    batches,
    factored_of,
    importance_of,
    network,
    same,
    train,
    train_held,
    weights_of,
)
from torch.optim import SGD, Adam

import holdfast as hf
from holdfast.errors import FileFormatError, OptionError, StateError

every = pytest.mark.parametrize("mechanism", [name for name in MECHANISMS if name != "wva-gradients"])


@dataclass
class Frozen(hf.Mechanism):
    """Weights whose importance is above a threshold stay where they are; the others are as if there were none."""

    anchored: ClassVar[bool] = False

    threshold: float
    needs_increments: ClassVar[bool] = True

    def after(self, step: hf.Step) -> None:
        for block in step.blocks(increments=True):
            for weight, moved, importance in zip(block.weights, block.moved(), block.importance, strict=True):
                frozen = importance > self.threshold
                step.measure([moved], [moved * frozen], [frozen.float()], [importance])
                weight.sub_(moved * frozen)


@dataclass
class Spring(hf.Mechanism):
    """The textbook's pull toward the anchors, clipped entry by entry; it counts what it clipped."""

    strength: float
    most: float = 0.1
    clipped: int = 0

    def gradients(self, step: hf.Step) -> None:
        for block in step.tensors():
            for weight, anchor, importance, gradient in zip(
                block.weights, block.anchors, block.importance, block.gradients, strict=True
            ):
                force = self.strength * importance * (weight - anchor)
                self.clipped += int((force.abs() > self.most).sum())
                gradient.add_(force.clamp(-self.most, self.most))


OWN = {"frozen": lambda: Frozen(0.5), "spring": lambda: Spring(2.0)}
own = pytest.mark.parametrize("kind", OWN)


def trained(mechanism: hf.Mechanism, optimizer=SGD, **options):
    model = network()
    optimizer = optimizer(model.parameters(), lr=0.05)
    keeper = hf.Keeper(model, mechanism, **options).retain(importance_of(model)).attach(optimizer)
    return keeper, optimizer


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_an_own_mechanism_does_what_it_says(optimizer):
    keeper, optimizer = trained(Frozen(0.5), optimizer)
    before = weights_of(keeper.model)
    train(keeper.model, optimizer, batches(5))
    importance = importance_of(keeper.model)
    for name, weight in weights_of(keeper.model).items():
        frozen = importance[name] > 0.5
        assert torch.allclose(weight[frozen], before[name][frozen], atol=1e-6)
        assert ((weight - before[name]).abs() > 1e-6)[~frozen].float().mean() > 0.9
    assert keeper.report().pull_ratio > 0
    assert "Frozen: 1 task held, 5 steps" in str(keeper.report())


def test_an_own_mechanism_with_anchors_knows_the_rise():
    keeper, optimizer = trained(Spring(2.0))
    train(keeper.model, optimizer, batches(5))
    assert keeper.mechanism.clipped > 0
    assert keeper.report().predicted_rise == keeper.predicted_rise() > 0
    assert "strength 2" in str(keeper.report())


@own
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_an_own_mechanism_is_saved_and_loaded(kind, form, tmp_path):
    keeper, optimizer = trained(OWN[kind](), importance_dtype=form)
    train(keeper.model, optimizer, batches(3))
    keeper.save(tmp_path / "skills")
    loaded = hf.Keeper.load(tmp_path / "skills", copy.deepcopy(keeper.model), mechanism=type(keeper.mechanism))
    assert loaded.options() == keeper.options()
    assert str(loaded.report()) == str(keeper.report())
    again = SGD(loaded.model.parameters(), lr=0.05)
    loaded.attach(again)
    for one, its in ((keeper, optimizer), (loaded, again)):
        train(one.model, its, batches(3, seed=1))
    assert same(weights_of(keeper.model), weights_of(loaded.model))
    with pytest.raises(OptionError, match="say which mechanism it has"):
        hf.Keeper.load(tmp_path / "skills", network())
    with pytest.raises(FileFormatError, match=f"this keeper is '{keeper.name}', to be loaded as 'EWC'"):
        hf.EWC.load(tmp_path / "skills", network())


def test_bfloat16_weights_of_an_own_mechanism_lose_no_small_pull():
    @dataclass
    class Creep(hf.Mechanism):
        rate: float

        def after(self, step: hf.Step) -> None:
            for block in step.blocks():
                for weight, anchor in zip(block.weights, block.anchors, strict=True):
                    weight.add_(anchor - weight, alpha=self.rate)

    model = network(torch.bfloat16)
    optimizer = SGD(model.parameters(), lr=0.0)
    hf.Keeper(model, Creep(1e-3)).retain(importance_of(model)).attach(optimizer)
    start = weights_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for _ in range(1000):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for name, weight in weights_of(model).items():
        left = (weight.float() - start[name].float()).mean()
        assert 0.30 < left < 0.44  # exp(-1)


@dataclass
class Named(hf.Mechanism):
    """Options of every kind that a file takes, and one that it does not."""

    unsaved: ClassVar[frozenset[str]] = frozenset({"rule"})

    lowest: float = -math.inf
    metric: float = 2.0
    note: str | None = None
    rule: Callable[[float], float] | None = None


def test_own_options_come_back_as_they_were(tmp_path):
    model = network()
    hf.Keeper(model, Named(metric=3.0, note="x", rule=abs)).retain(importance_of(model)).save(tmp_path / "skills")
    loaded = hf.Keeper.load(tmp_path / "skills", model, mechanism=Named, rule=math.sqrt)
    assert loaded.mechanism == Named(-math.inf, 3.0, "x", math.sqrt)
    card = (tmp_path / "skills" / "README.md").read_text()
    assert 'hf.Keeper.load("THIS FOLDER", model, mechanism=Named)' in card


class Undecorated(hf.Mechanism):
    """Not a dataclass."""


@dataclass
class Still(hf.Mechanism):
    """Never called: its period is no number of steps."""

    period: ClassVar[int] = 0


@dataclass
class Twice(hf.Mechanism):
    """With the name of an option that every keeper has."""

    log_every: int = 3


@pytest.mark.parametrize(
    ("mechanism", "message"),
    [
        (Named, r"mechanism is <class .*Named'>; expected an instance of a subclass of hf.Mechanism"),
        (hf.EWC, r"expected an instance .* EWC and WVA are keepers: hf.EWC\(model, strength=...\)"),
        (5.0, "mechanism is 5.0; expected an instance"),
        (Undecorated(), "Undecorated is no dataclass.* Put @dataclass over the class"),
        (Still(), "Still: period is 0; expected a whole number >= 1"),
        (Twice(), "Twice: log_every are options of every keeper too. Give the fields other names"),
        (Named(note=abs), r"note is <built-in .*; expected a number, a string or None; or its name in `unsaved`"),
    ],
)
def test_a_keeper_is_not_built_on_what_it_could_not_drive_or_save(mechanism, message):
    with pytest.raises(OptionError, match=message):
        hf.Keeper(network(), mechanism)


@pytest.mark.parametrize("kind", [None, Spring(1.0), dict])
def test_loading_needs_the_class_of_the_mechanism(kind, tmp_path):
    trained(Spring(2.0))[0].save(tmp_path / "skills")
    with pytest.raises(OptionError, match=r"Keeper.load: say which mechanism it has: .*the class"):
        hf.Keeper.load(tmp_path / "skills", network(), mechanism=kind)
    with pytest.raises(OptionError, match=r"EWC.load: its mechanism is its own. Use hf.Keeper.load for .*Spring"):
        hf.EWC.load(tmp_path / "skills", network(), mechanism=Spring)


@dataclass
class Telling(hf.Mechanism):
    """Says anything of its progress."""

    def __post_init__(self):
        self.told = {"seen": 1.0}

    def progress(self) -> dict[str, float]:
        return self.told


@pytest.mark.parametrize("told", [{"seen": math.nan}, {"seen": -1.0}, {"seen": "x"}, {"steps": 3}])
def test_progress_that_could_not_be_loaded_is_not_saved(told, tmp_path):
    keeper, _ = trained(Telling())
    keeper.mechanism.told = told
    name, value = next(iter(told.items()))
    for act in (lambda: keeper.save(tmp_path / "skills"), keeper.state_dict, lambda: copy.deepcopy(keeper)):
        with pytest.raises(OptionError, match=rf"Telling: its progress\(\) gives {name}={value!r}; expected finite"):
            act()
    assert not (tmp_path / "skills").exists()
    keeper.mechanism.told = {"seen": 2.5}
    keeper.save(tmp_path / "skills")
    hf.Keeper.load(tmp_path / "skills", network(), mechanism=Telling)


@pytest.mark.parametrize("factored", [False, True])
def test_the_state_of_another_mechanism_is_refused(factored):
    """WVA would hold no layer of it, and report it as held."""
    keeper, _ = halfway("ewc", factored=factored)
    other = hf.WVA(network(), 1.0)
    with pytest.raises(FileFormatError, match="the state of a keeper of 'EWC'. Load it into one of 'EWC'"):
        other.load_state_dict(keeper.state_dict())
    assert other.held.num_tasks == 0
    tensors, notes = keeper.state()
    del notes["mechanism"]  # as it was before it was told
    hf.EWC(network(), 1.0).load_state(tensors, notes)


# --- copies and files as torch has them


class Tagged(hf.EWC):
    """A keeper with something of its own."""

    def __init__(self, model, strength=1.0, *, partner=None, **options):
        super().__init__(model, strength, **options)
        self.partner = partner


def test_a_deep_copy_takes_along_what_a_subclass_has():
    model = network()
    partner = hf.WVA(model, 1.0)
    keeper = Tagged(model, 3.0, partner=partner)
    keeper.note = ["mine"]
    model_, keeper_, partner_ = copy.deepcopy((model, keeper, partner))
    assert type(keeper_) is Tagged
    assert keeper_.partner is partner_
    assert keeper_.model is partner_.model is model_
    assert keeper_.note == ["mine"]
    assert keeper_.note is not keeper.note


@every
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_deep_copy_is_a_working_triple(mechanism, order):
    model = network()
    optimizer = Adam(model.parameters(), lr=0.01)
    keeper = MECHANISMS[mechanism](model, strength=20.0).retain(importance_of(model)).attach(optimizer)
    train_held(keeper, optimizer, batches(4))
    triple = (model, optimizer, keeper)
    copies = copy.deepcopy([triple[i] for i in order])
    model_, optimizer_, keeper_ = (copies[order.index(i)] for i in range(3))
    assert keeper_.model is model_
    assert keeper_.optimizers == [optimizer_]
    assert str(keeper_.report()) == str(keeper.report())
    before = weights_of(model)
    train_held(keeper_, optimizer_, batches(4, seed=1))
    assert same(before, weights_of(model))
    train_held(keeper, optimizer, batches(4, seed=1))
    assert same(weights_of(model), weights_of(model_))
    assert str(keeper_.report()) == str(keeper.report())


@pytest.mark.parametrize("build", [lambda model: hf.EWC(model, 5.0), lambda model: hf.SynapticIntelligence(model)])
def test_copied_as_an_attribute_of_its_model(build):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    model.held = build(model).attach(optimizer)
    train(model, optimizer, batches(2))
    with pytest.raises(StateError, match=r"an attribute of the Sequential that is being copied.* Copy it first"):
        copy.deepcopy(model)
    twin, model_, optimizer_ = copy.deepcopy((model.held, model, optimizer))
    assert model_.held is twin
    assert twin.model is model_
    train(model_, optimizer_, batches(1))
    outer = torch.nn.ModuleDict({"net": network()})
    outer.held = build(outer["net"])  # of a part of it: there already
    assert copy.deepcopy(outer).held.model is not outer["net"]


@every
def test_it_is_not_pickled(mechanism):
    keeper = MECHANISMS[mechanism](network(), strength=1.0)
    for act in (pickle.dumps, copy.copy):
        with pytest.raises(
            TypeError, match=r"it is not pickled, and copy.copy cannot copy it without them. Use save\(folder\)"
        ):
            act(keeper)


def halfway(mechanism, *, factored=False):
    model = network()
    optimizer = Adam(model.parameters(), lr=0.01)
    keeper = MECHANISMS[mechanism](model, strength=20.0).attach(optimizer)
    keeper.retain(factored_of(model) if factored else importance_of(model))
    train_held(keeper, optimizer, batches(5))
    return keeper, optimizer


def goes_on(keeper, optimizer, load):
    """Whether a fresh keeper beside copies of model and optimizer, with its state loaded, goes on to the same bits."""
    model = copy.deepcopy(keeper.model)
    again = Adam(model.parameters(), lr=0.01)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fresh = copy.deepcopy(keeper).detach()
    fresh = type(keeper)(model, **keeper.options())
    load(fresh)
    fresh.attach(again)
    for one, its in ((keeper, optimizer), (fresh, again)):
        train_held(one, its, batches(5, seed=1))
    return same(weights_of(keeper.model), weights_of(model)) and str(keeper.report()) == str(fresh.report())


@every
def test_state_dict_goes_through_torch_save(mechanism):
    keeper, optimizer = halfway(mechanism)
    file = io.BytesIO()
    torch.save(keeper.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert goes_on(keeper, optimizer, lambda fresh: fresh.load_state_dict(saved))


def test_keepers_loaded_from_one_state_do_not_share_it():
    """What rounding took from the pulls on weights of half precision changes in place at every step."""
    model = network(torch.bfloat16)
    optimizer = SGD(model.parameters(), lr=0.05)
    keeper = hf.EWC(model, 20.0).attach(optimizer).retain(importance_of(network()))
    data = batches(4, dtype=torch.bfloat16)
    train(model, optimizer, data)
    state = keeper.state()
    before = {name: value.clone() for name, value in state[0].items()}
    found = []
    for _ in range(2):
        twin = copy.deepcopy(model)
        its = SGD(twin.parameters(), lr=0.05)
        again = hf.EWC(twin, 20.0).attach(its)
        again.load_state(*state)
        train(twin, its, data)
        found.append(weights_of(twin))
    assert any(name.startswith("residuals/") and value.any() for name, value in before.items())
    assert same(before, state[0])
    assert same(*found)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("factored", [False, True])
def test_a_distributed_checkpoint_resumes_into_a_fresh_keeper(tmp_path, factored):
    keeper, optimizer = halfway("ewc", factored=factored)
    dcp.save({"keeper": keeper}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    load = lambda fresh: dcp.load({"keeper": fresh}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)  # noqa: E731
    assert goes_on(keeper, optimizer, load)


def test_accelerate_takes_a_keeper_as_it_is(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    keeper, optimizer = halfway("wva")
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.register_for_checkpointing(keeper)
    accelerator.save_state(str(tmp_path / "checkpoint"))

    def load(fresh):
        other = accelerate.Accelerator(cpu=True)
        other.register_for_checkpointing(fresh)
        other.load_state(str(tmp_path / "checkpoint"))

    assert goes_on(keeper, optimizer, load)


@pytest.mark.parametrize("damage", [{}, {"keeper": None}, {"keeper": b""}, {"keeper": b"1" * 100}, "flip", "cut"])
def test_a_damaged_state_dict_is_refused(damage):
    keeper, _ = halfway("ewc")
    whole = keeper.state_dict()["keeper"]
    if damage == "flip":
        damage = {"keeper": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]}
    elif damage == "cut":
        damage = {"keeper": whole[: len(whole) // 2]}
    before = keeper.held
    with pytest.raises(
        FileFormatError, match=r"EWC.load_state_dict: this is no state that was saved \(.*older checkpoint"
    ):
        keeper.load_state_dict(damage)
    assert keeper.held is before


def test_every_optimizer_counts_its_own_steps(tmp_path):
    """`every` and `log_every` go by each optimizer's steps, also where these are unequal, and after a load."""

    def start():
        model = network()
        optimizers = [SGD(model[0].parameters(), lr=0.05), Adam(model[2].parameters(), lr=0.01)]
        return model, optimizers, hf.EWC(model, strength=50.0, every=3)

    def go(model, optimizers, data, first):
        for number, (inputs, targets) in enumerate(data, first):
            for optimizer in optimizers:
                optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizers[0].step()
            if number % 2:
                optimizers[1].step()

    model, optimizers, keeper = start()
    keeper.retain(importance_of(model))
    for optimizer in optimizers:
        keeper.attach(optimizer)
    go(model, optimizers, batches(7), 0)
    assert keeper.report().num_steps == 7 + 3
    keeper.save(tmp_path / "skills")
    model_, optimizers_, _ = start()
    model_.load_state_dict(model.state_dict())
    for one, its in zip(optimizers, optimizers_, strict=True):
        its.load_state_dict(copy.deepcopy(one.state_dict()))
    loaded = hf.EWC.load(tmp_path / "skills", model_)
    for optimizer in optimizers_:
        loaded.attach(optimizer)
    for one, its in ((model, optimizers), (model_, optimizers_)):
        go(one, its, batches(6, seed=1), 7)
    assert same(weights_of(model), weights_of(model_))
    assert str(keeper.report()) == str(loaded.report())


def test_repr_says_what_is_held():
    model = network()
    keeper = hf.EWC(model, 5.0)
    assert repr(keeper) == (
        "EWC(Sequential, strength=5.0, pull='implicit', every=1: 0 tasks, 0 weights held, attached to no optimizer)"
    )
    keeper.retain(importance_of(model)).attach(SGD(model.parameters(), lr=0.1))
    assert repr(keeper).endswith(": 1 task, 32 weights held, attached to SGD)")
    assert repr(hf.WVA(model, 2)).startswith("WVA(Sequential, strength=2, attenuation='hyperbolic'")


@pytest.mark.parametrize("mechanism", [{}, [], 3, None])
def test_a_mechanism_that_is_no_name_is_refused(mechanism, tmp_path):
    keeper, _ = halfway("ewc")
    keeper.save(tmp_path / "skills")
    edit(tmp_path / "skills" / "keeper_config.json", mechanism=mechanism)
    with pytest.raises(FileFormatError, match="to be loaded as 'EWC'"):
        hf.EWC.load(tmp_path / "skills", network())

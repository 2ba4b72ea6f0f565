"""An unknown name chooses nothing: every public function and record that takes one refuses any other."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from recipes.lines import CitedFigure, Size
from torch import nn

import holdfast as hf
from holdfast.choices import check_choice, check_choices, choices_of
from holdfast.errors import HoldfastError, OptionError, UnknownNameError
from holdfast.lab import advise as advising
from holdfast.lab.config import RunConfig
from holdfast.lab.generation import GenerationConfig
from holdfast.lab.kinds import REGISTRIES
from holdfast.lab.methods import METHODS, Learner, Setting, build_learner
from holdfast.lab.recording import record
from holdfast.lab.registry import all_options, chosen
from holdfast.lab.streams import PictureSettings, Stream, StreamEntry, StreamPlan, catalog, permuted, sequence, split
from holdfast.lab.streams.digits import digits
from holdfast.lab.streams.permuted import rotated
from holdfast.lab.sweep import Space
from holdfast.lab.training import augmented, build_net, build_optimizer, learning_rate
from holdfast.likelihoods import masks
from holdfast.memory import Forms, Retained
from holdfast.memory import retain as remember
from holdfast.replay import WGAN, Buffer, scholar
from holdfast.replay.generators import HoldablePart
from holdfast.retention import Keeper

BAD = "no-such-name"


@dataclass
class Record:
    colour: Literal["red", "green"]
    shade: Literal["dark", "light"] | None = None
    size: int = 0


def test_a_record_knows_the_names_it_takes():
    assert choices_of(Record) == {"colour": ("red", "green"), "shade": ("dark", "light", None)}
    check_choices(Record("red"))
    check_choices(Record("green", "dark"))


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (Record("redd"), r"unknown colour 'redd'\. Did you mean 'red'\? Known: green, red\."),
        (Record(None), r"unknown colour 'None'\. .*Known: green, red\."),
        (Record("red", "drak"), r"unknown shade 'drak'\. Did you mean 'dark'\? Known: dark, light\."),
        (Record("red", ["dark"]), r"unknown shade .*Known: dark, light\."),
    ],
)
def test_any_other_name_is_refused(record, told):
    with pytest.raises(UnknownNameError, match=told):
        check_choices(record)


def test_one_choice():
    check_choice("colour", "red", ("red", "green"))
    with pytest.raises(UnknownNameError, match=r"unknown colour 'blue'\. Known: green, red\."):
        check_choice("colour", "blue", ("red", "green"))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.rand(4, 3), torch.tensor([0, 1, 1, 0]))]


USES: dict[Any, Callable[..., Any]] = {
    hf.AnalyticHead: hf.AnalyticHead,
    hf.ImportanceInfo: lambda **given: hf.ImportanceInfo("made-up", 1, **given),
    hf.EWC: lambda **given: hf.EWC(net(), **given),
    hf.WVA: lambda **given: hf.WVA(net(), strength=1.0, **given),
    Keeper: lambda **given: hf.EWC(net(), **given),
    hf.Categorical: hf.Categorical,
    hf.SignalRecorder: lambda **given: hf.SignalRecorder(net(), **given),
    hf.SynapticIntelligence: lambda **given: hf.SynapticIntelligence(net(), **given),
    hf.fisher: lambda **given: hf.fisher(net(), batches(), **given),
    hf.kfac: lambda **given: hf.kfac(net(), batches(), **given),
    hf.measure: lambda **given: hf.measure(net(), batches(), **given),
    hf.probes_of: lambda **given: hf.probes_of(net(), batches(), **given),
    hf.mas: lambda **given: hf.mas(net(), batches(), **given),
    hf.signal: lambda **given: hf.signal(net(), batches(), **given),
    RunConfig: lambda **given: RunConfig(stream="split-digits", method="none", options={}, **given),
    GenerationConfig: lambda **given: GenerationConfig(stream="digits-generation", method="none", options={}, **given),
    Size: lambda **given: Size("small", settings={}, **given),
    CitedFigure: lambda **given: CitedFigure(0.9, **given),
    Space: lambda **given: Space(stream="split-digits", methods=("none",), **given),
    masks.active_classes: lambda mask: masks.active_classes(mask, [(0, 1), (2, 3)], 1),
    scholar.replay_heads: lambda mask: scholar.replay_heads(mask, [(0, 1), (2, 3)], 1),
    Forms: Forms,
    remember: lambda **given: remember(
        Retained(), {"w": torch.ones(2)}, weights={"w": torch.ones(2)}, **{"rule": "sum", **given}
    ),
    Setting: lambda **given: Setting(((0, 1),), **given),
    WGAN: lambda **given: WGAN((1, 8, 8), **given),
    Buffer: lambda **given: Buffer(3, **given),
    HoldablePart: lambda kind: HoldablePart(net(), [], "gaussian", kind),
    Stream: lambda scenario: Stream("mine", scenario, 2, (3,), ((0, 1),), lambda task: digits()),
    StreamPlan: lambda **given: StreamPlan("mine", num_tasks=2, seed=0, **given),
    StreamEntry: lambda **given: StreamEntry(name="mine", make=split, **given),
    record: lambda **given: record(stream="mine", method="mine", accuracy=[[0.5]], **given),
    catalog.build_stream: lambda scenario: catalog.build_stream("split-digits", scenario=scenario),
    permuted: lambda scenario: permuted(digits(), 2, seed=0, scenario=scenario),
    rotated: lambda scenario: rotated(digits(), 2, scenario=scenario),
    split: lambda scenario: split(digits(), scenario=scenario),
    sequence: lambda scenario: sequence([digits(), digits()], scenario=scenario),
    PictureSettings: PictureSettings,
    augmented: lambda names: augmented(names, (3, 8, 8)),
    build_net: lambda name: build_net(name, (1, 8, 8), 10, hidden=(4,)),
    build_optimizer: lambda name: build_optimizer(name, net().parameters(), lr=0.1),
    learning_rate: lambda schedule: learning_rate(schedule, 0.1, step=0, num_steps=2),
    advising.advise: lambda optimizer: advising.advise(workload(), optimizer=optimizer, methods=["none"]),
}
"""How each is called, given the one argument at stake."""


def workload() -> advising.Workload:
    return advising.Workload("tiny", net(), batches(), Setting(((0, 1),)))


def packages() -> Iterator[Any]:
    yield hf
    for found in pkgutil.walk_packages(hf.__path__, "holdfast."):
        if found.ispkg and not found.name.startswith(("holdfast.cli", "holdfast.language")):
            yield importlib.import_module(found.name)


def takes_names(hint: Any) -> bool:
    return get_origin(hint) is Literal or any(map(takes_names, get_args(hint)))


def public_choosers() -> dict[tuple[str, str], Any]:
    """(name, parameter) -> what takes one of a few names there, of everything that a package lists in `__all__`."""
    found = {}
    for package in packages():
        for name in getattr(package, "__all__", ()):
            taker = getattr(package, name)
            if inspect.isclass(taker):
                source = taker if hasattr(taker, "__dataclass_fields__") else taker.__init__
            elif inspect.isfunction(taker):
                source = taker
            else:
                continue
            hints = get_type_hints(source, localns={"RecipeFindings": Any})
            found |= {(name, part): taker for part, hint in hints.items() if part != "return" and takes_names(hint)}
    return found


CHOOSERS = public_choosers()
MORE = {("advise", "optimizer"): advising.advise}


OPTIONS = [
    (registry, entry.name, name)
    for registry in REGISTRIES
    for entry in registry.values()
    for name in choices_of(entry.options)
]
"""Of everything that is registered, what takes one of a few names."""


def test_the_search_finds_the_choosers():
    assert {("EWC", "pull"), ("fisher", "kind"), ("build_optimizer", "name"), ("record", "scenario")} <= set(CHOOSERS)
    assert len(CHOOSERS) + len(OPTIONS) > 100


@pytest.mark.parametrize(("name", "part"), list(CHOOSERS | MORE), ids=lambda part: part)
def test_no_public_chooser_takes_an_unknown_name(name, part):
    """A new one is to be added to USES."""
    taker = (CHOOSERS | MORE)[name, part]
    bad = 7 if part == "class_axis" else BAD
    with pytest.raises(OptionError) as caught:
        USES[taker](**{part: bad})
    assert isinstance(caught.value, HoldfastError)
    assert str(bad) in str(caught.value)  # what was found
    assert any(word in str(caught.value) for word in ("Known: ", "expected "))


@pytest.mark.parametrize(("registry", "entry", "name"), OPTIONS, ids=lambda part: getattr(part, "kind", part))
def test_no_option_of_an_entry_takes_an_unknown_name(registry, entry, name):
    with pytest.raises(UnknownNameError, match=f"unknown {name} '{BAD}'"):
        chosen(registry[entry], {name: BAD})


def test_every_method_of_the_table_has_a_learner():
    setting = Setting(((0, 1),), input_shape=(1, 8, 8))
    for method in METHODS.values():
        own = replace(setting, scenario="task", mask="task") if method.told else setting
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))
        strength = {"strength": 1.0} if "strength" in all_options(method, {}) else {}
        assert isinstance(build_learner(method, model, own, strength), Learner)


def test_only_what_holds_weights_holds_a_solver_besides():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(OptionError, match="dgr: hold is 'none'; expected a method that holds weights: ewc-fisher, ewc"):
        build_learner(METHODS["dgr"], model, Setting(((0, 1),), input_shape=(1, 8, 8)), {"hold": "none"})


def test_methods_to_advise_on_are_looked_up_before_any_is_measured():
    seen: list[str] = []
    with pytest.raises(UnknownNameError, match="unknown method 'ewc-fischer'. Did you mean 'ewc-fisher'"):
        advising.advise(workload(), methods=["none", "ewc-fischer"], on_method=seen.append)
    assert not seen


def test_a_rule_of_accumulation_is_checked_when_it_is_given():
    with pytest.raises(OptionError, match="accumulate is 'summ'; expected sum, mean, max, per_task or decayed:GAMMA"):
        METHODS["ewc-mas"].options(accumulate="summ")

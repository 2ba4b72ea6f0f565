from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from tests.lab.tiny import tiny
from torch import nn

from holdfast.cli.options import RunOptions, SweepOptions
from holdfast.errors import OptionError, UnknownNameError
from holdfast.files.typed import Within
from holdfast.importance import uniform
from holdfast.lab import ClosedTask, Estimator, Learner, register_importance, register_mechanism, run
from holdfast.lab.config import RunConfig, RunSettings, configure
from holdfast.lab.importing import source_of
from holdfast.lab.methods import IMPORTANCES, MECHANISMS, METHODS
from holdfast.lab.options import NoOptions, OneOf, combined
from holdfast.lab.registry import RESERVED, Entry, Registry, all_options, check_settings, chosen, own_settings
from holdfast.retention import EWC

COLOURS: Registry[Entry] = Registry("colour", Entry)


@dataclass(frozen=True, kw_only=True)
class RedOptions:
    """Of red.

    Attributes:
        shade: how dark.
        share: of it.
        layers: how many; None: as many as there are.
        glossy: whether it shines.
    """

    shade: Literal["dark", "light"] = "dark"
    share: Annotated[float, Within(0, 1)] = 0.5
    layers: Annotated[int, Within(1, 9)] | None = None
    glossy: bool = False


@COLOURS.register("red", label="Red", options=RedOptions)
def red(wall: str, options: RedOptions) -> tuple[str, RedOptions]:
    return wall, options


@COLOURS.register("blue")
def blue(wall: str) -> str:
    return f"blue {wall}"


@dataclass(frozen=True, kw_only=True)
class WallOptions:
    """Of a wall.

    Attributes:
        colour: of its front.
        back: of its back; None: bare.
        height: of it.
    """

    colour: Annotated[str, OneOf(COLOURS)] = "red"
    back: Annotated[str, OneOf(COLOURS)] | None = None
    height: float = 2.0


WALL = Entry(name="wall", make=lambda options: options, options=WallOptions)


class TestNames:
    def test_an_entry_is_made_with_its_options(self):
        assert COLOURS["red"]("wall") == ("wall", RedOptions())
        assert COLOURS["red"]("wall", options=RedOptions(share=0.1)) == ("wall", RedOptions(share=0.1))
        assert COLOURS["blue"]("wall") == "blue wall"

    def test_a_label_that_is_left_out_is_the_name(self):
        assert [entry.label for entry in COLOURS.values()] == ["Red", "blue"]

    def test_what_is_decorated_stays_what_it_is(self):
        assert blue("wall") == "blue wall"

    def test_ceiling_first_and_floor_last_whatever_came_first(self):
        names: Registry[Entry] = Registry("name", Entry)
        for name, place in (("low", "floor"), ("a", ""), ("high", "ceiling"), ("b", "")):
            names.register(name, place=place)(blue)
        assert list(names) == ["high", "a", "b", "low"]
        assert len(names) == 4

    def test_the_nearest_name_is_offered(self):
        with pytest.raises(UnknownNameError, match=r"unknown colour 'rde'. Did you mean 'red'\? Known: blue, red."):
            COLOURS.named("rde")

    def test_a_name_stands_for_one_thing(self):
        names: Registry[Entry] = Registry("name", Entry)
        names.register("mine")(blue)
        names.register("mine", label="again")(blue)  # the module was reloaded
        assert names["mine"].label == "again"
        with pytest.raises(OptionError, match=rf"name 'mine' is registered by {blue.__module__}. Choose another name."):
            names.register("mine")(uniform)

    def test_options_are_a_dataclass_whose_fields_have_defaults(self):
        @dataclass(kw_only=True)
        class Open:
            first: int
            second: int = 0
            third: str

        with pytest.raises(OptionError, match="mine: options is <class 'int'>; expected a frozen dataclass."):
            Entry(name="mine", make=blue, options=int)
        with pytest.raises(OptionError, match="mine: a int; expected a function or a class."):
            Entry(name="mine", make=3)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="mine: place is 'top'; expected ceiling or floor, or none."):
            Entry(name="mine", make=blue, place="top")
        with pytest.raises(OptionError, match="mine: the options first, third have no default; expected one each."):
            Entry(name="mine", make=blue, options=Open)


class TestModuleAndAttribute:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        (tmp_path / "my_colours.py").write_text("def green(wall):\n    return f'green {wall}'\n\nnumber = 3\n")
        monkeypatch.chdir(tmp_path)
        yield "my_colours"
        sys.modules.pop("my_colours", None)

    def test_it_stands_for_itself(self, module: str):
        names: Registry[Entry] = Registry("colour", Entry)
        entry = names.named(f"{module}:green")
        assert (entry.name, entry("wall"), entry.options) == (f"{module}:green", "green wall", NoOptions)
        assert names.named(f"{module}:green") is entry
        assert entry.modules == {module}
        assert len(source_of(module)) == 16
        assert str(Path.cwd()) not in sys.path

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "my_colours:blue",
                "colour 'my_colours:blue' cannot be imported: AttributeError: .* Expected module:name.",
            ),
            ("no_such_module:blue", "colour 'no_such_module:blue' cannot be imported: ModuleNotFoundError: No module"),
            ("my_colours:number", "my_colours:number: a int; expected a function or a class."),
            (":blue", "colour ':blue' cannot be imported: ValueError"),
        ],
    )
    def test_what_cannot_be_imported(self, module: str, text: str, message: str):
        with pytest.raises(OptionError, match=message):
            Registry("colour", Entry).named(text)

    def test_a_class_brings_its_options(self):
        class Green:
            Options = RedOptions

            def __init__(self, wall: str, options: RedOptions) -> None:
                self.share = options.share

        module = types.ModuleType("made_up_colours")
        module.__dict__["Green"] = Green
        sys.modules["made_up_colours"] = module
        try:
            entry = Registry("colour", Entry).named("made_up_colours:Green")
        finally:
            del sys.modules["made_up_colours"]
        assert chosen(entry, {"share": 0.25})("wall").share == 0.25


class TestOptions:
    def test_settings_that_belong_elsewhere_are_passed_over(self):
        choice = chosen(COLOURS["red"], {"share": 1, "height": 3.0})
        assert choice.options == RedOptions(share=1.0)
        assert isinstance(choice.options.share, float)
        assert choice("wall") == ("wall", RedOptions(share=1.0))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"share": 1.5}, "share is 1.5; expected a number from 0 to 1."),
            ({"share": True}, "share is True; expected a number from 0 to 1."),
            ({"share": None}, "share is None; expected a number from 0 to 1."),
            ({"share": "half"}, "share is 'half'; expected a number from 0 to 1."),
            ({"layers": 2.5}, "layers is 2.5; expected a whole number from 1 to 9."),
            ({"layers": 10}, "layers is 10; expected a whole number from 1 to 9."),
            ({"glossy": 1}, "glossy is 1; expected yes or no."),
            ({"shade": "drak"}, r"unknown shade 'drak'. Did you mean 'dark'\?"),
        ],
    )
    def test_a_value_that_an_option_cannot_take(self, settings: dict[str, Any], message: str):
        with pytest.raises(OptionError, match=message):
            chosen(COLOURS["red"], settings)

    def test_what_may_be_left_open_may_be_none(self):
        assert chosen(COLOURS["red"], {"layers": None}).options == RedOptions()

    def test_an_option_that_names_an_entry_brings_its_options(self):
        choice = chosen(WALL, {"back": "red", "share": 0.25, "colour": "blue"})
        assert {name: part.entry.name for name, part in choice.parts.items()} == {"colour": "blue", "back": "red"}
        assert choice.parts["back"].options.share == 0.25
        assert choice.modules() == {__name__}
        assert set(chosen(WALL, {}).parts) == {"colour"}
        with pytest.raises(UnknownNameError, match="unknown colour 'bleu'. Did you mean 'blue'"):
            chosen(WALL, {"colour": "bleu"})

    def test_whose_options_they_are_hangs_on_what_is_named(self):
        assert all_options(WALL, {})["share"] is RedOptions
        assert set(all_options(WALL, {"colour": "blue"})) == {"colour", "back", "height"}
        assert own_settings(WALL, {"colour": "blue", "share": 0.1, "height": 1.0}) == {"colour": "blue", "height": 1.0}
        check_settings(WALL, {"share": 0.1}, kind="wall")
        with pytest.raises(UnknownNameError, match="unknown option of wall wall: 'share'. .*Known: back, colour"):
            check_settings(WALL, {"colour": "blue", "share": 0.1}, kind="wall")

    def test_options_of_two_are_one_record(self):
        both = combined("both", RedOptions, WallOptions)
        assert {own.name for own in fields(both)} == {own.name for r in (RedOptions, WallOptions) for own in fields(r)}
        assert isinstance(both(height=1.0), RedOptions)
        assert combined("one", NoOptions, WallOptions) is WallOptions
        assert combined("none", NoOptions, NoOptions) is NoOptions

    def test_options_of_two_that_have_one_name(self):
        @dataclass(frozen=True, kw_only=True)
        class PaintOptions:
            share: float = 0.1

        with pytest.raises(OptionError, match="paint: both RedOptions and PaintOptions have 'share'."):
            combined("paint", RedOptions, PaintOptions)


@pytest.fixture
def _put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for registry in (METHODS, MECHANISMS, IMPORTANCES):
        monkeypatch.setattr(registry, "_found", {**vars(registry)["_found"]})


@dataclass(frozen=True, kw_only=True)
class ScaledOptions:
    """Of a made-up importance.

    Attributes:
        scale: of it.
    """

    scale: Annotated[float, Within(0, 1e6)] = 1.0


def scaled(model: nn.Module, task: ClosedTask, options: ScaledOptions) -> Any:
    return options.scale * uniform(model)


class Watching(Estimator):
    """Of every weight as often as there were steps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.steps = 0

    def after_step(self, loss: Any) -> None:
        self.steps += 1

    def importance(self, task: ClosedTask) -> Any:
        return float(self.steps) * uniform(self.model)


@pytest.mark.usefixtures("_put_back")
class TestMethodsOfOthers:
    def test_an_importance_makes_a_method_of_every_mechanism(self, tmp_path: Path):
        register_importance("scaled", label="scaled", options=ScaledOptions, source="a made-up number")(scaled)
        assert METHODS["ewc-scaled"].label == "EWC scaled"
        assert METHODS["wva-scaled"].summary == "makes weights slow, by a made-up number"
        assert METHODS["ewc-scaled"].modules >= {__name__}
        assert METHODS["wva-scaled"].holds_weights
        config = tiny("ewc-scaled", strength=1.0, scale=3.0)
        assert config.scale == 3.0
        found = run(config, output=tmp_path)
        assert found.config["scale"] == 3.0
        assert found.accuracy_matrix != run(tiny("ewc-scaled", strength=1.0, scale=0), output=tmp_path).accuracy_matrix
        with pytest.raises(OptionError, match="scale is -1; expected a number from 0 to 1e"):
            configure("permuted-digits", "wva-scaled", strength=1.0, scale=-1)
        with pytest.raises(OptionError, match="scale has no effect with .* and none; it belongs to ewc-scaled, wva-sc"):
            configure("permuted-digits", "none", scale=1.0)

    def test_an_importance_that_looks_on_in_training(self, tmp_path: Path):
        register_importance("steps", on_examples=False)(Watching)
        assert "ewc-steps" in METHODS
        assert run(tiny("ewc-steps", strength=0.01), output=tmp_path).keeper.startswith("EWC: 1 task held")

    def test_one_of_whole_layers_goes_with_mechanisms_that_take_them(self):
        register_importance("layers", factored=True)(scaled)
        assert "ewc-layers" in METHODS
        assert "wva-layers" not in METHODS

    def test_a_mechanism_makes_a_method_of_every_importance(self, tmp_path: Path):
        register_mechanism("tether", label="Tether", verb="ties weights")(lambda model: EWC(model, strength=5.0))
        made = [name for name in METHODS if name.startswith("tether-")]
        assert set(made) == {f"tether-{name}" for name, each in IMPORTANCES.items() if not each.factored}
        assert METHODS["tether-mas"].label == "Tether MAS"
        torch.manual_seed(0)
        assert "strength" not in tiny("tether-fisher").to_dict()
        assert run(tiny("tether-fisher"), output=tmp_path).keeper.startswith("EWC: 1 task held")

    def test_a_method_by_module_and_class(self, tmp_path: Path):
        config = tiny(f"{__name__}:Plain")
        assert config.name.startswith(f"permuted-digits-{__name__}_Plain-0-")
        found = run(config, output=tmp_path)
        assert found.method == f"{__name__}:Plain"
        assert found.accuracy_matrix == run(tiny("none"), output=tmp_path).accuracy_matrix

    def test_what_makes_no_learner(self, tmp_path: Path):
        with pytest.raises(OptionError, match=r"made a int; expected a subclass of holdfast.lab.Learner."):
            run(tiny(f"{__name__}:nothing"), output=tmp_path)
        assert not list(tmp_path.iterdir())


class Plain(Learner):
    """Nothing is done in any moment."""


def nothing(model: nn.Module, setting: Any) -> int:
    return 3


def test_names_of_every_runs_settings_are_reserved():
    own = {field.name for record in (RunSettings, RunConfig) for field in fields(record)}
    flags = {field.name for record in (RunOptions, SweepOptions) for field in fields(record)}
    assert own | flags <= RESERVED

    @dataclass(frozen=True)
    class Taken:
        lr: float = 3.0

    with pytest.raises(OptionError, match="clasher: an option is called lr, as every run's is. Choose another name."):
        Entry(name="clasher", make=print, options=Taken)


def test_what_cannot_be_called_so_is_told_before():
    with pytest.raises(
        OptionError, match=r"narrow: too many positional arguments; expected one that is called with \("
    ):
        Entry(name="narrow", make=lambda one: one)(1, 2)


def test_the_source_of_a_file_is_that_of_those_beside_it_too(tmp_path, monkeypatch):
    (tmp_path / "helper_of_tests.py").write_text("F = 0.0\n")
    (tmp_path / "user_of_tests.py").write_text("import helper_of_tests\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("user_of_tests")
    before = source_of("user_of_tests")
    (tmp_path / "helper_of_tests.py").write_text("F = 0.9\n")
    assert source_of("user_of_tests") != before

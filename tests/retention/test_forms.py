"""Keepers that hold in less memory: as the float32 form within its bound, and the same promises at the ends."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.optimizers import PLAIN
from tests.retention.loops import batches, factored_of, importance_of, network, same, train, train_held, weights_of
from torch import Tensor, nn

from holdfast import EWC, WVA, Importance
from holdfast.errors import FileFormatError, OptionError, ParameterMismatchError
from holdfast.memory.reference import Reference
from holdfast.memory.stored import Blocks, read
from holdfast.retention import parts

CPU = torch.device("cpu")
FORMS = {
    "bfloat16": (EWC, {"importance_dtype": "bfloat16", "anchor_dtype": "bfloat16"}),
    "int8": (EWC, {"importance_dtype": "int8", "anchor_dtype": "int16"}),
    "int8-bfloat16": (EWC, {"importance_dtype": "int8", "anchor_dtype": "bfloat16", "offload": "cpu"}),
    "reference": (EWC, {"importance_dtype": "int8", "anchors": "today"}),
    "gradient": (EWC, {"importance_dtype": "int8", "anchor_dtype": "int16", "pull": "gradient"}),
    "penalty": (EWC, {"importance_dtype": "int8", "anchor_dtype": "int16", "pull": "penalty"}),
    "per-task": (EWC, {"importance_dtype": "int8", "anchor_dtype": "int16", "accumulate": "per_task"}),
    "wva": (WVA, {"importance_dtype": "int8"}),
    "wva-bfloat16": (WVA, {"importance_dtype": "bfloat16", "offload": "cpu"}),
    "wva-gradients": (WVA, {"importance_dtype": "int8", "on": "gradients"}),
}
every_form = pytest.mark.parametrize("form", FORMS)
every_optimizer = pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "adamw"])
pytestmark = pytest.mark.filterwarnings("ignore:WVA. on=.gradients. is cancelled")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(parts, "READ_BLOCK", 256)


@pytest.fixture
def today(tmp_path):
    """A function that saves a model's weights as they are, and says where."""

    count = itertools.count()

    def save(model: nn.Module, path: Path | None = None) -> Path:
        path = path or tmp_path / f"today-{next(count)}.safetensors"
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
        return path

    return save


def wide_network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Some of its tensors are several blocks, and one is no multiple of a block."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 90), nn.Tanh(), nn.Linear(90, 7), nn.Tanh(), nn.Linear(7, 2)).to(dtype)


def keeper_of(form: str, model: nn.Module, strength: float, today, **more):
    mechanism, options = FORMS[form]
    options = {**options, **more}
    if options.get("anchors") == "today":
        options["anchors"] = today(model)
    return mechanism(model, strength=strength, log_every=2, **options)


def held_run(form: str, optimizer: str, strength: float, today, *, plain: bool = False, steps: int = 6):
    """Plain steps, retain, held steps; in this form, or as it would be in float32."""
    model = wide_network()
    its_optimizer = PLAIN[optimizer](model.parameters())
    train(model, its_optimizer, batches(3))
    mechanism, options = FORMS[form]
    if plain:
        kept = {name: value for name, value in options.items() if name in ("pull", "accumulate", "on")}
        keeper = mechanism(model, strength=strength, log_every=2, **kept)
    else:
        keeper = keeper_of(form, model, strength, today)
    keeper.attach(its_optimizer).retain(importance_of(model))
    train_held(keeper, its_optimizer, batches(steps, seed=1))
    return keeper, its_optimizer


@every_optimizer
@every_form
def test_strength_zero_is_the_bare_optimizer_to_the_bit(form, optimizer, today):
    keeper, _ = held_run(form, optimizer, 0.0, today)
    model = wide_network()
    bare = PLAIN[optimizer](model.parameters())
    train(model, bare, [*batches(3), *batches(6, seed=1)])
    assert same(weights_of(keeper.model), weights_of(model))


@every_optimizer
@every_form
def test_it_trains_as_in_float32_within_the_bound(form, optimizer, today):
    small, exact = (held_run(form, optimizer, 1.0, today, plain=plain)[0] for plain in (False, True))
    free, ends = weights_of(held_run(form, optimizer, 0.0, today)[0].model), weights_of(small.model)
    moved = apart = 0.0
    for name, weight in weights_of(exact.model).items():
        moved += float((weight - free[name]).square().sum())
        apart += float((weight - ends[name]).square().sum())
    # importances are off by a sixteenth, anchors by little: so is the pull
    assert 0 < apart <= (0.1**2) * moved
    if isinstance(small, EWC):
        assert small.predicted_rise() == pytest.approx(exact.predicted_rise(), rel=0.1)
    assert small.report().protected == exact.report().protected
    if exact.report().pinned is not None:
        assert small.report().pinned == pytest.approx(exact.report().pinned, abs=0.05)


@every_optimizer
@pytest.mark.parametrize("form", ["bfloat16", "int8", "int8-bfloat16", "reference", "per-task"])
def test_infinite_strength_pins_to_the_anchor_as_it_is_held(form, optimizer, today):
    keeper, _ = held_run(form, optimizer, torch.inf, today)
    for name, weight in keeper.model.named_parameters():
        held, anchor = (
            read(entry[name], dtype=torch.float32, device=CPU)
            for entry in (keeper.held.importance, keeper.held.anchors)
        )
        assert torch.equal(weight[held > 0], anchor[held > 0])
        assert not torch.equal(weight[held == 0], anchor[held == 0])
    assert all(
        torch.equal(read(value, dtype=torch.float32, device=CPU) > 0, importance_of(keeper.model)[name] > 0)
        for name, value in keeper.held.importance.items()
    )


def test_infinite_strength_stops_wva(today):
    keeper, _ = held_run("wva", "adam", torch.inf, today)
    importance = importance_of(keeper.model)
    start = held_run("wva", "adam", torch.inf, today, steps=0)[0]
    for name, weight in keeper.model.named_parameters():
        before = start.model.get_parameter(name)
        torch.testing.assert_close(weight[importance[name] > 0], before[importance[name] > 0], rtol=0, atol=1e-6)


@every_form
def test_save_load_continue_is_continue(form, today, tmp_path):
    keeper, its_optimizer = held_run(form, "adam", 10.0, today)
    keeper.save(tmp_path / "skills")
    model = wide_network()
    loaded = type(keeper).load(tmp_path / "skills", model)
    assert loaded.options() == keeper.options()
    resumed = keeper_of(form, copy.deepcopy(keeper.model), 10.0, today)
    tensors, notes = keeper.state()
    resumed.load_state({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(notes)))
    finals = []
    for one in (loaded, resumed, keeper):
        one.model.load_state_dict(keeper.model.state_dict())
        optimizer = its_optimizer
        if one is not keeper:
            optimizer = PLAIN["adam"](one.model.parameters())
            optimizer.load_state_dict(copy.deepcopy(its_optimizer.state_dict()))
            one.attach(optimizer)
        train_held(one, optimizer, batches(3, seed=2))
        finals.append(weights_of(one.model))
    assert same(finals[0], finals[2])
    assert same(finals[1], finals[2])


def test_a_keeper_may_be_loaded_in_another_form(today, tmp_path):
    keeper, _ = held_run("int8", "adam", 1.0, today, plain=True)
    keeper.save(tmp_path / "skills")
    small = EWC.load(tmp_path / "skills", keeper.model, importance_dtype="int8", anchor_dtype="int16")
    assert all(isinstance(value, Blocks) for value in [*small.held.importance.values(), *small.held.anchors.values()])
    assert small.predicted_rise() == pytest.approx(keeper.predicted_rise(), rel=0.1)
    for name, value in small.held.importance.items():
        assert read(value, dtype=torch.float32, device=CPU).max() <= small.held.largest
        assert torch.equal(read(value, dtype=torch.float32, device=CPU) > 0, keeper.held.importance[name] > 0)
    small.save(tmp_path / "small")
    assert (tmp_path / "small" / "importance.safetensors").stat().st_size < (
        tmp_path / "skills" / "importance.safetensors"
    ).stat().st_size
    wide = EWC.load(tmp_path / "small", keeper.model, importance_dtype="float32", anchor_dtype="float32")
    assert all(isinstance(value, Tensor) for value in [*wide.held.importance.values(), *wide.held.anchors.values()])


@pytest.mark.parametrize("file", ["importance", "importance_exponents", "anchors_exponents"])
def test_a_truncated_or_missing_file_of_blocks(file, today, tmp_path):
    keeper, _ = held_run("int8", "adam", 1.0, today)
    keeper.save(tmp_path / "skills")
    path = tmp_path / "skills" / f"{file}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(FileFormatError, match=rf"{file}\.safetensors is damaged, truncated or edited"):
        EWC.load(tmp_path / "skills", keeper.model)
    path.unlink()
    with pytest.raises(FileFormatError, match=rf"{file}\.safetensors is missing"):
        EWC.load(tmp_path / "skills", keeper.model)
    path.write_bytes(content)
    EWC.load(tmp_path / "skills", keeper.model)


def test_a_state_without_its_exponents(today):
    keeper, _ = held_run("int8", "adam", 1.0, today)
    tensors, notes = keeper.state()
    before = keeper.held
    with pytest.raises(FileFormatError, match=r"EWC\.load_state: '0\.weight', .* are in 8 or 16 bits"):
        keeper.load_state({name: value for name, value in tensors.items() if "exponents" not in name}, notes)
    assert keeper.held is before
    keeper.load_state(tensors, notes)


# --- anchors by reference


def test_anchors_by_reference_take_no_memory_and_no_file(today, tmp_path):
    keeper, _ = held_run("reference", "adam", 1.0, today)
    assert all(isinstance(anchor, Reference) for anchor in keeper.held.anchors.values())
    assert sum(anchor.nbytes for anchor in keeper.held.anchors.values()) == 0
    keeper.save(tmp_path / "skills")
    assert not list((tmp_path / "skills").glob("anchors*"))
    assert not any(name.startswith("anchors/") for name in keeper.state()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_anchors_by_reference_are_the_anchors(dtype, today):
    """Of a float32 checkpoint, for a model of either precision, to the bit."""
    path = today(wide_network())
    finals = []
    for anchors in (None, path):
        model = wide_network(dtype)
        optimizer = PLAIN["adam"](model.parameters())
        keeper = EWC(model, strength=1.0, anchors=anchors).attach(optimizer)
        keeper.retain(importance_of(wide_network()))
        train(model, optimizer, batches(5, dtype=dtype))
        finals.append((weights_of(model), keeper.predicted_rise()))
    assert same(finals[0][0], finals[1][0])
    assert finals[0][1] == finals[1][1]


def test_weights_that_are_not_those_of_the_checkpoint(today):
    model = wide_network()
    path = today(model)
    keeper = EWC(model, strength=1.0, anchors=path).retain(importance_of(model))
    held = keeper.held
    with torch.no_grad():
        model[0].bias[:3] += 1
    with pytest.raises(
        ParameterMismatchError,
        match=rf"^EWC\.retain: {re.escape(str(path))} does not hold today's weights: '0\.bias' differs in 3 of 90",
    ) as error:
        keeper.retain(importance_of(model))
    assert keeper.held is held
    assert "keeper.anchors = PATH" in str(error.value)
    assert "keeper.anchors = None" in str(error.value)
    keeper.anchors = today(model)
    keeper.retain(importance_of(model))
    assert torch.equal(read(keeper.held.anchors["0.bias"], dtype=torch.float32, device=CPU), model[0].bias)
    keeper.anchors = None
    keeper.retain(importance_of(model))
    assert torch.equal(keeper.held.anchors["0.bias"], model[0].bias)


def test_a_checkpoint_that_training_overwrites(today):
    keeper, optimizer = held_run("reference", "adam", 1.0, today)
    today(keeper.model, Path(keeper.anchors))
    with pytest.raises(FileFormatError, match=r"today-0\.safetensors has changed since the task was retained"):
        train(keeper.model, optimizer, batches(1))


def test_a_checkpoint_that_was_moved(today, tmp_path):
    keeper, _ = held_run("reference", "adam", 1.0, today)
    keeper.save(tmp_path / "skills")
    old = Path(keeper.anchors)
    (tmp_path / "new").mkdir()
    old.rename(tmp_path / "new" / old.name)
    with pytest.raises(FileFormatError, match="cannot be read"):
        EWC.load(tmp_path / "skills", keeper.model)
    moved = EWC.load(tmp_path / "skills", keeper.model, anchors=tmp_path / "new" / old.name)
    assert moved.anchors == str(tmp_path / "new" / old.name)
    in_memory_too = EWC.load(tmp_path / "skills", keeper.model, anchors=tmp_path / "new")
    values = load_file(tmp_path / "new" / old.name)
    for name, anchor in in_memory_too.held.anchors.items():
        assert torch.equal(read(anchor, dtype=torch.float32, device=CPU), values[name])


def test_a_checkpoint_that_was_renamed(today, tmp_path):
    """The file is known by its contents, for a folder as for a state."""
    keeper, _ = held_run("reference", "adam", 1.0, today)
    keeper.save(tmp_path / "skills")
    state = keeper.state()
    new = Path(keeper.anchors).rename(tmp_path / "other.safetensors")
    fresh = EWC(keeper.model, strength=1.0, importance_dtype="int8", anchors=new)
    fresh.load_state(*state)
    for found in (EWC.load(tmp_path / "skills", keeper.model, anchors=new), fresh):
        assert found.anchors == str(new)
        assert found.predicted_rise() > 0
    wrong = today(network(), tmp_path / "wrong.safetensors")
    with pytest.raises(FileFormatError, match=r"wrong.safetensors, and that is not the file it was: .* anchors=PATH"):
        EWC.load(tmp_path / "skills", keeper.model, anchors=wrong)


def test_checkpoints_of_one_name(today, tmp_path):
    """A trainer's all have the same: the anchors stay in the old one where the next is looked for in a new one."""
    model, folders = wide_network(), [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    paths = [folder / "model.safetensors" for folder in folders]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        today(wide_network() if number == 0 else network(), path)
    keeper = EWC(model, strength=1.0, anchors=folders[0]).retain(importance_of(model))
    keeper.save(tmp_path / "skills")
    later = EWC(model, strength=1.0, anchors=folders[1]).restore(tmp_path / "skills")
    assert {anchor.file.path for anchor in later.held.anchors.values()} == {paths[0]}
    assert later.anchors == str(folders[1])


def test_from_disk_into_memory(today, tmp_path):
    keeper, _ = held_run("reference", "adam", 1.0, today)
    keeper.save(tmp_path / "skills")
    wide = EWC.load(tmp_path / "skills", keeper.model, anchors=None)
    values = load_file(keeper.anchors)
    assert all(torch.equal(anchor, values[name]) for name, anchor in wide.held.anchors.items())


# --- options and their ends


def test_options_out_of_range():
    model = network()
    for mechanism in (EWC, WVA):
        with pytest.raises(
            OptionError, match=r"importance_dtype is 'int4'; expected \"float32\", \"bfloat16\" or \"int8\""
        ):
            mechanism(model, strength=1.0, importance_dtype="int4")
        with pytest.raises(OptionError, match=r"offload is 'disk'; expected \"cpu\" or None"):
            mechanism(model, strength=1.0, offload="disk")
    with pytest.raises(OptionError, match=r"anchor_dtype is 'int8'; expected \"float32\", \"bfloat16\" or \"int16\""):
        EWC(model, strength=1.0, anchor_dtype="int8")


def test_anchors_on_disk_have_no_other_form(today):
    model = network()
    path = today(model)
    with pytest.raises(OptionError, match=r"anchor_dtype='int16' is a form in memory, and anchors='.*' are on disk"):
        EWC(model, strength=1.0, anchors=path, anchor_dtype="int16")
    with pytest.raises(OptionError, match=r'accumulate="per_task" moves anchors to where no checkpoint has them'):
        EWC(model, strength=1.0, anchors=path, accumulate="per_task")
    EWC(model, strength=1.0, accumulate="per_task", anchor_dtype="int16").retain(importance_of(model))


def test_layers_with_factors_keep_their_anchors_in_memory(today):
    model = network()
    keeper = EWC(model, strength=1.0, importance_dtype="int8", anchors=today(model)).retain(factored_of(model))
    assert all(isinstance(anchor, Tensor) for anchor in keeper.held.anchors.values())
    assert keeper.predicted_rise() == 0


@pytest.mark.parametrize(
    "options", [{}, {"importance_dtype": "int8", "anchor_dtype": "int16"}, {"anchor_dtype": "bfloat16"}]
)
def test_a_budget_is_kept_in_every_form(options):
    model = wide_network()
    optimizer = PLAIN["adam"](model.parameters())
    keeper = EWC(model, budget=1e-3, **options).attach(optimizer).retain(importance_of(model))
    train(model, optimizer, batches(30))
    assert keeper.predicted_rise() <= (1e-3 + keeper.held.start) * 1.001
    assert keeper.predicted_rise() >= 0.9e-3


def test_strided_weights(today):
    """Of no one stretch of memory: read whole."""
    finals = []
    for options in ({}, {"importance_dtype": "int8", "anchor_dtype": "int16"}):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 40, 3).to(memory_format=torch.channels_last)
        assert not model.weight.is_contiguous()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ones = {n: torch.ones_like(p) for n, p in model.named_parameters()}
        keeper = EWC(model, strength=1.0, **options).attach(optimizer).retain(ones)
        model(torch.ones(1, 3, 5, 5)).square().sum().backward()
        optimizer.step()
        finals.append((weights_of(model), keeper.predicted_rise()))
    for name, value in finals[0][0].items():
        torch.testing.assert_close(finals[1][0][name], value, rtol=0, atol=1e-4)
    assert finals[1][1] == pytest.approx(finals[0][1], rel=1e-2)


def test_importances_of_every_size(today):
    """Through 60 decades in one tensor: order and ends as in float32."""
    model = nn.Linear(1024, 1, bias=False)
    values = torch.logspace(-30, 30, 1024).view(1, -1)
    keeper = EWC(model, strength=1.0, importance_dtype="int8", anchor_dtype="int16")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    keeper.attach(optimizer).retain(Importance({"weight": values}, importance_of(model).info))
    anchor = read(keeper.held.anchors["weight"], dtype=torch.float32, device=CPU)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    kept = (model.weight.detach() - anchor).abs().flatten()
    assert torch.isfinite(kept).all()
    assert kept[:256].min() > 0.99
    assert kept[-256:].max() < 1e-6
    assert (kept.diff() <= 1e-6).all()

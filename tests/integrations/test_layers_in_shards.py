"""Several processes hold whole layers of a sharded model as one does: the same weights, figures and files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tests import many
from tests.integrations import layers_in_shards, spread
from torch import distributed

import holdfast as hf
from holdfast.curvature.owners import LayerElsewhere
from holdfast.errors import OptionError, StateError
from holdfast.retention.files import KEEPER_CONFIG

if not distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)
pytest.importorskip("transformers")

ALL = {**layers_in_shards.CASES, **layers_in_shards.OF_COPIES}
SAVED = ["adamw", "llama adamw"]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """What two processes found, and four: the folder, weights by case and name, figures by case."""
    folder = tmp_path_factory.mktemp("several")
    for name in SAVED:
        keeper = layers_in_shards.EWC(layers_in_shards.built(ALL[name], 1), strength=3.0)
        layers_in_shards.retained(keeper, name, 1, 0, 1)
        keeper.save(folder / f"one {name}")
    found, told = {}, {}
    for count in (2, 4):
        many.run_together(layers_in_shards, folder, count=count, timeout=1500)
        found |= load_file(folder / f"found-{count}.safetensors")
        told |= json.loads((folder / f"told-{count}.json").read_text())
    return folder, found, told


def weights_of(found: dict[str, torch.Tensor], case: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{case}/"): value for key, value in found.items() if key.startswith(f"{case}/")}


def check(found, told, case: str, keeper: hf.EWC, *, loose: float = 1e-3, rounding: float = 1e-5) -> None:
    """Weights within `rounding`, and figures within the share `loose`."""
    own, expected = weights_of(found, case), dict(keeper.model.named_parameters())
    assert own.keys() == expected.keys()
    for name, value in own.items():
        torch.testing.assert_close(value, expected[name].detach(), rtol=rounding, atol=rounding)
    assert told[case] == pytest.approx(layers_in_shards.figures(keeper), rel=loose, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_several_processes_hold_as_one_does(name, several):
    _, found, told = several
    keeper, _ = layers_in_shards.held(name)
    assert bool(keeper.held.layers) == keeper.mechanism.anchored
    check(found, told, name, keeper, loose=ALL[name].loose, rounding=ALL[name].rounding)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
def test_every_process_has_the_curvature_of_its_own_layers_alone(name, several):
    keeper, _ = layers_in_shards.held(name)
    sizes = several[2][f"{name} bytes"]
    assert sum(sizes) == layers_in_shards.curvature_bytes(keeper)
    assert max(sizes) < 0.6 * sum(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
def test_what_two_saved_one_loads(name, several):
    folder, found, told = several
    keeper, optimizer = layers_in_shards.held(name)
    loaded = hf.EWC.load(folder / f"{name} by 2", keeper.model)
    keeper.detach()
    loaded.attach(optimizer)
    layers_in_shards.more(loaded, optimizer, name)
    check(found, told, f"{name} on", loaded)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", SAVED)
def test_what_one_saved_several_load_and_go_on_from_and_one_again(name, count, several):
    folder, found, told = several
    weights = layers_in_shards.built(ALL[name], 1).state_dict()
    keeper = layers_in_shards.loaded(folder / f"one {name}", name, weights)
    case = f"{name} by one, loaded by {count}"
    check(found, told, case, keeper)
    on = hf.EWC.load(folder / f"on {name} by {count}", keeper.model)
    for key, layer in keeper.held.layers.items():
        for part, tensor in layer.tensors().items():
            assert torch.equal(tensor, on.held.layers[key].tensors()[part])
    assert on.predicted_rise() == pytest.approx(keeper.predicted_rise(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", SAVED)
def test_the_files_are_those_of_one_process(name, count, several):
    folder = several[0]
    one, others = folder / f"one {name}", folder / f"retained {name} by {count}"
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in others.iterdir())
    assert any(each.startswith("factors") for each in names)
    for each in names:
        if each.endswith(".safetensors"):
            assert (one / each).read_bytes() == (others / each).read_bytes(), each
    first, second = (json.loads((each / KEEPER_CONFIG).read_text()) for each in (one, others))
    assert second.pop("model") == f"FSDP{first.pop('model')}"
    assert first == second


@pytest.fixture
def alone(tmp_path):
    with many.group_of_one(tmp_path):
        yield spread.spread_over(spread.network(), 1)


@pytest.mark.parametrize("case", ["adamw", "per task", "measured on shards"])
def test_one_process_holds_its_only_shard(case, tmp_path):
    keeper, _ = layers_in_shards.held(case)
    with many.group_of_one(tmp_path):
        spread_keeper, _ = layers_in_shards.held(case)
        own = many.whole(spread_keeper.model.named_parameters())
        rise = spread_keeper.predicted_rise()
    for name, value in keeper.model.named_parameters():
        torch.testing.assert_close(own[name], value.detach(), rtol=1e-4, atol=1e-6)
    assert rise == pytest.approx(keeper.predicted_rise(), rel=1e-3)


def test_layers_of_other_processes_are_not_retained_by_a_whole_model():
    importance = layers_in_shards.importance_of("adamw", 1)
    name, *others = importance
    known = {name: LayerElsewhere(1, 0, importance[name].to("meta"))}
    part = hf.FactoredImportance(
        {n: importance[n] for n in others}, importance.diagonal, importance.info, elsewhere=known
    )
    model = spread.network()
    told = r"EWC.retain: other processes have 1 layers of this importance, such as '0.weight': .* this model is whole"
    with pytest.raises(OptionError, match=told):
        hf.EWC(model, strength=1.0).retain(part)
    assert hf.EWC(model, strength=1.0).retain(importance).held.num_tasks == 1  # what it says to do


def test_an_owner_that_fails_ends_all(alone, monkeypatch):
    optimizer = layers_in_shards.ADAMW(alone.parameters())
    keeper = hf.EWC(alone, strength=1.0).attach(optimizer)
    keeper.retain(layers_in_shards.importance_of("adamw", 1))
    layers_in_shards.train(alone, optimizer, layers_in_shards.points(2), 2)

    def failing(*args, **kwargs):
        raise StateError("no")

    monkeypatch.setattr(type(keeper.held.layers["0.weight"]), "pull", failing)
    with pytest.raises(StateError, match="no"):
        layers_in_shards.train(alone, optimizer, layers_in_shards.points(2), 1)

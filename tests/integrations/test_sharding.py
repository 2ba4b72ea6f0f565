"""Two processes do what one does: FSDP2 and DDP under torchrun, on CPU."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tests import many
from tests.integrations import spread
from torch import distributed, nn

import holdfast as hf
from holdfast.errors import OptionError, StateError
from holdfast.integrations.sharding import over_processes, whole_weights

if not distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

CASES = [(mechanism, optimizer) for optimizer in spread.OPTIMIZERS for mechanism in spread.MECHANISMS]
ROUGH = {"ewc-int8"}  # blocks of 256 weights begin elsewhere in a shard


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes found: the folder, weights by case and name, figures by case."""
    folder = tmp_path_factory.mktemp("two")
    model = spread.network()
    spread.MECHANISMS["ewc"](model).retain(hf.fisher(model, spread.batches(2, seed=0))).save(folder / "one")
    many.run_together(spread, folder)
    return folder, load_file(folder / "weights.safetensors"), json.loads((folder / "told.json").read_text())


def weights_of(found: dict[str, torch.Tensor], case: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{case}/"): value for key, value in found.items() if key.startswith(f"{case}/")}


def same(first, second, *, rough: bool = False) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=2e-2 if rough else 1e-4, atol=5e-3 if rough else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("mechanism", "optimizer"), CASES)
def test_two_processes_train_as_one_does(mechanism, optimizer, two):
    _, found, told = two
    model = spread.network()
    keeper, _ = spread.two_tasks(model, mechanism, optimizer)
    rough = mechanism in ROUGH
    same(weights_of(found, f"{mechanism} {optimizer}"), spread.whole(model), rough=rough)
    assert told[f"{mechanism} {optimizer}"] == pytest.approx(spread.figures(keeper), rel=0.3 if rough else 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", spread.MECHANISMS)
def test_what_two_saved_one_loads(mechanism, two):
    folder, found, told = two
    model = spread.network()
    keeper, optimizer = spread.two_tasks(model, mechanism, "momentum")
    kind = type(keeper.detach())
    loaded = kind.load(folder / f"saved-{mechanism}-momentum", model).attach(optimizer)
    assert loaded.held.num_tasks == 2
    spread.train(model, optimizer, spread.batches(3, seed=4))
    case, rough = f"{mechanism} momentum on", mechanism in ROUGH
    same(weights_of(found, case), spread.whole(model), rough=rough)
    assert told[case]["num_steps"] == spread.SECOND + 3 == loaded.report().num_steps


@pytest.mark.slow
@pytest.mark.parametrize("case", ["retained before", "saved by one"])
def test_what_one_retained_two_hold(case, two):
    _, found, told = two
    model = spread.network()
    optimizer = spread.OPTIMIZERS["adam"](model.parameters())
    keeper = spread.MECHANISMS["ewc"](model).retain(hf.fisher(model, spread.batches(2, seed=0))).attach(optimizer)
    spread.train(model, optimizer, spread.batches(spread.FIRST, seed=1))
    same(weights_of(found, case), spread.whole(model))
    assert told[case] == pytest.approx(spread.figures(keeper), rel=2e-3)


@pytest.mark.slow
def test_replicas_train_as_one_does(two):
    _, found, told = two
    model = spread.network()
    keeper, _ = spread.two_tasks(model, "ewc", "adam")
    same(weights_of(found, "ddp"), spread.whole(model))
    assert told["ddp"] == pytest.approx(spread.figures(keeper), rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", spread.ESTIMATORS)
def test_importances_of_sharded_models_are_those_of_whole_ones(name, two):
    _, found, told = two
    model = spread.network()
    model.load_state_dict(weights_of(found, "retained before"))
    expected = spread.ESTIMATORS[name](model, spread.batches(2, seed=5))
    same(weights_of(found, name), dict(expected))
    assert told[name] == expected.info.num_examples == 16


def test_an_ordinary_model_is_left_as_it_is():
    model = spread.network()
    model.register_forward_hook(lambda *_: None)
    with whole_weights(model) as plain:
        assert plain is model
        assert len(model._forward_hooks) == 1
    assert len(model._forward_hooks) == 1


def test_joining_needs_processes():
    model = spread.network()
    with pytest.raises(StateError, match="over_processes: no process group"):
        over_processes(hf.fisher(model, spread.batches(1, seed=0)))


@pytest.fixture
def alone(tmp_path):
    """A model that is spread over this process alone."""
    with many.group_of_one(tmp_path):
        yield spread.spread_over(spread.network(), 1)


def importance_of(model: nn.Module) -> hf.Importance:
    with whole_weights(model):
        return hf.fisher(model, spread.batches(2, seed=0))


def test_what_needs_whole_weights_says_so(alone):
    optimizer = spread.OPTIMIZERS["adam"](alone.parameters())
    keeper = hf.EWC(alone, pull="penalty")
    with pytest.raises(OptionError, match='the model is sharded, and pull="penalty" needs whole weights'):
        keeper.attach(optimizer)
    hf.EWC(alone, strength=1.0).attach(optimizer)  # what it says to do


def test_tasks_are_not_retained_inside_whole_weights(alone):
    keeper = hf.EWC(alone, strength=1.0).retain(importance_of(alone))
    with whole_weights(alone):
        importance = hf.fisher(alone, spread.batches(2, seed=0))
        with pytest.raises(StateError, match="sharded in another way than when its tasks were retained"):
            keeper.retain(importance)
    assert keeper.retain(importance).held.num_tasks == 2


def test_batched_importances_cannot_be_joined(alone):
    with whole_weights(alone):
        importance = hf.fisher(alone, spread.batches(2, seed=0), kind="batched")
    with pytest.raises(OptionError, match="'fisher-batched' is a mean over batches"):
        over_processes(importance)
    over_processes(importance_of(alone))


def test_what_is_measured_on_shards_is_not_joined_again(alone):
    importance = hf.fisher(alone, spread.batches(2, seed=0))
    with pytest.warns(UserWarning, match="over_processes: this 'fisher-exact' importance is of all processes' data al"):
        assert over_processes(importance) is importance


def test_a_model_sharded_in_part_is_an_error(alone):
    alone.append(nn.Linear(3, 3))
    optimizer = spread.OPTIMIZERS["adam"](alone.parameters())
    with pytest.raises(hf.HoldfastError, match=r"2 of 8 trainable parameters are not sharded .* '5.weight', '5.bias'"):
        hf.EWC(alone, strength=1.0).attach(optimizer)
    for parameter in alone[5].parameters():
        parameter.requires_grad_(False)
    hf.EWC(alone, strength=1.0).attach(optimizer)

"""What is held in shards and on disk is that of one process, and goes from any number of processes to any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import many
from tests.integrations import spread, stored
from torch import distributed

import holdfast as hf
from holdfast.errors import FileFormatError, OptionError, StateError
from holdfast.integrations.sharding import room_for

if not distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # of checkpoints in one process


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stored")


@pytest.fixture(scope="module")
def trained(folder):
    """What two processes found, and what each was told."""
    many.run_together(stored, folder, "train")
    told = [json.loads((folder / f"train-2-{rank}.json").read_text()) for rank in range(2)]
    return load_file(folder / "train-2.safetensors"), told


@pytest.fixture(scope="module")
def passed_on(folder):
    """What four processes wrote, and one, and what two found when they went on from either."""
    many.run_together(stored, folder, "write", count=4)
    stored.write(folder, 0, 1)
    many.run_together(stored, folder, "read")
    told = json.loads((folder / "read-2-0.json").read_text())
    return load_file(folder / "write-4.safetensors"), load_file(folder / "read-2.safetensors"), told


@pytest.fixture
def alone(tmp_path):
    """A model that is spread over this process alone."""
    with many.group_of_one(tmp_path):
        yield stored.sharded(1)


def same(found: dict[str, torch.Tensor], case: str, expected: dict[str, torch.Tensor], *, rough: float = 1.0) -> None:
    own = {key.removeprefix(f"{case}/"): value for key, value in found.items() if key.startswith(f"{case}/")}
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(own[key], value, rtol=rough * 1e-4, atol=rough * 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", stored.PATHS)
def test_synaptic_intelligence_in_shards_is_that_of_one_process(name, trained):
    found, told = trained
    model = spread.network()
    path, _ = stored.followed(model, name)
    importance = many.whole(path.importance().items())
    assert sum(float(value.sum()) for value in importance.values()) > 0
    same(found, f"{name}/importance", importance, rough=10)  # 100 steps, the second half under a hold
    same(found, f"{name}/weights", many.whole(model.named_parameters()), rough=10)
    assert all(each[f"{name}, in parts"] for each in told)


@pytest.mark.slow
def test_a_path_that_two_processes_saved_one_goes_on_with(folder, trained):
    model = spread.network()
    path = hf.SynapticIntelligence(model, **stored.PATHS["kutalev"])
    state = {"path": room_for(path, folder / "path", key="path"), "model": model.state_dict()}
    distributed.checkpoint.load(state, checkpoint_id=folder / "path")
    path.load_state_dict(state["path"])
    same(trained[0], "kutalev/importance", many.whole(path.importance().items()))


@pytest.mark.slow
@pytest.mark.parametrize("name", stored.ON_DISK)
def test_every_process_reads_its_own_part_of_anchors_on_disk(name, folder, trained):
    found, told = trained
    model = spread.network()
    keeper = stored.held_to(model, name, folder)
    same(found, name, many.whole(model.named_parameters()))
    assert told[0][name] == pytest.approx(spread.figures(keeper), rel=2e-3)
    assert [each[f"{name}, bytes"] == 0 for each in told] == 2 * ["disk" in name]
    loaded = hf.EWC.load(folder / f"saved {name}", spread.network())
    assert all((type(anchor).__name__ == "Reference") == ("disk" in name) for anchor in loaded.held.anchors.values())


@pytest.mark.slow
def test_a_part_that_is_no_one_stretch_of_the_file(folder, trained):
    model = stored.columns()
    stored.held_to(model, "disk", folder / "columns")
    same(trained[0], "columns", many.whole(model.named_parameters()))


@pytest.mark.slow
def test_a_checkpoint_that_one_process_does_not_find_ends_all(trained):
    first, second = trained[1]
    assert first["not on disk"].startswith("StateError: EWC.retain: another process of the sharded model was refused")
    assert second["not on disk"].startswith("FileFormatError: ")
    assert first["held then"] == second["held then"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharded", "copies of shards"])
def test_importances_that_differ_are_refused_in_all_processes(name, trained):
    for told in trained[1]:
        start = "StateError: EWC.retain: the importances differ between the processes in"
        assert told[f"{name}, compared"].startswith(f"{start} 1 of 6 tensors: '2.weight'. Replicas that hold")
        assert told[f"{name}, of other names"].startswith(f"{start} names or shapes. ")
        assert told[f"{name}, same"] == ""


@pytest.mark.slow
def test_a_place_where_nothing_can_be_written_keeps_no_process_waiting(trained):
    first, second = trained[1]
    for name in ("refused", "refused, importance"):
        assert first[name].startswith("OutputError: ")
        assert second[name] == ""


@pytest.mark.slow
@pytest.mark.parametrize("before", [4, 1])
@pytest.mark.parametrize("name", stored.HELD)
def test_two_go_on_with_what_four_or_one_saved(name, before, passed_on):
    _, found, told = passed_on
    model = spread.network()
    _, optimizer = stored.retained(model, name)
    stored.steps(model, optimizer, range(4, 8))
    same(found, f"{name} of {before}", many.whole(model.named_parameters()), rough=200 if name == "int8" else 1)
    assert told[f"{name} of {before}"] == [1, 4, 4]
    assert told[f"{name} of {before}, alike"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["checkpoint", "folder"])
@pytest.mark.parametrize("name", stored.HELD)
def test_one_goes_on_with_what_four_gave_to_two(name, way, folder, passed_on):
    model = spread.network()
    keeper, optimizer = stored.restored(folder / f"checkpoint-{name}-2", model, name)
    if way == "folder":
        keeper.detach()
        keeper = type(keeper).load(folder / f"folder-{name}-2", model, log_every=2).attach(optimizer)
    stored.steps(model, optimizer, range(4, 8))
    same(passed_on[1], f"{name} of 4", many.whole(model.named_parameters()), rough=200 if name == "int8" else 1)
    assert keeper.held.num_tasks == 1


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["ewc", "wva"])
def test_four_processes_hold_a_language_model_as_one_does(mechanism, passed_on):
    pytest.importorskip("transformers")
    model = stored.learned(stored.llama(), mechanism)
    same(passed_on[0], mechanism, many.whole(model.named_parameters()), rough=10)


@pytest.mark.slow
def test_a_keeper_without_room_for_what_it_held_says_so(passed_on):
    told = passed_on[2]["without room"]
    assert told.startswith("FileFormatError: EWC.load_state_dict: 12 of the 12 tensors of this state were not read, ")
    assert "holdfast.integrations.sharding.room_for(keeper, checkpoint_id)" in told


def test_a_state_in_parts_goes_on_as_it_was(alone, tmp_path):
    keeper, optimizer = stored.retained(alone, "ewc")
    stored.store(tmp_path / "checkpoint", alone, optimizer, keeper)
    state = keeper.state_dict()
    assert set(state) == {"keeper", "tensors"}
    assert all(hasattr(tensor, "to_local") for tensor in state["tensors"].values())
    twin = stored.sharded(1)
    again, second = stored.restored(tmp_path / "checkpoint", twin, "ewc")
    for model, steps in ((alone, optimizer), (twin, second)):
        stored.steps(model, steps, range(4, 8))
    expected = many.whole(alone.named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in many.whole(twin.named_parameters()).items())
    assert again.report() == keeper.report()


def test_room_is_made_only_for_what_is_there(alone, tmp_path):
    keeper, optimizer = stored.retained(alone, "ewc")
    with pytest.raises(FileFormatError, match=r"room_for: '.*nowhere' holds no checkpoint of torch"):
        room_for(keeper, tmp_path / "nowhere")
    stored.store(tmp_path / "checkpoint", alone, optimizer, keeper)
    with pytest.raises(FileFormatError, match="has nothing under 'held'; it has 'keeper', 'model', 'optimizer'"):
        room_for(keeper, tmp_path / "checkpoint", key="held")
    assert room_for(keeper, tmp_path / "checkpoint")  # what it says to do


def test_a_path_goes_on_after_an_evaluation(alone, tmp_path):
    path, _ = stored.followed(alone, "adam", steps=range(3))
    expected = many.whole(path.importance(restart=False).items())
    with torch.no_grad():
        alone(torch.zeros(1, 3))  # which leaves the weights of the outermost group whole
    distributed.checkpoint.save({"path": path.state_dict()}, checkpoint_id=tmp_path / "path")
    found = many.whole(path.importance(restart=False).items())
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    twin = hf.SynapticIntelligence(alone)
    with torch.no_grad():
        alone(torch.zeros(1, 3))
    room = room_for(twin, tmp_path / "path", key="path")
    distributed.checkpoint.load({"path": room}, checkpoint_id=tmp_path / "path")
    twin.load_state_dict(room)
    found = many.whole(twin.importance().items())
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_path_that_began_before_the_model_was_sharded_says_so(tmp_path):
    with many.group_of_one(tmp_path):
        model = spread.network()
        path, _ = stored.followed(model, "adam", steps=range(2))
        state = path.state_dict()
        state["tensors"]["start/0.weight"] = state["tensors"]["start/0.weight"]
        many.spread_over(model, [], 1)
        assert path.importance(restart=False)  # one process has all of it
        path._start["0.weight"] = torch.zeros(2, 3)  # as where it has a part of it
        with pytest.raises(StateError, match="the path began when the model was sharded in another way, in 1 param"):
            path.importance()
        path.load_state_dict(state)
        assert path.importance()  # what it says to do


def test_adapters_in_shards_are_told_in_one_line_or_work(tmp_path):
    peft = pytest.importorskip("peft")
    from holdfast.integrations.peft import LoraEWC

    with many.group_of_one(tmp_path):
        importance = hf.fisher(spread.network(), [stored.batch(0, 0, 1)])
        model = peft.get_peft_model(spread.network(), peft.LoraConfig(r=2, target_modules=["0", "2"]))
        many.spread_over(model, [], 1)
        with pytest.raises(OptionError, match=r"LoraEWC.retain: the model is sharded, .* products .* hf.EWC"):
            LoraEWC(model, strength=1.0).retain(importance)
        optimizer = stored.optimizer_of(model, "momentum")
        keeper = hf.EWC(model, strength=1.0).attach(optimizer)  # what it says to do
        keeper.retain(hf.fisher(model, [stored.batch(0, 0, 1)]))
        stored.steps(model, optimizer, range(3))
        assert keeper.report().protected == 0.5  # of new adapters B is zero, and with it all that A does


def test_a_model_without_shards_has_no_tensors_beside(tmp_path):
    keeper, _ = stored.retained(spread.network(), "ewc")
    assert set(keeper.state_dict()) == {"keeper"}

"""What two processes measure on the shards of a model is what one measures on the whole."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tests import many
from tests.integrations import in_shards, spread
from torch import distributed

import holdfast as hf

if not distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)
pytest.importorskip("transformers")

SLOWLY = {"strange", "experts"}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes found: the folder, tensors by case and name, and what they told."""
    folder = tmp_path_factory.mktemp("shards")
    many.run_together(in_shards, folder)
    return folder, load_file(folder / "found.safetensors"), json.loads((folder / "told.json").read_text())


def of(found, case: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{case}/"): value for key, value in found.items() if key.startswith(f"{case}/")}


@pytest.fixture
def alone(tmp_path):
    with many.group_of_one(tmp_path):
        yield spread.spread_over(spread.network(), 1)


def check(own, expected: hf.Importance, *, rough: bool) -> None:
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        assert (own[key] - value).norm() <= (1e-2 if rough else 1e-5) * value.norm(), key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*measured one example at a time")
@pytest.mark.parametrize("name", in_shards.CASES)
def test_an_importance_is_that_of_one_process(name, two):
    _, found, told = two
    case = in_shards.CASES[name]
    expected = case.estimator(in_shards.built(case), case.data(slice(0, in_shards.COUNT)))
    check(of(found, name), expected, rough=case.rough)
    num_examples, num_targets, warned = told[name]
    assert (num_examples, num_targets) == (expected.info.num_examples, expected.info.num_targets)
    assert bool(warned) == (name in SLOWLY)


@pytest.mark.filterwarnings("ignore:.*measured one example at a time")
@pytest.mark.parametrize("name", ["top classes", "signal", "bfloat16", "exact", "strange", "experts", "images"])
def test_one_process_measures_its_only_shard(name, alone):
    case = in_shards.CASES[name]
    data = case.data(slice(0, in_shards.COUNT))
    found = case.estimator(in_shards.sharded(case, 1), data)
    check(many.whole(found.items()), case.estimator(in_shards.built(case), data), rough=case.rough)


@pytest.mark.slow
def test_a_process_without_data_ends_all_of_them(two):
    told = two[2]
    assert [told[f"error in process {rank}"] for rank in range(2)] == ["EmptyDataError", "StateError"]


@pytest.mark.slow
def test_what_two_saved_one_loads(two):
    folder, found, _ = two
    model = in_shards.built(in_shards.CASES["uneven"])
    loaded = hf.Importance.load(folder / "saved", model=model)
    for key, value in of(found, "uneven").items():
        assert torch.equal(loaded[key], value)
    assert loaded.info.num_examples == in_shards.COUNT


@pytest.mark.slow
@pytest.mark.parametrize("name", in_shards.KEEPERS)
def test_what_is_held_so_keeps_as_in_one_process(name, two):
    _, found, _ = two
    model = in_shards.kept(name, in_shards.built(in_shards.CASES["exact"]), 0, 1)
    for key, value in of(found, f"kept {name}").items():
        torch.testing.assert_close(value, dict(model.named_parameters())[key], rtol=1e-3, atol=1e-4)


def test_examples_that_mix_are_refused(alone):
    alone.register_forward_hook(lambda module, args, out: out - out.mean(0))
    with pytest.raises(hf.errors.CoupledExamplesError, match="mixes its examples"):
        hf.fisher(alone, [(torch.randn(4, 3), torch.randint(3, (4,)))])


def test_an_error_leaves_the_model_as_it_was(alone):
    before = in_shards.state_of(alone)
    with pytest.raises(hf.errors.NotFiniteError):
        hf.fisher(alone, [(torch.full((4, 3), torch.nan), torch.randint(3, (4,)))], kind="empirical")
    assert in_shards.state_of(alone) == before
    assert hf.fisher(alone, [(torch.randn(4, 3), torch.randint(3, (4,)))])

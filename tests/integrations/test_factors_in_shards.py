"""Kronecker factors that processes measure together, each those of its own layers, are those of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import many
from tests.integrations import factors_in_shards, in_shards
from torch import distributed

import holdfast as hf
from holdfast.curvature.factored import factors_to_tensors
from holdfast.curvature.owners import cost_of, owners

if not distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)
pytest.importorskip("transformers")

FACTORED = [name for name in factors_in_shards.CASES if not name.startswith(("local", "mas"))]


class Found:
    """What several processes left in a folder."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.told = [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(count)]

    def layers(self, name: str) -> list[dict[str, torch.Tensor]]:
        """Each process's, by "weight/part"."""
        return [load_file(self.folder / f"{name}-{rank}.safetensors") for rank in range(len(self.told))]

    def diagonal(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    many.run_together(factors_in_shards, folder, timeout=1800)
    return Found(folder, 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    many.run_together(factors_in_shards, folder, count=4, timeout=1800)
    return Found(folder, 4)


def alone(name: str) -> hf.FactoredImportance:
    case = factors_in_shards.CASES[name]
    return case.estimator(in_shards.built(case), case.data(slice(0, in_shards.COUNT)))


def check(found, expected, *, rough: bool) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] - value).norm() <= (1e-2 if rough else 1e-5) * value.norm(), key


def check_case(several: Found, name: str) -> None:
    expected, case = alone(name), factors_in_shards.CASES[name]
    tensors, forms = factors_to_tensors(expected)
    layers, told = several.layers(name), [each[name] for each in several.told]
    assert sum(map(len, layers)) == len(tensors)  # none is with two
    check({key: value for own in layers for key, value in own.items()}, tensors, rough=case.rough)
    check(several.diagonal(name), expected.diagonal, rough=case.rough)
    assert {key: form for each in told for key, form in each["forms"].items()} == json.loads(json.dumps(forms))
    assert sum(each["bytes"] for each in told) == factors_in_shards.num_bytes(expected)
    reads = {weight: f.reads for weight, f in expected.items() if f.reads is not None}
    where = owners({weight: cost_of(f) for weight, f in expected.items()}, len(told), groups=reads)
    for rank, each in enumerate(told):
        assert each["names"] == expected.parameter_names()
        assert {key.rpartition("/")[0] for key in layers[rank]} == {key for key in where if where[key] == rank}
        assert {key: owner for key, (owner, _) in each["elsewhere"].items()} == {
            key: owner for key, owner in where.items() if owner != rank
        }
        assert all(form == json.loads(json.dumps(forms[key])) for key, (_, form) in each["elsewhere"].items())
        info = expected.info
        assert each["info"] == [info.kind, info.num_examples, info.num_targets, dict(info.details)]
        assert each["model"] == info.model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*have the diagonal instead of factors")
@pytest.mark.parametrize("name", FACTORED)
def test_factors_are_those_of_one_process(name, two):
    check_case(two, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", factors_in_shards.OF_FOUR)
def test_factors_of_four_processes_are_those_of_one(name, four):
    check_case(four, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in factors_in_shards.CASES if name not in FACTORED])
def test_what_is_measured_layer_by_layer_or_at_once_is_that_of_one_process(name, two):
    expected = alone(name)
    check(two.diagonal(name), expected, rough=False)
    for each in two.told:
        assert each[name]["info"][1:3] == [expected.info.num_examples, expected.info.num_targets]


@pytest.mark.slow
def test_a_batch_is_what_all_processes_have_in_a_step(two):
    expected = factors_in_shards.BATCHED(in_shards.built(in_shards.LLAMA()), factors_in_shards.joint())
    check(load_file(two.folder / "batched.safetensors"), expected, rough=False)


@pytest.mark.slow
def test_each_process_takes_probes_of_its_share(two):
    for name in ("measure", "measure texts"):
        numbers = [each[name]["probes"] for each in two.told]
        assert sum(number for number, _ in numbers) == in_shards.COUNT
        assert [rise for _, rise in numbers] == [0.0, 0.0]


@pytest.mark.slow
def test_the_folder_is_that_of_one_process(two, tmp_path):
    expected = alone("expand")
    expected.save(tmp_path / "expected")
    for name in ("importance_config.json", "README.md"):
        assert (two.folder / "saved" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert {path.name for path in (two.folder / "saved").iterdir()} == {
        path.name for path in (tmp_path / "expected").iterdir()
    }
    model = in_shards.built(factors_in_shards.CASES["expand"])
    for name, factor in (("saved", 1.0), ("saved twice", 2.0)):
        loaded = hf.FactoredImportance.load(two.folder / name, model=model)
        assert list(loaded) == list(expected)
        check(factors_to_tensors(loaded)[0], factors_to_tensors(factor * expected)[0], rough=False)
        assert not loaded.elsewhere


@pytest.mark.slow
def test_where_one_process_fails_all_end(two):
    first, second = (each["refusals"] for each in two.told)
    other = "StateError: measuring: another process ended in an error, which it tells."
    of_data = "StateError: measuring: the data of another process ended in an error, which it tells."
    assert first["no data"] == first["broken data"] == first["broken data, local"] == of_data
    assert first["no data, measure"] == first["not a number"] == first["not a number, diagonal"] == other
    assert second["no data"].startswith("EmptyDataError: kfac: the data held no example.")
    assert second["no data, measure"].startswith("EmptyDataError: measure: the data of this process held no example.")
    assert second["broken data"] == second["broken data, local"] == "KeyError: 'gone'"
    assert second["not a number"].startswith("NotFiniteError: kfac: the loss is not finite")
    assert second["not a number, diagonal"].startswith("NotFiniteError: fisher: the loss is not finite")
    assert first["no folder"].startswith("OutputError: ")
    assert second["no folder"].endswith("the first process was refused, and its error says why.")


@pytest.mark.parametrize("name", ["top classes, damped", "exact, uneven", "images", "local, images", "measure"])
def test_one_process_measures_its_only_shard(name, tmp_path):
    case = factors_in_shards.CASES[name]
    with many.group_of_one(tmp_path):
        found = case.estimator(in_shards.sharded(case, 1), case.data(slice(0, in_shards.COUNT)))
        diagonal = many.whole(found.diagonal.items())
    expected = alone(name)
    check(diagonal, expected.diagonal, rough=False)
    if isinstance(found, hf.FactoredImportance):
        check(factors_to_tensors(found)[0], factors_to_tensors(expected)[0], rough=False)
        assert factors_to_tensors(found)[1] == factors_to_tensors(expected)[1]
        assert not found.elsewhere


def test_sums_of_other_processes_layers_are_refused():
    whole = alone("exact, uneven")
    own, rest = hf.curvature.owners.apart(whole, dict.fromkeys(whole, 1) | {next(iter(whole)): 0}, 0)
    part = hf.FactoredImportance(own, whole.diagonal, whole.info, elsewhere=rest)
    assert part.parameter_names() == whole.parameter_names()
    assert part.covers.keys() == whole.covers.keys()
    assert list((part + part).elsewhere) == list(rest)
    assert f"{len(rest)} layers elsewhere" in repr(part)
    with pytest.raises(hf.errors.ParameterMismatchError, match="of the two are with different processes"):
        part + whole

"""Two replicas under DistributedDataParallel find and hold what one process on the joint batch does."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from tests import many
from tests.integrations import replicas
from torch import distributed

import holdfast as hf
from holdfast.curvature.joining import tensors_of
from holdfast.integrations.figures import train_together
from holdfast.integrations.sharding import over_processes

if not distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found, and what it was told."""
    folder = tmp_path_factory.mktemp("two")
    many.run_together(replicas, folder)
    found = [load_file(folder / f"found-{rank}.safetensors") for rank in range(2)]
    return found, [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


def under(found: dict[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(start): value for key, value in found.items() if key.startswith(start)}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", replicas.WAYS)
def test_synaptic_intelligence_is_that_of_the_joint_batch_on_every_replica(name, two):
    found, _ = two
    importance, weights = replicas.two_tasks([0, 1], **replicas.WAYS[name])
    assert sum(float(value.sum()) for value in importance.values()) > 0
    for part, expected in (("importance", importance), ("weights", weights)):
        first, second = (under(each, f"{name}/{part}/") for each in found)
        assert all(torch.equal(value, second[key]) for key, value in first.items())
        same(first, expected)


@pytest.mark.parametrize("name", replicas.MEASURED)
def test_importances_of_shares_are_refused_until_they_are_joined(name, two):
    found, told = two
    for mine in told:
        refused = mine[f"{name}, not joined"]
        assert refused.startswith("StateError: EWC.retain: the importances differ between the processes in ")
        assert " tensors: '" in refused
        assert "\n" not in refused
        assert "holdfast.integrations.sharding.over_processes(importance)" in mine[f"{name}, not joined"]
        assert mine[f"{name}, held before"] == 0
        assert mine[f"{name}, joined"] == [1, 24]
    assert told[0][f"{name}, not joined"] == told[1][f"{name}, not joined"]
    kind, estimator = replicas.MEASURED[name]
    expected = tensors_of(estimator(replicas.built(kind), [replicas.batch(0), replicas.batch(1), replicas.batch(0)]))
    for each in found:
        same(under(each, f"{name}/joined/"), expected)


@pytest.mark.parametrize("name", replicas.WRAPPED)
def test_what_is_measured_on_replicas_is_of_all_data(name, two):
    found, told = two
    kind, estimator = replicas.WRAPPED[name]
    together = replicas.shares([0, 1]) if "batched" in name else [replicas.batch(0), replicas.batch(1)]
    expected = estimator(replicas.built(kind), together)
    for each, notes in zip(found, told, strict=True):
        same(under(each, f"{name}/wrapped/"), tensors_of(expected))
        assert notes[f"{name}, wrapped"] == [expected.info.num_examples, expected.info.num_targets, 2]


def test_what_is_joined_is_not_joined_again(two):
    for told in two[1]:
        same, warned = told["joined again"]
        assert same
        assert warned.startswith("over_processes: this 'fisher-exact' importance is of all processes' data already")


def test_who_has_all_data_in_every_process_gets_the_same_mean(two):
    for told in two[1]:
        assert told["all data"] == 16
        assert told["all data differ by"] < 1e-6


def test_an_error_in_one_process_ends_all(two):
    first, second = two[1]
    assert second["halted"] == second["halted, measure"] == "ValueError: no more data"
    assert second["no data"].startswith("EmptyDataError: kfac: the data held no example")
    for name, where in (("halted", "fisher"), ("no data", "kfac"), ("halted, measure", "measure")):
        assert first[name] == f"StateError: {where}: another process ended in an error, which it tells."


def test_what_replicas_calibrate_is_alike(two):
    first, second = (told["calibrated"] for told in two[1])
    assert first == second
    assert first[0] > 0


def test_a_compiled_replica_is_compared_and_a_bare_model_is_not(two):
    for told in two[1]:
        assert told["compiled"].startswith("StateError: WVA.retain: the importances differ between the processes in")
        assert "in 4 of 4 tensors: '1.bias', '1.weight', '3.bias', '3.weight'. Replicas" in told["compiled"]
        assert told["bare"] == ""


def test_nats_per_unit_are_the_same_in_all_processes(two):
    (first, *joined), (second, *other) = (told["nats"] for told in two[1])
    assert first != second
    assert joined == other == [pytest.approx((first + second) / 2), 2.0]  # of equal shares; the largest scatter


@pytest.mark.parametrize("lesson", ["lesson", "lesson, wrapped after"])
def test_a_lesson_ends_at_the_same_weights_where_probes_and_data_differ(lesson, two):
    found, told = two
    first, second = (under(each, f"{lesson}/") for each in found)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert told[0][lesson] == told[1][lesson]
    begun, increment, _ = told[0][lesson]
    assert begun > 0
    assert 0 < increment <= 1e-4


def test_a_keeper_of_one_process_waits_for_no_other(two):
    (increment,), nothing = (told["lesson, alone"] for told in two[1])
    assert 0 < increment <= 1e-4
    assert nothing == []


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_replicas_that_rehearse_their_own_past_stay_equal(dropout, two):
    found, told = two
    first, second = (under(each, f"rehearsed, dropout {dropout}/") for each in found)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert told[0][f"rehearsed, dropout {dropout}"] == told[1][f"rehearsed, dropout {dropout}"]
    if dropout == 0:
        weights, loss = replicas.rehearsed([0, 1])
        same(first, weights)
        assert told[0]["rehearsed, dropout 0.0"] == pytest.approx(loss, rel=1e-4)


def test_a_rehearsal_of_a_bare_model_is_told_who_trains_it(two):
    found, told = two
    for each in found:
        same(under(each, "rehearsed, dropout 0.0/"), under(each, "rehearsed, wrapped after/"))
    assert told[0]["rehearsed, wrapped after"] == told[1]["rehearsed, dropout 0.0"]


def test_a_rehearsal_of_one_process_waits_for_no_other(two):
    first, second = (told["rehearsed, alone"] for told in two[1])
    assert first == pytest.approx(replicas.rehearsed([0, 1])[1], rel=1e-4)
    assert second is None


def test_what_cannot_be_joined_is_told_in_all_processes(two):
    for told in two[1]:
        assert told["si"].startswith("OptionError: over_processes: 'si' is no mean over targets, and needs none")
        assert told["mas-batched"].startswith(
            "OptionError: over_processes: 'mas-batched' is an absolute value of each pro"
        )
        assert told["no examples"].startswith("OptionError: over_processes: num_examples of this importance (fisher-")
        assert told["other kinds"].startswith("ParameterMismatchError: over_processes: kind, unit, calibration, names")


def test_a_process_that_retains_alone_is_told_how(two):
    first, _ = two[1]
    assert first["alone"].startswith("StateError: EWC.retain: not all processes of the DistributedDataParallel model")
    assert "the bare model, model.module" in first["alone"]
    assert first["alone, bare"] == ""
    assert first["alone, measuring"].startswith("StateError: fisher: not all 2 processes of the DistributedDataParalle")


def test_one_process_joins_with_itself(tmp_path):
    with many.group_of_one(tmp_path):
        own = replicas.MEASURED["kfac"][1](replicas.built("mlp"), [replicas.batch(0)])
        joined = over_processes(own)
        assert joined.info == own.info
        same(tensors_of(joined), tensors_of(own))


def test_a_trainer_tells_its_keeper_that_others_train_too(tmp_path):
    keeper = hf.EWC(replicas.built("mlp"))
    train_together(keeper, num_processes=1)
    assert keeper.group is None
    with many.group_of_one(tmp_path):
        train_together(keeper, num_processes=2)
        assert keeper.group is distributed.group.WORLD
        assert copy.deepcopy(keeper).group is distributed.group.WORLD
    assert keeper.group is None

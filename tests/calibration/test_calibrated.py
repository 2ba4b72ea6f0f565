"""What a forecast is worth is found along made-up lessons, and stands in the importance, the keeper and its files."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.moments.test_state import assert_same, snapshot
from torch import nn

import holdfast as hf
from holdfast.calibration import lessons_factor
from holdfast.errors import EmptyDataError, FileFormatError, OptionError

BUDGET = 0.05


def task(seed: int, *, size: int = 768) -> list:
    """Batches of a task whose inputs fill few of their directions, as images do."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.randn(size, 4, generator=generator)
    inputs = inside @ torch.randn(4, 10, generator=generator) + 0.1 * torch.randn(size, 10, generator=generator)
    labels = (inside @ torch.randn(4, 4, generator=generator)).argmax(dim=1)
    return list(zip(inputs.split(32), labels.split(32)))


def learned(*layers: nn.Module) -> tuple[nn.Module, list, list]:
    """A network that has learned a task, its batches, and some that it has not seen."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(10, 32), *layers, nn.ReLU(), nn.Linear(32, 4))
    data = task(0)
    train(model, torch.optim.Adam(model.parameters(), lr=5e-3), data[:12])
    return model, data[:12], data[12:]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list, *, epochs: int = 15) -> None:
    model.train()
    for inputs, labels in data * epochs:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def adam(parameters: list) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-3)


OPTIONS = {"budget": BUDGET, "steps": 40, "lessons": 2, "optimizer": adam}


@pytest.mark.parametrize("measure", [hf.fisher, hf.kfac])
def test_a_lesson_that_is_held_to_a_calibrated_forecast_costs_about_the_budget(measure):
    model, data, held_out = learned()
    importance = measure(model, data)
    found = hf.calibrated(model, importance, data, probes=held_out, **OPTIONS)
    probes, start = hf.probes_of(model, held_out, num_examples=None), copy.deepcopy(model.state_dict())
    rises = {}
    for name, held in (("not calibrated", importance), ("calibrated", found)):
        model.load_state_dict(start)
        optimizer = adam(list(model.parameters()))
        keeper = hf.EWC(model, budget=BUDGET).attach(optimizer).retain(held)
        train(model, optimizer, task(7)[:12], epochs=8)
        rises[name] = probes.rise(model)
        assert keeper.predicted_rise() <= BUDGET * 1.001
        keeper.detach()
    assert BUDGET / 10 < rises["calibrated"] < 2 * BUDGET < rises["not calibrated"]


def test_the_model_is_given_back_also_after_an_error():
    model, data, _ = learned(nn.BatchNorm1d(32), nn.Dropout(0.1))
    importance = hf.fisher(model, data)
    model.train()
    next(iter(model.children())).eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, weights = snapshot(model), copy.deepcopy(model.state_dict())
    gradients = [parameter.grad for parameter in model.parameters()]

    def broken(keeper: hf.EWC, number: int) -> None:
        optimizer = adam(list(model.parameters()))
        keeper.attach(optimizer)
        train(model, optimizer, data, epochs=1)
        raise RuntimeError("broken")

    hf.calibrated(model, importance, data, **OPTIONS)
    with pytest.raises(RuntimeError, match="broken"):
        hf.calibrated(model, importance, data, lesson=broken, budget=BUDGET)
    assert_same(before, snapshot(model))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))


@pytest.mark.filterwarnings("ignore:calibrated. in round 1, the last")
def test_the_same_call_finds_the_same_factor():
    model, data, _ = learned()
    importance = hf.kfac(model, data)
    factors = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        factors.add(hf.calibrated(model, importance, data, rounds=1, **OPTIONS).info.nats_per_unit)
    assert len(factors) == 1


def test_the_largest_factor_of_the_last_round_counts():
    model = nn.Linear(2, 1, bias=False)
    start = model.weight.detach().clone()
    importance = hf.Importance({"weight": torch.ones(1, 2)}, hf.ImportanceInfo("made-up", 10, nats_per_unit=1.0))
    told = []

    def lesson(keeper: hf.EWC, number: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        keeper.attach(optimizer)
        model.weight.grad = torch.tensor([[10.0, 0.0]]) if number else torch.tensor([[0.0, 10.0]])
        optimizer.step()
        told.append(number)

    def rise() -> float:  # 8 times the quadratic one along one weight, 2 times along the other
        return 0.5 * float((torch.tensor([8.0, 2.0]) * (model.weight.detach() - start).square()).sum())

    found = lessons_factor(model, importance, rise=rise, lesson=lesson, budget=0.1, lessons=2, rounds=5)
    assert told == [0, 1, 0, 1]  # under the factor of the first round the second keeps the budget
    assert found.nats_per_unit == pytest.approx(8.0, rel=1e-3)
    assert found.measured == pytest.approx(0.1, rel=1e-2)
    assert found.predicted == pytest.approx(0.1 / 8, rel=1e-2)
    assert found.scatter == pytest.approx(4.0, rel=1e-2)  # foreseen 8, and 2 along the other
    once = lessons_factor(model, importance, rise=rise, lesson=lesson, budget=0.1, lessons=2, rounds=1)
    assert once.scatter == pytest.approx(8.0, rel=1e-2)
    told.clear()
    unknown = importance.with_info(nats_per_unit=None)
    free = lessons_factor(model, unknown, rise=rise, lesson=lesson, budget=0.1, lessons=2, rounds=1)
    assert told == [0, 1, 0, 1]  # held by nothing, and then by what that showed
    assert (free.nats_per_unit, free.measured) == (pytest.approx(8.0, rel=1e-3), pytest.approx(0.1, rel=1e-2))
    assert torch.equal(model.weight.detach(), start)


@pytest.mark.parametrize(("worth", "settles"), [(8.0, True), (1e6, True), (None, False)])
def test_it_says_where_the_last_round_still_costs_too_much(worth: float | None, settles: bool):
    """A rise that is so many times the forecast settles; one that no hold lowers does not, however many rounds."""
    model = nn.Linear(2, 1, bias=False)
    importance = hf.Importance({"weight": torch.ones(1, 2)}, hf.ImportanceInfo("made-up", 10, nats_per_unit=1.0))
    start = model.weight.detach().clone()

    def lesson(keeper: hf.EWC, number: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        keeper.attach(optimizer)
        model.weight.grad = torch.full_like(model.weight, -10.0)
        optimizer.step()

    def rise() -> float:
        return 0.3 if worth is None else worth * 0.5 * float((model.weight.detach() - start).square().sum())

    for rounds in (2, 4):
        found = lessons_factor(model, importance, rise=rise, lesson=lesson, budget=0.1, lessons=2, rounds=rounds)
        assert (found.why_not_settled == "") == settles
        assert (found.largest > 0.15) != settles
        if not settles:
            assert (
                f"in round {rounds}, the last, a made-up lesson still raised the old loss by 0.3 nats, 3.0 times the"
                in (found.why_not_settled)
            )


def test_the_user_is_warned_of_it_and_more_rounds_help():
    model, data, held_out = learned()
    importance = hf.fisher(model, data)
    given = {"probes": held_out, **OPTIONS}
    with pytest.warns(UserWarning, match=r"calibrated: in round 1, the last, .* Give more rounds \(now 1\), a larger"):
        hf.calibrated(model, importance, data, rounds=1, **given)
    hf.calibrated(model, importance, data, rounds=4, **given)  # a warning would be an error


def test_a_keeper_that_is_attached_takes_a_calibration_for_no_training():
    model, data, held_out = learned()
    optimizer = adam(list(model.parameters()))
    keeper = hf.EWC(model, strength=1.0).attach(optimizer).retain(hf.fisher(model, data))
    train(model, optimizer, task(1)[:3], epochs=1)
    hf.calibrated(model, hf.fisher(model, data), data, probes=held_out, **OPTIONS)  # a warning would be an error
    train(model, optimizer, task(1)[:3], epochs=1)
    assert keeper.report().num_steps == 6
    with pytest.warns(UserWarning, match="not by a step"):  # it still looks
        train(model, torch.optim.SGD(model.parameters(), lr=0.5), task(1)[:3])


def test_where_nothing_rises_the_importance_stays_as_it_was():
    model, data, _ = learned()
    importance = hf.fisher(model, data)

    def idle(keeper: hf.EWC, number: int) -> None:
        pass

    with pytest.warns(UserWarning, match="no lesson raised the old loss, .* Give more steps, an optimizer"):
        found = hf.calibrated(model, importance, data, lesson=idle)
    assert found is importance


def test_an_importance_says_how_it_was_calibrated(tmp_path):
    model, data, _ = learned()
    plain = hf.fisher(model, data)
    assert plain.info.calibration == "none"
    importance: Any
    for importance in (plain, hf.kfac(model, data)):
        found = hf.calibrated(model, importance, data, **OPTIONS)
        assert found.info.calibration == "made-up lessons"
        assert (found.info.calibrated_at, (found.info.scatter or 0) >= 1) == (BUDGET, True)
        assert found.info == dataclasses.replace(
            importance.info,
            nats_per_unit=found.info.nats_per_unit,
            calibration="made-up lessons",
            calibrated_at=BUDGET,
            scatter=found.info.scatter,
        )
        found.save(tmp_path / found.info.kind)
        assert type(found).load(tmp_path / found.info.kind).info == found.info
    both = plain + hf.calibrated(model, plain, data, **OPTIONS)
    assert (both.info.calibration, both.info.scatter) == ("none", None)
    with pytest.raises(FileFormatError, match="calibration is 'guessed', expected one of 'none', 'made-up lessons'"):
        hf.ImportanceInfo.from_dict({**dataclasses.asdict(plain.info), "calibration": "guessed"}, where="here")


def test_an_importance_that_was_saved_under_older_names():
    info = hf.ImportanceInfo("fisher-exact", 10, nats_per_unit=3.0, calibration="made-up lessons", calibrated_at=0.05)
    content = dataclasses.asdict(info)
    older = {"rehearsed_at": content.pop("calibrated_at"), **content, "calibration": "rehearsed lessons"}
    assert hf.ImportanceInfo.from_dict(older, where="here") == info
    with pytest.raises(FileFormatError, match="here: its factor .* random directions, .* Measure again"):
        hf.ImportanceInfo.from_dict({**older, "calibration": "random directions", "rehearsed_at": None}, where="here")


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_an_importance_in_an_unknown_unit_is_calibrated_from_lessons_that_nothing_holds(scale):
    model, data, held_out = learned()
    importance = hf.mas(model, data) * scale
    assert importance.info.nats_per_unit is None
    found = hf.calibrated(model, importance, data, probes=held_out, **OPTIONS)
    assert found.info.nats_per_unit is not None
    probes = hf.probes_of(model, held_out, num_examples=None)
    optimizer = adam(list(model.parameters()))
    keeper = hf.EWC(model, budget=BUDGET).attach(optimizer).retain(found)
    train(model, optimizer, task(7)[:12], epochs=8)
    assert BUDGET / 10 < probes.rise(model) < 2 * BUDGET
    keeper.detach()


def test_a_rise_is_called_nats_only_where_it_was_calibrated():
    model, data, _ = learned()
    plain = hf.fisher(model, data)
    found = hf.calibrated(model, plain, data, **OPTIONS)
    keeper = hf.EWC(model, budget=BUDGET).retain(found)
    assert (keeper.report().rise_unit, keeper.report().scatter) == ("nats", found.info.scatter)
    assert f"predicted rise 0 nats, within a factor {found.info.scatter:.2g}" in str(keeper.report())
    twin = hf.EWC(model, budget=BUDGET)
    twin.load_state_dict(keeper.state_dict())
    assert twin.report() == keeper.report()
    keeper.retain(plain)
    assert (keeper.report().rise_unit, keeper.report().scatter) == ("by the quadratic model", None)
    assert str(keeper.report()).endswith("predicted rise 0 by the quadratic model")


def test_the_default_budget_without_probes_warns_unless_it_was_calibrated():
    model, data, _ = learned()
    importance = hf.fisher(model, data)
    with pytest.warns(UserWarning, match=r"or retain hf\.calibrated\(model, importance, data\)"):
        hf.EWC(model).retain(importance)
    hf.EWC(model).retain(hf.calibrated(model, importance, data, optimizer=adam, steps=60, lessons=1))


@pytest.mark.filterwarnings("ignore:calibrated. in round 1, the last")
def test_probes_that_the_importance_brings_are_looked_at():
    model, data, held_out = learned()
    importance = hf.fisher(model, data)
    probes = hf.probes_of(model, held_out, num_examples=None)
    given = hf.calibrated(model, importance, data, probes=held_out, rounds=1, **OPTIONS)
    brought = hf.calibrated(model, importance.with_probes(probes), data, rounds=1, **OPTIONS)
    assert brought.info == given.info
    assert brought.probes is probes


def test_one_batch_is_cut_into_halves_and_other_losses_are_learned():
    model, data, _ = learned()
    whole = [tuple(torch.cat(column) for column in zip(*data))]
    assert hf.calibrated(model, hf.fisher(model, whole), whole, **OPTIONS).info.calibration == "made-up lessons"
    regression = [(inputs, model(inputs).detach() + 0.1 * torch.randn(len(inputs), 4)) for inputs, _ in data]
    importance = hf.fisher(model, regression, loss="gaussian")
    assert (
        hf.calibrated(model, importance, regression, loss="gaussian", **OPTIONS).info.calibration == "made-up lessons"
    )


def test_bad_input_is_one_clear_error():
    model, data, _ = learned()
    importance = hf.fisher(model, data)
    with pytest.raises(OptionError, match="calibrated: steps is 0; expected a whole number >= 1"):
        hf.calibrated(model, importance, data, steps=0)
    with pytest.raises(OptionError, match="fewer than two examples; one half is learned from"):
        hf.calibrated(model, importance, [(torch.randn(1, 10), torch.tensor([0]))])
    with pytest.raises(EmptyDataError, match="calibrated: the data held no example"):
        hf.calibrated(model, importance, [])
    with pytest.raises(OptionError, match="optimizer= has no part in a lesson of your own"):
        hf.calibrated(model, importance, data, lesson=lambda keeper, number: None, optimizer=adam)
    with pytest.raises(OptionError, match=r'loss="similarity" says how far .* Pass lesson='):
        hf.calibrated(model, importance, data, loss="similarity")
    with pytest.raises(OptionError, match="budget is -1; expected nats above 0"):
        hf.calibrated(model, importance, data, budget=-1)

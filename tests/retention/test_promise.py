"""A budget that is measured: kept during a lesson, taken back at its end, saved and resumed."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import holdfast as hf
from holdfast.errors import FileFormatError, NotFiniteError, OptionError, ParameterMismatchError, StateError
from holdfast.retention import closing

BUDGET = 0.05


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


def task(seed: int) -> tuple[list, list]:
    """Batches to train on, and as many that no training sees."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(512, 8, generator=generator)
    labels = (inputs @ torch.randn(8, 4, generator=generator)).argmax(dim=1)
    batches = list(zip(inputs.split(32), labels.split(32)))
    return batches[:8], batches[8:]


def train(model, optimizer, data, *, epochs: int = 25, steps: int | None = None) -> None:
    done = 0
    for _ in range(epochs):
        for inputs, labels in data:
            if done == steps:
                return
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            done += 1


def learned(measure=hf.kfac, *, budget: float | None = BUDGET, probed: bool = True, kind=hf.EWC, **options):
    """A network that has learned a task, its keeper, and the optimizer."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    given = {"strength": 1.0} if budget is None else {"budget": budget}
    keeper = kind(model, **{"probe_every": 4, **given, **options}).attach(optimizer)
    data, held_out = task(0)
    train(model, optimizer, data)
    keeper.retain(measure(model, data), probes=hf.probes_of(model, held_out) if probed else None)
    return model, keeper, optimizer


def test_a_lesson_raises_an_old_skill_by_no_more_than_its_budget():
    plain, keeper, optimizer = learned()
    other = hf.probes_of(plain, task(0)[1], num_examples=None)
    keeper.detach()
    free = copy.deepcopy(plain)
    train(free, torch.optim.Adam(free.parameters(), lr=5e-3), task(1)[0])
    keeper.attach(optimizer)
    train(plain, optimizer, task(1)[0])
    keeper.close()
    (skill,) = keeper.skills
    assert other.rise(free) > 10 * BUDGET
    assert 0.3 * BUDGET < skill.increment <= BUDGET
    assert other.rise(plain) < 1.5 * BUDGET  # also where no probe is


@pytest.mark.parametrize("measure", [hf.fisher, hf.kfac])
@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9), torch.optim.Adam])
def test_whatever_the_importance_and_the_optimizer(measure, optimizer):
    model, keeper, _ = learned(measure)
    keeper.detach()
    inner = optimizer(model.parameters())
    keeper.attach(inner)
    for number in (1, 2):
        train(model, inner, task(number)[0], epochs=12)
        keeper.close()
        assert all(skill.increment <= BUDGET * 1.001 for skill in keeper.skills)
        keeper.retain(measure(model, task(number)[0]), probes=hf.probes_of(model, task(number)[1]))
        assert [skill.increment for skill in keeper.skills] == [0.0] * (number + 1)


def test_each_skill_may_have_a_budget_of_its_own():
    model, keeper, optimizer = learned()
    train(model, optimizer, task(1)[0])
    keeper.close()
    keeper.retain(hf.kfac(model, task(1)[0]), probes=hf.probes_of(model, task(1)[1]), budget=0.004)
    train(model, optimizer, task(2)[0])
    keeper.close()
    first, second = keeper.skills
    assert first.increment <= BUDGET * 1.001
    assert second.increment <= 0.004 * 1.001


def test_wva_is_steered_and_has_no_way_back():
    model, keeper, optimizer = learned(hf.fisher, kind=hf.WVA)
    train(model, optimizer, task(1)[0], epochs=60)
    assert keeper.report().strength != 1.0
    with pytest.raises(OptionError, match="WVA keeps no anchors"):
        keeper.rewind()
    (skill,) = keeper.skills
    assert skill.increment < 4 * BUDGET
    with pytest.warns(UserWarning, match="no way back") if skill.ratio > 1 else nullcontext():
        keeper.close()


def test_probes_of_a_strength_measure_and_steer_nothing():
    model, keeper, optimizer = learned(budget=None)
    train(model, optimizer, task(1)[0])
    keeper.close()
    (skill,) = keeper.skills
    assert keeper.report().strength == 1.0
    assert skill.rise > 0
    rise = skill.rise
    keeper.rewind(rise / 2)
    assert keeper.skills[0].rise <= rise / 2


def test_probes_of_the_importance_are_taken_along(tmp_path):
    model, keeper, _ = learned(lambda m, d: hf.kfac(m, d).with_probes(hf.probes_of(m, d)), probed=False)
    assert len(keeper.skills) == 1
    for measure in (hf.fisher, hf.kfac):
        importance = measure(model, task(0)[0]).with_probes(keeper.skills[0].probes)
        assert (2.0 * importance).probes is importance.to("cpu").probes is importance.probes
        assert importance.with_info(kind="x").probes is importance.probes
        importance.save(tmp_path / importance.info.kind)
        assert type(importance).load(tmp_path / importance.info.kind).probes is None


# --- the way back


def test_rewind_of_weights_that_were_trained_elsewhere():
    model, keeper, _ = learned(budget=None)
    keeper.detach()
    train(model, torch.optim.SGD(model.parameters(), lr=0.3), task(1)[0])
    found = keeper.rewind(0.02)
    assert found.kept
    assert found.before[0] > 0.02 >= found.after[0] > 0.015
    assert found.cost is None
    assert keeper.skills[0].increment == found.after[0]


def test_with_data_of_the_new_task_the_best_of_several_ways():
    model, keeper, _ = learned(budget=None)
    keeper.detach()
    train(model, torch.optim.SGD(model.parameters(), lr=0.3), task(1)[0])
    twin = copy.deepcopy(model)
    alone = hf.EWC(twin, strength=1.0)
    alone.load_state(*keeper.state())
    with_data = keeper.rewind(0.02, data=task(1)[0])
    probes = hf.probes_of(model, task(1)[0], loss=lambda o, b: F.cross_entropy(o, b[1], reduction="none"))
    alone.rewind(0.02)
    assert with_data.cost is not None
    assert probes.rise(twin) >= -1e-6  # the other has lost as much or more of the new task


@pytest.mark.parametrize(("measure", "share"), [(hf.fisher, 1.0), (hf.kfac, 0.8)])
def test_the_importance_of_the_new_task_spares_it(measure, share):
    def shown(number: int, part: int) -> list:
        """A task that shows half of the inputs, so that there is room for both."""
        half = torch.arange(8) // 4 == number
        return [(inputs * half, labels) for inputs, labels in task(number)[part]]

    cross_entropy = lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction="none")  # noqa: E731
    model = network()
    train(model, torch.optim.Adam(model.parameters(), lr=5e-3), shown(0, 0))
    keeper = hf.EWC(model, strength=1.0)
    keeper.retain(measure(model, shown(0, 0)), probes=hf.probes_of(model, shown(0, 1), num_examples=128))
    train(model, torch.optim.Adam(model.parameters(), lr=5e-3), shown(1, 0))
    new = hf.probes_of(model, shown(1, 1), loss=cross_entropy, num_examples=128)
    ends = copy.deepcopy(model.state_dict())
    lost = {}
    for informed in (False, True):
        model.load_state_dict(ends)
        found = keeper.rewind(0.02, importance=measure(model, shown(1, 0)) if informed else None)
        assert found.before[0] > 0.1
        assert found.kept
        lost[informed] = new.rise(model)
    assert lost[True] < share * lost[False]


def test_linear_averaging_is_among_the_ways(monkeypatch):
    model, keeper, _ = learned(budget=None)
    keeper.detach()
    train(model, torch.optim.SGD(model.parameters(), lr=0.3), task(1)[0])
    ends = {name: p.detach().clone() for name, p in model.named_parameters()}
    monkeypatch.setattr(closing, "DELTAS", (math.inf,))
    found = keeper.rewind(0.02, data=task(1)[0])
    assert (found.delta, found.kept) == (math.inf, True)
    shares = [
        (p.detach() - keeper.held.anchors[name]) / (ends[name] - keeper.held.anchors[name])
        for name, p in model.named_parameters()
    ]
    t = torch.cat([share[share.isfinite()] for share in shares])
    torch.testing.assert_close(t, t.median().expand_as(t), rtol=1e-2, atol=1e-2)


def test_skills_whose_anchors_conflict_are_named():
    model = network()
    keeper = hf.EWC(model, strength=1.0, accumulate="per_task")
    for number in (0, 1):
        train(model, torch.optim.Adam(model.parameters(), lr=5e-3), task(number)[0])
        keeper.retain(hf.kfac(model, task(number)[0]), probes=hf.probes_of(model, task(number)[1]))
    for skill in keeper.skills:  # as of importances that were measured elsewhere, each at its own weights
        skill.begun = 0.0
    with pytest.warns(UserWarning, match=r"At the best point skill 0 [\d.]+ of 1e-06 nats.*Rehearse"):
        found = keeper.rewind(1e-6)
    assert not found.kept
    ratios = [after / 1e-6 for after in found.after]
    assert max(ratios) < found.before[0] / 1e-6
    assert all(least <= after for least, after in zip(found.least, found.after))
    told = replace(found, after=(0.15, 0.01, 0.3), least=(0.01, 0.0, 0.2), budgets=(0.02, 0.02, 0.02))
    assert (
        "At the best point skill 0 0.15 of 0.02 nats, skill 2 0.3 of 0.02 nats. On all of the way skill 2 0.2 or"
        in (told.why)
    )
    assert "what keeps one skill loses another" in replace(told, least=(0.01, 0.0, 0.01)).why


def test_what_would_cost_too_much_is_left_alone():
    model, keeper, _ = learned(budget=None)
    keeper.detach()
    train(model, torch.optim.SGD(model.parameters(), lr=0.3), task(1)[0])
    weights = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="would cost"):
        found = keeper.rewind(1e-3, data=task(1)[0], max_loss=1e-4)
    assert found.left_alone
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_within_the_budget_nothing_moves():
    model, keeper, _ = learned()
    weights = copy.deepcopy(model.state_dict())
    assert keeper.close() is None
    assert keeper.rewind().multiplier == 0
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_without_probes_the_forecast_is_gone_by():
    model, keeper, _ = learned(budget=None, probed=False)
    keeper.detach()
    train(model, torch.optim.SGD(model.parameters(), lr=0.3), task(1)[0])
    assert keeper.predicted_rise() > 0.02
    assert keeper.rewind(0.02).kept
    assert keeper.predicted_rise() == pytest.approx(0.02, rel=0.05)


# --- words


def test_a_budget_that_nothing_can_keep_by():
    model = network()
    importance = hf.mas(model, task(0)[0])
    with pytest.raises(OptionError, match=r"probes=.*strength="):
        hf.EWC(model, budget=0.1).retain(importance)
    with pytest.raises(OptionError, match=r"probes=.*strength="):
        hf.WVA(model, budget=0.1).retain(importance)
    hf.EWC(model, budget=0.1).retain(importance, probes=hf.probes_of(model, task(0)[1]))


def test_nothing_chosen_is_a_budget_that_wants_probes():
    model = network()
    keeper = hf.EWC(model)
    assert (keeper.budget, keeper.strength) == (0.02, None)
    with pytest.raises(OptionError, match=r"probes=.*strength="):
        keeper.retain(hf.mas(model, task(0)[0]))
    with pytest.warns(UserWarning, match="keeps what the importance foresees alone"):
        keeper.retain(hf.fisher(model, task(0)[0]))
    hf.EWC(model).retain(hf.measure(model, task(0)[0], probes=task(0)[1]))
    assert hf.EWC(model, pull="gradient").strength == 1.0


def test_bad_options():
    model, keeper, _ = learned()
    for budget in (0, -1, "much", math.nan):
        with pytest.raises(OptionError, match="budget"):
            keeper.rewind(budget)
    with pytest.raises(OptionError, match="probe_every"):
        hf.EWC(model, budget=0.1, probe_every=0)
    with pytest.raises(OptionError, match="probes is"):
        keeper.retain(hf.fisher(model, task(0)[0]), probes=task(0)[1])
    with pytest.raises(StateError, match="no task"):
        hf.EWC(model, budget=0.1).rewind(0.1)
    with pytest.raises(OptionError, match="budget"):
        learned(budget=None)[1].rewind()


def test_retain_says_what_was_not_closed():
    model, keeper, optimizer = learned(budget=1e-8)
    train(model, optimizer, task(1)[0], epochs=1)
    with pytest.warns(UserWarning, match=r"close\(\)"):
        keeper.retain(hf.kfac(model, task(1)[0]), probes=hf.probes_of(model, task(1)[1]))


def test_nan_on_a_probe_stops_the_training():
    model, keeper, optimizer = learned()
    with torch.no_grad():
        model[0].weight[0] = torch.nan
    with pytest.raises(NotFiniteError, match="rise of an old skill"):
        train(model, optimizer, task(1)[0], epochs=1)
    assert keeper.optimizers == [optimizer]


def test_probes_that_fit_no_more():
    model, keeper, _ = learned()
    model[0] = nn.Linear(9, 32)
    with pytest.raises(StateError, match="does not take them as it did"):
        keeper.close()


def test_the_report_tells_increment_total_and_budget():
    model, keeper, optimizer = learned()
    train(model, optimizer, task(1)[0])
    keeper.close()
    report = keeper.report()
    (skill,) = keeper.skills
    assert report.skills == ((skill.increment, skill.rise, BUDGET),)
    assert f"{skill.increment:.3g} of {BUDGET:g} nats" in str(report)


# --- kept


@pytest.mark.parametrize("probe_every", [4, 20, "auto"])
def test_a_resumed_lesson_ends_in_the_same_bits(probe_every):
    first, keeper, optimizer = learned(probe_every=probe_every)
    train(first, optimizer, task(1)[0], steps=45)
    tensors, notes = copy.deepcopy(keeper.state())
    weights, state = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())
    rest = task(1)[0][5:] + task(1)[0][:5]
    train(first, optimizer, rest, steps=40)

    second = network()
    second.load_state_dict(weights)
    again = torch.optim.Adam(second.parameters(), lr=5e-3)
    again.load_state_dict(state)
    other = hf.EWC(second, budget=BUDGET, probe_every=probe_every)
    other.load_state(tensors, notes)
    other.attach(again)
    train(second, again, rest, steps=40)
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())
    assert other.report() == keeper.report()
    assert keeper.close() == other.close()


def test_shared_folders_have_no_probes_unless_asked_for(tmp_path):
    model, keeper, _ = learned()
    keeper.save(tmp_path / "shared")
    assert not hf.EWC.load(tmp_path / "shared", model).skills
    keeper.save(tmp_path / "own", probes=True)
    loaded = hf.EWC.load(tmp_path / "own", model)
    assert len(loaded.skills) == 1
    assert loaded.skills[0].budget == BUDGET
    with torch.no_grad():
        model[2].weight += 0.3 * torch.randn_like(model[2].weight)
    assert loaded.skills[0].probes.rise(model) == keeper.skills[0].probes.rise(model) > 0


def test_state_dict_and_copies_take_them_along():
    model, keeper, optimizer = learned()
    twin, _, other = copy.deepcopy((model, optimizer, keeper))
    assert len(other.skills) == 1
    fresh = hf.EWC(twin, budget=BUDGET, probe_every=4)
    fresh.load_state_dict(keeper.state_dict())
    assert fresh.skills[0].budget == BUDGET


def test_another_budget_holds_for_all_skills_that_have_none_of_their_own(tmp_path):
    model, keeper, _ = learned()
    held_out = hf.probes_of(model, task(0)[1])
    keeper.retain(hf.kfac(model, task(0)[0]), probes=held_out, budget=0.2)
    keeper.budget = 0.1
    assert [skill.budget for skill in keeper.skills] == [0.1, 0.2]
    keeper.save(tmp_path / "budget", probes=True)
    assert [skill.budget for skill in hf.EWC.load(tmp_path / "budget", model, budget=0.3).skills] == [0.3, 0.2]
    strong = hf.EWC.load(tmp_path / "budget", model, strength=2.0)
    assert [skill.budget for skill in strong.skills] == [None, None]
    strong.save(tmp_path / "strength", probes=True)
    again = hf.EWC.load(tmp_path / "strength", model, budget=0.1)
    assert [skill.budget for skill in again.skills] == [0.1, 0.2]
    assert not again.mechanism.projects


def test_a_strength_in_place_of_a_budget_goes_back_nowhere(tmp_path):
    model, keeper, optimizer = learned()
    keeper.detach().save(tmp_path / "k", probes=True)
    strong = hf.EWC.load(tmp_path / "k", model, strength=1e-3).attach(optimizer)
    train(model, optimizer, task(1)[0], epochs=5)
    weights = copy.deepcopy(model.state_dict())
    assert strong.close() is None
    assert strong.skills[0].increment > BUDGET
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("unit", [1e-14, 1e-6, 1.0, 1e14])
def test_the_way_back_is_the_same_in_any_unit_of_the_importance(unit):
    model, first, _ = learned(probed=False, budget=None)
    first.detach()
    held = {name: unit * value for name, value in hf.fisher(model, task(0)[0]).items()}
    keeper = hf.EWC(model, budget=BUDGET).retain(held, probes=hf.probes_of(model, task(0)[1]))
    train(model, torch.optim.Adam(model.parameters(), lr=5e-3), task(1)[0], epochs=5)
    found = keeper.close()
    assert found.kept
    assert found.after[0] > 0.9 * BUDGET


def test_an_error_on_the_way_back_leaves_the_weights():
    model, keeper, _ = learned(budget=None)
    keeper.detach()
    train(model, torch.optim.SGD(model.parameters(), lr=0.3), task(1)[0])
    weights, calls = copy.deepcopy(model.state_dict()), []

    def loss(outputs, batch):
        calls.append(batch)
        return F.cross_entropy(outputs, batch[1], reduction="none" if len(calls) <= len(task(1)[0]) else "mean")

    with pytest.raises(StateError, match="one value per example"):
        keeper.rewind(0.02, data=task(1)[0], loss=loss)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_a_copy_has_the_loss_of_ones_own():
    model, keeper, optimizer = learned()
    cross_entropy = lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction="none")  # noqa: E731
    keeper.retain(hf.kfac(model, task(0)[0]), probes=hf.probes_of(model, task(0)[1], loss=cross_entropy))
    twin, inner, other = copy.deepcopy((model, optimizer, keeper))
    for each, steps in ((model, optimizer), (twin, inner)):
        train(each, steps, task(1)[0], steps=8)
    assert [skill.rise for skill in other.skills] == [skill.rise for skill in keeper.skills]


def test_going_back_counts_what_was_lost_in_this_lesson_alone():
    model, keeper, optimizer = learned()
    for number in (1, 2):
        train(model, optimizer, task(number)[0], epochs=40)
        keeper.close()
        keeper.retain(hf.kfac(model, task(number)[0]), probes=hf.probes_of(model, task(number)[1]))
    first = keeper.skills[0]
    assert first.begun > 0.6 * BUDGET
    keeper.detach()
    train(model, torch.optim.Adam(model.parameters(), lr=5e-3), task(3)[0], epochs=2)
    found = keeper.close()
    assert found.kept
    assert found.before[0] > BUDGET
    assert max(found.after) > 0.9 * BUDGET
    assert found.after == tuple(skill.increment for skill in keeper.skills)


def test_the_forecast_counts_this_lesson_alone_and_in_nats():
    model, keeper, optimizer = learned(budget=None, probed=False, accumulate="per_task")
    train(model, optimizer, task(1)[0], epochs=5)
    keeper.retain(hf.kfac(model, task(1)[0]))
    begun = keeper.predicted_rise()
    assert begun > 0.02
    keeper.detach()
    train(model, torch.optim.Adam(model.parameters(), lr=5e-3), task(2)[0], epochs=2)
    found = keeper.rewind(0.02)
    assert found.kept
    assert found.after[0] == pytest.approx(keeper.predicted_rise() - begun, abs=1e-6)
    assert 0.8 * 0.02 < found.after[0] <= 0.02
    with pytest.raises(OptionError, match=r"not known. Retain with probes="):
        hf.EWC(model, strength=0.01).retain(hf.mas(model, task(0)[0])).rewind(0.02)


def test_a_refused_task_changes_nothing():
    model, keeper, _ = learned()
    with torch.no_grad():
        model[0].weight += 0.1
    notes = keeper.state()[1]
    with pytest.raises(OptionError, match="weight by weight"):
        keeper.retain(hf.fisher(model, task(0)[0]), probes=hf.probes_of(model, task(0)[1]))
    assert keeper.state()[1] == notes


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("skills", 0, "own_budget"), -1),
        (("skills", 0, "begun"), math.nan),
        (("skills", 0, "probes", "batches"), []),
        (("skills", 0, "probes", "batches", 0, "num_targets"), -1),
        (("lesson", "controller", "strength"), "much"),
        (("skills",), [None]),
    ],
)
def test_damaged_skills_are_refused(place, value):
    _, keeper, _ = learned()
    tensors, notes = keeper.state()
    inner = notes["skills"]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    other = hf.EWC(network(), budget=BUDGET)
    with pytest.raises(FileFormatError, match="damaged"):
        other.load_state(tensors, notes)
    assert not other.skills
    assert not other.held.num_tasks


def test_probes_of_another_model_are_told():
    model, keeper, optimizer = learned()
    data, held_out = task(1)
    probes = hf.probes_of(model, held_out)
    keeper.detach()
    train(model, optimizer, data, epochs=1)
    with pytest.warns(UserWarning, match=r"EWC\.retain: the answers of the probes are not those of the model as it is"):
        keeper.retain(hf.kfac(model, data), probes=probes)


@pytest.mark.parametrize("measure", [hf.fisher, hf.kfac])
def test_a_task_that_was_closed_at_other_weights(measure):
    plain, held_out = network(), task(0)[1]
    train(plain, torch.optim.Adam(plain.parameters(), lr=5e-3), task(0)[0])
    importance = measure(plain, task(0)[0]).with_probes(hf.probes_of(plain, held_out))
    then = copy.deepcopy(plain.state_dict())
    here, there = (hf.EWC(model, budget=BUDGET) for model in (plain, copy.deepcopy(plain)))
    here.retain(importance)
    for keeper in (here, there):
        train(keeper.model, torch.optim.Adam(keeper.model.parameters(), lr=5e-3), task(1)[0])
    there.retain(importance, anchors=then)
    assert there.skills[0].increment > BUDGET
    assert there.predicted_rise() == here.predicted_rise() > 0
    assert str(here.rewind()) == str(there.rewind())
    assert all(torch.equal(one, other) for one, other in zip(here.model.parameters(), there.model.parameters()))


def test_two_skills_closed_at_two_places_balance_between_them():
    base = network()
    models, measured = [], []
    for number in (0, 1):
        model = copy.deepcopy(base)
        train(model, torch.optim.Adam(model.parameters(), lr=5e-3), task(number)[0], epochs=5)
        models.append(model)
        measured.append(hf.fisher(model, task(number)[0]).with_probes(hf.probes_of(model, task(number)[1])))
    keeper = hf.EWC(base, strength=1.0, accumulate="per_task")
    for model, importance in zip(models, measured):
        keeper.retain(importance, anchors=model.state_dict())
    for name, anchor in keeper.held.anchors.items():
        one, other = (importance[name] for importance in measured)
        theta = [model.state_dict()[name] for model in models]
        wanted = torch.where(one + other > 0, (one * theta[0] + other * theta[1]) / (one + other), anchor)
        torch.testing.assert_close(anchor, wanted)
    assert [skill.begun for skill in keeper.skills] == [0, 0]


def test_what_cannot_be_anchors():
    model, keeper, _ = learned()
    importance, state = hf.measure(model, task(0)[0], probes=task(0)[1]), model.state_dict()
    before = keeper.held
    with pytest.raises(ParameterMismatchError, match="the weights of anchors= lack '2.bias'"):
        keeper.retain(importance, anchors={name: value for name, value in state.items() if name != "2.bias"})
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        keeper.retain(importance, anchors={**state, "2.bias": torch.full((4,), math.nan)})
    with pytest.raises(OptionError, match=r"WVA\.retain: WVA keeps no anchors"):
        hf.WVA(model, strength=1.0).retain(hf.fisher(model, task(0)[0]), anchors=state)
    assert keeper.held is before

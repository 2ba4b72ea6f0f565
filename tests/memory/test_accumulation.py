from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.curvature import Decayed
from holdfast.errors import OptionError
from holdfast.memory import Retained, retain


def hold(importances, weights=None, **options):
    """What is held after tasks of these importances of one parameter "w", anchors at these weights."""
    held = Retained()
    for number, importance in enumerate(importances):
        theta = {"w": torch.tensor(weights[number])} if weights else {}
        held = retain(held, {"w": torch.tensor(importance)}, weights=theta, **options)
    return held


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("sum", [6.0, 6.0]),
        ("mean", [2.0, 2.0]),
        ("max", [3.0, 5.0]),
        (Decayed(0.5), [0.5 * (0.5 * 1 + 2) + 3, 0.5 * (0.5 * 5 + 1) + 0]),
        (Decayed(1.0), [6.0, 6.0]),
        (Decayed(0.0), [3.0, 0.0]),
        ("per_task", [6.0, 6.0]),
    ],
    ids=str,
)
def test_every_rule_by_hand(rule, expected):
    held = hold([[1.0, 5.0], [2.0, 1.0], [3.0, 0.0]], [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], rule=rule)
    assert held.importance["w"].tolist() == pytest.approx(expected)
    assert held.largest == pytest.approx(max(expected))
    assert held.num_tasks == 3
    if rule == "per_task":
        assert held.anchors["w"].tolist() == pytest.approx([(2 * 1 + 3 * 2) / 6, 1 / 6])
    else:
        assert held.anchors["w"].tolist() == [2.0, 2.0]
        assert (held.constant, held.start) == (0.0, 0.0)


numbers = st.floats(0, 10, width=32)
points = st.floats(-3, 3, width=32)


@given(st.lists(st.tuples(numbers, numbers, points, points), min_size=1, max_size=6), points, points)
def test_collapsed_anchors_are_the_sum_of_separate_penalties(tasks, x, y):
    importances, weights = [list(t[:2]) for t in tasks], [list(t[2:]) for t in tasks]
    held = hold(importances, weights, rule="per_task")

    def separate(point):
        squares = (torch.tensor(point, dtype=torch.float64) - torch.tensor(weights, dtype=torch.float64)).square()
        return 0.5 * (torch.tensor(importances, dtype=torch.float64) * squares).sum().item()

    def collapsed(point):
        return 0.5 * (held.importance["w"] * (torch.tensor(point) - held.anchors["w"]).square()).sum().item()

    assert collapsed([x, y]) + held.constant == pytest.approx(separate([x, y]), rel=1e-4, abs=1e-4)
    assert collapsed(weights[-1]) == pytest.approx(held.start, rel=1e-3, abs=1e-4)


def test_a_weight_of_no_importance_has_its_anchor_where_it_is():
    assert hold([[0.0], [0.0]], [[1.0], [2.0]], rule="per_task").anchors["w"].item() == 2.0


def test_examples_weigh_against_the_first_task():
    held = Retained()
    for importance, count in ((1.0, 100), (1.0, 300), (2.0, 50)):
        held = retain(held, {"w": torch.tensor([importance])}, weights={}, weighting="examples", num_targets=count)
    assert held.importance["w"].item() == pytest.approx(1 + 3 + 1)
    assert held.first_targets == 100


def test_weighting_by_unknown_examples():
    with pytest.raises(OptionError, match='weighting="examples" needs importances that know their number of targets'):
        hold([[1.0]], weighting="examples")


def test_names_that_come_and_go():
    first = retain(Retained(), {"old": torch.ones(1)}, weights={"old": torch.zeros(1)}, rule="mean")
    weights = {"old": torch.ones(1), "new": torch.ones(2)}
    second = retain(first, {"new": torch.ones(2)}, weights=weights, rule="mean")
    assert second.importance["old"].item() == 0.5
    assert second.anchors["old"].item() == 1.0
    third = retain(second, {"new": torch.ones(2)}, weights={"new": torch.zeros(2)}, rule="per_task")
    assert third.anchors["old"].item() == 1.0  # no weight was given: its anchor stays


def test_nothing_is_shared_with_the_arguments():
    importance, weights = {"w": torch.ones(1)}, {"w": torch.ones(1)}
    held = retain(Retained(), importance, weights=weights)
    importance["w"].mul_(5)
    weights["w"].mul_(5)
    assert (held.importance["w"].item(), held.anchors["w"].item()) == (1.0, 1.0)
    again = retain(held, importance, weights=weights)
    assert (held.importance["w"].item(), again.importance["w"].item()) == (1.0, 6.0)


@pytest.mark.parametrize("rule", ["sum", "mean", "max", "per_task", Decayed(0.9)], ids=str)
def test_memory_does_not_grow_with_tasks(rule):
    def floats(held):
        return sum(tensor.numel() for tensors in (held.importance, held.anchors) for tensor in tensors.values())

    one, many = (hold([[1.0, 2.0]] * n, [[0.0, float(n)]] * n, rule=rule) for n in (1, 9))
    assert floats(one) == floats(many) == 4
    assert len(many.importance) == len(many.anchors) == 1


def test_the_factor_to_nats_is_averaged_by_importance():
    held = retain(Retained(), {"w": torch.tensor([1.0])}, weights={}, nats_per_unit=1.0)
    assert retain(held, {"w": torch.tensor([3.0])}, weights={}, nats_per_unit=3.0).nats_per_unit == pytest.approx(2.5)
    assert retain(held, {"w": torch.tensor([3.0])}, weights={}, nats_per_unit=1.0).nats_per_unit == 1.0
    unknown = retain(held, {"w": torch.tensor([3.0])}, weights={})
    assert unknown.nats_per_unit is None
    assert retain(unknown, {"w": torch.tensor([3.0])}, weights={}, nats_per_unit=1.0).nats_per_unit is None


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_out_of_range(gamma):
    with pytest.raises(OptionError, match=rf"Decayed: gamma is {gamma}; expected a number from 0 .forget. to 1 .sum."):
        Decayed(gamma)


def test_unknown_rules_and_weightings():
    with pytest.raises(OptionError, match=r'accumulate is \'product\'; expected "sum", "mean", "max", "per_task" or'):
        hold([[1.0], [1.0]], rule="product")
    with pytest.raises(OptionError, match=r'weighting is \'both\'; expected "task" or "examples"'):
        hold([[1.0]], weighting="both")
    with pytest.raises(
        OptionError, match='accumulate="per_task" joins anchors, and this mechanism has none. Use "sum"'
    ):
        hold([[1.0]], rule="per_task")
    hold([[1.0]], rule="sum")

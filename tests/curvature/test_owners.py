"""Which process has which layer: balanced, and the same whoever asks."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.curvature import AdapterCurvature, KroneckerCurvature, KroneckerFactors
from holdfast.curvature.owners import apart, cost_of, in_order, owners

COSTS = st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0.1, 1e12), max_size=12)


def factors(out: int, n: int, width: int | None = None) -> KroneckerFactors:
    return KroneckerFactors(torch.zeros(n, width or n), torch.zeros(out, out), shape=(out, n))


@given(COSTS, st.integers(1, 5), st.randoms())
def test_the_order_of_the_layers_changes_nothing(costs, size, random):
    found = owners(costs, size)
    names = list(costs)
    random.shuffle(names)
    assert owners({name: costs[name] for name in names}, size) == found
    assert set(found.values()) <= set(range(size))


@given(COSTS, st.integers(1, 5))
def test_no_process_has_more_than_its_share_and_the_costliest_layer(costs, size):
    found, loads = owners(costs, size), [0.0] * size
    for name, owner in found.items():
        loads[owner] += costs[name]
    assert max(loads) <= (sum(costs.values()) / size + max(costs.values(), default=0.0)) * (1 + 1e-9)


def test_layers_that_belong_together_have_one_owner():
    costs = {"q": 4.0, "k": 3.0, "v": 3.0, "o": 5.0, "up": 6.0}
    found = owners(costs, 2, groups={"q": "q", "k": "q", "v": "q"})
    assert found == {"q": 0, "k": 0, "v": 0, "o": 1, "up": 1}
    assert owners(costs, 1) == dict.fromkeys(costs, 0)
    assert owners({"a": 1.0, "b": 1.0}, 2, groups={"b": "a"}) == {"a": 0, "b": 1}  # a alone is not called by its name


def test_a_layer_costs_the_same_measured_and_held():
    measured = factors(3, 8, width=4)
    held = KroneckerCurvature(measured.inputs, measured.outputs, torch.zeros(3, 8), shape=(3, 8))
    assert cost_of(measured) == cost_of(held) == 24 + (8 * 4**2 + 24 * 4) + (3**3 + 24 * 3)
    adapter = AdapterCurvature(torch.ones(5, 7), "w", "B", 1.0, ((2, 7), (5, 2)))
    assert cost_of(adapter) == 24


def test_what_is_elsewhere_has_names_and_no_numbers():
    layers = {"b": factors(3, 4), "a": factors(2, 5), "c": factors(2, 2)}
    own, rest = apart(layers, {"b": 1, "a": 0, "c": 1}, 0)
    assert own == {"a": layers["a"]}
    assert [each.owner for each in rest.values()] == [1, 1]
    assert rest["b"].layer.inputs.is_meta
    assert rest["b"].shapes("b") == {"b": (3, 4)}
    assert cost_of(rest["b"].layer) == cost_of(layers["b"])


@given(st.lists(st.integers(0, 2), max_size=8), st.integers(0, 2))
def test_all_processes_list_the_layers_in_one_order(where, rank):
    layers = {str(number): factors(1, 1) for number in reversed(range(len(where)))}
    assert in_order(*apart(layers, dict(zip(layers, where)), rank)) == list(layers)

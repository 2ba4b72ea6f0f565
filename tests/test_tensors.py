from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from holdfast.tensors import (
    all_parameters,
    canonical_name,
    chunks,
    copies,
    prefixed,
    ranks,
    spearman,
    sum_of,
    trainable_parameters,
    under,
    unwrap,
)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight
        self.decoder.bias.requires_grad_(False)


def test_parameters_are_named_once_and_frozen_ones_left_out():
    assert list(trainable_parameters(Tied())) == ["encoder.weight", "encoder.bias"]
    assert list(all_parameters(Tied())) == ["encoder.weight", "encoder.bias", "decoder.bias"]


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
    ids=["parallel", "compiled", "both", "both the other way"],
)
def test_wrappers_change_neither_names_nor_tensors(wrap):
    model = Tied()
    wrapped = wrap(model)
    assert unwrap(wrapped) is model
    assert trainable_parameters(wrapped) == trainable_parameters(model)


def test_a_compiled_part_keeps_its_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    names = list(trainable_parameters(model))
    model[0] = torch.compile(model[0], backend="eager")  # pyright: ignore
    assert list(trainable_parameters(model)) == names
    assert canonical_name("a._fsdp_wrapped_module.b._checkpoint_wrapped_module.weight") == "a.b.weight"


def test_maps_go_into_one_and_come_out_again():
    first, second = {"a": torch.zeros(1), "b/c": torch.ones(1)}, {"a": torch.ones(2)}
    together = prefixed("x", first) | prefixed("xy", second)
    assert list(together) == ["x/a", "x/b/c", "xy/a"]
    assert under("x", together) == first
    assert under("xy", together) == second
    assert under("y", together) == {}


def test_copies_share_no_memory():
    original = {"w": nn.Parameter(torch.ones(2))}
    copied = copies(original)["w"]
    with torch.no_grad():
        original["w"].add_(1)
    assert copied.tolist() == [1, 1]
    assert not copied.requires_grad


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12), st.integers(1, 60))
def test_chunks_cover_all_in_order_within_the_limit(entries, limit):
    tensors = [torch.zeros(n, dtype=torch.float64 if wide else torch.float32) for n, wide in entries]
    found = [tensors[piece] for piece in chunks(tensors, limit=limit)]
    assert [id(t) for piece in found for t in piece] == [id(t) for t in tensors]
    for piece in found:
        assert len({t.dtype for t in piece}) == 1
        assert len(piece) == 1 or sum(t.nbytes for t in piece) <= limit


def test_sums_are_exact_in_double_and_empty_is_zero():
    assert sum_of([torch.tensor(1e8), torch.tensor(1.0), torch.tensor(-1e8)]) == 1.0
    assert sum_of([]) == 0.0


def test_ranks_and_spearman_by_hand():
    assert ranks(torch.tensor([[3.0, 1.0], [3.0, 9.0]])).tolist() == [1.5, 0.0, 1.5, 3.0]
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(x, x.exp()) == pytest.approx(1.0)
    assert spearman(x, -x) == pytest.approx(-1.0)
    assert spearman(x, torch.tensor([1.0, 3.0, 2.0, 4.0])) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert math.isnan(spearman(x, torch.ones(4)))

"""A parameter is cut into shards as `torch.chunk` cuts it, and put together from them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, nn

from holdfast.curvature.cuts import Cut, axis_of, cut_of
from holdfast.errors import OptionError


@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 5), st.data())
def test_pieces_are_those_of_chunk_and_make_the_whole(shape, size, data):
    dim = data.draw(st.integers(0, len(shape) - 1))
    whole, cut = torch.randn(shape), Cut(tuple(shape), dim, size, torch.float32)
    pieces = [cut.piece(whole, rank) for rank in range(size)]
    chunks = torch.chunk(whole, size, dim)
    assert all(torch.equal(piece, chunk) for piece, chunk in zip(pieces, chunks))
    assert not sum(piece.numel() for piece in pieces[len(chunks) :])
    assert [cut.numel(rank) for rank in range(size)] == [piece.numel() for piece in pieces]
    flat = [piece.reshape(-1) for piece in pieces]
    assert torch.equal(cut.joined(flat, rank=0), whole)
    assert all(torch.equal(cut.laid(entries, rank), pieces[rank]) for rank, entries in enumerate(flat))


def test_of_what_every_process_has_each_takes_its_own():
    whole, other = torch.randn(3, 2), torch.zeros(6)
    cut = cut_of(whole, size=2)
    assert cut.dim is None
    assert axis_of(whole) is None
    assert cut.numel(1) == 6
    assert torch.equal(cut.joined([whole.reshape(-1), other], rank=0), whole)
    assert torch.equal(cut.piece(whole, 1), whole)


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
def test_what_is_cut_along_two_axes_is_refused(tmp_path):
    from tests import many
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    with many.group_of_one(tmp_path):
        mesh = init_device_mesh("cpu", (1, 1))
        twice = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0), Shard(1)])
        with pytest.raises(OptionError, match="where fully_shard alone has spread its parameters; found"):
            axis_of(twice)
        weight = dict(many.spread_over(nn.Linear(3, 2), [], 1).named_parameters())["weight"]
        assert axis_of(weight) == 0
        assert cut_of(weight, size=1).dim == 0

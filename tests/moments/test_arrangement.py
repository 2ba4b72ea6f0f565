"""Which functions leave rows where they are, work along axes, tell Python a number, or may do anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from holdfast.moments.arrangement import CHOICES, PLAIN_FUNCTIONS, worked_along

X, ROWS = torch.arange(24.0).view(2, 3, 4), torch.tensor([1, 0])


class Last(TorchFunctionMode):
    """Keeps the last function that was called, and what it was called with."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.call = (func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def last(act: Callable[[], object]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    with Last() as seen:
        act()
    return seen.call


def axes(act: Callable[[], object]) -> list[tuple[int, ...]] | None:
    func, args, kwargs = last(act)
    assert func not in PLAIN_FUNCTIONS
    found = worked_along(func, args, kwargs)
    return None if found is None else [each.axes for each in found]


@pytest.mark.parametrize(
    "act",
    [
        lambda: X + 1,
        lambda: 1 - X,
        lambda: X.relu(),
        lambda: F.gelu(X),
        lambda: X.softmax(-1),
        lambda: F.conv1d(X, torch.ones(1, 3, 1)),
        lambda: F.max_pool1d(X, 2),
        lambda: X.transpose(0, 1),
        lambda: X.flatten(1),
        lambda: torch.cat([X, X]),
        lambda: X.masked_fill(X > 3, 0.0),
        lambda: X.shape,
        lambda: X.mT,
        lambda: len(X),
        lambda: X.to(torch.float64),
        lambda: F.scaled_dot_product_attention(X, X, X),
        lambda: torch.lstm(
            X, [torch.zeros(1, 2, 1)] * 2, [torch.ones(4, n) for n in (4, 1)], False, 1, 0.0, False, False, True
        ),
    ],
)
def test_plain_functions(act: Callable[[], object]):
    assert last(act)[0] in PLAIN_FUNCTIONS


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda: X[1:, None, ..., 0], []),
        (lambda: X[:, ROWS], [(1,)]),
        (lambda: X[..., ROWS], [(2,)]),
        (lambda: X[ROWS, :, ROWS], [(0, 2)]),
        (lambda: X[:, None, 0, ROWS], [(1, 2)]),
        (lambda: X[X > 3], [(0, 1, 2)]),
        (lambda: X[:, X[0] > 3], [(1, 2)]),
        (lambda: X.gather(1, ROWS.view(2, 1, 1)), [(1,)]),
        (lambda: torch.gather(X, -1, ROWS.view(2, 1, 1)), [(2,)]),
        (lambda: X.index_select(0, ROWS), [(0,)]),
        (lambda: X.topk(2), [(2,)]),
        (lambda: X.topk(2, dim=1), [(1,)]),
        (lambda: X.sort(1), [(1,)]),
        (lambda: X.sort(dim=0), [(0,)]),
        (lambda: X.argsort(), [(2,)]),
        (lambda: X.sum(), []),
        (lambda: X.sum((0, -1)), [(0, 2)]),
        (lambda: X.mean(dim=-1, keepdim=True), [(2,)]),
        (lambda: torch.max(X, X), []),
        (lambda: X.max(0), [(0,)]),
        (lambda: X.norm(dim=1), [(1,)]),
        (lambda: X.cumsum(0), [(0,)]),
        (lambda: X @ X.mT, [(2,), (1,)]),
        (lambda: torch.bmm(X, X.mT), [(2,), (1,)]),
        (lambda: torch.einsum("btd,bsd->bts", X, X), [(2,), (2,)]),
        (lambda: torch.einsum("bnd,ben->bed", X, torch.ones(2, 5, 3)), [(1,), (2,)]),
        (lambda: X.clone().index_add_(1, ROWS, X[:, :2]), [(1,)]),
        (lambda: X.clone().scatter(2, ROWS.view(2, 1, 1), 1.0), [(2,)]),
        (lambda: F.embedding(ROWS, X[0]), [(0,)]),
        (lambda: X.repeat_interleave(2, 0), []),
        (lambda: torch.where(X > 1, X, X), []),
        (lambda: X.view(6, 4), []),
        (lambda: torch.zeros(3), []),
        (lambda: X.split(1, 1), []),
    ],
)
def test_functions_that_work_along_axes(act: Callable[[], object], expected: list[tuple[int, ...]]):
    assert axes(act) == expected


@pytest.mark.parametrize(
    "act",
    [
        lambda: (X > 3).nonzero(),
        lambda: torch.where(X > 3),
        lambda: X.unique(),
        lambda: X.masked_select(X > 3),
        lambda: X.repeat_interleave(ROWS, 0),
        lambda: X[:, : ROWS[0]],
        lambda: torch.arange(ROWS[0]),
        lambda: torch.zeros(ROWS[0], 2),
        lambda: ROWS.tolist(),
        lambda: ROWS.numpy(),
        lambda: torch._VF._pack_padded_sequence(X, torch.tensor([3, 2]), True),
        lambda: torch.einsum("...d,...d->...", X, X),
        lambda: torch.ops.aten.index.Tensor(X, [ROWS]),
    ],
)
def test_functions_that_may_put_rows_anywhere(act: Callable[[], object]):
    assert axes(act) is None


@pytest.mark.parametrize(
    "act",
    [
        lambda: bool(ROWS[0]),
        lambda: int(ROWS[0]),
        lambda: float(X[0, 0, 0]),
        lambda: range(5)[ROWS[0]],
        lambda: ROWS[0].item(),
        lambda: torch.equal(X, X),
        lambda: 1 in ROWS,
    ],
)
def test_functions_that_tell_python_a_number(act: Callable[[], object]):
    assert last(act)[0] in CHOICES
    assert last(act)[0] not in PLAIN_FUNCTIONS


def test_an_index_that_counts():
    func, args, kwargs = last(lambda: X[torch.arange(2), ROWS])
    (found,) = worked_along(func, args, kwargs) or []
    assert found.counts(2)
    assert not found.counts(3)
    func, args, kwargs = last(lambda: X[ROWS, ROWS])
    (found,) = worked_along(func, args, kwargs) or []
    assert not found.counts(2)


def test_a_mask_picks():
    for mask, picks in ((X[0, :, 0] > 3, True), (torch.tensor([0, 2]), False)):
        func, args, kwargs = last(lambda mask=mask: X[:, mask])
        (found,) = worked_along(func, args, kwargs) or []
        assert found.picks == picks
        assert isinstance(found.tensor, Tensor)

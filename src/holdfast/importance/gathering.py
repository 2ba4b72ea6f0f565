"""Small batches as fewer, larger ones, and large ones in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from holdfast.importance.measure import Batch
from holdfast.likelihoods.batches import model_inputs, slice_batch
from holdfast.moments.calls import Call
from holdfast.moments.study import TOGETHER_BYTES


def gathered_batches(batches: Iterable[Batch], room: Callable[[], int]) -> Iterator[Batch]:
    """The same examples in the same order, as many together as there is room for.

    Whatever its size a batch costs about a millisecond of Python, half of the arithmetic of a small network on 128
    examples. What is measured example by example does not depend on the batches, so small ones are joined. They are
    copied as they come, for the data may use their memory again; what is given out is good until the next is asked for.

    Args:
        batches: of any size; one that holds anything but tensors stays as it is.
        room: how many examples like those given out so far may go together, asked for each batch. Of examples of c
            times the size it is a share of 1/c^2, as attention takes memory, and never more than `TOGETHER_BYTES`.
    """
    held: _Held | None = None
    known = 0
    for batch in batches:
        leaves, form = tree_flatten(batch.content)
        size, limit = batch.call.size, room()
        num_bytes = _bytes_per_example(leaves, size)
        if num_bytes > known > 0:
            limit = int(limit * (known / num_bytes) ** 2)
        limit = min(limit, TOGETHER_BYTES // max(1, num_bytes))
        small = 2 * size <= limit and all(isinstance(leaf, Tensor) for leaf in leaves)
        if held is not None and held.size and not (small and held.takes(leaves, form, size)):
            yield held.batch()
        if not small:
            known = max(known, num_bytes)
            yield batch
            continue
        if held is None or not held.takes(leaves, form, size):
            held = _Held(leaves, form, limit)
        held.add(leaves, batch.numbers)
    if held is not None and held.size:
        yield held.batch()


def pieces(batch: Batch, at_once: int) -> Iterator[Batch]:
    """The same examples in the same order, at most so many at once; views.

    What is measured example by example does not depend on the batches, and memory does. A batch that holds anything but
    tensors with a row an example stays as it is.
    """
    size, leaves = batch.call.size, tree_leaves(batch.content)
    rows = all(isinstance(leaf, Tensor) and not leaf.is_nested and leaf.shape[:1] == (size,) for leaf in leaves)
    if size <= at_once or not rows:
        yield batch
        return
    for start in range(0, size, at_once):
        stop = min(start + at_once, size)
        own = slice_batch(batch.content, start, stop)
        yield Batch(own, batch.call.examples(start, stop), batch.numbers[start:stop])


def _bytes_per_example(leaves: list[Any], size: int) -> int:
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor)) // size


class _Held:
    """Memory for batches like the first of them, made as they come."""

    def __init__(self, leaves: list[Tensor], form: TreeSpec, limit: int) -> None:
        self._leaves = [leaf.new_empty(0, *leaf.shape[1:], requires_grad=False) for leaf in leaves]
        self._form, self._limit = form, limit
        self._numbers = range(0)
        self.size = 0

    def takes(self, leaves: list[Tensor], form: TreeSpec, size: int) -> bool:
        return (
            form == self._form
            and self.size + size <= self._limit
            and all(a.shape[1:] == b.shape[1:] and a.dtype == b.dtype for a, b in zip(leaves, self._leaves))
        )

    @torch.no_grad()
    def add(self, leaves: list[Tensor], numbers: range) -> None:
        size = len(numbers)
        first = self._numbers.start if self.size else numbers.start
        self._numbers = range(first, numbers.stop, numbers.step)
        if self._leaves and self.size + size > len(self._leaves[0]):
            self._grow(min(self._limit, 4 * (self.size + size)))
        for own, leaf in zip(self._leaves, leaves):
            own[self.size : self.size + size] = leaf
        self.size += size

    def batch(self) -> Batch:
        content = tree_unflatten([leaf[: self.size] for leaf in self._leaves], self._form)
        args, kwargs = model_inputs(content)
        size, self.size = self.size, 0
        return Batch(content, Call(args, kwargs, size), self._numbers)

    def _grow(self, length: int) -> None:
        larger = [leaf.new_empty(length, *leaf.shape[1:]) for leaf in self._leaves]
        for new, old in zip(larger, self._leaves):
            new[: self.size] = old[: self.size]
        self._leaves = larger

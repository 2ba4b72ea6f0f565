"""The processes that measure a sharded model together: each forward and backward pass is one for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from holdfast.errors import StateError
from holdfast.replicas import rest
from holdfast.tensors import Shards, shards_of, trainable_parameters, unwrap

Item = TypeVar("Item")

Leave = Callable[[Sequence[str]], None]
"""Told the names of the parameters of a group of layers that a backward pass has left."""


class Follower(Protocol):
    """What watches a forward pass, and must know of the weights that come in the course of it.

    Attributes:
        paused: how many reasons there are to let functions run unseen.
    """

    paused: int

    def track(self, name: str, parameter: Tensor) -> None:
        """These are the weights of a parameter now."""
        ...


class Company:
    """The processes over which `fully_shard` has spread a model, and what they agree on; alone, one's own answers.

    The weights of a group of layers come and go by collectives, so that every process must make the same passes in the
    same order. So whatever its data make one of them do, all of them do, and each must come to every call here.

    Args:
        model: as its user gave it.

    Attributes:
        shards: how its trainable parameters are spread; None where they are not, and this process is alone.

    Cost of each question: an all-reduce of as many numbers as it is about; none alone.
    """

    def __init__(self, model: nn.Module) -> None:
        rest(model)  # a forward pass without a backward pass may have left whole weights behind
        self._model, self._parameters = model, trainable_parameters(model)
        self.shards: Shards | None = shards_of(self._parameters)

    @property
    def is_alone(self) -> bool:
        """Whether the model is this process's own."""
        return self.shards is None

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self.shards is None else self.shards.size

    @property
    def rank(self) -> int:
        """Which of them this process is."""
        return 0 if self.shards is None else self.shards.rank

    def any(self, answer: bool) -> bool:
        """Whether one of the processes says so."""
        return answer if self.shards is None else self.shards.largest(float(answer)) > 0

    def most(self, number: int) -> int:
        """The largest of their numbers."""
        return number if self.shards is None else int(self.shards.largest(float(number)))

    def total(self, number: int) -> int:
        """The sum of their numbers."""
        return number if self.shards is None else int(self.shards.totals([float(number)])[0])

    def add_up(self, tensor: Tensor) -> None:
        """Make a tensor the sum of those that all of them have."""
        if self.shards is not None:
            self.shards.add_up(tensor)

    def agree(self, failure: Exception | None) -> None:
        """Raise where a process has failed: its own error in that process, in the others one that says so.

        Raises:
            StateError: another process failed.
        """
        failed = self.any(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise StateError("measuring: another process ended in an error, which it tells.")

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """What raises in here, where no process waits for another, raises in all of them (`agree`)."""
        failure = None
        try:
            yield
        except Exception as error:
            if self.is_alone:
                raise
            failure = error
        self.agree(failure)

    def each(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of every process, equally many of each."""
        if self.shards is None:
            return [list(numbers)]
        table = [0.0] * (self.size * len(numbers))
        table[self.rank * len(numbers) : (self.rank + 1) * len(numbers)] = numbers
        found = self.shards.totals(table) if table else []
        return [found[start : start + len(numbers)] for start in range(0, len(found), max(1, len(numbers)))]

    def union(self, names: Iterable[str]) -> frozenset[str]:
        """The names of parameters that one of them has."""
        own = frozenset(names)
        if self.shards is None:
            return own
        found = self.shards.totals([float(name in own) for name in self._parameters])
        return frozenset(name for name, count in zip(self._parameters, found, strict=True) if count)

    def norms(self, tensors: Iterable[Tensor]) -> list[float]:
        """The norm of each tensor, of which every process has its shard."""
        if self.shards is None:
            return [float(tensor.norm()) for tensor in tensors]
        squares = [float(tensor.double().square().sum()) for tensor in tensors]
        return [(square / self.shards.copies) ** 0.5 for square in self.shards.totals(squares)]

    @cached_property
    def dtypes(self) -> frozenset[torch.dtype]:
        """Of the weights as the forward pass has them.

        Cost: an all-gather of each group of layers, one after the other.
        """
        if self.shards is None:
            return frozenset(parameter.dtype for parameter in unwrap(self._model).parameters())
        from holdfast.moments.sharded import dtypes_of

        return dtypes_of(self._model)

    def following(
        self, follower: Follower, leave: Leave | None = None, *, tracks: bool = True
    ) -> AbstractContextManager[None]:
        """Inside, a forward pass tells the follower of the weights that come, and its backward pass of those that go.

        Args:
            follower: sees nothing of what `fully_shard` does.
            leave: called in the backward pass, in all processes in the same order.
            tracks: whether the follower is told of weights; else it only sees nothing of what `fully_shard` does.
        """
        if self.shards is None:
            return nullcontext()
        from holdfast.moments.sharded import following

        return following(self._model, follower, leave, tracks=tracks)

    def rest(self) -> None:
        """Let all weights go, as they are between training steps; for after a forward pass without a backward pass."""
        if self.shards is not None:
            rest(self._model)

    def in_step(self, items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
        """The items, and whether they count: whoever has no more repeats the last until nobody has one.

        Raises:
            StateError: the items of another process ended in an error.
        """
        if self.shards is None:
            yield from ((item, True) for item in items)
            return
        iterator, last = iter(items), []
        while True:
            found, failure = [], None
            try:
                found = [next(iterator)]
            except StopIteration:
                pass
            except Exception as error:  # of the data, of which the others must know
                failure = error
            some, failed = self.shards.totals([float(len(found)), float(failure is not None)])
            if failure is not None:
                raise failure
            if failed:
                raise StateError("measuring: the data of another process ended in an error, which it tells.")
            if not some:
                return
            last = found or last
            yield last[0], bool(found)

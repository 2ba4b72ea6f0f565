"""A batch as a model is called with it, and the tensors inside what it returns."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only


@dataclass(frozen=True)
class Call:
    """The arguments of `model(*args, **kwargs)` for B examples.

    Attributes:
        args: positional arguments; the first axis of every tensor in them holds the examples.
        kwargs: keyword arguments, likewise.
        size: B.
        lists: whether arrays, and lists and tuples without tensors, that have B entries have one for each example; else
            they are the same for all.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    size: int = 1
    lists: bool = False

    def __call__(self, model: nn.Module) -> Any:
        """What the model returns; it may call `requires_grad_` on its inputs, which are not those of the data."""
        kwargs = {name: _aliased(value) for name, value in self.kwargs.items()}
        return model(*map(_aliased, self.args), **kwargs)

    def examples(self, start: int, stop: int) -> Call:
        """The call for examples `start` to `stop` (exclusive), as views."""
        return self._of(lambda entries: entries[start:stop], min(stop, self.size) - start)

    def picked(self, examples: Sequence[int]) -> Call:
        """The call for these examples, in this order, as copies."""

        def pick(entries: Any) -> Any:
            if isinstance(entries, list | tuple):
                return type(entries)(entries[b] for b in examples)
            return entries[list(examples)]

        return self._of(pick, len(examples))

    @property
    def has_lists(self) -> bool:
        """Whether there are arrays, lists or tuples with B entries, which may be the examples' or not."""
        return any(True for _ in self._lists())

    @property
    def has_numbers(self) -> bool:
        """Whether the examples have numbers, such as lengths, that a model may arrange rows by without any function."""
        return self.lists and any(
            isinstance(leaf, int | float | np.ndarray) for found in self._lists() for leaf in tree_leaves(found)
        )

    def _lists(self) -> Iterator[Any]:
        values = [value for value in (*self.args, *self.kwargs.values()) if not isinstance(value, Tensor)]
        for leaf in tree_leaves(values, is_leaf=lambda value: value is not values and self._has_entries(value)):
            if not isinstance(leaf, Tensor) and self._has_entries(leaf):
                yield leaf

    def _of(self, pick: Callable[[Any], Any], size: int) -> Call:
        def cut(value: Any) -> Any:
            if isinstance(value, Tensor):  # which is asked first, for a tree takes ten times as long
                return pick(value)
            is_leaf = self._has_entries if self.lists else None
            return tree_map(
                lambda v: pick(v) if isinstance(v, Tensor) or (self.lists and self._has_entries(v)) else v,
                value,
                is_leaf=is_leaf,
            )

        kwargs = {name: cut(value) for name, value in self.kwargs.items()}
        return Call(tuple(map(cut, self.args)), kwargs, size, self.lists)

    def _has_entries(self, value: Any) -> bool:
        if isinstance(value, np.ndarray):
            return value.ndim > 0 and len(value) == self.size
        if not isinstance(value, list | tuple) or hasattr(value, "_fields") or len(value) != self.size:
            return False
        return not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _aliased(value: Any) -> Any:
    if not isinstance(value, Tensor):  # which is asked first, for a tree takes ten times as long
        return tree_map_only(Tensor, _aliased, value)
    alias = value.detach()
    return alias.requires_grad_() if value.requires_grad else alias


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors in a model's outputs (tuples, lists, mappings, dataclasses, namespaces), in a fixed order."""
    found: list[Tensor] = []
    _rebuilt(outputs, lambda tensor: found.append(tensor) or tensor)
    return found


def with_tensors(outputs: Any, tensors: list[Tensor]) -> Any:
    """A shallow copy of the outputs with their tensors, in the order of `tensors_in`, replaced."""
    fresh = iter(tensors)
    return _rebuilt(outputs, lambda _: next(fresh))


def _rebuilt(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        new = copy.copy(tree) if hasattr(tree, "__setitem__") else dict(tree)
        for key, value in tree.items():
            new[key] = _rebuilt(value, function)  # pyright: ignore[reportIndexIssue]
        return new
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_rebuilt(value, function) for value in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(_rebuilt(value, function) for value in tree)
    if isinstance(tree, SimpleNamespace) or (dataclasses.is_dataclass(tree) and not isinstance(tree, type)):
        new = copy.copy(tree)
        for name, value in vars(tree).items():
            object.__setattr__(new, name, _rebuilt(value, function))
        return new
    return tree

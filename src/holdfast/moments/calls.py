"""A batch as a model is called with it, and the tensors inside what it returns."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


@dataclass(frozen=True)
class Call:
    """The arguments of `model(*args, **kwargs)` for B examples.

    Attributes:
        args: positional arguments; the first axis of every tensor in them holds the examples.
        kwargs: keyword arguments, likewise.
        size: B.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    size: int = 1

    def __call__(self, model: nn.Module) -> Any:
        """What the model returns; it may call `requires_grad_` on its inputs, which are not those of the data."""
        kwargs = {name: _aliased(value) for name, value in self.kwargs.items()}
        return model(*map(_aliased, self.args), **kwargs)

    def examples(self, start: int, stop: int) -> Call:
        """The call for examples `start` to `stop` (exclusive), as views."""
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor[start:stop], (self.args, self.kwargs))
        return Call(args, kwargs, min(stop, self.size) - start)


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

"""Seeing every operation of a forward pass that consumes a parameter, and putting another in its place.

Functions are intercepted, not modules: raw parameters, functional calls, ties, slices of packed weights and
`nn.MultiheadAttention` are seen like everything else. What is not recognised runs as it is.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from holdfast.moments.arrangement import PLAIN_FUNCTIONS, REORDERS, Along, order_of
from holdfast.moments.operations import Embedding, Operation
from holdfast.moments.recognised import COMPOSITES, HANDLERS
from holdfast.moments.transforms import transformed
from holdfast.tensors import is_sharded, trainable_parameters


@dataclass(frozen=True)
class Place:
    """A parameter, or the part of it that a view shows.

    Attributes:
        name: of the parameter.
        size: of the view.
        stride: likewise.
        offset: of the view's first element from the parameter's.
        looked_up: whether this is not a view but rows of the parameter, the same for all examples.
    """

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    looked_up: bool = False

    def of(self, total: Tensor) -> Tensor:
        """The same part of another tensor that is laid out in memory as the parameter."""
        if total.shape == self.size and self.offset == 0 and total.stride() == self.stride:
            return total
        return total.as_strided(self.size, self.stride, total.storage_offset() + self.offset)

    @property
    def key(self) -> tuple[Any, ...]:
        """What stays the same from batch to batch: looked-up rows may be more or fewer."""
        return (self.name, len(self.size)) if self.looked_up else (self.name, self.size, self.stride, self.offset)


@dataclass(frozen=True, eq=False)
class Tracked:
    """A tensor known to be a parameter, a view of one, or rows of one.

    Attributes:
        tensor: kept, so that its id stays its own.
        place: what it shows.
        rows: what was looked up, where it is rows.
    """

    tensor: Tensor
    place: Place
    rows: TableRows | None = None


@dataclass(frozen=True, eq=False)
class TableRows:
    """Rows of a table that are the same for all examples.

    Attributes:
        table: the place of the table.
        numbers: of the rows.
        padding: the number without a gradient, or -1.
    """

    table: Place
    numbers: Tensor
    padding: int


def tracked_parameters(model: nn.Module) -> dict[int, Tracked]:
    """All trainable parameters that fill their memory without gaps, so that views of them are views of their sums.

    The weights of sharded ones are tracked as they come (`Interception.track`).
    """
    return {
        id(parameter): Tracked(parameter, place_of(name, parameter))
        for name, parameter in trainable_parameters(model).items()
        if not is_sharded(parameter) and is_gapless(parameter)
    }


def place_of(name: str, parameter: Tensor) -> Place:
    """The whole of a parameter."""
    return Place(name, tuple(parameter.shape), parameter.stride())


def is_gapless(parameter: Tensor) -> bool:
    """Whether it fills its memory without gaps."""
    return torch.empty_like(parameter, device="meta").stride() == parameter.stride()


_NEVER_ASKED = PLAIN_FUNCTIONS.difference(HANDLERS, COMPOSITES, REORDERS)
"""Functions that run as they are, unless their first argument is a parameter."""

Key = tuple[Any, ...]
"""An operation, the places of its weights, the axes of its input, and the orders that axes were put in before.

Uses that share it must share their layout.
"""


def names_in(key: Key) -> list[str]:
    """The parameters that take part in a use; none in work along axes."""
    return [] if key[0] == "along" else [part[0] for part in key if isinstance(part, tuple)]


class Interception(TorchFunctionMode):
    """Calls `use` in place of every recognised operation on a trainable parameter of the model.

    Args:
        parameters: id -> tracked parameter, as `tracked_parameters` finds them.

    Attributes:
        tracked: these, and what is made of them as the forward pass goes on.
        orders: stands for all orders that axes were put in so far. Python may choose these by the length or the number
            of the examples, or by what else a batch holds, of which no function is told.
        paused: how many reasons there are to let functions run unseen, as what is no part of the model.
    """

    def __init__(self, parameters: Mapping[int, Tracked]) -> None:
        super().__init__()
        self.tracked = dict(parameters)
        self.orders = 0
        self.paused = 0

    def track(self, name: str, parameter: Tensor) -> None:
        """Track the weights of a parameter that have come in the course of the forward pass."""
        if is_gapless(parameter):
            self.tracked[id(parameter)] = Tracked(parameter, place_of(name, parameter))

    def use(self, operation: Operation, x: Tensor, *weights: Tensor | None) -> Tensor:
        """The result of an operation of which at least one weight is tracked."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What the function returns."""
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        tracked = self.tracked
        if func in _NEVER_ASKED and not (args and id(args[0]) in tracked):
            return func(*args, **kwargs)
        handler = HANDLERS.get(func)
        if handler is not None:
            if not tracked.keys().isdisjoint(map(id, (*args, *kwargs.values()))) and _are_usual(args):
                found = handler(self, *args, **kwargs)
                if found is not NotImplemented:
                    return found
        elif args and id(args[0]) in tracked:
            look = func not in PLAIN_FUNCTIONS and tracked[id(args[0])].rows is not None
            result = self.other(func, args, kwargs) if look else func(*args, **kwargs)
            if func is not Tensor.detach and not transformed():
                self._track_views(tracked[id(args[0])], result)
            return result
        elif func in COMPOSITES:
            with self:
                return _opened(func)(*args, **kwargs)
        if func in REORDERS:
            self.orders = hash((self.orders, order_of(func, args, kwargs)))
        return func(*args, **kwargs) if func in PLAIN_FUNCTIONS else self.other(func, args, kwargs)

    def other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function returns that may arrange rows as the data say."""
        return func(*args, **kwargs)

    def key(self, operation: Operation, x: Tensor, *weights: Tensor | None) -> Key:
        """What this use of an operation has in common with the same use in another batch."""
        spots = (self.tracked.get(id(weight)) for weight in weights)
        return self.in_order((operation.name, x.ndim, *(None if spot is None else spot.place.key for spot in spots)))

    def along_key(self, func: Any, operand: Along, number: int) -> Key:
        """What working along some axes of an operand has in common with the same in another batch."""
        name = getattr(func, "__name__", str(func))
        return self.in_order(("along", name, number, operand.tensor.ndim, operand.axes, operand.picks))

    def in_order(self, key: Key) -> Key:
        """A key with the orders that axes were put in before."""
        return (*key, self.orders)

    def is_tracked(self, tensor: Tensor) -> bool:
        """Whether a tensor is known to be a parameter or a part of one."""
        return id(tensor) in self.tracked

    def view(self, tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A view of a tracked tensor, tracked as well."""
        result = function(tensor)
        self._track_views(self.tracked[id(tensor)], result)
        return result

    def look_up(self, operation: Operation, found: Tensor, numbers: Tensor, table: Tensor) -> None:
        """Track rows of a table that are the same for all examples."""
        spot = self.tracked.get(id(table))
        if spot is not None and spot.rows is None and isinstance(operation, Embedding):
            place = Place(spot.place.name, tuple(found.shape), found.stride(), looked_up=True)
            self.tracked[id(found)] = Tracked(found, place, TableRows(spot.place, numbers, operation.padding))

    def _track_views(self, base: Tracked, result: Any) -> None:
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if (
                isinstance(tensor, Tensor)
                and id(tensor) not in self.tracked
                and tensor._is_view()
                and tensor.dtype == base.tensor.dtype
                and (tensor.requires_grad or not torch.is_grad_enabled())
                and tensor.untyped_storage().data_ptr() == base.tensor.untyped_storage().data_ptr()
                and not any(stride == 0 and n > 1 for n, stride in zip(tensor.shape, tensor.stride()))
            ):
                place = self._seen_through(base, tensor)
                if place is not None:
                    self.tracked[id(tensor)] = Tracked(tensor, place, base.rows)

    @staticmethod
    def _seen_through(base: Tracked, view: Tensor) -> Place | None:
        offset = base.place.offset + view.storage_offset() - base.tensor.storage_offset()
        if base.rows is not None and not (
            view.numel() == base.tensor.numel() and view.is_contiguous() and base.tensor.is_contiguous()
        ):
            return None
        return replace(base.place, size=tuple(view.shape), stride=view.stride(), offset=offset)


@functools.cache
def _opened(func: types.FunctionType) -> Callable[..., Any]:
    """The same Python function without its own question for overrides, so that the functions inside it are seen."""
    closed = dict.fromkeys(("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _no)
    namespace = {**func.__globals__, **closed}
    copy = types.FunctionType(func.__code__, namespace, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _are_usual(args: tuple[Any, ...]) -> bool:
    """Whether the arguments are what they seem: neither inside a transform, nor nested or sparse tensors."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    return not transformed() and not any(tensor.is_nested or tensor.layout != torch.strided for tensor in tensors)


def _no(*_: Any) -> bool:
    return False

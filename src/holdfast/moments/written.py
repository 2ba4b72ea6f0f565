"""Weights that a forward pass changes, as `nn.Embedding(max_norm=...)` does, copied before it first changes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class CopyOnWrite(TorchDispatchMode):
    """Inside, a parameter is copied before an operation changes it in place; `restore` gives the values back.

    Args:
        parameters: that are looked after.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._by_id = {id(parameter): [parameter] for parameter in parameters}
        self._by_memory: dict[int, list[Tensor]] = {}
        for (parameter,) in self._by_id.values():
            self._by_memory.setdefault(_memory(parameter), []).append(parameter)
        self._by_memory.pop(0, None)
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: the base class would import the whole of torch._dynamo, some seconds, to keep it away."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What the operation returns."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for tensor in _written(func, args, kwargs):
                for parameter in self._by_id.get(id(tensor)) or self._by_memory.get(_memory(tensor), ()):
                    self._copy(parameter)
        return func(*args, **kwargs)

    def copy(self) -> None:
        """Copy all of them now, where the forward pass cannot be watched."""
        for (parameter,) in self._by_id.values():
            self._copy(parameter)

    def _copy(self, parameter: Tensor) -> None:
        if id(parameter) not in self._copies:
            self._copies[id(parameter)] = (parameter, parameter.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        """Give the parameters that were changed their values back."""
        for parameter, value in self._copies.values():
            if not torch.equal(parameter, value):
                parameter.copy_(value)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation changes in place."""
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            yield from (item for item in (value if isinstance(value, list | tuple) else (value,)) if item is not None)


def _memory(tensor: Tensor) -> int:
    """Where its values are; 0 where that is not known, as of a tensor without values or of a DTensor."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0

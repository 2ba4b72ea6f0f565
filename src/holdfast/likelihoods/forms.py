"""Data in a form that no estimator can read: refused before the model is called, with the line that mends it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from holdfast.errors import BatchError
from holdfast.tensors import unwrap

_TARGETS = ("labels", "label", "targets", "target", "y")


def check_is_many(data: Any, where: str) -> None:
    """Raise `BatchError` where the data are one batch in place of many, or examples in place of batches."""
    pair = isinstance(data, tuple) and len(data) == 2 and any(isinstance(item, Tensor) for item in data)
    if pair or isinstance(data, Mapping | Tensor):
        raise BatchError(
            f"{where}: data is one batch (a {type(data).__name__}), expected an iterable of batches. Pass [batch]."
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise BatchError(
            f"{where}: data is a {type(data).__name__}, a Dataset, which gives one example after the other; expected "
            "an iterable of batches. Pass torch.utils.data.DataLoader(data, batch_size=128), or batch_size=None where "
            "its items are batches."
        )


def check_taken(model: nn.Module, batch: Any, *, where: str) -> None:
    """Raise `BatchError` where inputs are a mapping, and the model's `forward` has no arguments of these names.

    A `forward` with `**kwargs`, or whose arguments cannot be told, is believed to take them.
    """
    inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
    if not isinstance(inputs, Mapping):
        return
    bare = unwrap(model)
    try:
        arguments = inspect.signature(bare.forward).parameters.values()
    except (TypeError, ValueError):
        return
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
        return
    by_name = [a.name for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)]
    strange = [name for name in inputs if name not in by_name]
    if strange:
        raise BatchError(
            f"{where}: the entries of a mapping become arguments of the model, and {type(bare).__name__}.forward "
            f"({', '.join(by_name) or 'which has none by name'}) has none called {', '.join(map(repr, strange))}. "
            f"{_remedy(batch)}"
        )


def _remedy(batch: Any) -> str:
    if not isinstance(batch, Mapping):
        return "Name the entries as the arguments are, or pass ((first, second, ...), targets)."
    target = next((name for name in _TARGETS if name in batch), None)
    others = [name for name in batch if name != target]
    if target is None:
        return "Name the entries as the arguments are, or pass (inputs, targets)."
    inputs = ", ".join(f'batch["{name}"]' for name in others)
    inputs = inputs if len(others) == 1 else f"({inputs})"
    return f'Pass [({inputs}, batch["{target}"]) for batch in data].'
